package storage

import "fmt"

// Array is a RAID of the kernel's md driver (md(4)) over partitions of several
// disks.
type Array struct {
	// Name is its name in the new OS, below /dev/md.
	Name string `json:"name"`
	// Node is its device while it is installed.
	Node string `json:"node"`
	// Level is 0, 1 or 10.
	Level int `json:"level"`
	// UUID is written as mdadm writes it.
	UUID string `json:"uuid"`
	// AtEnd puts the descriptions of the array behind the data, so that what
	// knows nothing of arrays, as firmware, can read each member of a mirror.
	AtEnd bool `json:"atEnd,omitempty"`
	// Members are the nodes of the partitions, MemberBytes what each gives.
	Members     []string `json:"members"`
	MemberBytes uint64   `json:"memberBytes"`
	Bytes       uint64   `json:"bytes"`
	SectorSize  uint32   `json:"sectorSize"`
	// Volume is what is made in it; its Number is 0, as it stands in no table.
	// It is zero for a member of a volume group.
	Volume Partition `json:"volume,omitzero"`
}

// device is the array as if it were a disk with no table.
func (a Array) device() DiskLayout {
	return DiskLayout{Name: a.Node[len("/dev/"):], Path: a.Node, Size: a.Bytes, SectorSize: a.SectorSize}
}

// Group is a volume group of LVM (lvm(8)) on one partition or array.
type Group struct {
	Name string `json:"name"`
	// UUIDs as LVM writes them, without hyphens: 32 letters and digits.
	UUID string `json:"uuid"`
	// Device is the physical volume, of Bytes bytes.
	Device     string `json:"device"`
	DeviceUUID string `json:"deviceUuid"`
	Bytes      uint64 `json:"bytes"`
	SectorSize uint32 `json:"sectorSize"`
	// Extents of GroupExtent bytes lie behind the first MiB.
	Extents uint64          `json:"extents"`
	Volumes []LogicalVolume `json:"volumes"`
}

// LogicalVolume is one volume of a group, in one piece.
type LogicalVolume struct {
	Name        string `json:"name"`
	UUID        string `json:"uuid"`
	FirstExtent uint64 `json:"firstExtent"`
	Extents     uint64 `json:"extents"`
	// Volume is what is made in it; its Number is 0.
	Volume Partition `json:"volume"`
}

// GroupExtent is what LVM counts in, and GroupStart where the first one lies,
// both in bytes.
const (
	GroupExtent = 4 * MiB
	GroupStart  = 1 * MiB
)

// Mapping is the name below /dev/mapper. Names of ours have no hyphen, which
// LVM would double.
func (g Group) Mapping(v LogicalVolume) string { return g.Name + "-" + v.Name }

// volume of the group as if it were a disk with no table.
func (g Group) device(v LogicalVolume) DiskLayout {
	return DiskLayout{Name: g.Mapping(v), Path: "/dev/mapper/" + g.Mapping(v), Size: v.Extents * GroupExtent, SectorSize: g.SectorSize}
}

// Volumes are all file systems and swap spaces that are made: those of
// partitions, of arrays, and of volume groups.
func (l Layout) Volumes() []Volume {
	var volumes []Volume
	for _, d := range l.Disks {
		for _, p := range d.Partitions {
			if p.FileSystem != "" {
				volumes = append(volumes, Volume{Disk: d, Partition: p})
			}
		}
	}
	for _, a := range l.Arrays {
		if a.Volume.FileSystem != "" {
			volumes = append(volumes, Volume{Disk: a.device(), Partition: a.Volume})
		}
	}
	for _, g := range l.Groups {
		for _, v := range g.Volumes {
			volumes = append(volumes, Volume{Disk: g.device(v), Partition: v.Volume})
		}
	}
	return volumes
}

// Mounts are the places where the volume is mounted: one, or one for each
// subvolume, or none for swap.
func (v Volume) Mounts() []Volume {
	p := v.Partition
	if p.MountPoint == "" {
		return nil
	}
	var all []Volume
	top := true
	for _, s := range p.Subvolumes {
		m := v
		m.Subvolume, m.Partition.MountPoint = s.Name, s.MountPoint
		all = append(all, m)
		top = top && s.MountPoint != p.MountPoint
	}
	if top {
		all = append(all, v)
	}
	return all
}

// NeedsInitrd says that the new OS's initrd must know of this layout to find
// the root file system: it lies in an array, a volume group or an encrypted
// volume.
func (l Layout) NeedsInitrd() bool {
	for _, v := range l.Mounts() {
		if v.MountPoint() == "/" || v.MountPoint() == "/usr" {
			if v.Partition.Number == 0 || v.Partition.LUKS != nil {
				return true
			}
		}
	}
	return false
}

// RootOptions are the kernel's words, besides root=, by which the root file
// system is mounted.
func (l Layout) RootOptions() []string {
	for _, v := range l.Mounts() {
		if v.MountPoint() != "/" {
			continue
		}
		options := v.unlockOptions()
		if v.Subvolume != "" {
			options = append(options, "rootflags=subvol="+v.Subvolume)
		}
		return options
	}
	return nil
}

// ESP is the disk's EFI system partition; ok is false when it has none.
func (d DiskLayout) ESP() (p Partition, ok bool) {
	for _, p := range d.Partitions {
		if p.TypeGUID == typeESP {
			return p, true
		}
	}
	return Partition{}, false
}

// BootDisks are the disks that hold the boot loader: one, or the two of a
// mirror.
func (l Layout) BootDisks() []DiskLayout {
	if l.Mirror {
		return l.Disks[:2]
	}
	return l.Disks[:min(len(l.Disks), 1)]
}

// MDConfig is mdadm.conf(5) of the new OS; nil when there is no array.
func (l Layout) MDConfig() []byte {
	if len(l.Arrays) == 0 {
		return nil
	}
	// Without a home the arrays have their names on whichever machine the disks are.
	text := "HOMEHOST <ignore>\nMAILADDR root\n"
	for _, a := range l.Arrays {
		text += fmt.Sprintf("ARRAY /dev/md/%s metadata=%s UUID=%s\n", a.Name, a.Metadata(), a.UUID)
	}
	return []byte(text)
}

// Metadata is the version of the array's descriptions: those of 1.0 lie at the
// end of each member, those of 1.2 near its start.
func (a Array) Metadata() string {
	if a.AtEnd {
		return "1.0"
	}
	return "1.2"
}
