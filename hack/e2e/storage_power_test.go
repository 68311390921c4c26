package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/hack/writelog"
)

// smallDisk is the size of the disks of small systems, in bytes.
const smallDisk = 2 << 30

var handedOver = regexp.MustCompile(`(?m)\] finish: handing over to (\S+) by (?:kexec|reboot)\n|FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)

// smallSite is an image server with small systems of several editions.
type smallSite struct {
	server *lab.Server
	image  map[string]string // edition → name of its image
}

// smalls is made once, by the first test that asks for it.
var smalls = sync.OnceValues(func() (map[string]string, error) {
	roots := make(map[string]string)
	for _, edition := range []string{"old", "new"} {
		roots[edition] = filepath.Join(site.Dir, "small-"+edition+".tar")
		if err := lab.MakeSmallRoot(roots[edition], site.Products.Root, edition); err != nil {
			return nil, err
		}
	}
	return roots, nil
})

// serveSmall serves small systems until the test ends.
func serveSmall(t *testing.T) *smallSite {
	t.Helper()
	roots, err := smalls()
	if err != nil {
		t.Fatal(err)
	}
	s := &smallSite{serve(t, site, filepath.Join(t.TempDir(), "store")), make(map[string]string)}
	for edition, root := range roots {
		s.image[edition] = "small/" + edition
		if err := site.Add(t.Context(), s.server, s.image[edition], root); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// smallLayout is an unencrypted root with the loader, and an encrypted volume.
const smallLayout = `{
  "BootDriveLayout": [
    {"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 268435456},
    {"FileSystemType": "ext4", "MountPoint": "/home", "MinimumFreeBytes": 67108864}
  ],
  "ExtraMountPointsBasename": "/data/", "Encrypt": true, "UseKexec": false
}
`

// installation of a small system: how it ended, and all that it said.
type smallInstallation struct {
	image  string // "" where it failed
	code   string
	text   string
	writes []qemu.Writes
	lines  *keptLines
}

// install installs an edition onto disks, to where it hands over or has failed.
func (s *smallSite) install(t *testing.T, edition, layout string, disks ...qemu.Disk) smallInstallation {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	config, err := site.NewConfig(lab.InGuest(s.server.Port))
	if err != nil {
		t.Fatal(err)
	}
	config["storage-layout.json"] = []byte(layout)
	config["imagename"] = []byte(s.image[edition] + "\n")
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := os.Mkdir(tftp, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range config {
		if err := os.WriteFile(filepath.Join(tftp, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	result := smallInstallation{lines: keepLines(t)}
	accel, _ := probe.Accel(ctx)
	c := qemu.Config{
		Accel: accel, Kernel: site.Kernel(), Initrd: site.Initramfs(), CommandLine: lab.CommandLine,
		Disks: disks, Net: qemu.Net{TFTP: tftp}, Log: filepath.Join(dir, "console.log"), NoReboot: true, Lines: result.lines.add,
		Args: []string{"-no-shutdown"}, // what was written is asked for after the end
	}
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	found, err := m.WaitFor(ctx, handedOver)
	if err != nil {
		t.Fatal(err)
	}
	result.image, result.code, result.text = found[1], found[2], found[3]
	if result.writes, err = m.Writes(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	return result
}

// bootSmall boots a machine from its disk alone. It returns the edition that
// reported itself and what it found wrong, or no edition where within the time
// nothing did.
func bootSmall(t *testing.T, limit time.Duration, disks ...qemu.Disk) (edition, wrong string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	accel, _ := probe.Accel(ctx)
	c := qemu.Config{Accel: accel, MemoryMiB: 512, Disks: disks, Net: qemu.Net{Absent: true}, NoReboot: true}
	var err error
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	found, err := m.WaitFor(ctx, lab.SmallReport)
	if err != nil {
		t.Logf("nothing reported itself: %v; the console's end:\n%s", err, m.Tail(15))
		return "", ""
	}
	return found[1], strings.TrimSpace(found[2])
}

// firmwarePart is how much of a disk, in bytes, holds what a PC's firmware
// starts: the first sector's program, which brings GRUB from the BIOS boot
// partition behind the table.
const firmwarePart = 2 << 20

// firmwareStarts is a hash of what the firmware of a PC starts from a disk, or
// "" where there is no program in the first sector: then nothing boots.
func firmwareStarts(disk io.ReaderAt) (string, error) {
	first := make([]byte, firmwarePart)
	if _, err := disk.ReadAt(first, 0); err != nil {
		return "", err
	}
	program := first[:440]
	if bytes.Count(program, []byte{0}) == len(program) {
		return "", nil
	}
	sum := sha256.Sum256(append(bytes.Clone(program), first[1<<20:]...))
	return fmt.Sprintf("%x", sum[:6]), nil
}

// TestStorageInterrupted installs a system over another one, by the log of
// whose writes power cuts and failing sectors are tried.
func TestStorageInterrupted(t *testing.T) {
	t.Parallel()
	s := serveSmall(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := qemu.CreateDisk(path("old"), smallDisk); err != nil {
		t.Fatal(err)
	}
	if r := s.install(t, "old", smallLayout, qemu.Disk{Path: path("old")}); r.code != "" {
		t.Fatalf("installing the old system: %s: %s", r.code, r.text)
	}
	if edition, wrong := bootSmall(t, 2*time.Minute, qemu.Disk{Path: path("old")}); edition != "old" || wrong != "" {
		t.Fatalf("the old system: edition %q, wrong: %q", edition, wrong)
	}
	for _, name := range []string{"new", "replayed"} {
		if err := lab.CopySparse(path(name), path("old")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path("log"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r := s.install(t, "new", smallLayout, qemu.Disk{Path: path("new"), WriteLog: path("log")}); r.code != "" {
		t.Fatalf("installing the new system: %s: %s", r.code, r.text)
	}
	l, err := writelog.Open(path("log"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Run("power cut", func(t *testing.T) { checkPowerCuts(t, path("replayed"), l) })
	t.Run("failing sector", func(t *testing.T) { checkFaults(t, s, path("old"), l) })
}

// checkPowerCuts cuts the power at every flush, from the old system on the
// disk to the new one: whatever boots from the disk then is the old system,
// whole, or the new one, whole. Without a program in the first sector nothing
// boots. Between two flushes a disk may keep any of the writes; such states
// are looked at too.
func checkPowerCuts(t *testing.T, disk string, l *writelog.Log) {
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	moments := l.Boundaries()
	random := rand.New(rand.NewPCG(1, 2))
	unbootable, booted := 0, 0
	last, times := "", 0 // what the firmware started in the states before, and how often that was booted
	// look boots a state, unless nothing can boot from it. make makes it, in a
	// file of its own, as the boot may write.
	look := func(what, program string, make func(path string) error) {
		if program == "" {
			unbootable++
		}
		if program != last {
			last, times = program, 0
		}
		if program == "" || times >= bootsOfAState {
			return
		}
		times++
		booted++
		state := disk + "-state"
		defer os.Remove(state)
		if err := make(state); err != nil {
			t.Fatal(err)
		}
		edition, wrong := bootSmall(t, 90*time.Second, qemu.Disk{Path: state})
		t.Logf("%s: the firmware starts %s: edition %q", what, program, edition)
		if edition != "" && wrong != "" {
			t.Errorf("%s: the machine boots edition %q, but %s", what, edition, wrong)
		}
	}
	for n, moment := range moments {
		if n > 0 {
			// Before this flush has ended the disk may have any of the writes.
			some := make(map[int]bool)
			for e := moments[n-1]; e < moment; e++ {
				some[e] = random.IntN(2) == 0
			}
			keep := func(e int) bool { return some[e] }
			look(fmt.Sprintf("some writes before flush %d of %d", n, len(moments)-1), startsAfter(t, l, f, moments[n-1], moment, keep), func(path string) error {
				return errors.Join(lab.CopySparse(path, disk), replay(l, path, moments[n-1], moment, keep))
			})
			if err := l.Replay(f, moments[n-1], moment, nil); err != nil {
				t.Fatal(err)
			}
		}
		look(fmt.Sprintf("power cut after flush %d of %d", n, len(moments)-1), startsAfter(t, l, f, moment, moment, nil), func(path string) error {
			return lab.CopySparse(path, disk)
		})
	}
	t.Logf("%d writes and discards, %d flushes; of the states %d cannot boot, %d were booted", l.Changes(), len(moments)-1, unbootable, booted)
	if unbootable == 0 {
		t.Error("at no moment the disk could not boot: the log is not that of an installation over another")
	}
	if edition, wrong := bootSmall(t, 2*time.Minute, qemu.Disk{Path: disk}); edition != "new" || wrong != "" {
		t.Errorf("the end of the log: edition %q, wrong: %q", edition, wrong)
	}
}

// replay writes entries of a log to the disk at path.
func replay(l *writelog.Log, path string, from, to int, keep func(int) bool) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(l.Replay(f, from, to, keep), f.Close())
}

// startsAfter is what the firmware starts from a disk after some further
// writes, which the disk itself is spared.
func startsAfter(t *testing.T, l *writelog.Log, disk *os.File, from, to int, keep func(int) bool) string {
	t.Helper()
	first, err := os.Create(filepath.Join(t.TempDir(), "first"))
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(first.Name())
	defer first.Close()
	if _, err := io.Copy(first, io.NewSectionReader(disk, 0, firmwarePart)); err != nil {
		t.Fatal(err)
	}
	if err := l.Replay(first, from, to, keep); err != nil {
		t.Fatal(err)
	}
	program, err := firmwareStarts(first)
	if err != nil {
		t.Fatal(err)
	}
	return program
}
