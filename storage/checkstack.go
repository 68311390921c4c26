package storage

import (
	"path"
	"regexp"
	"strings"
)

// swap checks a volume that is no file system. It returns what it is called.
func (c *specCheck) swap(v *VolumeSpec, who string) string {
	if v.MountPoint == "none" || v.MountPoint == Swap { // as fstab(5) writes it
		v.MountPoint = ""
	}
	switch {
	case v.MountPoint != "":
		c.wrong("%s: swap is mounted nowhere: leave MountPoint out", who)
	case c.points[Swap] != "":
		c.wrong("%s and %s are both swap: one is possible", c.points[Swap], who)
	case v.MinimumBytes == 0:
		c.wrong("%s: swap needs MinimumBytes", who)
	case v.MinimumFreeBytes != 0:
		c.wrong("%s: swap has no free bytes: MinimumBytes is its size", who)
	case v.RootUserID != 0 || v.RootGroupID != 0:
		c.wrong("%s: swap has no owner", who)
	}
	c.points[Swap] = who
	return who + " (swap)"
}

// subvolumes of btrfs have names at its top, and mount points of their own.
func (c *specCheck) subvolumes(v *VolumeSpec, who string) {
	if len(v.Subvolumes) > 0 && v.FileSystem != Btrfs {
		c.wrong("%s: Subvolumes are for btrfs, not for %s", who, v.FileSystem)
		return
	}
	names := make(map[string]bool)
	for _, s := range v.Subvolumes {
		point := s.MountPoint
		switch {
		case s.Name == "" || strings.ContainsAny(s.Name, "/, \\") || strings.ContainsFunc(s.Name, isControl) || s.Name == "." || s.Name == ".." || len(s.Name) > 255:
			c.wrong("%s: %q cannot be the name of a subvolume", who, s.Name)
		case names[s.Name]:
			c.wrong("%s: there are two subvolumes %s", who, s.Name)
		case !path.IsAbs(point) || path.Clean(point) != point || strings.ContainsFunc(point, isControl):
			c.wrong("%s: the subvolume %s has the mount point %q: an absolute path without a slash at its end is possible", who, s.Name, point)
		case forbidden(point) != "":
			c.wrong("%s: %s cannot be a subvolume: %s", who, point, forbidden(point))
		case point != v.MountPoint && c.points[point] != "":
			c.wrong("%s: the subvolume %s and %s have the same mount point %s", who, s.Name, c.points[point], point)
		}
		names[s.Name] = true
		if point != v.MountPoint {
			c.points[point] = who
			c.openly(point, v.MountPoint, who)
		}
	}
}

// openly refuses a subvolume that firmware or boot loader must read, and that lies
// in a volume which they cannot open or would not look for.
func (c *specCheck) openly(point, volume, who string) {
	switch {
	case point == ESPMountPoint && c.firmware != BIOS:
		c.wrong("%s: the EFI system partition %s cannot be a subvolume: firmware reads no btrfs", who, point)
	case point == bootMountPoint && c.encrypted(volume):
		c.wrong("%s: its subvolume is mounted at %s, where the boot loader reads the kernel, and it is encrypted: give %s a volume of its own", who, point, point)
	}
}

// groupName is what lvm(8) takes, without what would need quoting elsewhere.
var groupName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_]{0,63}$`)

// stack checks arrays and volume groups.
func (c *specCheck) stack(s *Spec) {
	if g := s.VolumeGroup; g != "" && !groupName.MatchString(g) {
		c.wrong("VolumeGroup %q: letters, digits and underscores are possible, at most 64", g)
	}
	switch s.DataRAID {
	case "", RAID0, RAID1, RAID10:
	default:
		c.wrong("DataRAID %q is none of raid0, raid1, raid10", s.DataRAID)
	}
	if s.DataRAID != "" && s.ExtraMountPointsBasename == "" {
		c.wrong("DataRAID needs ExtraMountPointsBasename: it names the mount point of the array's volume")
	}
	if len(s.Preserve) > 0 && (s.Mirror || s.VolumeGroup != "" || s.DataRAID != "") {
		c.wrong("Preserve keeps volumes on partitions; with Mirror, VolumeGroup or DataRAID none would be kept")
	}
	if s.RequireKexec && !s.UseKexec {
		c.wrong("RequireKexec needs UseKexec")
	}
	if s.Firmware != "" && s.Firmware != Both {
		c.wrong("Firmware is %q; only %q can be asked for: what the machine has now is used otherwise", s.Firmware, Both)
	}
}
