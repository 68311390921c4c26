//go:build full

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/qemu"
)

// These have an image of one program: what they show is what the installer does
// with disks.

var atIdentity = regexp.MustCompile(`\] identity: |FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)

// TestStorageEightVolumes: eight encrypted volumes in a machine with 1 GiB of
// memory, on an AHCI disk of which every sector is overwritten first. Nothing of
// what was on it can be found afterwards, memory never ran out, and the machine
// boots the disk.
func TestStorageEightVolumes(t *testing.T) {
	volumes := []object{{"MountPoint": "/", "MinimumFreeBytes": 128 << 20}}
	for n := range 7 {
		volumes = append(volumes, object{"MountPoint": fmt.Sprint("/volume", n), "MinimumFreeBytes": 16 << 20})
	}
	disk := newDisk(t, 3<<29, qemu.Disk{Bus: qemu.AHCI, Serial: "eight"})
	old := []byte("what was on this disk before, and belongs to somebody")
	scatter(t, disk.Path, old)
	b := (&bootable{image: tinyImage, options: "hang-after-kexec", layout: plain(object{
		"BootDriveLayout": volumes, "ExtraMountPointsBasename": "/data/", "Encrypt": true, "Erase": "overwrite",
	}), machine: qemu.Config{MemoryMiB: 1024, Disks: []qemu.Disk{disk}}}).uefi(t)
	b.install(t)
	if !strings.Contains(b.console, "every key slot of 8 encrypted volumes was opened once") {
		t.Error("the volumes were not proved")
	}
	if line := regexp.MustCompile(`(?i).*(out of memory|oom-kill|oom_reaper).*`).FindString(b.console); line != "" {
		t.Error(line)
	}
	if n := count(t, disk.Path, old); n != 0 {
		t.Errorf("what was on the disk is still there %d times", n)
	}
	c := b.machine
	c.Accel, _ = probe.Accel(t.Context())
	m := powerOn(t, c, keepLines(t))
	bootsByItsEntry(t, m)
	m.Kill()
}

// scatter writes a text into a disk, once in each MiB but for the first and last.
func scatter(t *testing.T, path string, text []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(1 << 20); at < info.Size()-1<<20; at += 1<<20 + 512 {
		if _, err := f.WriteAt(text, at); err != nil {
			t.Fatal(err)
		}
	}
}

// count is how often a text, which crosses no 512 bytes, stands on a disk.
func count(t *testing.T, path string, text []byte) (n int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 1<<20); ; {
		got, err := io.ReadFull(f, buf)
		n += bytes.Count(buf[:got], text)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestStorageSlowDisks: three slow disks take as long as one. Each is written and
// read back once at a rate that is known.
func TestStorageSlowDisks(t *testing.T) {
	const size, rate = 256 << 20, 16 << 20 // bytes, bytes per second
	disks := []qemu.Disk{newDisk(t, 1<<30, qemu.Disk{Serial: "boot"})}
	for n := range 3 {
		disks = append(disks, newDisk(t, size, qemu.Disk{Serial: fmt.Sprint("slow", n), BytesPerSecond: rate}))
	}
	b := &bootable{image: tinyImage, layout: plain(object{"ExtraMountPointsBasename": "/data/", "Erase": "overwrite", "BootDisk": object{"Serial": "boot"}}), machine: qemu.Config{
		MemoryMiB: 1024, Disks: disks,
	}}
	m := b.installer(t)
	await(t, m, 5*time.Minute, regexp.MustCompile(`commit: point of no return`))
	begin := time.Now()
	if found := await(t, m, 10*time.Minute, atIdentity); found[1] != "" {
		t.Fatal(found[0])
	}
	took, one := time.Since(begin), 2*size/rate*time.Second
	t.Logf("three disks, of which each takes at least %s: %s", one, took.Round(time.Second))
	if took < one*9/10 {
		t.Errorf("the disks were not slow: %s", took)
	}
	if took > 2*one {
		t.Errorf("three disks took %s, one alone takes %s: they waited for each other", took, one)
	}
	m.Kill()
}

// TestStorageThrownOut: a disk of a RAID 1 does not take a write, of which those
// who write to the RAID hear nothing; the installation says so and fails.
func TestStorageThrownOut(t *testing.T) {
	// The first blocks of the file system: behind the table, the description of
	// the array and, at 1 MiB, the beginning of the partition.
	const fileSystem = (1<<20 + 2<<20) / 512
	bad := newDisk(t, 512<<20, qemu.Disk{Serial: "bad", Faults: []qemu.Fault{{Sector: fileSystem + 2, Errno: int(syscall.EIO)}}})
	b := &bootable{image: tinyImage, layout: plain(object{
		"ExtraMountPointsBasename": "/data/", "DataRAID": "raid1", "BootDisk": object{"Serial": "boot"},
	}), machine: qemu.Config{MemoryMiB: 1024, Disks: []qemu.Disk{
		newDisk(t, 1<<30, qemu.Disk{Serial: "boot"}), newDisk(t, 512<<20, qemu.Disk{Serial: "good"}), bad,
	}}}
	m := b.installer(t)
	found := await(t, m, 10*time.Minute, overOrFailed)
	if found[2] != "STO-026" || !strings.Contains(found[3], "the array data-1 of ") || !strings.HasSuffix(found[3], "; disks changed") {
		t.Errorf("it ended with %q, want STO-026", found[0])
	}
	writes, err := m.Writes(t.Context())
	if err != nil || writes[2].Failed == 0 {
		t.Errorf("no write failed: %+v, %v", writes, err)
	}
	m.Kill()
}
