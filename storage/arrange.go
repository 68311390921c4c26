package storage

import (
	"cmp"
	"fmt"
	"strings"
)

// gptEntries is the space of the entries of one GPT, in bytes; there is one table at
// each end of the disk.
const gptEntries = 128 * 128

// lay gives each partition its sectors; the last takes what remains.
func (r *resolver) lay(index int, d chosenDisk, wanted []wantedPartition) (DiskLayout, error) {
	dl := DiskLayout{
		Name: d.Name, Path: d.Path, Model: d.Model, Serial: d.Serial, WWN: d.WWN,
		Size: d.Size, SectorSize: d.SectorSize, PhysicalSectorSize: d.PhysicalSectorSize,
		Contents: d.Contents, ChosenBy: d.by, Erase: cmp.Or(r.spec.Erase, EraseMetadata),
		UUID: formatUUID(r.ids(fmt.Sprintf("disk:%d", index))),
	}
	if dl.Erase == EraseCrypto {
		dl.CryptoErase = d.CryptoErase
	}
	sector := uint64(d.SectorSize)
	places, needed, ok := arrange(d.Disk, wanted)
	var parts []string
	for i, w := range wanted {
		p := w.Partition
		p.Number = i + 1
		if p.UUID == "" {
			p.UUID = formatUUID(r.ids(fmt.Sprintf("partition:%d:%d", index, p.Number)))
		}
		p.FirstSector = places[i].at / sector
		p.LastSector = (places[i].at+places[i].size)/sector - 1
		p.Bytes = places[i].size
		dl.Partitions = append(dl.Partitions, p)
		parts = append(parts, fmt.Sprintf("%s %s (%s)", volumeName(p), Bytes(w.least), w.why))
	}
	if !ok {
		return DiskLayout{}, Errorf(CodeTooSmall, "%s is too small: need %s, have %s: %s", d.Path, Bytes(needed), Bytes(d.Size), strings.Join(parts, ", "))
	}
	return dl, nil
}

// usableBytes are the first byte of a disk that a partition may have, and the
// one behind the last: the tables lie before and after.
func usableBytes(d Disk) (first, end uint64) {
	sector := uint64(d.SectorSize)
	tables := 1 + divUp(gptEntries, sector) // a header and the entries
	if d.Size < 2*MiB {
		return 0, 0
	}
	return (tables + 1) * sector, (d.Size/sector - tables) * sector
}

// place is where a partition lies, in bytes.
type place struct{ at, size uint64 }

// arrange gives each partition its place. Those that are kept stay where they
// are, the others lie in the gaps in their order, and the last one takes what
// remains: of the largest gap, when there are several. needed is what all of them
// take; ok says whether they fit.
func arrange(d Disk, wanted []wantedPartition) (places []place, needed uint64, ok bool) {
	align := alignment(d)
	_, end := usableBytes(d)
	places = make([]place, len(wanted))
	gaps := []place{{align, end/MiB*MiB - min(align, end/MiB*MiB)}}
	needed = align + MiB // both ends
	for i, w := range wanted {
		needed = roundUp(needed, align) + w.least
		if !w.Kept {
			continue
		}
		places[i] = place{w.at, w.least}
		gaps = without(gaps, places[i], align)
	}
	ok = true
	for i, w := range wanted {
		if w.Kept {
			continue
		}
		last := i == len(wanted)-1
		best := -1
		for g, gap := range gaps {
			if gap.size >= w.least && (best < 0 || last && gap.size > gaps[best].size) {
				best = g
			}
		}
		if best < 0 {
			ok = false
			places[i] = place{align, w.least}
			continue
		}
		places[i] = place{gaps[best].at, w.least}
		if last {
			places[i].size = gaps[best].size / MiB * MiB
		}
		gaps = without(gaps, places[i], align)
	}
	return places, needed, ok
}

// without cuts a place out of gaps; what remains begins aligned.
func without(gaps []place, cut place, align uint64) (out []place) {
	add := func(from, to uint64) {
		if from = roundUp(from, align); from < to {
			out = append(out, place{from, to - from})
		}
	}
	for _, g := range gaps {
		if cut.at >= g.at+g.size || cut.at+cut.size <= g.at {
			out = append(out, g)
			continue
		}
		if cut.at > g.at {
			add(g.at, cut.at)
		}
		add(cut.at+cut.size, g.at+g.size)
	}
	return out
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
