package media

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/diskfs/go-diskfs/partition/gpt"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
)

// USB writes the image of a USB stick: a GUID partition table with the file
// system that UEFI starts from, and a volume labelled FIRSTLIGHT, where the
// configuration lies and can be changed with any computer; between them, for
// BIOS, isolinux on a CD's file system that the table does not name. Mistakes in
// the options are of type *Error; nothing is written then.
func USB(ctx context.Context, options BootOptions) (Report, error) {
	options.ownVolume = true
	b, err := prepare(ctx, options)
	if err != nil {
		return Report{}, err
	}
	defer b.close()
	err = replaceFile(options.Out, b.mode, func(f *os.File) error {
		_, err := b.writeUSB(f, 0)
		return err
	})
	if err != nil {
		return Report{}, fmt.Errorf("writing %s: %w", options.Out, err)
	}
	return b.finished(options.Out)
}

// stickFree is how much room there is on the volume for further files, in
// bytes.
const stickFree = 2 << 20

// gptEnd is what the second copy of a partition table takes at the end of a
// disk, in bytes: 32 sectors of entries, and the header.
const gptEnd = 33 * sector

// align is where partitions begin, in bytes.
const align = 1 << 20

// writeUSB writes the image of a stick of size bytes, 0 for as large as it has
// to be. used is what precedes the second copy of the partition table, which
// lies in the last gptEnd bytes.
func (b *bootable) writeUSB(f *os.File, size int64) (used int64, err error) {
	made, err := b.writeISO(f, isoLabel)
	if err != nil {
		return 0, err
	}
	start := alignUp(made.size, align)
	files := append(slices.Clone(b.beside), b.carried...)
	volume := fatSize(files, stickFree)
	used = start + volume
	if least := alignUp(used+gptEnd, align); size == 0 {
		size = least
	} else if size < used+gptEnd {
		return 0, &Error{code: CodeTarget, text: fmt.Sprintf("the disk has %s, and the medium needs %s", storage.Bytes(uint64(size)), storage.Bytes(uint64(least)))}
	}
	if err := f.Truncate(size); err != nil {
		return 0, err
	}
	if _, err := writeFAT(f, start, volume, storage.MediumLabel, files); err != nil {
		return 0, err
	}
	id := sha256.Sum256(b.initramfs) // the same inputs, the same names
	table := gpt.Table{
		LogicalSectorSize: sector, PhysicalSectorSize: sector, ProtectiveMBR: true, GUID: guid(id, 0),
		Partitions: []*gpt.Partition{
			gptPartition(1, made.esp, made.espSize, gpt.EFISystemPartition, "firstlight boot", guid(id, 1)),
			gptPartition(2, start, volume, gpt.MicrosoftBasicData, "firstlight", guid(id, 2)),
		},
	}
	if err := table.Write(f, size); err != nil {
		return 0, fmt.Errorf("making the partition table: %w", err)
	}
	b.report.part("volume FIRSTLIGHT", volume)
	b.partitions = []block.Partition{
		{Number: 1, Offset: uint64(made.esp), Size: uint64(made.espSize)},
		{Number: 2, Offset: uint64(start), Size: uint64(volume)},
	}
	// The table's protective entry (UEFI specification, 5.2.3) stays, with the
	// program for BIOS before it.
	return used, b.writeSystemArea(f, made, mbrEntry{kind: 0xee, start: 1, sectors: min(size/sector-1, math.MaxUint32)})
}

func gptPartition(index int, start, size int64, kind gpt.Type, name, id string) *gpt.Partition {
	return &gpt.Partition{
		Index: index, Start: uint64(start / sector), End: uint64((start+size)/sector - 1), Size: uint64(size),
		Type: kind, Name: name, GUID: id,
	}
}

// guid is a name that follows from id (RFC 9562, version 8).
func guid(id [sha256.Size]byte, n byte) string {
	id[15] += n
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80
	return fmt.Sprintf("%08x-%04x-%04x-%04x-%012x", binary.BigEndian.Uint32(id[:]), id[4:6], id[6:8], id[8:10], id[10:16])
}

func alignUp(n, to int64) int64 { return (n + to - 1) / to * to }
