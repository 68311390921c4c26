package mkfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tool"
)

func file(t *testing.T, size uint64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, int64(size)); err != nil {
		t.Fatal(err)
	}
	return name
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestFormat(t *testing.T) {
	const id = "01234567-89ab-8def-8123-456789abcdef"
	cases := []struct {
		size   uint64
		sector uint32
		p      storage.Partition
		fsck   []string
	}{
		{96 * storage.MiB, 512, storage.Partition{FileSystem: "ext4", Label: "var log", FSUUID: id, BytesPerInode: 8192, ReservedBlocksPercentage: 3, RootUserID: 1000, RootGroupID: 100}, []string{"/usr/sbin/e2fsck", "-fn"}},
		{256 * storage.MiB, 512, storage.Partition{FileSystem: "vfat", Label: "ESP", FSUUID: "89AB-CDEF"}, []string{"/usr/sbin/fsck.vfat", "-n"}},
		{64 * storage.MiB, 512, storage.Partition{FileSystem: "vfat", Label: "SMALL", FSUUID: "0000-0001"}, []string{"/usr/sbin/fsck.vfat", "-n"}},
		{512 * storage.MiB, 4096, storage.Partition{FileSystem: "vfat", Label: "ESP", FSUUID: "89AB-CDEF"}, []string{"/usr/sbin/fsck.vfat", "-n"}},
		{320 * storage.MiB, 512, storage.Partition{FileSystem: "xfs", Label: "srv", FSUUID: id}, []string{"/usr/sbin/xfs_repair", "-n", "-f"}},
		{300 * storage.MiB, 512, storage.Partition{FileSystem: "btrfs", Label: "a label", FSUUID: id}, []string{"/usr/bin/btrfs", "check"}},
		{64 * storage.MiB, 512, storage.Partition{FileSystem: "swap", Label: "swap", FSUUID: id}, []string{"/usr/sbin/swaplabel"}},
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s-%d-%d", c.p.FileSystem, c.size, c.sector), func(t *testing.T) {
			f := file(t, c.size)
			c.p.Bytes = c.size
			cmd, err := Format(f, c.sector, c.p)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (tool.Exec{}).Run(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			out := run(t, "/usr/sbin/blkid", "-p", "-o", "export", f)
			for _, want := range []string{"TYPE=" + c.p.FileSystem + "\n", "UUID=" + c.p.FSUUID + "\n", "LABEL=" + strings.ReplaceAll(c.p.Label, " ", `\ `) + "\n"} {
				if !strings.Contains(out, want) {
					t.Errorf("blkid does not say %q:\n%s", want, out)
				}
			}
			if c.p.FileSystem == "vfat" && !strings.Contains(out, "VERSION=FAT32") {
				t.Errorf("it is not FAT32:\n%s", out)
			}
			run(t, c.fsck[0], append(c.fsck[1:], f)...)
			if c.p.FileSystem == "ext4" {
				out := run(t, "/usr/sbin/debugfs", "-R", "stat /", f)
				if !strings.Contains(out, "User:  1000   Group:   100") {
					t.Errorf("owner of the root directory:\n%s", out)
				}
			}
		})
	}
}

func TestFormatRefuses(t *testing.T) {
	_, err := Format("/dev/null", 512, storage.Partition{FileSystem: "zfs"})
	if e, ok := err.(*storage.Error); !ok || e.Code() != storage.CodeFileSystem {
		t.Errorf("%v", err)
	}
}

// The layout promises so much free space; the real mke2fs must leave that much.
func TestLayoutKeepsItsPromise(t *testing.T) {
	for _, c := range []struct {
		free, inode uint64
		reserved    uint
	}{
		{100 * storage.MiB, 0, 0},
		{512 * storage.MiB, 0, 0},
		{1 * storage.GiB, 4096, 0},
		{2 * storage.GiB, 0, 20},
		{40 * storage.GiB, 0, 1},
		{300 * storage.GiB, 1 << 20, 1},
	} {
		t.Run(storage.Bytes(c.free), func(t *testing.T) {
			spec := storage.Spec{Volumes: []storage.VolumeSpec{
				{MountPoint: "/", MinimumFreeBytes: c.free, BytesPerInode: c.inode, ReservedBlocksPercentage: c.reserved},
				{MountPoint: "/rest"},
			}}
			disk := storage.Disk{Name: "vda", Path: "/dev/vda", Size: 1 << 40, SectorSize: 512}
			l, err := storage.Resolve(spec, []storage.Disk{disk}, nil, storage.Need{}, storage.BIOS, func(n string) (id [16]byte) { copy(id[:], n); return })
			if err != nil {
				t.Fatal(err)
			}
			p := l.Disks[0].Partitions[1]
			f := file(t, p.Bytes)
			cmd, err := Format(f, 512, p)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (tool.Exec{}).Run(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			var free, reserved uint64
			for line := range strings.SplitSeq(run(t, "/usr/sbin/dumpe2fs", "-h", f), "\n") {
				fmt.Sscanf(line, "Free blocks: %d", &free)
				fmt.Sscanf(line, "Reserved block count: %d", &reserved)
			}
			available := (free - reserved) * 4096
			if available < c.free {
				t.Errorf("%s available, promised %s of %s", storage.Bytes(available), storage.Bytes(c.free), storage.Bytes(p.Bytes))
			}
			if available > c.free+c.free/50+16*storage.MiB {
				t.Errorf("%s available, that is much more than %s", storage.Bytes(available), storage.Bytes(c.free))
			}
		})
	}
}
