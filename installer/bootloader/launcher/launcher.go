// Package launcher makes a small EFI program that starts a kernel with options.
// Firmware that starts \EFI\BOOT\BOOTX64.EFI by itself gives no options, and a
// kernel without them finds no root file-system; this program lies there and
// knows them. Its code is amd64.asm; kernel and options are data behind it.
//
// It is not signed, so that firmware under Secure Boot does not start it.
package launcher

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf16"
)

// code is what amd64.asm becomes; a test compares.
const code = "535657415441554883ec504989cc488b5a60488d15e70f00004c8d442438ff93980000004885c00f85d8000000" +
	"488b442438488b4818488d15d30f00004c8d442440ff93980000004885c00f85b4000000488b742440488d3de3" +
	"0f00004989fd803e7f74230fb74e02488d040f4c29e8483d000300007704f3a4ebe448b80500000000000080eb" +
	"7d488d35b11500008b0d8b0f0000f3a431c94c89e24d89e84531c948c744242000000000488d4424404889442428" +
	"ff93c80000004885c07545488b4c2440488d15340f00004c8d442438ff93980000004885c07529488b442438488d" +
	"0d58170000488948388b0d320f0000894830488b4c244031d24531c0ff93d00000004883c450415d415c5f5e5bc3"

// Places of the data, as the labels of amd64.asm minus 0x1000.
const (
	atLoadedImage  = 0x00 // GUIDs of two protocols
	atDevicePath   = 0x10
	atFileSize     = 0x20
	atOptionsSize  = 0x24
	atFile         = 0x640
	fileRoom       = 512
	atOptions      = 0x840
	page           = 0x1000
	fileAlignment  = 0x200
	headersSize    = 0x400
	sectionCount   = 3
	optionalHeader = 112 + 16*8
)

// The GUIDs of EFI_LOADED_IMAGE_PROTOCOL and EFI_DEVICE_PATH_PROTOCOL (UEFI
// 2.10, 9.1 and 10.2), as they lie in memory.
const (
	loadedImage = "a1311b5b6295d2118e3f00a0c969723b"
	devicePath  = "916e57093f6dd2118e3900a0c969723b"
)

// New makes the program for an architecture (GOARCH; amd64 is possible). file is
// the kernel's path on the partition that the program lies on, with slashes.
func New(arch, file, options string) ([]byte, error) {
	if arch != "amd64" {
		return nil, fmt.Errorf("no program starts a kernel with options on %s", arch)
	}
	// A file path node and the end of the path (UEFI 2.10, 10.3.5.4 and 10.3.1).
	name := ucs2(strings.ReplaceAll(file, "/", `\`))
	node := append(binary.LittleEndian.AppendUint16([]byte{4, 4}, uint16(4+len(name))), name...)
	node = append(node, 0x7f, 0xff, 4, 0)
	if len(node) > fileRoom {
		return nil, fmt.Errorf("the path %s is longer than the program has room for", file)
	}
	words := ucs2(options)

	data := make([]byte, atOptions, atOptions+len(words))
	copy(data[atLoadedImage:], unhex(loadedImage))
	copy(data[atDevicePath:], unhex(devicePath))
	binary.LittleEndian.PutUint32(data[atFileSize:], uint32(len(node)))
	binary.LittleEndian.PutUint32(data[atOptionsSize:], uint32(len(words)))
	copy(data[atFile:], node)
	return portable(unhex(code), append(data, words...)), nil
}

func unhex(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err) // a constant of this file
	}
	return b
}

func ucs2(text string) []byte {
	var out []byte
	for _, unit := range append(utf16.Encode([]rune(text)), 0) {
		out = binary.LittleEndian.AppendUint16(out, unit)
	}
	return out
}

// section of a program file.
type section struct {
	name            string
	address         uint32
	data            []byte
	characteristics uint32
}

// portable wraps code and data as a PE32+ file (Microsoft's "PE Format"): the
// code in the first page, the data from the second.
func portable(text, data []byte) []byte {
	pages := uint32(len(data)+page-1) / page
	sections := [sectionCount]section{
		{".text", page, text, 0x60000020},     // code; execute, read
		{".data", 2 * page, data, 0xc0000040}, // initialised; read, write
		// Nothing needs relocation, and some firmware wants to see that said: a
		// block of two entries that mean "skip".
		{".reloc", (2 + pages) * page, []byte{0, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0}, 0x42000040},
	}
	var b bytes.Buffer
	put := func(values ...any) {
		for _, v := range values {
			if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
				panic(err) // a buffer takes every number
			}
		}
	}
	dos := make([]byte, 64)
	copy(dos, "MZ")
	dos[60] = 64 // where the rest begins
	b.Write(dos)
	b.WriteString("PE\x00\x00")
	// Machine, sections, no time, no symbols; executable, large addresses, no debug.
	put(uint16(0x8664), uint16(sectionCount), uint32(0), uint32(0), uint32(0), uint16(optionalHeader), uint16(0x0222))
	put(uint16(0x20b), uint16(0),
		aligned(text), aligned(data), uint32(0), // code, data, no zeroes
		sections[0].address, sections[0].address, // entry point; code
		uint64(0), uint32(page), uint32(fileAlignment),
		[6]uint16{}, uint32(0), // versions
		sections[2].address+page, uint32(headersSize), uint32(0),
		uint16(10), uint16(0x100), // EFI application; memory is not both writable and executable
		[4]uint64{}, uint32(0), uint32(16))
	for directory := range 16 {
		if directory == 5 { // base relocations
			put(sections[2].address, uint32(len(sections[2].data)))
		} else {
			put(uint64(0))
		}
	}
	at := uint32(headersSize)
	for _, s := range sections {
		var name [8]byte
		copy(name[:], s.name)
		put(name, uint32(len(s.data)), s.address, aligned(s.data), at, uint64(0), uint32(0), s.characteristics)
		at += aligned(s.data)
	}
	b.Write(make([]byte, headersSize-b.Len()))
	for _, s := range sections {
		b.Write(s.data)
		b.Write(make([]byte, int(aligned(s.data))-len(s.data)))
	}
	return b.Bytes()
}

// aligned is the size of data in the file.
func aligned(data []byte) uint32 {
	return uint32(len(data)+fileAlignment-1) / fileAlignment * fileAlignment
}
