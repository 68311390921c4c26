package storage

import "math/bits"

// ext4 as storage/mkfs makes it: blocks of 4096 bytes, inodes of 256, the
// journal and reserved group descriptors of mke2fs's defaults.
const (
	ext4Block        = 4096
	ext4InodeSize    = 256
	ext4GroupBlocks  = 8 * ext4Block
	ext4BytesInode   = 16384
	ext4ReservedPart = 5
)

// ext4Overhead is how many bytes of an ext4 file system of size bytes its own
// tables take (mke2fs.c, ext2fs_initialize, ext2fs_default_journal_size); where
// mke2fs rounds, it is a little more than the truth.
func ext4Overhead(size, bytesPerInode uint64) uint64 {
	blocks := size / ext4Block
	groups := divUp(blocks, ext4GroupBlocks)

	inodeTables := divUp(size, bytesPerInode)*ext4InodeSize + groups*2*ext4Block
	bitmaps := groups * 2 * ext4Block

	// Descriptors of 64 bytes, and room to grow 1024-fold up to 2^32 blocks, in
	// each group that has a copy of the super block.
	descriptors := divUp(groups*64, ext4Block)
	grown := min(blocks*1024, 1<<32-1)
	reserved := min(divUp(divUp(grown, ext4GroupBlocks)*64, ext4Block), ext4Block/4)
	copies := superblockCopies(groups) * (1 + descriptors + reserved)

	return inodeTables + bitmaps + copies*ext4Block + ext4Journal(blocks)*ext4Block + MiB
}

// superblockCopies counts the groups below n that have one (sparse_super: 0, 1
// and the powers of 3, 5 and 7).
func superblockCopies(n uint64) uint64 {
	count := min(n, 2)
	for _, base := range []uint64{3, 5, 7} {
		for g := base; g < n; g *= base {
			count++
		}
	}
	return count
}

func ext4Journal(blocks uint64) uint64 {
	switch {
	case blocks < 2048:
		return 0
	case blocks < 32768:
		return 1024
	case blocks < 256*1024:
		return 4096
	case blocks < 512*1024:
		return 8192
	case blocks < 4096*1024:
		return 16384
	case blocks < 8192*1024:
		return 32768
	case blocks < 16384*1024:
		return 65536
	case blocks < 32768*1024:
		return 131072
	}
	return 262144
}

// otherOverhead is a bound for file systems whose tables grow with their use.
func otherOverhead(fileSystem string, size uint64) uint64 {
	switch fileSystem {
	case VFAT: // two tables of 4 bytes a cluster, and the reserved sectors
		return 2*4*divUp(size, 4096) + MiB
	case XFS: // log, allocation groups, and what it sets aside for itself
		return 72*MiB + size/50
	default: // btrfs keeps two copies of its metadata
		return 256*MiB + size/20
	}
}

// available is how much an unprivileged user can store in a new file system.
func available(v VolumeSpec, size uint64) uint64 {
	var overhead uint64
	if v.FileSystem == Ext4 {
		overhead = ext4Overhead(size, v.BytesPerInode) + percent(size, uint64(v.ReservedBlocksPercentage))
	} else {
		overhead = otherOverhead(v.FileSystem, size)
	}
	if overhead >= size {
		return 0
	}
	return size - overhead
}

// sizeFor is the least size in whole MiB of a file system that holds used bytes
// and inodes and leaves free bytes. ok is false when there is no such size.
func sizeFor(v VolumeSpec, used, free, inodes uint64) (size uint64, ok bool) {
	const most = 1 << 60
	want, carry := bits.Add64(used, free, 0)
	if carry != 0 || want > most/4 {
		return 0, false
	}
	enough := func(size uint64) bool {
		// 11 inodes are ext4's own.
		if v.FileSystem == Ext4 && size/v.BytesPerInode < inodes+11 {
			return false
		}
		return available(v, size) >= want
	}
	low, high := uint64(0), uint64(MiB)
	for !enough(high) {
		if high >= most {
			return 0, false
		}
		low, high = high, high*2
	}
	for high-low > MiB {
		if mid := roundUp((low+high)/2, MiB); mid < high && enough(mid) {
			high = mid
		} else if mid < high {
			low = mid
		} else {
			break
		}
	}
	return high, true
}

func divUp(a, b uint64) uint64       { return a/b + min(a%b, 1) }
func roundUp(n, unit uint64) uint64  { return divUp(n, unit) * unit }
func percent(n, share uint64) uint64 { return n/100*share + n%100*share/100 }
