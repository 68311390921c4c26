// Package mkfs makes the command lines that make file systems: mke2fs(8),
// mkfs.fat(8), mkfs.xfs(8), mkfs.btrfs(8), mkswap(8).
//
// It runs nothing, and decides nothing: UUIDs, labels and sizes are in the
// layout.
package mkfs

import (
	"fmt"
	"strings"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tool"
)

// Format is the command that makes the file system of p on a device (the
// partition or its mapping). The error has code STO-004 when nothing here can
// make it.
func Format(device string, sectorSize uint32, p storage.Partition) (tool.Cmd, error) {
	c := tool.Cmd{Name: "mkfs." + p.FileSystem}
	if p.FileSystem == storage.Swap {
		c.Name = "mkswap"
	}
	switch p.FileSystem {
	case storage.Ext4:
		// Block and inode size are fixed because the layout was computed with
		// them: mke2fs takes 1 KiB blocks for small file systems. The kernel
		// zeroes inode tables in the background after the first mount. The
		// journal is not zeroed: checksums (metadata_csum, which mke2fs.conf turns
		// on) begin with the file system's UUID, and a replay ends where blocks
		// with another one begin (fs/jbd2/recovery.c: "stale blocks due to lazy
		// journal init"). nodiscard: what is discarded is the layout's affair.
		c.Args = []string{
			"-q", "-F", "-b", "4096", "-I", "256",
			"-i", fmt.Sprint(p.BytesPerInode),
			"-m", fmt.Sprint(p.ReservedBlocksPercentage),
			"-U", p.FSUUID,
			"-L", p.Label,
			"-E", fmt.Sprintf("nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=%d:%d", p.RootUserID, p.RootGroupID),
			device,
		}
	case storage.VFAT:
		c.Args = []string{"-F", "32", "-S", fmt.Sprint(sectorSize), "-i", strings.ReplaceAll(p.FSUUID, "-", ""), "-n", p.Label, device}
		if sectorSize == 512 {
			// 256 MiB in clusters of 4 KiB would not be FAT32.
			c.Args = append([]string{"-s", clusterSectors(p.Bytes)}, c.Args...)
		}
	case storage.XFS:
		c.Args = []string{"-q", "-f", "-K", "-m", "uuid=" + p.FSUUID, "-L", p.Label, device}
	case storage.Btrfs:
		c.Args = []string{"-q", "-f", "-K", "-U", p.FSUUID, "-L", p.Label, device}
	case storage.Swap:
		c.Args = []string{"--uuid", p.FSUUID, "--label", p.Label, device}
	default:
		return tool.Cmd{}, storage.Errorf(storage.CodeFileSystem, "no way to make a file system %q on %s", p.FileSystem, device)
	}
	return c, nil
}

// clusterSectors is how many sectors of 512 bytes make a cluster such that there
// are at least 65525 of them, the least that makes it FAT32.
func clusterSectors(bytes uint64) string {
	for _, n := range []uint64{8, 4, 2} {
		if bytes/512/n > 66000 {
			return fmt.Sprint(n)
		}
	}
	return "1"
}
