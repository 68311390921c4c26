package storage

import (
	"iter"
	"path"
	"strings"
)

// Need counts what files with these paths take on each volume of the spec. A
// path is relative to the root of the image ("." is the root itself); the number
// is the file's size in bytes: 0 for whatever is no regular file, and for all
// but the first name of a file with several.
func (s Spec) Need(files iter.Seq2[string, uint64]) Need {
	n := Need{BytesBelow: map[string]uint64{}, InodesBelow: map[string]uint64{}}
	mounted := make(map[string]bool)
	lies := make(map[string]string) // mount point of a subvolume → that of its volume
	for _, v := range s.withBoot().Volumes {
		if v.MountPoint == "" {
			continue
		}
		mounted[path.Clean(v.MountPoint)] = true
		for _, sub := range v.Subvolumes {
			if sub.MountPoint != v.MountPoint {
				lies[sub.MountPoint] = path.Clean(v.MountPoint)
			}
		}
	}
	if s.ExtraMountPointsBasename != "" {
		mounted[path.Clean(s.ExtraMountPointsBasename+"0")] = true
	}
	for name, size := range files {
		// One block even for an empty file: a directory has one, a long
		// symbolic link too.
		bytes := max(roundUp(size, ext4Block), ext4Block)
		volume := "/"
		// The mount point itself is an entry of its parent and the top of its
		// own volume; it belongs to the latter.
		for dir := path.Join("/", name); dir != "/"; dir = dir[:max(1, strings.LastIndexByte(dir, '/'))] {
			if mounted[dir] {
				volume = dir
				break
			}
			if of, ok := lies[dir]; ok {
				volume = of
				break
			}
		}
		if volume == "/" {
			n.RootBytes += bytes
			n.Inodes++
			continue
		}
		n.BytesBelow[volume] += bytes
		n.InodesBelow[volume]++
	}
	return n
}
