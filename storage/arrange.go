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
	align := alignment(d.Disk)
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
		parts = append(parts, fmt.Sprintf("%s %s (%s)", volumeName(p), Bytes(w.least), w.why))
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
