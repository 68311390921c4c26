// Package efiboot puts entries of ours into the firmware's own boot menu (UEFI
// specification 2.10, chapter 3), through the kernel's efivarfs. It changes
// and removes its own entries only; which disk and which program they name is
// its caller's to say.
package efiboot

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// Partition is where a program lies: a GPT partition of a disk.
type Partition struct {
	Number uint32 // from 1
	// FirstSector and Sectors are logical sectors of the disk.
	FirstSector, Sectors uint64
	UUID                 string // of the partition: xxxxxxxx-xxxx-…
}

// Entry is one line of the boot menu.
type Entry struct {
	// Description is what a person sees.
	Description string
	Partition   Partition
	// File is the program's path on the partition, with slashes.
	File string
	// Options are what the program is started with, as UTF-16 with a final NUL;
	// empty means none.
	Options string
}

// Attributes and device paths of UEFI 2.10, 3.1.3, 10.3.5 and 10.3.1.
const (
	loadOptionActive = 1

	mediaType     = 4
	hardDriveNode = 1
	filePathNode  = 4
	endType       = 0x7f
	endEntire     = 0xff

	formatGPT        = 2
	signatureGUID    = 2
	hardDriveBytes   = 42
	nodeHeaderBytes  = 4
	loadOptionFields = 6 // attributes, length of the path list
)

// Encode returns the entry as EFI_LOAD_OPTION.
func (e Entry) Encode() ([]byte, error) {
	guid, err := encodeGUID(e.Partition.UUID)
	if err != nil {
		return nil, fmt.Errorf("boot entry %q: %w", e.Description, err)
	}
	var path bytes.Buffer
	header := func(kind, sub byte, size int) {
		path.Write([]byte{kind, sub})
		path.Write(binary.LittleEndian.AppendUint16(nil, uint16(size)))
	}
	header(mediaType, hardDriveNode, hardDriveBytes)
	path.Write(binary.LittleEndian.AppendUint32(nil, e.Partition.Number))
	path.Write(binary.LittleEndian.AppendUint64(nil, e.Partition.FirstSector))
	path.Write(binary.LittleEndian.AppendUint64(nil, e.Partition.Sectors))
	path.Write(guid)
	path.Write([]byte{formatGPT, signatureGUID})
	file := ucs2(strings.ReplaceAll(e.File, "/", `\`))
	header(mediaType, filePathNode, nodeHeaderBytes+len(file))
	path.Write(file)
	header(endType, endEntire, nodeHeaderBytes)

	out := binary.LittleEndian.AppendUint32(nil, loadOptionActive)
	out = binary.LittleEndian.AppendUint16(out, uint16(path.Len()))
	out = append(out, ucs2(e.Description)...)
	out = append(out, path.Bytes()...)
	if e.Options != "" {
		out = append(out, ucs2(e.Options)...)
	}
	return out, nil
}

// ucs2 is text as the firmware has it, with a final NUL.
func ucs2(text string) []byte {
	var out []byte
	for _, unit := range append(utf16.Encode([]rune(text)), 0) {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return out
}

// encodeGUID writes a GUID as UEFI stores it: its first three parts little
// endian (2.10, appendix A).
func encodeGUID(text string) ([]byte, error) {
	b, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("%q is no GUID", text)
	}
	slices.Reverse(b[0:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return b, nil
}

// description reads that of an EFI_LOAD_OPTION.
func description(option []byte) (string, error) {
	if len(option) < loadOptionFields {
		return "", errors.New("it is too short for a boot entry")
	}
	var units []uint16
	for rest := option[loadOptionFields:]; len(rest) >= 2; rest = rest[2:] {
		unit := binary.LittleEndian.Uint16(rest)
		if unit == 0 {
			return string(utf16.Decode(units)), nil
		}
		units = append(units, unit)
	}
	return "", errors.New("its description has no end")
}
