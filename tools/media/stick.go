package media

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
)

// FindStick is the disk whose device is called path, when it is one that media
// may be written to: connected by USB, or removable, or a memory card. sys is
// what /sys shows. Others are refused with an *Error, whatever is on them.
func FindStick(sys fs.FS, path string) (storage.Disk, error) {
	device, err := filepath.EvalSymlinks(path) // names below /dev/disk are links
	if err != nil {
		return storage.Disk{}, &Error{code: CodeTarget, text: "there is no such disk", err: err}
	}
	found, err := inventory.Read(sys)
	if err != nil {
		return storage.Disk{}, err
	}
	for _, disk := range found.Disks {
		if disk.Path != device {
			continue
		}
		switch {
		case !strings.EqualFold(disk.Transport, "usb") && !strings.EqualFold(disk.Transport, "mmc") && !disk.Removable:
			return disk, &Error{code: CodeTarget, text: disk.Title() + " is built into this machine: media are written to USB disks, removable ones and memory cards only"}
		case disk.ReadOnly:
			return disk, &Error{code: CodeTarget, text: disk.Title() + " is write-protected"}
		case disk.Size == 0:
			return disk, &Error{code: CodeTarget, text: disk.Path + " has no size: is there a medium in it?"}
		case disk.SectorSize != sector:
			return disk, &Error{code: CodeTarget, text: fmt.Sprintf("%s has sectors of %d bytes, and the medium is made for %d", disk.Title(), disk.SectorSize, sector)}
		}
		return disk, nil
	}
	return storage.Disk{}, &Error{code: CodeTarget, text: device + " is no whole disk of this machine; give the disk itself, /dev/sdX"}
}

// SameStick says whether the device of a disk that FindStick has found is still
// that disk: an *Error where another has taken its name.
func SameStick(sys fs.FS, stick storage.Disk) error {
	now, err := FindStick(sys, stick.Path)
	if err == nil && (now.Serial != stick.Serial || now.WWN != stick.WWN || now.Model != stick.Model || now.Size != stick.Size) {
		err = &Error{code: CodeTarget, text: fmt.Sprintf("%s is another disk now (%s): %s was meant; nothing was changed", stick.Path, now.Title(), stick.Title())}
	}
	return err
}

// WriteStick writes what USB makes to a disk, with a partition table that ends
// where the disk does, and reads it back. Everything on the disk is lost. A disk
// of which something is in use is refused with code STO-007, one that is too
// small with an *Error; a disk that is refused is unchanged. sure is asked once the
// disk is open and before anything is written: the device that a person has
// chosen may be another disk by then. written is told how many bytes of how many
// are on the disk.
func WriteStick(ctx context.Context, options BootOptions, device string, sure func() error, written func(done, total int64)) (report Report, err error) {
	options.ownVolume = true
	b, err := prepare(ctx, options)
	if err != nil {
		return Report{}, err
	}
	defer b.close()
	disk, err := block.Open(device)
	if err != nil {
		return Report{}, err
	}
	defer func() {
		if closed := disk.Close(); err == nil {
			err = closed
		}
	}()
	if err := sure(); err != nil {
		return Report{}, err
	}
	image, err := os.CreateTemp("", "firstlight-usb-*")
	if err != nil {
		return Report{}, err
	}
	defer func() { // it held nothing that is not on the disk
		_ = image.Close()
		_ = os.Remove(image.Name())
	}()
	size := int64(disk.Size()) / sector * sector
	used, err := b.writeUSB(image, size)
	if err != nil {
		return Report{}, fmt.Errorf("making the medium: %w", err)
	}
	if err := copyToStick(ctx, disk, image, size, used, written); err != nil {
		return Report{}, fmt.Errorf("writing to %s: %w", device, err)
	}
	b.report.Bytes = used
	return b.report, disk.Reread(b.partitions)
}

// stickBegin is written last: without it the disk is empty, to every firmware.
const stickBegin = 1 << 20

// copyToStick writes the image's used bytes and the end of its partition table,
// and compares what is then on the disk.
func copyToStick(ctx context.Context, disk block.Device, image io.ReaderAt, size, used int64, written func(done, total int64)) error {
	type run struct{ from, to int64 }
	begin, rest, end := run{0, stickBegin}, run{stickBegin, used}, run{size - gptEnd, size}
	if err := writeRun(ctx, disk, bytes.NewReader(make([]byte, stickBegin)), 0, stickBegin, nil); err != nil {
		return err
	}
	for _, r := range []run{rest, end, begin} {
		if err := writeRun(ctx, disk, io.NewSectionReader(image, r.from, r.to-r.from), r.from, r.to, func(done int64) {
			if written != nil && r == rest {
				written(done, used)
			}
		}); err != nil {
			return err
		}
		if err := disk.Sync(); err != nil {
			return err
		}
	}
	if err := disk.Uncache(); err != nil {
		return err
	}
	for _, r := range []run{begin, rest, end} {
		if err := sameRun(ctx, disk, image, r.from, r.to); err != nil {
			return err
		}
	}
	return nil
}

const stickBuffer = 4 << 20

func writeRun(ctx context.Context, to io.WriterAt, from io.Reader, at, end int64, progress func(done int64)) error {
	buffer := make([]byte, stickBuffer)
	for at < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(from, buffer[:min(int64(len(buffer)), end-at)])
		if err != nil {
			return err
		}
		if _, err := to.WriteAt(buffer[:n], at); err != nil {
			return err
		}
		at += int64(n)
		if progress != nil {
			progress(at)
		}
	}
	return nil
}

func sameRun(ctx context.Context, a, b io.ReaderAt, at, end int64) error {
	one, other := make([]byte, stickBuffer), make([]byte, stickBuffer)
	for at < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(stickBuffer, end-at)
		if _, err := a.ReadAt(one[:n], at); err != nil {
			return fmt.Errorf("reading back: %w", err)
		}
		if _, err := b.ReadAt(other[:n], at); err != nil {
			return err
		}
		if !bytes.Equal(one[:n], other[:n]) {
			return &Error{code: CodeTarget, text: fmt.Sprintf("what was written at byte %d is not what is read there: the disk is worn out, or smaller than it says", at)}
		}
		at += n
	}
	return nil
}
