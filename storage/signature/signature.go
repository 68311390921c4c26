// Package signature tells what lies on a disk from its bytes (partition tables,
// file systems, members of RAIDs and volume managers, encrypted containers) and
// which bytes to zero so that nothing of it is recognised again.
//
// It only reads through an io.ReaderAt and writes through an io.WriterAt; it
// opens nothing and trusts nothing it reads: sizes and offsets from the disk are
// checked against the disk.
package signature

import (
	"cmp"
	"errors"
	"io"
	"slices"

	"github.com/firstlight/firstlight/storage"
)

// Range is a run of bytes of a disk.
type Range struct {
	Offset, Size uint64
}

const (
	// edge is how much of both ends of a disk or partition is zeroed whatever is
	// seen there: RAID firmware keeps its records in the last sectors, LVM, ZFS
	// and boot loaders theirs in the first MiB.
	edge = 1 << 20
	// depth is how many partition tables may lie within each other (a virtual
	// machine's disk in a partition).
	depth = 3
)

// Probe reports what lies on a disk of size bytes: the disk itself first, then
// its partitions in the order of their numbers, each followed by what is in it.
// name is the kernel's name of the disk, for [storage.Content]. The result is
// the same for the same bytes.
//
// The error has code STO-016; a disk that cannot be read in part is not one on
// which to decide anything.
func Probe(name string, r io.ReaderAt, size uint64, sectorSize uint32) ([]storage.Content, error) {
	s := scan{r: r, sector: uint64(sectorSize)}
	s.region(name, 0, size, 0)
	if s.err != nil {
		return nil, storage.Errorf(storage.CodeUnreadable, "reading what lies on %s: %w", name, s.err)
	}
	return s.contents, nil
}

// Places are the ranges to zero so that nothing on the disk is recognised any
// more: both ends of the disk and of every old partition, the copies of super
// blocks elsewhere, and the headers and key slots of encrypted volumes. They are
// sorted and do not overlap.
func Places(r io.ReaderAt, size uint64, sectorSize uint32) ([]Range, error) {
	s := scan{r: r, sector: uint64(sectorSize)}
	s.region("disk", 0, size, 0)
	if s.err != nil {
		return nil, storage.Errorf(storage.CodeUnreadable, "looking for old signatures: %w", s.err)
	}
	return Merge(s.places), nil
}

// Inside are the ranges to zero within a partition that is about to be made, so
// that nothing older than the last partition table appears in it.
func Inside(r io.ReaderAt, offset, size uint64, sectorSize uint32) ([]Range, error) {
	s := scan{r: r, sector: uint64(sectorSize)}
	s.region("partition", offset, size, depth-1)
	if s.err != nil {
		return nil, storage.Errorf(storage.CodeUnreadable, "looking for old signatures: %w", s.err)
	}
	return Merge(s.places), nil
}

// Erase zeroes the ranges and returns how many bytes it wrote. It does not sync.
func Erase(w io.WriterAt, ranges []Range) (written uint64, err error) {
	zero := make([]byte, edge)
	for _, r := range ranges {
		for done := uint64(0); done < r.Size; {
			n, err := w.WriteAt(zero[:min(edge, r.Size-done)], int64(r.Offset+done))
			written += uint64(n)
			if err != nil {
				return written, storage.Errorf(storage.CodeIO, "erasing old signatures at byte %d: %w", r.Offset+done, err)
			}
			done += uint64(n)
		}
	}
	return written, nil
}

// Merge sorts ranges and joins those that touch.
func Merge(ranges []Range) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	var out []Range
	for _, r := range ranges {
		if r.Size == 0 {
			continue
		}
		if n := len(out); n > 0 && r.Offset <= out[n-1].Offset+out[n-1].Size {
			last := &out[n-1]
			last.Size = max(last.Offset+last.Size, r.Offset+r.Size) - last.Offset
			continue
		}
		out = append(out, r)
	}
	return out
}

// Without cuts the ranges of spared out of others. Both must be as [Merge]
// returns them.
func Without(ranges, spared []Range) []Range {
	var out []Range
	for _, r := range ranges {
		for _, s := range spared {
			if s.Offset >= r.Offset+r.Size || s.Offset+s.Size <= r.Offset {
				continue
			}
			if s.Offset > r.Offset {
				out = append(out, Range{r.Offset, s.Offset - r.Offset})
			}
			end := r.Offset + r.Size
			r.Offset = min(s.Offset+s.Size, end)
			r.Size = end - r.Offset
		}
		if r.Size > 0 {
			out = append(out, r)
		}
	}
	return out
}

// scan collects what is found; the first read error stays and ends it.
type scan struct {
	r        io.ReaderAt
	sector   uint64 // bytes, of the device
	contents []storage.Content
	places   []Range
	nested   int // within how many RAIDs and logical volumes
	err      error
}

// area is a region of the disk that is looked at as if it were one by itself.
type area struct {
	*scan
	where        string
	offset, size uint64
}

// bytes reads n bytes at an offset of the area; nil when they are not all inside
// or cannot be read.
func (a area) bytes(at, n uint64) []byte {
	if a.err != nil || n > a.size || at > a.size-n {
		return nil
	}
	b := make([]byte, n)
	if got, err := a.r.ReadAt(b, int64(a.offset+at)); got < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		a.err = err
		return nil
	}
	return b
}

// has reports whether magic stands at an offset of the area.
func (a area) has(at uint64, magic string) bool {
	return string(a.bytes(at, uint64(len(magic)))) == magic
}

// erase adds a range of the area to the places, cut at its end.
func (a area) erase(at, n uint64) {
	if at >= a.size {
		return
	}
	a.places = append(a.places, Range{a.offset + at, min(n, a.size-at)})
}

func (a area) found(c storage.Content) {
	c.Where = a.where
	c.Offset = a.offset
	if c.Size == 0 || c.Size > a.size {
		c.Size = a.size
	}
	a.contents = append(a.contents, c)
}

// within looks into what lies stacked on a part of the area: a logical volume, the
// data of a RAID. It adds its places; its contents are those of the stack, which
// is not taken apart here.
func (a area) within(at, size uint64) {
	if a.err != nil || a.nested >= depth {
		return
	}
	inner := scan{r: a.r, sector: a.sector, nested: a.nested + 1}
	inner.region(a.where, a.offset+at, size, 0)
	a.places = append(a.places, inner.places...)
	a.err = inner.err
}

// region looks at one disk or partition.
func (s *scan) region(where string, offset, size uint64, level int) {
	if s.err != nil || size == 0 {
		return
	}
	a := area{scan: s, where: where, offset: offset, size: size}
	a.erase(0, edge)
	a.erase(size-min(edge, size), edge)
	n := len(s.contents)
	for _, probe := range probes() {
		probe(a)
	}
	if level >= depth {
		return
	}
	// The boot sector of a FAT, NTFS or BitLocker volume ends like an MBR.
	bootSector := slices.ContainsFunc(s.contents[n:], func(c storage.Content) bool {
		return slices.Contains([]string{"vfat", "exfat", "ntfs", "refs", "bitlocker"}, c.Kind)
	})
	partitions, ok := a.gpt()
	if !ok && !bootSector {
		partitions = a.mbr()
	}
	for _, p := range partitions {
		child := area{scan: s, where: storage.PartitionName(where, p.number), offset: offset + p.offset, size: p.size}
		child.found(storage.Content{Kind: storage.KindPartition, Label: p.name, UUID: p.uuid})
		if !p.extended {
			s.region(child.where, child.offset, child.size, level+1)
		}
	}
}
