package storage

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Partition type GUIDs: UEFI specification 5.3.3, GRUB's manual, and the
// discoverable partitions specification (UAPI group).
const (
	typeESP      = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeBIOSBoot = "21686148-6449-6E6F-744E-656564454649"
	typeRoot     = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709" // x86-64
	typeRootARM  = "B921B045-1DF0-41C3-AF44-4C6F280D3FAE" // arm64
	typeBoot     = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
	typeHome     = "933AC7E1-2EB4-4F13-B844-0E14E2AEF915"
	typeSrv      = "3B8F8425-20E0-4F3B-907F-1A25A76F98E8"
	typeLinux    = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	typeLUKS     = "CA7D7CCB-63ED-4C53-861C-1742536059CC"
	typeSwap     = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
	typeRAID     = "A19D880F-05FC-4D3B-A006-743F0F84911E"
	typeLVM      = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
)

const (
	// luksOffset is where the data of a LUKS2 volume begin: two headers with
	// their key slots come first (cryptsetup's default).
	luksOffset = 16 * MiB
	// leastVolume is the smallest file system that we make.
	leastVolume = 64 * MiB
	espSmall    = 256 * MiB
	espLarge    = 512 * MiB
	biosBoot    = 1 * MiB
)

// wantedPartition is a partition before it has a place.
type wantedPartition struct {
	Partition
	least uint64 // bytes
	why   string // for the message when it does not fit
	at    uint64 // bytes; where it lies, when it is kept
}

type resolver struct {
	spec     Spec
	need     Need
	firmware Firmware
	ids      func(string) [16]byte
	mappings map[string]bool // in use
	labels   map[string]bool // in use
	// chosen are all disks that will be used; preserved has the labels in
	// Preserve for which there is a volume.
	chosen    []chosenDisk
	preserved map[string]bool
	stacked   map[string]bool // names of arrays and logical volumes, in use
}

func (r *resolver) bootDisk(d Disk) ([]wantedPartition, error) {
	var ps []wantedPartition
	if r.firmware != UEFI {
		ps = append(ps, wantedPartition{
			Partition: Partition{Name: NamePrefix + "bios-boot", TypeGUID: typeBIOSBoot},
			least:     biosBoot, why: "boot loader",
		})
	}
	// FAT32 needs 65525 clusters, which are no smaller than a sector.
	espSize := uint64(espSmall)
	if d.Size >= 16*GiB || d.SectorSize == 4096 {
		espSize = espLarge
	}
	given := slices.ContainsFunc(r.spec.Volumes, func(v VolumeSpec) bool { return v.MountPoint == ESPMountPoint })
	if r.firmware != BIOS && !given {
		ps = append(ps, r.volume(VolumeSpec{FileSystem: VFAT, MountPoint: ESPMountPoint, Label: "ESP"}, espSize, "EFI system partition"))
	}
	for _, v := range r.spec.Volumes {
		used, inodes := r.need.BytesBelow[v.MountPoint], r.need.InodesBelow[v.MountPoint]
		if v.MountPoint == "/" {
			used, inodes = r.need.RootBytes, r.need.Inodes
		}
		if v.FileSystem == Swap {
			p := r.volume(v, max(v.MinimumBytes, leastVolume), "MinimumBytes")
			ps = append(ps, p)
			continue
		}
		size, ok := sizeFor(v, used, v.MinimumFreeBytes, inodes)
		if !ok {
			return nil, Errorf(CodeTooSmall, "%s: no file system can hold %s and have %s free", v.MountPoint, Bytes(used), Bytes(v.MinimumFreeBytes))
		}
		least := max(size, leastVolume, minimumOf(v.FileSystem))
		if v.MountPoint == ESPMountPoint && r.firmware != BIOS {
			least = max(least, espSize)
		}
		why := fmt.Sprintf("image %s, free %s", Bytes(used), Bytes(v.MinimumFreeBytes))
		if v.MinimumBytes > least {
			why = "MinimumBytes"
		}
		p := r.volume(v, least, why)
		p.least = max(p.least, roundUp(v.MinimumBytes, MiB))
		ps = append(ps, p)
	}
	if r.spec.ExtraMountPointsBasename != "" {
		return append(ps, r.extra(0)), nil
	}
	swapBeforeLast(ps)
	return ps, nil
}

// swapBeforeLast keeps swap from being the last, which takes the rest of the
// disk: that is for a file system.
func swapBeforeLast(ps []wantedPartition) {
	if last := len(ps) - 1; last > 0 && ps[last].FileSystem == Swap {
		ps[last-1], ps[last] = ps[last], ps[last-1]
	}
}

func (r *resolver) dataDisk(n int) ([]wantedPartition, error) {
	return []wantedPartition{r.extra(n)}, nil
}

// extra is the n-th volume that nobody listed.
func (r *resolver) extra(n int) wantedPartition {
	v := VolumeSpec{
		FileSystem:               Ext4,
		MountPoint:               fmt.Sprint(r.spec.ExtraMountPointsBasename, n),
		BytesPerInode:            ext4BytesInode,
		ReservedBlocksPercentage: ext4ReservedPart,
	}
	used := r.need.BytesBelow[v.MountPoint]
	size, ok := sizeFor(v, used, 0, r.need.InodesBelow[v.MountPoint])
	if !ok {
		size = 1 << 60
	}
	return r.volume(v, max(size, leastVolume), "the rest of the disk, at least")
}

func minimumOf(fileSystem string) uint64 {
	switch fileSystem {
	case XFS:
		return 300 * MiB // mkfs.xfs refuses less
	case Btrfs:
		return 256 * MiB
	}
	return 0
}

func (r *resolver) volume(v VolumeSpec, least uint64, why string) wantedPartition {
	p := Partition{
		Name:                     partitionLabel(v.key()),
		TypeGUID:                 typeOf(v.key(), r.spec.Architecture),
		FileSystem:               v.FileSystem,
		Label:                    v.Label,
		FSUUID:                   formatUUID(r.ids("filesystem:" + v.key())),
		MountPoint:               v.MountPoint,
		BytesPerInode:            v.BytesPerInode,
		ReservedBlocksPercentage: v.ReservedBlocksPercentage,
		RootUserID:               v.RootUserID,
		RootGroupID:              v.RootGroupID,
		Subvolumes:               v.Subvolumes,
	}
	if v.FileSystem == VFAT {
		id := r.ids("filesystem:" + v.MountPoint)
		p.FSUUID = strings.ToUpper(hex.EncodeToString(id[:2]) + "-" + hex.EncodeToString(id[2:4]))
	}
	if p.Label == "" {
		p.Label = r.label(v)
	}
	if v.MountPoint == ESPMountPoint && r.firmware == BIOS {
		p.TypeGUID = typeLinux
	}
	if r.spec.encrypted(v.key()) {
		p.LUKS = r.luks(v.key())
		if v.MountPoint != "/" { // an encrypted root keeps its type (discoverable partitions specification)
			p.TypeGUID = typeLUKS
		}
		least += luksOffset
		why += ", LUKS header"
	}
	return wantedPartition{Partition: p, least: roundUp(least, MiB), why: why}
}

// key is the volume's own among those of a spec: its mount point, or "swap".
func (v VolumeSpec) key() string {
	if v.FileSystem == Swap {
		return Swap
	}
	return v.MountPoint
}

// label makes a label from the mount point that no other volume has.
func (r *resolver) label(v VolumeSpec) string {
	label := fileSystemLabel(v)
	for i := 2; r.labels[label]; i++ {
		suffix := fmt.Sprint("-", i)
		label = fileSystemLabel(v)
		label = label[:min(len(label), labelLength(v.FileSystem)-len(suffix))] + suffix
	}
	r.labels[label] = true
	return label
}

// mapping makes the name below /dev/mapper: /var/log is var-log. It is unique
// and has only characters that udev and crypttab leave as they are.
func (r *resolver) mapping(mountPoint string) string {
	var b strings.Builder
	for _, c := range []byte(strings.Trim(mountPoint, "/")) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.':
			b.WriteByte(c)
		default:
			b.WriteByte('-')
		}
	}
	name := b.String()
	if mountPoint == "/" {
		name = "root"
	}
	name = strings.TrimLeft(name[:min(len(name), 80)], ".")
	unique := name
	for i := 2; r.mappings[unique] || unique == "" || unique == "control"; i++ {
		unique = fmt.Sprintf("%s-%d", name, i)
	}
	r.mappings[unique] = true
	return unique
}

func typeOf(mountPoint, architecture string) string {
	switch mountPoint {
	case "/":
		if architecture == "arm64" {
			return typeRootARM
		}
		return typeRoot
	case ESPMountPoint:
		return typeESP
	case "/boot":
		return typeBoot
	case "/home":
		return typeHome
	case "/srv":
		return typeSrv
	case Swap:
		return typeSwap
	}
	// /var and /usr have types of their own, but systemd mounts /var by itself
	// only if its UUID is made from the machine id: keep to fstab there.
	return typeLinux
}

// partitionLabel is the GPT name, at most 36 characters of ASCII.
func partitionLabel(mountPoint string) string {
	name := NamePrefix + strings.Map(func(c rune) rune {
		if c > '~' {
			return '?'
		}
		return c
	}, mountPoint)
	return name[:min(len(name), 36)]
}

// fileSystemLabel makes a label from a mount point: / is root, /var/log var-log.
func fileSystemLabel(v VolumeSpec) string {
	label := strings.ReplaceAll(strings.Trim(v.key(), "/"), "/", "-")
	if label == "" {
		label = "root"
	}
	label = strings.Map(func(c rune) rune {
		if c <= ' ' || c > '~' {
			return '_'
		}
		return c
	}, label)
	if v.FileSystem == VFAT {
		label = strings.ToUpper(label)
	}
	return label[:min(len(label), labelLength(v.FileSystem))]
}

// formatUUID makes 16 bytes a UUID of version 8 (RFC 9562, 5.8: the site's own
// way of making them).
func formatUUID(b [16]byte) string {
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
