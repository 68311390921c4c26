package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// record keeps the inventory of TestStorageChoose's machine, for the tests of
// package storage.
var record = flag.String("record", "", "write the inventory of a machine with disks on every bus to this file")

var (
	planned = regexp.MustCompile(`\] plan: plan (sha256:[0-9a-f]{64})\s`)
	held    = regexp.MustCompile(`finish: the hand-over is held|FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)
)

// holding is a notifier that holds the hand-over, so that the machine can be
// looked at when everything is written.
const holding = heading + "kill -TSTP $(pidof installer)\nsleep 1\n"

// storageConfig is f.config with another layout.
func (f *faces) storageConfig(image string, layout map[string]any) lab.Config {
	c := f.config("10.0.2.2", image)
	data, err := json.Marshal(layout)
	if err != nil {
		panic(err) // strings, numbers and lists only
	}
	c["storage-layout.json"] = data
	return c
}

// addImage adds an image that can be installed, with more files than smallImage.
func (f *faces) addImage(t *testing.T, name string, more map[string]string) {
	t.Helper()
	files := f.system(t, archive(t, nil, initramfs{"init": {f.program, 0o755}, "dev/console": {}}))
	files["usr/sbin/cryptsetup"] = f.program
	for path, text := range more {
		files[path] = []byte(text)
	}
	source := filepath.Join(t.TempDir(), "image.tar")
	f.writeImage(t, source, files)
	if err := site.Add(t.Context(), f.server, name, source); err != nil {
		t.Fatal(err)
	}
}

func diskWith(t *testing.T, dir, name string, size int64, tool ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := qemu.CreateDisk(path, size); err != nil {
		t.Fatal(err)
	}
	if len(tool) > 0 {
		if out, err := exec.Command(tool[0], append(tool[1:], path)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", tool, err, out)
		}
	}
	return path
}

// contentOf is the SHA-256 of what a disk holds, wherever the host has it: which
// zeroes of a sparse file are holes changes when the host writes back what mkfs
// wrote. That no write came is QEMU's to tell.
func contentOf(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close() // only read from
	h, block := sha256.New(), make([]byte, 1<<20)
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			h.Sum(sum[:0])
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
		at = from &^ (int64(len(block)) - 1)
		n, err := f.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return sum, err
		}
		if len(bytes.Trim(block[:n], "\x00")) > 0 {
			fmt.Fprintln(h, at, n)
			h.Write(block[:n])
		}
		at += int64(len(block))
	}
}

// TestStorageChoose installs on two of eight disks, on every bus, chosen by what
// they are. The others get no write at all, and hold what they held. The plan
// that the machine made comes out of its recorded inventory again, to the byte.
func TestStorageChoose(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	f := newFaces(t)
	dir := t.TempDir()
	const gib = 1 << 30
	ext4 := []string{"mkfs.ext4", "-q", "-F", "-L", "precious"}
	wwn := "wwn=0x5000c50012345678"
	disks := []qemu.Disk{
		{Path: diskWith(t, dir, "virtio", 8*gib, ext4...), Serial: "virtio-512"},
		{Path: diskWith(t, dir, "nvme", 3*gib, "mkfs.xfs", "-q"), Serial: "nvme-512", Bus: qemu.NVMe},
		{Path: diskWith(t, dir, "nvme4096", 3*gib), Serial: "nvme-4096", Bus: qemu.NVMe, SectorSize: 4096},
		{Path: diskWith(t, dir, "ahci", 3*gib, ext4...), Serial: "ahci-0", Bus: qemu.AHCI},
		{Path: diskWith(t, dir, "ahci2", 4*gib, "mkswap"), Serial: "ahci-1", Bus: qemu.AHCI},
		{Path: diskWith(t, dir, "path1", 2*gib, "mkfs.btrfs", "-q"), Serial: "lun", Bus: qemu.SCSI, Properties: []string{wwn}},
		{Path: diskWith(t, dir, "path2", 2*gib, "mkfs.btrfs", "-q"), Serial: "lun", Bus: qemu.SCSI, Properties: []string{wwn}},
		{Path: diskWith(t, dir, "stick", gib, "mkfs.vfat", "-n", "STICK"), Serial: "stick", Bus: qemu.USB},
	}
	chosen := []int{3, 2} // the boot disk, the data disk
	var before [][32]byte
	for _, d := range disks {
		sum, err := contentOf(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, sum)
	}
	config := f.storageConfig(smallImage, map[string]any{
		"BootDriveLayout":          []any{map[string]any{"MountPoint": "/", "MinimumFreeBytes": 64 << 20}},
		"ExtraMountPointsBasename": "/data/",
		"BootDisk":                 map[string]any{"Path": "/dev/disk/by-path/*-ata-1", "MaximumBytes": 3 * gib},
		"DataDisks":                []any{map[string]any{"Serial": "nvme-4096", "Transport": "nvme"}},
	})
	files := onBoard(config)
	files["test/notifier"] = initFile{[]byte(holding), 0o755}
	page, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	m := f.machine(t, files, "installer.skipNetwork installer.completionNotifier=/test/notifier", func(c *qemu.Config) {
		c.Disks, c.Net = disks, qemu.Net{Forwards: map[int]int{page: 6978}}
	})
	found := waitFor(ctx, t, m, held)
	if found[1] != "" {
		t.Fatalf("it failed with %s: %s", found[1], found[2])
	}
	hash := planned.FindStringSubmatch(m.Text())
	if hash == nil {
		t.Fatal("the console tells no plan")
	}
	address := fmt.Sprintf("http://127.0.0.1:%d/api/v1/", page)
	inventory, plan := get(ctx, t, address+"inventory"), get(ctx, t, address+"plan")
	writes, err := m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	if *record != "" {
		if err := os.WriteFile(*record, inventory, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for n, d := range disks {
		after, err := contentOf(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		switch used := slices.Contains(chosen, n); {
		case used && (writes[n].None() || after == before[n]):
			t.Errorf("%s was chosen, and nothing was written to it", d.Serial)
		case !used && (!writes[n].None() || after != before[n]):
			t.Errorf("%s was not chosen: written were %+v, changed: %t", d.Serial, writes[n], after != before[n])
		}
	}
	for _, text := range []string{
		"chosen by: BootDisk: at most 3.0 GiB, Path /dev/disk/by-path/*-ata-1",
		"chosen by: DataDisks[0]: Serial nvme-4096, Transport nvme",
		`  ext4 "precious", 3.0 GiB`, "it is connected by USB",
	} {
		if !strings.Contains(m.Text(), text) {
			t.Errorf("the console lacks %q", text)
		}
	}
	f.planAgain(ctx, t, config, inventory, plan, hash[1])
}

// planAgain makes a machine's plan on another one.
func (f *faces) planAgain(ctx context.Context, t *testing.T, config lab.Config, inventory, plan []byte, hash string) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range config {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "inventory.json")
	if err := os.WriteFile(file, inventory, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(checkout, "bin", "firstlight"), "--site", site.Dir, "--imageserver", fmt.Sprintf("127.0.0.1:%d", f.port),
		"plan", "--skip-network", "--inventory", file, "--config", dir, "--json").Output()
	if err != nil {
		t.Fatalf("firstlight plan: %v", err)
	}
	if !bytes.Equal(bytes.TrimSpace(out), bytes.TrimSpace(plan)) {
		t.Errorf("the plan of the recorded inventory (the machine's was %s) is another one:\n%s\nwant\n%s", hash, out, plan)
	}
}

// TestStorageSwapped: a disk is exchanged for another one of the same size,
// between the plan and the first write. Nothing is written to any disk.
func TestStorageSwapped(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	f := newFaces(t)
	dir := t.TempDir()
	disks := []qemu.Disk{
		{Path: diskWith(t, dir, "first", 2<<30, "mkfs.ext4", "-q", "-F"), Serial: "first"},
		{Path: diskWith(t, dir, "second", 2<<30), Serial: "second", Bus: qemu.SCSI},
	}
	other := qemu.Disk{Path: diskWith(t, dir, "other", 2<<30), Serial: "other", Bus: qemu.SCSI}
	all := append(slices.Clone(disks), other)
	var before [][32]byte
	for _, d := range all {
		sum, err := contentOf(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, sum)
	}
	m := f.machine(t, onBoard(f.config("10.0.2.2", smallImage)), "installer.skipNetwork", func(c *qemu.Config) { c.Disks = disks })
	waitFor(ctx, t, m, regexp.MustCompile(`\] inventory: /dev/sda .*\n`))
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(m.Text(), "point of no return") {
		t.Fatal("the machine was too fast for this test")
	}
	if err := m.Swap(ctx, 1, other); err != nil {
		t.Fatal(err)
	}
	if err := m.Continue(ctx); err != nil {
		t.Fatal(err)
	}
	found := waitFor(ctx, t, m, failedLine)
	if !slices.Contains([]string{"STO-006", "STO-008"}, found[1]) || !strings.HasSuffix(found[2], "; disks untouched") {
		t.Errorf("it failed with %s: %s", found[1], found[2])
	}
	if strings.Contains(m.Text(), "point of no return") {
		t.Error("the point of no return was passed")
	}
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	for n, d := range all {
		if after, err := contentOf(d.Path); err != nil || after != before[n] {
			t.Errorf("%s has changed, %v", d.Serial, err)
		}
	}
}

// keptScript looks at what was kept, while the new root is mounted, and notes it
// there.
const keptScript = heading + `{
	cat $2/home/letter $2/data/0/table
	ls $2/home $2/data/0
	cat $2/etc/fstab $2/etc/crypttab
	ls -l $2/etc/keys
} >$2/etc/seen 2>&1
`

// TestStoragePreserve: an encrypted and a plain volume outlive a second
// installation with another image; everything else is new, and the encrypted
// one is opened by its old key from the new root.
func TestStoragePreserve(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	f := newFaces(t)
	f.addImage(t, "faces/letters/1", map[string]string{"home/letter": "dear friend\n", "data/0/table": "rows\n", "etc/only-here": "old\n"})
	f.addImage(t, "faces/empty/1", map[string]string{"home/from-image": "not to be written\n"})
	dir := t.TempDir()
	disks := []qemu.Disk{{Path: diskWith(t, dir, "disk", 4<<30), Serial: "disk"}}
	layout := map[string]any{
		"BootDriveLayout": []any{
			map[string]any{"MountPoint": "/", "MinimumFreeBytes": 128 << 20},
			map[string]any{"MountPoint": "/home", "MinimumFreeBytes": 64 << 20},
			map[string]any{"MountPoint": "/var/log", "MinimumFreeBytes": 64 << 20},
		},
		"ExtraMountPointsBasename": "/data/", "Encrypt": true,
	}
	install := func(image string) string {
		files := onBoard(f.storageConfig(image, layout))
		files["test/configurator"] = initFile{[]byte(keptScript), 0o755}
		m := f.machine(t, files, "installer.networkConfigurator=/test/configurator", func(c *qemu.Config) { c.Disks = disks })
		found := waitFor(ctx, t, m, regexp.MustCompile(`finish: handing over to \S+ by reboot|FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`))
		if found[1] != "" {
			t.Fatalf("%s: it failed with %s: %s", image, found[1], found[2])
		}
		m.Kill()
		return m.Text()
	}
	install("faces/letters/1")
	seen := debugRoot(t, disks[0].Path, "cat /etc/seen")
	if !strings.Contains(seen, "dear friend\nrows\n") {
		t.Fatalf("the first installation has in its volumes:\n%s", seen)
	}
	before := partitions(t, disks[0].Path)

	layout["Preserve"] = []string{"home", "data-0"}
	console := install("faces/empty/1")
	for _, text := range []string{"KEPT: vda3  luks", "KEPT: vda5  luks", "WILL BE ERASED, BUT FOR WHAT IS KEPT: /dev/vda", "lost: vda4  luks", "vda3: open", "vda4: encrypt"} {
		if !strings.Contains(console, text) {
			t.Errorf("the console lacks %q", text)
		}
	}
	seen = debugRoot(t, disks[0].Path, "cat /etc/seen")
	if !strings.HasPrefix(seen, "dear friend\nrows\n") || strings.Contains(seen, "from-image") {
		t.Errorf("after the second installation the volumes hold:\n%s", seen)
	}
	if old := debugRoot(t, disks[0].Path, "cat /etc/only-here"); old != "" {
		t.Errorf("the old root is there: %q", old)
	}
	after := partitions(t, disks[0].Path)
	for _, n := range []int{2, 4} {
		if after[n] != before[n] {
			t.Errorf("partition %d is %+v, was %+v", n+1, after[n], before[n])
		}
	}

	// A key that is not there any more: the plan can be made, and the
	// installation ends before the commit.
	debugRoot(t, disks[0].Path, "rm /etc/keys/home.key", "-w")
	sum, err := contentOf(disks[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	m := f.machine(t, onBoard(f.storageConfig("faces/empty/1", layout)), "installer.skipNetwork", func(c *qemu.Config) { c.Disks = disks })
	found := waitFor(ctx, t, m, failedLine)
	if found[1] != "STO-023" || !strings.HasSuffix(found[2], "; disks untouched") || !strings.Contains(found[2], "/home") {
		t.Errorf("it failed with %s: %s", found[1], found[2])
	}
	m.Kill()
	if after, err := contentOf(disks[0].Path); err != nil || after != sum {
		t.Errorf("the disk was changed, %v", err)
	}
}

// partition is an entry of a disk's table.
type partition struct {
	Start, Size      int64
	UUID, Type, Name string
}

func partitions(t *testing.T, disk string) []partition {
	t.Helper()
	out, err := exec.Command("sfdisk", "--json", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		PartitionTable struct{ Partitions []partition }
	}
	if err := json.Unmarshal(out, &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed.PartitionTable.Partitions
}

// debugRoot asks debugfs(8) about the root file-system of a disk.
func debugRoot(t *testing.T, disk, request string, flags ...string) string {
	t.Helper()
	const linuxRoot = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	for _, p := range partitions(t, disk) {
		if p.Type == linuxRoot {
			out, err := exec.Command("debugfs", append(flags, "-R", request, fmt.Sprintf("%s?offset=%d", disk, p.Start*512))...).Output()
			if err != nil {
				t.Errorf("debugfs %s: %v", request, err)
			}
			return string(out)
		}
	}
	t.Fatalf("%s has no partition for a root", disk)
	return ""
}
