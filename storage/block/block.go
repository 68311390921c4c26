// Package block opens disks and makes the kernel calls that they need: size,
// sector size, discard, reading the partition table again.
//
// It knows nothing of what is written. A plain file can stand for a disk: its
// sectors are 512 bytes, discarding makes holes, and it has no partition nodes.
package block

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
)

// Device is an open disk. Its methods may be called at once by several
// goroutines, but for Close.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Size() uint64       // bytes
	SectorSize() uint32 // logical, bytes
	// Sync writes everything to the disk itself.
	Sync() error
	// Discard tells the disk that these bytes are not needed, whole sectors; ok is
	// false when it has no such command. What is read afterwards is undefined.
	Discard(offset, size uint64) (ok bool, err error)
	// Uncache makes the next reads come from the disk itself.
	Uncache() error
	// Reread makes the kernel know these partitions and no others. Errors have
	// code STO-010.
	Reread(partitions []Partition) error
	// Close lets others use the disk. It may be called twice.
	Close() error
}

// Partition is the place of a partition, in bytes of the disk.
type Partition struct {
	Number       int
	Offset, Size uint64
}

// Open opens a disk for reading and writing and for nobody else: a disk of which
// something is mounted or mapped is refused with code STO-007. Other errors have
// code STO-008.
func Open(path string) (Device, error) {
	return open(path, os.O_RDWR|unix.O_EXCL)
}

// OpenReadOnly opens a disk for reading; no write can reach it. Others may use
// it at the same time.
func OpenReadOnly(path string) (Device, error) {
	return open(path, os.O_RDONLY)
}

// Unused reports whether nobody uses a device: nothing of it is mounted, mapped
// or swapped to. The error has code STO-007 when somebody does.
func Unused(path string) error {
	d, err := open(path, os.O_RDONLY|unix.O_EXCL)
	if err != nil {
		return err
	}
	return d.Close()
}

func open(path string, flags int) (Device, error) {
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, storage.Errorf(storage.CodeBusy, "%s is in use: something on it is mounted, mapped or part of a RAID: %w", path, err)
	}
	if err != nil {
		return nil, storage.Errorf(storage.CodeIO, "opening disk: %w", err)
	}
	d := &disk{file: f, sector: 512}
	if err := d.measure(); err != nil {
		return nil, storage.Errorf(storage.CodeIO, "opening disk: %w", errors.Join(err, f.Close()))
	}
	return d, nil
}

type disk struct {
	file    *os.File
	device  bool // a block device, not a plain file
	size    uint64
	sector  uint32
	numbers string // its directory below /sys/dev/block
	closed  bool
}

func (d *disk) measure() error {
	var st unix.Stat_t
	if err := d.control(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return fmt.Errorf("looking at %s: %w", d.file.Name(), err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		d.size = uint64(st.Size)
		return nil
	case unix.S_IFBLK:
	default:
		return fmt.Errorf("%s is no block device", d.file.Name())
	}
	d.device = true
	d.numbers = fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	return d.control(func(fd int) error {
		var size uint64
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); e != 0 {
			return fmt.Errorf("size of %s: %w", d.file.Name(), e)
		}
		sector, err := unix.IoctlGetInt(fd, unix.BLKSSZGET)
		if err != nil {
			return fmt.Errorf("sector size of %s: %w", d.file.Name(), err)
		}
		d.size, d.sector = size, uint32(sector)
		return nil
	})
}

// control runs a system call on the descriptor without making the file blocking.
func (d *disk) control(call func(fd int) error) error {
	raw, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = call(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func (d *disk) ReadAt(p []byte, off int64) (int, error)  { return d.file.ReadAt(p, off) }
func (d *disk) WriteAt(p []byte, off int64) (int, error) { return d.file.WriteAt(p, off) }
func (d *disk) Size() uint64                             { return d.size }
func (d *disk) SectorSize() uint32                       { return d.sector }

func (d *disk) Sync() error {
	if err := d.file.Sync(); err != nil {
		return storage.Errorf(storage.CodeIO, "writing %s: %w", d.file.Name(), err)
	}
	return nil
}

// Uncache flushes and forgets what the kernel has of the disk (BLKFLSBUF); of a
// plain file its pages, which are on the disk only after Sync.
func (d *disk) Uncache() error {
	err := d.control(func(fd int) error {
		if !d.device {
			return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
		}
		return unix.IoctlSetInt(fd, unix.BLKFLSBUF, 0)
	})
	if err != nil {
		return storage.Errorf(storage.CodeIO, "flushing %s: %w", d.file.Name(), err)
	}
	return nil
}

func (d *disk) Discard(offset, size uint64) (bool, error) {
	err := d.control(func(fd int) error {
		if !d.device {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(offset), int64(size))
		}
		span := [2]uint64{offset, size}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); e != 0 {
			return e
		}
		return nil
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, storage.Errorf(storage.CodeIO, "discarding %s: %w", d.file.Name(), err)
	}
	return true, nil
}

// Reread asks the kernel to read the table (BLKRRPART); where that is not enough
// (the kernel was built without GPT, the disk is busy for a moment, the driver
// has no such call) it is told each partition by itself (BLKPG).
func (d *disk) Reread(partitions []Partition) error {
	if !d.device {
		return nil
	}
	var reread error
	for range 20 {
		// udev, where it runs, opens the disk after each change.
		reread = d.control(func(fd int) error { return unix.IoctlSetInt(fd, unix.BLKRRPART, 0) })
		if !errors.Is(reread, unix.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	known, err := d.known()
	if err != nil {
		return storage.Errorf(storage.CodeTable, "partitions of %s: %w", d.file.Name(), errors.Join(err, reread))
	}
	wanted := make(map[Partition]bool)
	for _, p := range partitions {
		wanted[p] = true
	}
	for _, p := range known {
		if !wanted[p] {
			if err := d.blkpg(unix.BLKPG_DEL_PARTITION, p); err != nil {
				return storage.Errorf(storage.CodeTable, "the kernel keeps the old partition %d of %s: %w", p.Number, d.file.Name(), errors.Join(err, reread))
			}
		}
		delete(wanted, p)
	}
	for _, p := range partitions {
		if wanted[p] {
			if err := d.blkpg(unix.BLKPG_ADD_PARTITION, p); err != nil {
				return storage.Errorf(storage.CodeTable, "the kernel does not take the new partition %d of %s: %w", p.Number, d.file.Name(), errors.Join(err, reread))
			}
		}
	}
	return nil
}

// known are the partitions that the kernel has now, sysfs-block.
func (d *disk) known() ([]Partition, error) {
	files, err := filepath.Glob(d.numbers + "/*/partition")
	if err != nil {
		return nil, err
	}
	var out []Partition
	for _, f := range files {
		dir := filepath.Dir(f)
		var v [3]uint64
		for i, name := range []string{"partition", "start", "size"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return nil, err
			}
			if v[i], err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil {
				return nil, fmt.Errorf("%s/%s: %w", dir, name, err)
			}
		}
		// sysfs counts in 512 bytes whatever the sectors are.
		out = append(out, Partition{Number: int(v[0]), Offset: v[1] * 512, Size: v[2] * 512})
	}
	return out, nil
}

func (d *disk) blkpg(operation int32, p Partition) error {
	part := unix.BlkpgPartition{Start: int64(p.Offset), Length: int64(p.Size), Pno: int32(p.Number)}
	arg := unix.BlkpgIoctlArg{Op: operation, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
	return d.control(func(fd int) error {
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); e != 0 {
			return e
		}
		return nil
	})
}

func (d *disk) Close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	// A program that is being started shares our descriptors until it has taken
	// our image's place, O_CLOEXEC or not. A disk that is closed meanwhile would
	// stay claimed for that moment, and mkfs find it in use.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := d.file.Close(); err != nil {
		return storage.Errorf(storage.CodeIO, "closing disk: %w", err)
	}
	return nil
}

// WaitFor waits until a device node is there and can be opened: devtmpfs makes
// it shortly after the kernel knows the device. The error has code STO-009 when
// it does not come within a time.
func WaitFor(ctx context.Context, node string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		fi, err := os.Stat(node)
		if err == nil && fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0 {
			return nil
		}
		if err == nil {
			err = errors.New("it is no block device")
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, context.DeadlineExceeded) {
				return fmt.Errorf("waiting for %s: %w", node, cause)
			}
			return storage.Errorf(storage.CodeNoNode, "the node %s did not appear within %s: %w", node, limit, err)
		}
	}
}
