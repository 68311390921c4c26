// Package gpt makes the bytes of the GUID partition table of a disk layout (UEFI
// specification, chapter 5): protective MBR, header and entries at the start,
// entries and header at the end.
//
// It writes to nothing: the bytes are returned with their places.
package gpt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/firstlight/firstlight/storage"
)

// Region is a run of bytes at a place of the disk.
type Region struct {
	Offset uint64 // bytes
	Data   []byte
}

// Table returns the regions of the disk's partition table, to be written in this
// order: the copy at the end comes first, entries before their header, the
// protective MBR last, so that a machine that stops between them has either no
// table or a whole one. Errors have code STO-010.
func Table(d storage.DiskLayout) ([]Region, error) {
	t := gpt.Table{
		LogicalSectorSize:  int(d.SectorSize),
		PhysicalSectorSize: int(max(d.SectorSize, d.PhysicalSectorSize)),
		GUID:               d.UUID,
		ProtectiveMBR:      true,
	}
	for _, p := range d.Partitions {
		t.Partitions = append(t.Partitions, &gpt.Partition{
			Index: p.Number,
			Start: p.FirstSector,
			End:   p.LastSector, // inclusive
			Size:  (p.LastSector - p.FirstSector + 1) * uint64(d.SectorSize),
			Type:  gpt.Type(p.TypeGUID),
			Name:  p.Name,
			GUID:  p.UUID,
		})
	}
	var m memory
	if err := t.Write(&m, int64(d.Size)); err != nil {
		return nil, storage.Errorf(storage.CodeTable, "making the partition table of %s: %w", d.Path, err)
	}
	// go-diskfs writes the table part of the MBR first, then the second copy of
	// the GPT and the first, entries before header.
	if len(m.regions) != 5 || m.regions[0].Offset != mbrTable || len(m.regions[0].Data) != 512-mbrTable {
		return nil, storage.Errorf(storage.CodeTable, "making the partition table of %s: unexpected order of writes", d.Path)
	}
	mbr := Region{Data: append(make([]byte, mbrTable), m.regions[0].Data...)}
	// The protective entry ends with the disk, or at the last sector that 32 bits
	// can name.
	binary.LittleEndian.PutUint32(mbr.Data[mbrTable+12:], uint32(min(d.Size/uint64(d.SectorSize)-1, math.MaxUint32)))
	return append(m.regions[1:], mbr), nil
}

// mbrTable is where the partition entries of an MBR begin.
const mbrTable = 446

// memory records what go-diskfs writes.
type memory struct{ regions []Region }

var errNoDisk = errors.New("there is no disk behind this table")

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("writing at %d", off)
	}
	m.regions = append(m.regions, Region{Offset: uint64(off), Data: slices.Clone(p)})
	return len(p), nil
}

func (m *memory) Stat() (fs.FileInfo, error)        { return nil, errNoDisk }
func (m *memory) Read([]byte) (int, error)          { return 0, errNoDisk }
func (m *memory) ReadAt([]byte, int64) (int, error) { return 0, errNoDisk }
func (m *memory) Seek(int64, int) (int64, error)    { return 0, errNoDisk }
func (m *memory) Close() error                      { return nil }

var _ io.WriterAt = (*memory)(nil)
