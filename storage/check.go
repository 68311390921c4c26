package storage

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// specCheck is what is being found wrong with a Spec.
type specCheck struct {
	firmware       Firmware
	encrypted      func(mountPoint string) bool // which volumes are
	layout, unmade []string                     // contradictions; file systems that cannot be made
	points, labels map[string]string            // mount point, label → the volume that has it
}

func (c *specCheck) wrong(format string, args ...any) {
	c.layout = append(c.layout, fmt.Sprintf(format, args...))
}

// check finds everything that contradicts itself, and fills in the defaults.
func (s *Spec) check(firmware Firmware) error {
	c := &specCheck{firmware: firmware, encrypted: s.encrypted, points: make(map[string]string), labels: make(map[string]string)}
	switch firmware {
	case BIOS, UEFI, Both:
	default:
		c.wrong("firmware %q is none of bios, uefi, both", firmware)
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		who := c.mountPoint(v, fmt.Sprintf("volume %d", i+1))
		c.subvolumes(v, who)
		c.fileSystem(v, who)
		c.label(v, who)
		const most = 1 << 58
		if v.MinimumBytes > most || v.MinimumFreeBytes > most {
			c.wrong("%s: no disk is larger than %d bytes", who, uint64(most))
		}
	}
	if !slices.ContainsFunc(s.Volumes, func(v VolumeSpec) bool { return v.MountPoint == "/" }) {
		c.wrong("no volume is mounted at /")
	}
	if len(s.DataDisks) > 0 && s.ExtraMountPointsBasename == "" {
		c.wrong("DataDisks needs ExtraMountPointsBasename: it names the mount points of their volumes")
	}
	s.checkPreserve(c.wrong)
	c.basename(s)
	c.belowVFAT(s)
	c.stack(s)
	s.Encryption.check(s.Encrypt, c.wrong)
	switch {
	case len(c.layout) > 0:
		return Errorf(CodeLayout, "the storage layout contradicts itself: %s", strings.Join(append(c.layout, c.unmade...), "; "))
	case len(c.unmade) > 0:
		return Errorf(CodeFileSystem, "the storage layout asks for file systems that cannot be made: %s", strings.Join(c.unmade, "; "))
	}
	return nil
}

// mountPoint returns what the volume is called from now on: by its mount point
// too, where that is right.
func (c *specCheck) mountPoint(v *VolumeSpec, who string) string {
	if v.MountPoint != "/" {
		v.MountPoint = strings.TrimSuffix(v.MountPoint, "/")
	}
	switch {
	case v.FileSystem == Swap:
		return c.swap(v, who)
	case v.MountPoint == "":
		c.wrong("%s has no mount point", who)
	case !path.IsAbs(v.MountPoint):
		c.wrong("%s: mount point %q does not begin with /", who, v.MountPoint)
	case path.Clean(v.MountPoint) != v.MountPoint:
		c.wrong("%s: mount point %q should be written %q", who, v.MountPoint, path.Clean(v.MountPoint))
	case !utf8.ValidString(v.MountPoint) || strings.ContainsFunc(v.MountPoint, isControl):
		c.wrong("%s: mount point %q has characters that are none", who, v.MountPoint)
	case forbidden(v.MountPoint) != "":
		c.wrong("%s: %s cannot be a volume: %s", who, v.MountPoint, forbidden(v.MountPoint))
	case c.points[v.MountPoint] != "":
		c.wrong("%s and %s have the same mount point %s", c.points[v.MountPoint], who, v.MountPoint)
	default:
		c.points[v.MountPoint] = who
		who += " (" + v.MountPoint + ")"
	}
	return who
}

// fileSystem checks what only some file systems have, and fills in the defaults.
func (c *specCheck) fileSystem(v *VolumeSpec, who string) {
	if v.FileSystem == "" {
		v.FileSystem = Ext4
	}
	switch v.FileSystem {
	case Ext4:
		if v.BytesPerInode == 0 {
			v.BytesPerInode = ext4BytesInode
		} else if v.BytesPerInode < 1024 || v.BytesPerInode > 64*MiB {
			c.wrong("%s: BytesPerInode is %d; mke2fs takes 1024 to 67108864", who, v.BytesPerInode)
			v.BytesPerInode = ext4BytesInode
		}
		if v.ReservedBlocksPercentage == 0 {
			v.ReservedBlocksPercentage = ext4ReservedPart
		} else if v.ReservedBlocksPercentage > 50 {
			c.wrong("%s: ReservedBlocksPercentage is %d; mke2fs takes at most 50", who, v.ReservedBlocksPercentage)
		}
	case VFAT, XFS, Btrfs, Swap:
		if v.BytesPerInode != 0 {
			c.wrong("%s: BytesPerInode is for ext4, not for %s", who, v.FileSystem)
		}
		if v.ReservedBlocksPercentage != 0 {
			c.wrong("%s: ReservedBlocksPercentage is for ext4, not for %s", who, v.FileSystem)
		}
		if v.FileSystem == VFAT && (v.RootUserID != 0 || v.RootGroupID != 0) {
			c.wrong("%s: RootUserId and RootGroupId: vfat has no owners", who)
		}
		if v.FileSystem == VFAT && v.MountPoint == "/" {
			c.wrong("%s: a root file system cannot be vfat", who)
		}
	default:
		c.unmade = append(c.unmade, fmt.Sprintf("%s: file system %q (known: ext4, vfat, xfs, btrfs, swap)", who, v.FileSystem))
	}
	if v.MountPoint == ESPMountPoint && v.FileSystem != VFAT && c.firmware != BIOS {
		c.wrong("%s is the EFI system partition; it must be vfat, not %s", who, v.FileSystem)
	}
}

func (c *specCheck) label(v *VolumeSpec, who string) {
	if most := labelLength(v.FileSystem); most > 0 && len(v.Label) > most {
		c.wrong("%s: label %q is longer than the %d bytes that %s has for it", who, v.Label, most, v.FileSystem)
	}
	if strings.ContainsFunc(v.Label, isControl) || !utf8.ValidString(v.Label) {
		c.wrong("%s: label %q has characters that are none", who, v.Label)
	}
	if v.Label == MediumLabel {
		c.wrong("%s: the label %s is kept for media that carry configuration", who, MediumLabel)
	}
	if v.Label != "" {
		if other := c.labels[v.Label]; other != "" {
			c.wrong("%s and %s have the same label %q", other, who, v.Label)
		}
		c.labels[v.Label] = who
	}
}

// basename checks the mount points that further volumes get.
func (c *specCheck) basename(s *Spec) {
	basename := s.ExtraMountPointsBasename
	if basename == "" {
		return
	}
	switch first := basename + "0"; {
	case !path.IsAbs(basename):
		c.wrong("ExtraMountPointsBasename %q does not begin with /", basename)
	case path.Clean(first) != first:
		c.wrong("ExtraMountPointsBasename %q should be written %q", basename, strings.TrimSuffix(path.Clean(first), "0"))
	case strings.ContainsFunc(basename, isControl) || !utf8.ValidString(basename):
		c.wrong("ExtraMountPointsBasename %q has characters that are none", basename)
	case forbidden(first) != "":
		c.wrong("ExtraMountPointsBasename %s: %s", basename, forbidden(first))
	default:
		for i, v := range s.Volumes {
			if rest, ok := strings.CutPrefix(v.MountPoint, basename); ok && rest != "" && strings.Trim(rest, "0123456789") == "" {
				c.wrong("volume %d has the mount point %s, which ExtraMountPointsBasename %q gives to a further volume", i+1, v.MountPoint, basename)
			}
		}
	}
}

// belowVFAT finds volumes that lie on one without owners and modes.
func (c *specCheck) belowVFAT(s *Spec) {
	for _, v := range s.Volumes {
		if v.FileSystem != VFAT {
			continue
		}
		for _, w := range s.Volumes {
			if strings.HasPrefix(w.MountPoint, v.MountPoint+"/") {
				c.wrong("%s lies on the vfat volume %s; put it elsewhere", w.MountPoint, v.MountPoint)
			}
		}
	}
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// forbidden says why a directory cannot be a volume of its own.
func forbidden(mountPoint string) string {
	for _, top := range []string{"/proc", "/sys", "/dev", "/run"} {
		if mountPoint == top || strings.HasPrefix(mountPoint, top+"/") {
			return "the kernel's and systemd's own file systems are mounted there"
		}
	}
	for _, top := range []string{"/etc", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"} {
		if mountPoint == top || strings.HasPrefix(mountPoint, top+"/") {
			return "the new OS needs it before anything is mounted"
		}
	}
	return ""
}

func labelLength(fileSystem string) int {
	switch fileSystem {
	case Ext4:
		return 16
	case XFS:
		return 12
	case VFAT:
		return 11
	case Btrfs:
		return 255
	case Swap:
		return 15
	}
	return 0
}
