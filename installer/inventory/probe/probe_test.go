package probe

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// TestRun looks at a machine whose disks are plain files: a real file system
// made by mkfs.ext4, an empty disk, and one whose node is missing.
func TestRun(t *testing.T) {
	const size = 16 << 20
	dev := t.TempDir()
	disk := func(name string) string {
		path := filepath.Join(dev, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := disk("vda")
	run(t, "mkfs.ext4", "-q", "-L", "old", "-U", "0e0e0e0e-1111-2222-3333-444444444444", full)
	disk("vdb")
	before, err := os.ReadFile(full)
	if err != nil {
		t.Fatal(err)
	}

	sys := fstest.MapFS{"class": {Mode: os.ModeDir}}
	for _, name := range []string{"vda", "vdb", "vdc"} {
		sys["block/"+name+"/size"] = &fstest.MapFile{Data: []byte("32768\n")}
		sys["block/"+name+"/queue/logical_block_size"] = &fstest.MapFile{Data: []byte("512\n")}
	}
	proc := fstest.MapFS{
		"meminfo": {Data: []byte("MemTotal:        2030436 kB\nMemFree:         1000000 kB\nMemAvailable:    1500000 kB\n")},
		"stat":    {Data: []byte("cpu  1 2 3\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\n")},
	}
	seed := inventory.Seed{1, 2, 3}
	d, err := Run(t.Context(), Seams{Sys: sys, Proc: proc, Dev: dev}, seed)
	if err != nil {
		t.Fatal(err)
	}
	if d.Seed != seed || d.CPUs != 2 || d.MemoryBytes != 2030436<<10 || d.MemoryAvailableBytes != 1500000<<10 || d.Arch == "" {
		t.Errorf("implausible document: %+v", d)
	}
	if len(d.Disks) != 3 {
		t.Fatalf("%d disks: want 3", len(d.Disks))
	}
	want := []storage.Content{{Where: "vda", Kind: "ext4", Label: "old", UUID: "0e0e0e0e-1111-2222-3333-444444444444", Size: size}}
	if diff := cmp.Diff(want, d.Disks[0].Contents); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(d.Disks[1].Contents) != 0 {
		t.Errorf("found on an empty disk: %+v", d.Disks[1].Contents)
	}
	if !d.Disks[2].Foreign() {
		t.Error("a disk that cannot be read passes for one that may be erased unasked")
	}
	if !slices.ContainsFunc(d.Warnings, func(w string) bool { return strings.Contains(w, "vdc") }) {
		t.Errorf("no warning about the disk that cannot be read: %q", d.Warnings)
	}
	after, err := os.ReadFile(full)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, after) {
		t.Error("the disk was changed")
	}
}

// TestHangingDisk: a read that never returns must not hold the installation.
func TestHangingDisk(t *testing.T) {
	dev := t.TempDir()
	// Opening a FIFO for reading waits for a writer, as a dying disk may.
	if err := unix.Mkfifo(filepath.Join(dev, "sda"), 0o600); err != nil {
		t.Fatal(err)
	}
	disks := []storage.Disk{{Name: "sda", Path: "/dev/sda", Size: 1 << 20}}
	warnings := contents(t.Context(), dev, disks, 50*time.Millisecond)
	if len(warnings) != 1 || !strings.Contains(warnings[0], "sda: no answer") {
		t.Errorf("warnings: %q", warnings)
	}
	if !disks[0].Foreign() {
		t.Error("a disk that does not answer passes for one that may be erased unasked")
	}
}

func TestNoMemoryInformation(t *testing.T) {
	sys := fstest.MapFS{"class": {Mode: os.ModeDir}}
	for name, proc := range map[string]fstest.MapFS{
		"no file":  {},
		"no total": {"meminfo": {Data: []byte("MemFree: 1 kB\n")}},
	} {
		if _, err := Run(t.Context(), Seams{Sys: sys, Proc: proc, Dev: t.TempDir()}, inventory.Seed{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestTPM asks a real TPM, swtpm.
func TestTPM(t *testing.T) {
	chip := tpm2test.Measured(t)
	var found inventory.TPM
	if err := readTPM(t.Context(), chip.TPM, &found); err != nil {
		t.Fatal(err)
	}
	if found.Manufacturer != "IBM" || len(found.PCRs) != 24 || found.PCRs[8] != strings.Repeat("0", 64) || found.PCRs[7] == found.PCRs[8] {
		t.Errorf("%+v", found)
	}
	if err := askTPM(t.Context(), filepath.Join(t.TempDir(), "none"), &found); err == nil {
		t.Error("a TPM that is not there answered")
	}
}

// TestThisMachine reads the real thing, as far as this user may.
func TestThisMachine(t *testing.T) {
	d, err := Run(t.Context(), Seams{Sys: os.DirFS("/sys"), Proc: os.DirFS("/proc"), Dev: "/dev"}, inventory.Seed{})
	if err != nil {
		t.Fatal(err)
	}
	if d.MemoryBytes < 64<<20 || d.CPUs < 1 || d.MemoryAvailableBytes > d.MemoryBytes {
		t.Errorf("implausible: %+v", d)
	}
	data, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inventory.Parse(data); err != nil {
		t.Error(err)
	}
	t.Logf("%s", data)
}

// TestMountedDevices reads the mounts of an installer and those of a system that
// runs from a disk.
func TestMountedDevices(t *testing.T) {
	installer := "1 1 0:2 / / rw - rootfs rootfs rw\n" +
		"20 1 0:21 / /run rw - tmpfs tmpfs rw\n" +
		"33 20 8:17 / /run/installer/medium ro,nosuid - vfat /dev/sdb1 ro\n" +
		"34 20 0:44 /@ /mnt\\040x rw shared:7 - btrfs /dev/sdc2 rw,subvol=/@\n"
	got, err := mountedDevices(fstest.MapFS{"self/mountinfo": {Data: []byte(installer)}})
	if diff := cmp.Diff([]string{"8:17", "/dev/sdc2"}, got); diff != "" || err != nil {
		t.Errorf("%v, -want +got:\n%s", err, diff)
	}
	installed := "1 1 8:2 / / rw - ext4 /dev/sda2 rw\n2 1 8:1 / /boot rw - ext4 /dev/sda1 rw\n"
	if got, err := mountedDevices(fstest.MapFS{"self/mountinfo": {Data: []byte(installed)}}); got != nil || err != nil {
		t.Errorf("a system on a disk: %q, %v", got, err)
	}
	if _, err := mountedDevices(fstest.MapFS{}); err == nil {
		t.Error("no mountinfo, and no error")
	}
}
