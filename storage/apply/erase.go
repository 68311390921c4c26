package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/gpt"
	"github.com/firstlight/firstlight/storage/signature"
)

// partition erases a disk, writes its table and gives the disk back, so that the
// partitions can be opened.
func (r *run) partition(ctx context.Context, d storage.DiskLayout, dev block.Device) (err error) {
	defer func() { err = errors.Join(err, dev.Close()) }()
	regions, err := gpt.Table(d)
	if err != nil {
		return err
	}
	if err := r.erase(ctx, d, dev, regions); err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	r.options.Progress(d.Name, "", "partition")
	for _, region := range regions {
		n, err := dev.WriteAt(region.Data, int64(region.Offset))
		r.applied.wrote(d.Name, uint64(n))
		if err != nil {
			return storage.Errorf(storage.CodeIO, "writing the partition table of %s: %w", d.Path, err)
		}
		if err := dev.Sync(); err != nil {
			return err
		}
	}
	var parts []block.Partition
	for _, p := range d.Partitions {
		parts = append(parts, block.Partition{Number: p.Number, Offset: p.FirstSector * uint64(d.SectorSize), Size: p.Bytes})
	}
	return dev.Reread(parts)
}

// erase makes a disk one on which nothing is recognised, in the way that the
// layout asks for, and looks whether that is so. Partitions that are kept are
// left as they are. So is then the old table, until the new one takes its place:
// at no moment is there none that says where the kept ones lie.
func (r *run) erase(ctx context.Context, d storage.DiskLayout, dev block.Device, table []gpt.Region) error {
	step := "erase"
	if d.Erase != "" && d.Erase != storage.EraseMetadata {
		step += ", " + string(d.Erase)
	}
	r.options.Progress(d.Name, "", step)
	spared := spared(d, table)
	places, err := signature.Places(dev, d.Size, d.SectorSize)
	if err != nil {
		return err
	}
	for _, p := range d.Partitions {
		more, err := signature.Inside(dev, p.FirstSector*uint64(d.SectorSize), p.Bytes, d.SectorSize)
		if err != nil {
			return err
		}
		places = append(places, more...)
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("before erasing: %w", err)
	}
	whole := signature.Without([]signature.Range{{Size: d.Size}}, spared)
	switch d.Erase {
	case storage.EraseDiscard:
		sector := uint64(d.SectorSize)
		for _, gap := range whole {
			// Disks discard whole sectors; what is left at the edges is zeroed below.
			from, to := (gap.Offset+sector-1)/sector*sector, (gap.Offset+gap.Size)/sector*sector
			if from >= to {
				continue
			}
			if ok, err := dev.Discard(from, to-from); err != nil {
				return err
			} else if !ok {
				return storage.Errorf(storage.CodeErase, "the disk does not take discards")
			}
		}
	case storage.EraseCrypto:
		if err := r.Sanitize(ctx, d); err != nil {
			return err
		}
	case storage.EraseOverwrite:
		// It does what follows to every sector, and more.
		places = whole
	}
	// Also after the others: what a disk returns for sectors that were discarded,
	// or for those of a new key, is its own affair.
	places = signature.Without(signature.Merge(places), spared)
	if err := r.zero(ctx, d, dev, places); err != nil {
		return err
	}
	return r.checkErased(ctx, d, dev, places, spared)
}

// spared are the ranges that erasing leaves alone.
func spared(d storage.DiskLayout, table []gpt.Region) []signature.Range {
	var ranges []signature.Range
	for _, p := range d.Partitions {
		if p.Kept {
			ranges = append(ranges, signature.Range{Offset: p.FirstSector * uint64(d.SectorSize), Size: p.Bytes})
		}
	}
	if ranges == nil {
		return nil
	}
	for _, region := range table {
		ranges = append(ranges, signature.Range{Offset: region.Offset, Size: uint64(len(region.Data))})
	}
	return signature.Merge(ranges)
}

// zero writes zeroes to ranges. It can be interrupted between pieces of 1 GiB.
func (r *run) zero(ctx context.Context, d storage.DiskLayout, dev block.Device, ranges []signature.Range) error {
	const piece = 1 << 30
	for _, one := range ranges {
		for done := uint64(0); done < one.Size; done += piece {
			if err := context.Cause(ctx); err != nil {
				return fmt.Errorf("erasing: %w", err)
			}
			written, err := signature.Erase(dev, []signature.Range{{Offset: one.Offset + done, Size: min(piece, one.Size-done)}})
			r.applied.wrote(d.Name, written)
			if err != nil {
				return err
			}
			if one.Size > piece {
				r.options.Progress(d.Name, "", fmt.Sprintf("erase: %s of %s", storage.Bytes(min(done+piece, one.Size)), storage.Bytes(one.Size)))
			}
		}
	}
	return dev.Sync()
}

// checkErased reads from the disk itself what was zeroed, and looks for anything
// that is still recognised.
func (r *run) checkErased(ctx context.Context, d storage.DiskLayout, dev block.Device, zeroed, spared []signature.Range) error {
	if err := dev.Uncache(); err != nil {
		return err
	}
	if d.Erase == storage.EraseOverwrite {
		r.options.Progress(d.Name, "", "erase: reading back")
	}
	const piece = 1 << 20
	b := make([]byte, piece)
	for _, one := range zeroed {
		for done := uint64(0); done < one.Size; done += piece {
			if err := context.Cause(ctx); err != nil {
				return fmt.Errorf("reading back: %w", err)
			}
			part := b[:min(piece, one.Size-done)]
			if _, err := dev.ReadAt(part, int64(one.Offset+done)); err != nil {
				return storage.Errorf(storage.CodeIO, "reading back what was erased: %w", err)
			}
			if i := firstNonZero(part); i >= 0 {
				return storage.Errorf(storage.CodeNotErased, "byte %d was zeroed and reads back as %#02x", one.Offset+done+uint64(i), part[i])
			}
		}
	}
	left, err := signature.Probe(d.Name, masked{dev, spared}, d.Size, d.SectorSize)
	if err != nil {
		return err
	}
	for _, p := range d.Partitions {
		at, name := p.FirstSector*uint64(d.SectorSize), storage.PartitionName(d.Name, p.Number)
		inside, err := signature.Probe(name, io.NewSectionReader(masked{dev, spared}, int64(at), int64(p.Bytes)), p.Bytes, d.SectorSize)
		if err != nil {
			return err
		}
		left = append(left, inside...)
	}
	if len(left) > 0 {
		return storage.Errorf(storage.CodeNotErased, "after erasing there is still: %s", kinds(left))
	}
	return nil
}

func firstNonZero(b []byte) int {
	if len(bytes.TrimLeft(b, "\x00")) == 0 {
		return -1
	}
	return len(b) - len(bytes.TrimLeft(b, "\x00"))
}

// masked is a disk of which some ranges read as zeroes.
type masked struct {
	block.Device
	ranges []signature.Range
}

func (m masked) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.Device.ReadAt(p, off)
	begin, end := uint64(off), uint64(off)+uint64(n)
	for _, r := range m.ranges {
		if from, to := max(begin, r.Offset), min(end, r.Offset+r.Size); from < to {
			clear(p[from-begin : to-begin])
		}
	}
	return n, err
}
