package storage

import (
	"cmp"
	"errors"
	"slices"
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
	spec = spec.withBoot()
	if spec.Firmware == Both {
		firmware = Both
	}
	if err := spec.check(firmware); err != nil {
		return Layout{}, err
	}
	chosen, err := choose(spec, disks, selected)
	if err != nil {
		return Layout{}, err
	}
	if err := checkBoot(chosen.boot, firmware); err != nil {
		return Layout{}, err
	}
	r := resolver{
		spec: spec, need: need, firmware: firmware, ids: ids,
		mappings: make(map[string]bool), labels: map[string]bool{MediumLabel: true}, stacked: make(map[string]bool),
		chosen: slices.Concat(chosen.boot, chosen.data), preserved: make(map[string]bool),
	}
	for _, v := range spec.Volumes {
		r.labels[v.Label] = true
	}
	l := Layout{Firmware: firmware, Mirror: spec.Mirror}
	problems := r.layBoot(&l, chosen.boot)
	problems = append(problems, r.layData(&l, chosen.data)...)
	switch len(problems) {
	case 0:
	case 1:
		return Layout{}, problems[0]
	default:
		code := CodeTooSmall
		if first, ok := errors.AsType[*Error](problems[0]); ok {
			code = first.ID
		}
		return Layout{}, Errorf(code, "%w", errors.Join(problems...))
	}
	if err := r.unknownLabels(l); err != nil {
		return Layout{}, err
	}
	for _, d := range l.Disks {
		lost, kept := d.losses()
		l.Lost, l.Kept = append(l.Lost, lost...), append(l.Kept, kept...)
	}
	l.Skipped = chosen.skipped
	return l, nil
}

// layBoot lays out the boot disk, or the two of a mirror.
func (r *resolver) layBoot(l *Layout, disks []chosenDisk) (problems []error) {
	// Of two disks the smaller says how large the EFI system partition is.
	smallest := slices.MinFunc(disks, func(a, b chosenDisk) int { return cmp.Compare(a.Size, b.Size) })
	wanted, err := r.bootDisk(smallest.Disk)
	if err != nil {
		return []error{err}
	}
	if wrong := r.keep(smallest, wanted); wrong != nil {
		return wrong
	}
	var inside []wantedPartition
	if r.spec.VolumeGroup != "" {
		wanted, inside = r.intoGroup(wanted)
	}
	members := slices.Clone(wanted)
	if r.spec.Mirror {
		for i, w := range members {
			if w.TypeGUID != typeBIOSBoot {
				members[i] = inMember(w)
			}
		}
	}
	for i, d := range disks {
		dl, err := r.lay(i, d, members)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		l.Disks = append(l.Disks, dl)
	}
	if problems != nil {
		return problems
	}
	last := len(wanted) - 1
	device, bytes := l.Disks[0].Node(l.Disks[0].Partitions[last]), l.Disks[0].Partitions[last].Bytes
	if r.spec.Mirror {
		evenOut(l.Disks)
		for i, w := range wanted {
			if w.TypeGUID != typeBIOSBoot {
				l.Arrays = append(l.Arrays, r.array(len(l.Arrays), RAID1.level(), l.Disks, i+1, w.Partition))
			}
		}
		a := l.Arrays[len(l.Arrays)-1]
		device, bytes = a.Node, a.Bytes
	}
	if r.spec.VolumeGroup != "" {
		l.Groups = append(l.Groups, r.group(device, bytes, l.Disks[0].SectorSize, inside))
	}
	return nil
}

// layData lays out the further disks: a volume of each, or one of all.
func (r *resolver) layData(l *Layout, disks []chosenDisk) (problems []error) {
	if r.spec.DataRAID == "" {
		for i, d := range disks {
			wanted, err := r.dataDisk(i + 1)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			if wrong := r.keep(d, wanted); wrong != nil {
				problems = append(problems, wrong...)
				continue
			}
			dl, err := r.lay(len(l.Disks), d, wanted)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			l.Disks = append(l.Disks, dl)
		}
		return problems
	}
	if len(disks) < 2 {
		return []error{Errorf(CodeNoDisk, "DataRAID %q needs two data disks or more, and there are %d", r.spec.DataRAID, len(disks))}
	}
	if err := checkSectors(disks); err != nil {
		return []error{err}
	}
	holds := r.extra(1)
	member := inMember(holds)
	if r.spec.DataRAID != RAID1 {
		member.least = roundUp(divUp(holds.least, uint64(len(disks))/2), MiB) + ArrayOffset
	}
	first := len(l.Disks)
	for _, d := range disks {
		dl, err := r.lay(len(l.Disks), d, []wantedPartition{member})
		if err != nil {
			problems = append(problems, err)
			continue
		}
		l.Disks = append(l.Disks, dl)
	}
	if problems != nil {
		return problems
	}
	evenOut(l.Disks[first:])
	l.Arrays = append(l.Arrays, r.array(len(l.Arrays), r.spec.DataRAID.level(), l.Disks[first:], 1, holds.Partition))
	return nil
}

// checkBoot refuses disks that the machine could not start from.
func checkBoot(disks []chosenDisk, firmware Firmware) error {
	for _, d := range disks {
		if firmware != UEFI && d.SectorSize != 512 {
			return Errorf(CodeLayout, "%s has sectors of %d bytes, and no BIOS starts from such a disk: choose another BootDisk, or switch the firmware to UEFI", d.Path, d.SectorSize)
		}
	}
	return checkSectors(disks)
}
