package config

import (
	"path"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/firstlight/firstlight/storage"
)

// Default is the layout of a site that has no storage-layout.json: the model's.
func Default() storage.Spec {
	return storage.Spec{
		Volumes: []storage.VolumeSpec{
			{FileSystem: storage.Ext4, MountPoint: "/", MinimumFreeBytes: 2 * storage.GiB},
			{FileSystem: storage.Ext4, MountPoint: "/home", MinimumFreeBytes: 1 * storage.GiB},
			{FileSystem: storage.Ext4, MountPoint: "/var/log", MinimumFreeBytes: 512 * storage.MiB},
		},
		ExtraMountPointsBasename: "/data/",
		Encrypt:                  true,
	}
}

// layoutFile reads storage-layout.json.
func (r *reader) layoutFile(c *Config, files map[string][]byte) {
	data, there := files[LayoutFile]
	if !there {
		c.Storage, c.LayoutFromDefault = Default(), true
		return
	}
	tree, ok := r.parseTree(LayoutFile, data)
	if !ok {
		return
	}
	var raw rawLayoutFile
	r.decode(position{file: LayoutFile}, tree, reflect.ValueOf(&raw).Elem(), true)
	c.Storage = storage.Spec{
		// Kept as it is: a number follows, so the slash at its end counts.
		ExtraMountPointsBasename: raw.ExtraMountPointsBasename.value,
		Encrypt:                  raw.Encrypt.value,
		UseKexec:                 raw.UseKexec.value,
		RequireKexec:             raw.RequireKexec.value,
	}
	if raw.ExtraMountPointsBasename.value != "" {
		r.mountPoint(raw.ExtraMountPointsBasename)
	}
	r.extensions(&c.Storage, raw)

	seen := make(map[string]int)
	labels := make(map[string]int)
	for _, v := range raw.BootDriveLayout {
		volume := r.volume(v)
		if at := v.MountPoint; volume.MountPoint != "" {
			if line, twice := seen[volume.MountPoint]; twice {
				r.mistake(CodeDuplicate, at.file, at.line, "%s: line %d has the mount point %s already", at.path, line, volume.MountPoint)
			}
			seen[volume.MountPoint] = at.line
		}
		if at := v.FileSystemLabel; at.value != "" {
			if line, twice := labels[at.value]; twice {
				r.mistake(CodeDuplicate, at.file, at.line, "%s: line %d has the label %q already", at.path, line, at.value)
			}
			labels[at.value] = at.line
		}
		c.Storage.Volumes = append(c.Storage.Volumes, volume)
	}
	if seen["/"] == 0 {
		r.mistake(CodeValue, LayoutFile, 0, "BootDriveLayout has no volume with the MountPoint /")
	}
}

func (r *reader) volume(v rawVolume) storage.VolumeSpec {
	volume := storage.VolumeSpec{
		FileSystem:       first(v.FileSystemType.value, storage.Ext4),
		Label:            v.FileSystemLabel.value,
		MountPoint:       r.volumeMountPoint(v),
		MinimumBytes:     v.MinimumBytes.value,
		MinimumFreeBytes: v.MinimumFreeBytes.value,
		BytesPerInode:    v.BytesPerInode.value,
		RootUserID:       r.id(v.RootUserId),
		RootGroupID:      r.id(v.RootGroupId),
	}
	for _, s := range v.Subvolumes {
		if s.Name.value == "" {
			r.mistake(CodeValue, s.file, s.line, "%s has no Name", s.path)
		}
		volume.Subvolumes = append(volume.Subvolumes, storage.Subvolume{Name: s.Name.value, MountPoint: r.mountPoint(s.MountPoint)})
		if !s.MountPoint.set {
			r.mistake(CodeValue, s.file, s.line, "%s has no MountPoint", s.path)
		}
	}
	if v.MountPoint.value == "" && !v.MountPoint.set && volume.FileSystem != storage.Swap {
		r.mistake(CodeValue, v.file, v.line, "%s has no MountPoint", v.path)
	}
	known := []string{storage.Ext4, storage.VFAT, storage.XFS, storage.Btrfs, storage.Swap}
	if t := v.FileSystemType; !slices.Contains(known, volume.FileSystem) {
		r.mistake(CodeValue, t.file, t.line, "%s: there is no file system %q here: have %s%s", t.path, t.value, quotedList(known), meant(t.value, known))
	}
	if n := v.BytesPerInode; n.value != 0 && (n.value < 1024 || n.value > 64*storage.MiB) {
		r.mistake(CodeValue, n.file, n.line, "%s: mke2fs takes 1024 to %d, not %d", n.path, 64*storage.MiB, n.value)
	}
	if n := v.ReservedBlocksPercentage; n.value > 50 {
		r.mistake(CodeValue, n.file, n.line, "%s: at most 50, not %d", n.path, n.value)
	} else {
		volume.ReservedBlocksPercentage = uint(n.value)
	}
	return volume
}

// volumeMountPoint is that of a volume. Swap has none, which fstab(5) writes as
// none.
func (r *reader) volumeMountPoint(v rawVolume) string {
	if v.FileSystemType.value == storage.Swap && (v.MountPoint.value == "none" || v.MountPoint.value == "") {
		return ""
	}
	return r.mountPoint(v.MountPoint)
}

// mountPoint is an absolute path without a slash at its end, empty for a mistake.
func (r *reader) mountPoint(t text) string {
	if !t.set {
		return ""
	}
	p := t.value
	if p != "/" {
		p = strings.TrimSuffix(p, "/")
	}
	switch {
	case t.value == "":
		r.mistake(CodeValue, t.file, t.line, "%s is empty", t.path)
	case !path.IsAbs(t.value):
		r.mistake(CodeValue, t.file, t.line, "%s: %q does not begin with /", t.path, t.value)
	case path.Clean(p) != p:
		r.mistake(CodeValue, t.file, t.line, "%s: %q should be written %q", t.path, t.value, path.Clean(p))
	case strings.ContainsFunc(p, func(c rune) bool { return c < ' ' || c == 0x7f || c == utf8.RuneError }):
		r.mistake(CodeValue, t.file, t.line, "%s: %q has characters that no path should have", t.path, t.value)
	default:
		return p
	}
	return ""
}

func (r *reader) id(n number) uint32 {
	// The largest value means "no user" to the kernel (chown(2)).
	if n.value >= 1<<32-1 {
		r.mistake(CodeValue, n.file, n.line, "%s: at most %d, not %d", n.path, uint32(1<<32-2), n.value)
		return 0
	}
	return uint32(n.value)
}
