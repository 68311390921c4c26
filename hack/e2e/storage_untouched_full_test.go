//go:build full

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestStorageUntouched: file-systems whose machine lost its power, which any
// ordinary mount would repair, even a read-only one, are searched for objects
// without a write.
func TestStorageUntouched(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	if err := qemu.CreateDisk(target, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
	disks := []string{target}
	for _, d := range []struct {
		kind  string
		make  []string
		dirty func(disk string) bool
	}{
		{"ext4", []string{"mkfs.ext4", "-q", "-F"}, func(disk string) bool {
			return strings.Contains(command(t, "dumpe2fs", "-h", disk), "needs_recovery")
		}},
		{"xfs", []string{"mkfs.xfs", "-q"}, func(disk string) bool {
			return strings.Contains(command(t, "xfs_logprint", "-t", disk), "<DIRTY>")
		}},
		{"btrfs", []string{"mkfs.btrfs", "-q"}, func(disk string) bool {
			super := command(t, "btrfs", "inspect-internal", "dump-super", disk)
			return !strings.Contains(strings.Join(strings.Fields(super), " "), "log_root 0 ")
		}},
	} {
		disk := filepath.Join(dir, d.kind)
		losePower(t, disk, d.make...)
		if !d.dirty(disk) {
			t.Fatalf("the %s has nothing to recover", d.kind)
		}
		disks = append(disks, disk)
	}
	r := reuseFrom(t, disks...)
	for n, kind := range []string{"ext4", "xfs", "btrfs"} {
		if tree := fmt.Sprintf("objects from /dev/vd%c (%s)", 'b'+n, kind); r.lines.index(tree) < 0 {
			t.Errorf("the console lacks %q", tree)
		}
	}
}

// losePower makes a file-system with some of the image's files, and leaves it
// as a power cut would: mounted, and with changes in its log.
func losePower(t *testing.T, disk string, mkfs ...string) {
	t.Helper()
	live := disk + "-live"
	if err := qemu.CreateDisk(live, 1<<30); err != nil {
		t.Fatal(err)
	}
	command(t, mkfs[0], append(mkfs[1:], live)...)
	at := t.TempDir()
	command(t, "mount", "-o", "loop", live, at)
	defer os.Remove(live)
	defer command(t, "umount", at)
	command(t, "tar", "-C", at, "-xf", site.Products.Root, "./boot")
	command(t, "sync", "-f", at)
	for n := range 50 {
		f, err := os.Create(filepath.Join(at, fmt.Sprint("unfinished-", n)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(bytes.Repeat([]byte("firstlight"), n)); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil { // into the log
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := lab.CopySparse(disk, live); err != nil {
		t.Fatal(err)
	}
}
