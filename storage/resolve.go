package storage

import (
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
	if err := spec.check(firmware); err != nil {
		return Layout{}, err
	}
	chosen, err := choose(spec, disks, selected)
	if err != nil {
		return Layout{}, err
	}
	r := resolver{spec: spec, need: need, firmware: firmware, ids: ids, mappings: make(map[string]bool), labels: map[string]bool{MediumLabel: true}}
	for _, v := range spec.Volumes {
		r.labels[v.Label] = true
	}
	l := Layout{Firmware: firmware}
	var problems []error
	for i, d := range append(chosen.boot, chosen.data...) {
		var wanted []wantedPartition
		if i == 0 {
			wanted, err = r.bootDisk(d.Disk)
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
		l.Lost = append(l.Lost, lost(d.Disk)...)
	}
	if err := errors.Join(problems...); err != nil {
		return Layout{}, Errorf(CodeTooSmall, "%w", err)
	}
	l.Skipped = chosen.skipped
	return l, nil
}
