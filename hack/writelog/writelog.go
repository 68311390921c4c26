// Package writelog reads the log that QEMU's blklogwrites driver keeps of what
// a machine writes to a disk (the format of the kernel's dm-log-writes, see
// Documentation/admin-guide/device-mapper/log-writes.rst), and makes from it
// the disk as a power cut would have left it at any moment.
package writelog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

const (
	magic   = 0x6a736677736872
	version = 1

	flagFlush   = 1 << 0
	flagFUA     = 1 << 1
	flagDiscard = 1 << 2
)

// Entry is one request that the disk was sent.
type Entry struct {
	Offset, Bytes int64 // on the disk; a flush alone has no bytes
	// Flush: everything that came before is on the disk when this has ended.
	Flush bool
	// FUA: this write itself is, when it has ended.
	FUA bool
	// Discard: the disk may forget what was there; no data was sent.
	Discard bool
	data    int64 // where its bytes are in the log
}

// changes is true of what is not a mere flush.
func (e Entry) changes() bool { return e.Bytes > 0 }

// Log is an open log. It must not be written to any more.
type Log struct {
	Entries []Entry
	file    *os.File
}

// Open reads the log of a machine that is off. Close closes it.
func Open(path string) (*Log, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening a log of writes: %w", err)
	}
	l := &Log{file: f}
	if err := l.read(); err != nil {
		return nil, errors.Join(fmt.Errorf("reading the log of writes %s: %w", path, err), f.Close())
	}
	return l, nil
}

// Close closes the log's file.
func (l *Log) Close() error { return l.file.Close() }

func (l *Log) read() error {
	var super struct {
		Magic, Version, Entries uint64
		SectorSize              uint32
	}
	if err := binary.Read(io.NewSectionReader(l.file, 0, 28), binary.LittleEndian, &super); err != nil {
		return err
	}
	if super.Magic != magic || super.Version != version || super.SectorSize == 0 {
		return fmt.Errorf("it begins with %+v", super)
	}
	sector := int64(super.SectorSize)
	at := sector
	for range super.Entries {
		var raw struct{ Sector, Sectors, Flags, DataLength uint64 }
		if err := binary.Read(io.NewSectionReader(l.file, at, 32), binary.LittleEndian, &raw); err != nil {
			return fmt.Errorf("entry %d: %w", len(l.Entries), err)
		}
		at += sector
		e := Entry{
			Offset: int64(raw.Sector) * sector, Bytes: int64(raw.Sectors) * sector,
			Flush: raw.Flags&flagFlush != 0, FUA: raw.Flags&flagFUA != 0, Discard: raw.Flags&flagDiscard != 0,
			data: at,
		}
		l.Entries = append(l.Entries, e)
		if !e.Discard {
			at += e.Bytes
		}
	}
	return nil
}

// Changes is the number of requests that change something: writes and
// discards.
func (l *Log) Changes() int {
	n := 0
	for _, e := range l.Entries {
		if e.changes() {
			n++
		}
	}
	return n
}

// Boundaries are the moments at which everything sent so far is certain to be
// on the disk, as numbers of entries: 0, before the first request, and right
// after each flush that had something to make durable.
func (l *Log) Boundaries() []int {
	moments := []int{0}
	pending := false
	for n, e := range l.Entries {
		if e.Flush && pending {
			moments = append(moments, n+1)
			pending = false
		}
		pending = pending || e.changes()
	}
	if pending {
		moments = append(moments, len(l.Entries))
	}
	return moments
}

// Replay writes the entries from one moment up to another to a disk that is as
// it was at the first. keep, unless nil, says which of them reach it: after the
// last flush, any or none may.
func (l *Log) Replay(disk *os.File, from, to int, keep func(entry int) bool) error {
	for n := from; n < to; n++ {
		e := l.Entries[n]
		// What a discard leaves is the disk's own affair: here, what was there.
		if !e.changes() || e.Discard || keep != nil && !keep(n) {
			continue
		}
		if _, err := io.Copy(io.NewOffsetWriter(disk, e.Offset), io.NewSectionReader(l.file, e.data, e.Bytes)); err != nil {
			return fmt.Errorf("replaying entry %d: %w", n, err)
		}
	}
	return nil
}
