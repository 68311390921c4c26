package storage

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// keep finds the partitions of a disk that hold what the layout preserves, and
// puts them in place of those that would have been made. A volume that is not
// there is made anew, but only where there is nothing at all that could be lost.
func (r *resolver) keep(d chosenDisk, wanted []wantedPartition) []error {
	var wrong []error
	for i := range wanted {
		w := &wanted[i]
		if w.Label == "" || !slices.Contains(r.spec.Preserve, w.Label) {
			continue
		}
		r.preserved[w.Label] = true
		if err := r.keepOne(d, w); err != nil {
			wrong = append(wrong, Errorf(CodePreserve, "%q (%s) cannot be kept: %w", w.Label, volumeName(w.Partition), err))
		}
	}
	return wrong
}

func (r *resolver) keepOne(d chosenDisk, w *wantedPartition) error {
	if w.FileSystem == Swap {
		return fmt.Errorf("swap holds nothing that is kept")
	}
	switch w.MountPoint {
	case "/":
		return fmt.Errorf("the root file system is what is installed")
	case bootMountPoint, ESPMountPoint:
		return fmt.Errorf("the new system's boot files are written there")
	}
	if r.spec.Erase == EraseCrypto {
		return fmt.Errorf("Erase is %q, and a disk that does that forgets all of it", EraseCrypto)
	}
	if w.LUKS != nil && len(r.spec.Encryption.Unlock) > 0 && !slices.Contains(r.spec.Encryption.Unlock, UnlockKeyFile) {
		return fmt.Errorf("it is encrypted, and a volume that is kept is opened by its old key file: add %q to Unlock", UnlockKeyFile)
	}
	found := preservable(d.Disk, *w)
	switch len(found) {
	case 1:
		return w.take(found[0], d.Disk)
	case 0:
		return r.nowhere(d, *w)
	}
	var names []string
	for _, f := range found {
		names = append(names, f.partition.Where)
	}
	return fmt.Errorf("several partitions of %s have it: %s", d.Path, strings.Join(names, ", "))
}

// nowhere is about a volume that its disk does not have: nil when the chosen
// disks are blank.
func (r *resolver) nowhere(d chosenDisk, w wantedPartition) error {
	blank := true
	for _, other := range r.chosen {
		blank = blank && len(other.Contents) == 0
		if f := preservable(other.Disk, w); other.Path != d.Path && len(f) > 0 {
			return fmt.Errorf("it lies on %s (%s), and the layout puts it on %s: choose the disks accordingly", other.Path, f[0].partition.Where, d.Path)
		}
	}
	if blank {
		return nil
	}
	return fmt.Errorf("no partition of %s has it, and the disks are not blank: what is there would be lost", d.Path)
}

// kept is a partition that is there, and what lies in it.
type kept struct {
	partition, inner Content
}

// preservable are the partitions of a disk that hold the wanted volume. The
// label of an encrypted file system cannot be seen: the container's own counts,
// and the name that we give the partition of that mount point.
func preservable(d Disk, w wantedPartition) (found []kept) {
	for _, p := range d.Contents {
		if p.Kind != KindPartition || !topLevel(d.Name, p.Where) {
			continue
		}
		i := slices.IndexFunc(d.Contents, func(c Content) bool {
			return c.Where == p.Where && c.Kind != KindPartition &&
				(c.Label == w.Label || c.Kind == "luks" && (c.Label == w.Name || p.Label == w.Name))
		})
		if i >= 0 {
			found = append(found, kept{p, d.Contents[i]})
		}
	}
	return found
}

// topLevel says whether where is a partition of the disk itself, not of a table
// within one.
func topLevel(disk, where string) bool {
	number, err := strconv.Atoi(strings.TrimPrefix(where, strings.TrimSuffix(PartitionName(disk, 1), "1")))
	return err == nil && where == PartitionName(disk, number)
}

// take makes the wanted partition the one that is there.
func (w *wantedPartition) take(old kept, d Disk) error {
	sector := uint64(d.SectorSize)
	first, last := usableBytes(d)
	offset, size := old.partition.Offset, old.partition.Size
	switch {
	case w.LUKS != nil && old.inner.Kind != "luks":
		return fmt.Errorf("%s is not encrypted (%s), and the layout wants it encrypted", old.partition.Where, old.inner.Kind)
	case w.LUKS == nil && old.inner.Kind == "luks":
		return fmt.Errorf("%s is encrypted, and the layout wants it plain", old.partition.Where)
	case w.LUKS == nil && old.inner.Kind != w.FileSystem:
		return fmt.Errorf("%s is %s, and the layout wants %s", old.partition.Where, old.inner.Kind, w.FileSystem)
	case len(w.Subvolumes) > 0:
		return fmt.Errorf("it has Subvolumes in the layout, and those of a volume that is kept are not looked at")
	case offset < first || offset+size > last || offset%sector != 0 || size%sector != 0 || size == 0:
		return fmt.Errorf("%s lies where the new partition table has to be", old.partition.Where)
	}
	w.Kept, w.UUID = true, ""
	if len(old.partition.UUID) == len("00000000-0000-0000-0000-000000000000") {
		w.UUID = strings.ToLower(old.partition.UUID)
	}
	w.at, w.least, w.why = offset, size, "kept"
	if w.LUKS == nil {
		w.FSUUID = old.inner.UUID
		return nil
	}
	// What lies inside is not known before it is opened.
	w.FSUUID = ""
	w.LUKS.UUID, w.LUKS.Unlock, w.LUKS.Slots, w.LUKS.PCRs = old.inner.UUID, UnlockKeyFile, []Slot{SlotKeyFile}, nil
	w.LUKS.KeyFile = path.Join(KeyDirectory, w.LUKS.Mapping+".key")
	return nil
}

// checkPreserve finds labels that no volume of the layout has, and what volumes
// cannot be kept in.
func (s Spec) checkPreserve(wrong func(format string, args ...any)) {
	if len(s.Preserve) > 0 && (s.Mirror || s.VolumeGroup != "" || s.DataRAID != "") {
		wrong("Preserve keeps partitions, and does not go together with Mirror, VolumeGroup and DataRAID")
	}
}

// unknownLabels are those in Preserve that no volume has.
func (r *resolver) unknownLabels(l Layout) error {
	var unknown, known []string
	for _, label := range r.spec.Preserve {
		if !r.preserved[label] {
			unknown = append(unknown, strconv.Quote(label))
		}
	}
	if unknown == nil {
		return nil
	}
	for _, v := range l.Volumes() {
		if v.Partition.Label != "" {
			known = append(known, strconv.Quote(v.Partition.Label)+" ("+volumeName(v.Partition)+")")
		}
	}
	return Errorf(CodePreserve, "Preserve names %s, and no volume of the layout has that label: there are %s", strings.Join(unknown, ", "), strings.Join(known, ", "))
}

// Keeps reports whether something that was found on the disk stays as it is.
func (d DiskLayout) Keeps(c Content) bool {
	return slices.ContainsFunc(d.Partitions, func(p Partition) bool {
		first := p.FirstSector * uint64(d.SectorSize)
		return p.Kept && c.Where != d.Name && c.Offset >= first && c.Offset < first+p.Bytes
	})
}
