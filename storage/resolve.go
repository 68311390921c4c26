package storage

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
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
	// A disk shrinks by at least this at each end: the two GPTs.
	gptEntries = 128 * 128
)

// Resolve decides the layout of the disks.
//
// selected are the names or paths that the site's own selector answered, in its
// order; nil means every usable disk, in the order of their places on the bus.
// The first is the boot disk. need is what the image puts on the volumes. ids
// makes the UUIDs: the same name must give the same 16 bytes every time, other
// names others.
//
// Errors have the codes STO-001 to STO-005; all that is wrong with spec is in
// one error.
func Resolve(spec Spec, disks []Disk, selected []string, need Need, firmware Firmware, ids func(name string) [16]byte) (Layout, error) {
	spec.Volumes = slices.Clone(spec.Volumes)
	if err := spec.check(firmware); err != nil {
		return Layout{}, err
	}
	usable, skipped, err := choose(disks, selected)
	if err != nil {
		return Layout{}, err
	}
	if spec.ExtraMountPointsBasename == "" {
		for _, d := range usable[1:] {
			skipped = append(skipped, SkippedDisk{d.Path, "the layout names no ExtraMountPointsBasename for further disks"})
		}
		usable = usable[:1]
	}
	r := resolver{spec: spec, need: need, firmware: firmware, ids: ids, mappings: make(map[string]bool), labels: map[string]bool{MediumLabel: true}}
	for _, v := range spec.Volumes {
		r.labels[v.Label] = true
	}
	l := Layout{Firmware: firmware}
	var problems []error
	for i, d := range usable {
		var wanted []wantedPartition
		if i == 0 {
			wanted, err = r.bootDisk(d)
		} else {
			wanted, err = r.dataDisk(i)
		}
		if err == nil {
			var dl DiskLayout
			if dl, err = r.lay(i, d, wanted); err == nil {
				l.Disks = append(l.Disks, dl)
			}
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		l.Lost = append(l.Lost, lost(d)...)
	}
	if err := errors.Join(problems...); err != nil {
		return Layout{}, Errorf(CodeTooSmall, "%w", err)
	}
	l.Skipped = skipped
	return l, nil
}

// RefuseForeign is the check for a layout that nobody asked for by name: an
// error with code STO-017 that lists what is on the disks, when one of them
// holds anything but an earlier installation of ours.
func (l Layout) RefuseForeign() error {
	var lines []string
	for _, d := range l.Disks {
		if !d.Foreign() {
			continue
		}
		for _, c := range d.Contents {
			lines = append(lines, fmt.Sprintf("%s: %s", d.Path, describe(c)))
		}
	}
	if lines == nil {
		return nil
	}
	return Errorf(CodeForeign, "the site gives no storage-layout.json for this machine, and its disks are in use; nothing is erased without being asked for: %s", strings.Join(lines, "; "))
}

// specCheck is what is being found wrong with a Spec.
type specCheck struct {
	firmware       Firmware
	layout, unmade []string          // contradictions; file systems that cannot be made
	points, labels map[string]string // mount point, label → the volume that has it
}

func (c *specCheck) wrong(format string, args ...any) {
	c.layout = append(c.layout, fmt.Sprintf(format, args...))
}

// check finds everything that contradicts itself, and fills in the defaults.
func (s *Spec) check(firmware Firmware) error {
	c := &specCheck{firmware: firmware, points: make(map[string]string), labels: make(map[string]string)}
	switch firmware {
	case BIOS, UEFI, Both:
	default:
		c.wrong("firmware %q is none of bios, uefi, both", firmware)
	}
	for i := range s.Volumes {
		v := &s.Volumes[i]
		who := c.mountPoint(v, fmt.Sprintf("volume %d", i+1))
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
	c.basename(s)
	c.belowVFAT(s)
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
	case VFAT, XFS, Btrfs:
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
		c.unmade = append(c.unmade, fmt.Sprintf("%s: file system %q (known: ext4, vfat, xfs, btrfs)", who, v.FileSystem))
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
	}
	return 0
}

// choose gives the disks to use, the boot disk first, and why others are not.
func choose(disks []Disk, selected []string) (usable []Disk, skipped []SkippedDisk, err error) {
	disks = slices.Clone(disks)
	slices.SortStableFunc(disks, func(a, b Disk) int { return compareBus(a, b) })
	reasons := make(map[string]string)
	worldwide := make(map[string]string)
	for _, d := range disks {
		reason := unusable(d)
		if first := worldwide[d.WWN]; reason == "" && d.WWN != "" && first != "" {
			reason = "it is another path to " + first
		}
		if reason == "" && d.WWN != "" {
			worldwide[d.WWN] = d.Path
		}
		if reason != "" {
			reasons[d.Path] = reason
			skipped = append(skipped, SkippedDisk{d.Path, reason})
			continue
		}
		usable = append(usable, d)
	}
	if selected != nil {
		var chosen []Disk
		var wrong []string
		for _, s := range selected {
			i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == s || d.Path == s })
			switch {
			case i < 0:
				wrong = append(wrong, fmt.Sprintf("%s is no disk of this machine", s))
			case reasons[disks[i].Path] != "":
				wrong = append(wrong, fmt.Sprintf("%s cannot be used: %s", s, reasons[disks[i].Path]))
			case slices.ContainsFunc(chosen, func(d Disk) bool { return d.Path == disks[i].Path }):
				wrong = append(wrong, fmt.Sprintf("%s was selected twice", s))
			default:
				chosen = append(chosen, disks[i])
			}
		}
		if wrong != nil {
			return nil, nil, Errorf(CodeSelection, "the disk selector's answer cannot be followed: %s", strings.Join(wrong, "; "))
		}
		if len(chosen) == 0 {
			return nil, nil, Errorf(CodeSelection, "the disk selector selected no disk; it was offered: %s", join(usable))
		}
		for _, d := range usable {
			if !slices.ContainsFunc(chosen, func(c Disk) bool { return c.Path == d.Path }) {
				skipped = append(skipped, SkippedDisk{d.Path, "the disk selector did not select it"})
			}
		}
		usable = chosen
	}
	if len(usable) == 0 {
		var lines []string
		for _, s := range skipped {
			lines = append(lines, s.Disk+": "+s.Reason)
		}
		if lines == nil {
			lines = []string{"the kernel shows none at all; a driver may be missing, or a controller be switched off"}
		}
		return nil, nil, Errorf(CodeNoDisk, "there is no disk to install on: %s", strings.Join(lines, "; "))
	}
	return usable, skipped, nil
}

// Usable reports whether an installation may erase the disk, and if not, why.
func (d Disk) Usable() (ok bool, reason string) {
	reason = unusable(d)
	return reason == "", reason
}

func unusable(d Disk) string {
	switch {
	case d.BootMedium:
		return "the installer was started from it"
	case d.Size == 0:
		return "it has no size (an empty reader or an unreachable disk)"
	case d.ReadOnly:
		return "it is read-only"
	case strings.EqualFold(d.Transport, "usb"):
		return "it is connected by USB"
	case virtualMedia(d):
		return "it is virtual media of a BMC"
	case d.Removable:
		return "it is removable"
	case slices.ContainsFunc(d.Contents, func(c Content) bool { return c.Label == MediumLabel }):
		return "it is a medium labelled " + MediumLabel
	case slices.ContainsFunc(d.Contents, func(c Content) bool { return c.Kind == KindUnreadable }):
		return "it cannot be read"
	case !pseudoFree(d.Name):
		return "it is no physical disk"
	case d.SectorSize != 512 && d.SectorSize != 4096:
		return fmt.Sprintf("its sectors of %d bytes are neither 512 nor 4096", d.SectorSize)
	}
	return ""
}

func virtualMedia(d Disk) bool {
	model := strings.ToLower(d.Model)
	for _, word := range []string{"virtual media", "virtual floppy", "virtual cd", "virtual hdisk", "virtual usb", "vmedia"} {
		if strings.Contains(model, word) {
			return true
		}
	}
	return false
}

func pseudoFree(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtdblock"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	// An eMMC's boot and RPMB areas are no place for an OS.
	return !strings.HasPrefix(name, "mmcblk") || !(strings.Contains(name, "boot") || strings.Contains(name, "rpmb"))
}

// compareBus orders disks by where they are plugged in: kernel names depend on
// which driver was faster.
func compareBus(a, b Disk) int {
	switch {
	case a.BusPath != "" && b.BusPath == "":
		return -1
	case a.BusPath == "" && b.BusPath != "":
		return 1
	}
	as, bs := strings.Split(a.BusPath, "/"), strings.Split(b.BusPath, "/")
	if c := slices.CompareFunc(as, bs, natural); c != 0 {
		return c
	}
	return natural(a.Name, b.Name)
}

// natural compares numbers in text by value. Texts of one length are compared as
// they are, since PCI addresses are hexadecimal and padded.
func natural(a, b string) int {
	if len(a) == len(b) {
		return strings.Compare(a, b)
	}
	for a != "" && b != "" {
		an, bn := digits(a), digits(b)
		if an > 0 && bn > 0 {
			x, y := strings.TrimLeft(a[:an], "0"), strings.TrimLeft(b[:bn], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[an:], b[bn:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func join(disks []Disk) string {
	var names []string
	for _, d := range disks {
		names = append(names, d.Path)
	}
	return strings.Join(names, ", ")
}

// wantedPartition is a partition before it has a place.
type wantedPartition struct {
	Partition
	least uint64 // bytes
	why   string // for the message when it does not fit
}

type resolver struct {
	spec     Spec
	need     Need
	firmware Firmware
	ids      func(string) [16]byte
	mappings map[string]bool // in use
	labels   map[string]bool // in use
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
	return ps, nil
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
		Name:                     partitionLabel(v.MountPoint),
		TypeGUID:                 typeOf(v.MountPoint, r.spec.Architecture),
		FileSystem:               v.FileSystem,
		Label:                    v.Label,
		FSUUID:                   formatUUID(r.ids("filesystem:" + v.MountPoint)),
		MountPoint:               v.MountPoint,
		BytesPerInode:            v.BytesPerInode,
		ReservedBlocksPercentage: v.ReservedBlocksPercentage,
		RootUserID:               v.RootUserID,
		RootGroupID:              v.RootGroupID,
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
	if r.spec.Encrypt && v.MountPoint != "/" && v.MountPoint != "/boot" && v.MountPoint != ESPMountPoint {
		mapping := r.mapping(v.MountPoint)
		p.LUKS = &LUKS{
			UUID:    formatUUID(r.ids("luks:" + v.MountPoint)),
			Mapping: mapping,
			KeyFile: path.Join(KeyDirectory, mapping+".key"),
		}
		p.TypeGUID = typeLUKS
		least += luksOffset
		why += ", LUKS header"
	}
	return wantedPartition{Partition: p, least: roundUp(least, MiB), why: why}
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
	name = strings.TrimLeft(name[:min(len(name), 80)], ".")
	unique := name
	for i := 2; r.mappings[unique] || unique == "" || unique == "control"; i++ {
		unique = fmt.Sprintf("%s-%d", name, i)
	}
	r.mappings[unique] = true
	return unique
}

// lay gives each partition its sectors; the last takes what remains.
func (r *resolver) lay(index int, d Disk, wanted []wantedPartition) (DiskLayout, error) {
	dl := DiskLayout{
		Name: d.Name, Path: d.Path, Model: d.Model, Serial: d.Serial, WWN: d.WWN,
		Size: d.Size, SectorSize: d.SectorSize, PhysicalSectorSize: d.PhysicalSectorSize,
		Contents: d.Contents,
		UUID:     formatUUID(r.ids(fmt.Sprintf("disk:%d", index))),
	}
	sector := uint64(d.SectorSize)
	align := alignment(d)
	// Last sector: header; before it the entries.
	end := (d.Size/sector - 1 - divUp(gptEntries, sector)) * sector
	if d.Size < 2*MiB {
		end = 0
	}
	at := align
	var fit bool
	var parts []string
	for i, w := range wanted {
		p := w.Partition
		p.Number = i + 1
		p.UUID = formatUUID(r.ids(fmt.Sprintf("partition:%d:%d", index, p.Number)))
		size := w.least
		at = roundUp(at, align)
		if i == len(wanted)-1 {
			fit = at+size <= end/MiB*MiB
			size = max(size, (end-min(at, end))/MiB*MiB)
		}
		p.FirstSector = at / sector
		p.LastSector = (at+size)/sector - 1
		p.Bytes = size
		at += size
		dl.Partitions = append(dl.Partitions, p)
		name := p.MountPoint
		if name == "" {
			name = strings.TrimPrefix(p.Name, NamePrefix)
		}
		parts = append(parts, fmt.Sprintf("%s %s (%s)", name, Bytes(w.least), w.why))
	}
	if !fit {
		var needed uint64 = align + MiB // both ends
		for _, w := range wanted {
			needed = roundUp(needed, align) + w.least
		}
		return DiskLayout{}, Errorf(CodeTooSmall, "%s is too small: need %s, have %s: %s", d.Path, Bytes(needed), Bytes(d.Size), strings.Join(parts, ", "))
	}
	return dl, nil
}

// alignment of partitions in bytes: 1 MiB, or the least multiple of it that the
// disk's preferred transfers divide (a RAID's stripe), when that is reasonable.
func alignment(d Disk) uint64 {
	align := uint64(MiB)
	for _, unit := range []uint64{uint64(d.PhysicalSectorSize), uint64(d.OptimalIOSize)} {
		// Some disks name an optimal size that is no multiple of a sector
		// (USB bridges: 33553920).
		if unit == 0 || unit%4096 != 0 && unit%uint64(d.SectorSize) != 0 {
			continue
		}
		a, b := align, unit
		for b != 0 {
			a, b = b, a%b
		}
		if lcm := align / a * unit; lcm <= 64*MiB {
			align = lcm
		}
	}
	return align
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
	label := strings.ReplaceAll(strings.Trim(v.MountPoint, "/"), "/", "-")
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

// lost has a line for each thing on the disk.
func lost(d Disk) []string {
	name := d.Path
	if what := strings.Join(strings.Fields(d.Model), " "); what != "" {
		name += " (" + what + ", " + Bytes(d.Size) + ")"
	} else {
		name += " (" + Bytes(d.Size) + ")"
	}
	if len(d.Contents) == 0 {
		return []string{name + ": nothing was recognised on it"}
	}
	lines := make([]string, 0, len(d.Contents))
	for _, c := range d.Contents {
		lines = append(lines, name+": "+describe(c))
	}
	return lines
}

func describe(c Content) string {
	s := c.Where + " " + c.Kind
	if c.Label != "" {
		s += fmt.Sprintf(" %q", c.Label)
	}
	if c.UUID != "" {
		s += " " + c.UUID
	}
	if c.Size > 0 {
		s += ", " + Bytes(c.Size)
	}
	return s
}

// Bytes writes a size for people: 3.1 GiB.
func Bytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if value /= 1024; value < 1024 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
