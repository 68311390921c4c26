package storage

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// What arrays and groups take of their members, in bytes: the super block and
// the bitmap of an array, before or behind the data; the metadata of a group,
// and what does not fill an extent.
const (
	ArrayOffset   = 2 * MiB
	ArrayChunk    = 512 * 1024
	groupOverhead = GroupStart + GroupExtent
)

// RAID is the level of the array that the data disks make together.
type RAID string

// The levels; the empty one makes a volume of each disk.
const (
	RAID0  RAID = "raid0"
	RAID1  RAID = "raid1"
	RAID10 RAID = "raid10"
)

func (r RAID) level() int {
	switch r {
	case RAID0:
		return 0
	case RAID10:
		return 10
	}
	return 1
}

// arrayBytes is what an array of n members gives.
func arrayBytes(level, n int, member uint64) uint64 {
	switch level {
	case 0:
		return member / ArrayChunk * ArrayChunk * uint64(n)
	case 10:
		// Two copies of everything, near ones (md(4)); an odd number of disks
		// leaves half a chunk out.
		return member / ArrayChunk * uint64(n) / 2 * ArrayChunk
	}
	return member
}

// inMember makes a partition a member of an array that will hold what was
// wanted of it. That of the firmware keeps its type.
func inMember(w wantedPartition) wantedPartition {
	m := wantedPartition{Partition: Partition{Name: w.Name, TypeGUID: typeRAID}, least: w.least + ArrayOffset, why: w.why + ", RAID"}
	if w.TypeGUID == typeESP {
		m.TypeGUID = typeESP
	}
	return m
}

// array is the n-th of the layout, over partitions of the same number of each
// disk; holds is what is made in it.
func (r *resolver) array(n, level int, disks []DiskLayout, number int, holds Partition) Array {
	name := strings.ReplaceAll(r.stackName(holds), "_", "-")
	id := hex.EncodeToString(r.idBytes("array:" + name))
	a := Array{
		Name: name, Node: fmt.Sprint("/dev/md", n), Level: level,
		UUID:       id[:8] + ":" + id[8:16] + ":" + id[16:24] + ":" + id[24:],
		AtEnd:      holds.TypeGUID == typeESP,
		SectorSize: disks[0].SectorSize,
	}
	for i, d := range disks {
		p := d.Partitions[number-1]
		a.Members = append(a.Members, d.Node(p))
		if bytes := p.Bytes - ArrayOffset; i == 0 || bytes < a.MemberBytes {
			a.MemberBytes = bytes
		}
	}
	a.Bytes = arrayBytes(level, len(disks), a.MemberBytes)
	if holds.FileSystem != "" {
		holds.Number, holds.Bytes, holds.TypeGUID, holds.Name = 0, a.Bytes, "", ""
		a.Volume = holds
	}
	return a
}

// stackName is a name of letters, digits and underscores for what is made in an
// array or a logical volume.
func (r *resolver) stackName(p Partition) string {
	text := strings.Trim(p.MountPoint, "/")
	switch {
	case p.MountPoint == "/":
		text = "root"
	case p.MountPoint == ESPMountPoint:
		text = "esp"
	case p.FileSystem == Swap:
		text = "swap"
	case p.FileSystem == "":
		text = r.spec.VolumeGroup
	}
	name := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			return c
		}
		return '_'
	}, text)
	// mdadm(8) keeps 32 bytes of a name.
	name = strings.Trim(name[:min(len(name), 28)], "_")
	unique := name
	for i := 2; r.stacked[unique] || unique == ""; i++ {
		unique = fmt.Sprint(name, "_", i)
	}
	r.stacked[unique] = true
	return unique
}

// intoGroup takes what can lie in the volume group out of the wanted
// partitions, and puts one for the group behind the others.
func (r *resolver) intoGroup(wanted []wantedPartition) (outside, inside []wantedPartition) {
	group := wantedPartition{
		Partition: Partition{Name: partitionLabel(r.spec.VolumeGroup), TypeGUID: typeLVM},
		least:     groupOverhead, why: "volume group with",
	}
	for _, w := range wanted {
		if w.FileSystem == "" || w.MountPoint == ESPMountPoint || w.MountPoint == bootMountPoint {
			outside = append(outside, w)
			continue
		}
		inside = append(inside, w)
		group.least += roundUp(w.least, GroupExtent)
		group.why += " " + volumeName(w.Partition)
	}
	swapBeforeLast(inside)
	return append(outside, group), inside
}

// group fills a partition or array with the volumes; the last takes what
// remains.
func (r *resolver) group(device string, bytes uint64, sectorSize uint32, inside []wantedPartition) Group {
	g := Group{
		Name: r.spec.VolumeGroup, UUID: r.lvmID("group"),
		Device: device, DeviceUUID: r.lvmID("physical"), Bytes: bytes, SectorSize: sectorSize,
		Extents: (bytes - GroupStart) / GroupExtent,
	}
	at := uint64(0)
	for i, w := range inside {
		v := LogicalVolume{Name: r.stackName(w.Partition), FirstExtent: at, Extents: divUp(w.least, GroupExtent), Volume: w.Partition}
		v.UUID = r.lvmID("volume:" + v.Name)
		if i == len(inside)-1 {
			v.Extents = g.Extents - at
		}
		v.Volume.Number, v.Volume.Bytes, v.Volume.TypeGUID, v.Volume.Name = 0, v.Extents*GroupExtent, "", ""
		at += v.Extents
		g.Volumes = append(g.Volumes, v)
	}
	return g
}

// lvmID is 32 letters and digits, as LVM's UUIDs have them.
func (r *resolver) lvmID(name string) string {
	const letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	var id strings.Builder
	for _, half := range []string{":a", ":b"} {
		for _, c := range r.idBytes("lvm:" + name + half) {
			id.WriteByte(letters[int(c)%len(letters)])
		}
	}
	return id.String()
}

func (r *resolver) idBytes(name string) []byte {
	id := r.ids(name)
	return id[:]
}

// volumeName is what a volume is called in messages.
func volumeName(p Partition) string {
	switch {
	case p.MountPoint != "":
		return p.MountPoint
	case p.FileSystem == Swap:
		return Swap
	}
	return strings.TrimPrefix(p.Name, NamePrefix)
}

// evenOut makes the last partition of each disk as large as the smallest of
// them: what a mirror or a stripe cannot use stays free.
func evenOut(disks []DiskLayout) {
	least := func(d DiskLayout) *Partition { return &d.Partitions[len(d.Partitions)-1] }
	smallest := slices.MinFunc(disks, func(a, b DiskLayout) int {
		return int(least(a).Bytes/MiB) - int(least(b).Bytes/MiB)
	})
	bytes := least(smallest).Bytes
	for _, d := range disks {
		p := least(d)
		p.Bytes = bytes
		p.LastSector = p.FirstSector + bytes/uint64(d.SectorSize) - 1
	}
}

// checkSectors refuses disks of an array that cannot stand in for each other.
func checkSectors(disks []chosenDisk) error {
	for _, d := range disks[1:] {
		if d.SectorSize != disks[0].SectorSize {
			return Errorf(CodeLayout, "%s has sectors of %d bytes and %s of %d: an array needs disks with equal sectors", disks[0].Path, disks[0].SectorSize, d.Path, d.SectorSize)
		}
	}
	return nil
}
