package media

import (
	"bytes"
	"context"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"os"
)

// UKI writes a unified kernel image: an EFI program that holds the kernel, its
// command line and the initramfs, behind systemd's stub. A firmware starts it
// from a disk, by PXE or by HTTP, with no boot loader; who signs it, signs all of
// it (uapi-group.org, "Unified Kernel Image"). Mistakes in the options are of
// type *Error; nothing is written then.
func UKI(ctx context.Context, options BootOptions) (Report, error) {
	if len(options.Images) > 0 {
		return Report{}, &Error{code: codeUsage, text: "a UKI cannot carry images: make an ISO image or a stick"}
	}
	if options.SecureBoot {
		return Report{}, &Error{code: codeUsage, text: "a UKI is signed with a key of yours, by sbsign(1): Debian's shim does not start it"}
	}
	options.noVolume = true
	b, err := prepare(ctx, options)
	if err != nil {
		return Report{}, err
	}
	program, err := b.uki()
	if err != nil {
		return Report{}, err
	}
	if err := writeWhole(options.Out, b.mode, program.data); err != nil {
		return Report{}, fmt.Errorf("writing %s: %w", options.Out, err)
	}
	b.report.part("EFI program", int64(len(program.data))-int64(len(b.kernel)+len(b.initramfs)))
	b.report.Bytes = int64(len(program.data))
	return b.report, nil
}

// osRelease says of a UKI what it is, to boot menus.
const osRelease = "ID=firstlight\nNAME=Firstlight\nPRETTY_NAME=\"Firstlight installer\"\n"

// uki assembles the image of what is prepared.
func (b *bootable) uki() (ukiImage, error) {
	stub, err := b.files.read(stubOf[b.arch])
	if err != nil {
		return ukiImage{}, err
	}
	return assembleUKI(stub, []peSection{
		{".osrel", []byte(osRelease)},
		{".uname", []byte(b.report.Release)},
		{".cmdline", []byte(b.commandLine + "\x00")},
		{linuxSection, b.kernel},
		{initrdSection, b.initramfs},
	})
}

// The sections that the stub starts.
const (
	linuxSection  = ".linux"
	initrdSection = ".initrd"
)

// peSection is a section to add to an EFI program.
type peSection struct {
	name string // at most eight bytes
	data []byte
}

// ukiImage is an EFI program with the places of what was added.
type ukiImage struct {
	data   []byte
	offset map[string]int64 // of each added section in data, a multiple of sectionPage
}

// sectionPage is what added sections are aligned to, in the file and in
// memory: a page, and a multiple of a CD's sectors.
const sectionPage = 4096

// Places in the headers of a PE file ("PE Format", Microsoft).
const (
	peOffsetAt        = 0x3c // of "PE\0\0", in the DOS header
	sectionCountAt    = 4 + 2
	optionalAt        = 4 + 20
	imageSizeAt       = optionalAt + 56
	checkSumAt        = optionalAt + 64
	sectionHeaderSize = 40
	initializedRead   = 0x40000040 // IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ
)

// assembleUKI appends sections to a stub.
func assembleUKI(stub []byte, sections []peSection) (ukiImage, error) {
	file, err := pe.NewFile(bytes.NewReader(stub))
	if err != nil {
		return ukiImage{}, &Error{code: codeBootFile, text: "the EFI stub is no EFI program", err: err}
	}
	optional, is64 := file.OptionalHeader.(*pe.OptionalHeader64)
	if !is64 || len(file.Sections) == 0 {
		return ukiImage{}, &Error{code: codeBootFile, text: "the EFI stub is no 64-bit EFI program"}
	}
	header := int(binary.LittleEndian.Uint32(stub[peOffsetAt:]))
	headers := header + optionalAt + int(file.SizeOfOptionalHeader)
	table := headers + len(file.Sections)*sectionHeaderSize
	if table+len(sections)*sectionHeaderSize > int(optional.SizeOfHeaders) {
		return ukiImage{}, &Error{code: codeBootFile, text: "the EFI stub has no room for further sections"}
	}
	var address uint32
	for _, s := range file.Sections {
		address = max(address, s.VirtualAddress+s.VirtualSize)
	}
	image := ukiImage{data: bytes.Clone(stub), offset: make(map[string]int64)}
	for n, s := range sections {
		address = alignPage(address)
		image.data = append(image.data, make([]byte, int(alignPage(uint32(len(image.data))))-len(image.data))...)
		at := uint32(len(image.data))
		image.offset[s.name] = int64(at)
		image.data = append(image.data, s.data...)
		// What is in the file is a multiple of its own alignment.
		image.data = append(image.data, make([]byte, int(alignPage(uint32(len(image.data))))-len(image.data))...)

		h := image.data[table+n*sectionHeaderSize:][:sectionHeaderSize]
		clear(h)
		copy(h, s.name)
		binary.LittleEndian.PutUint32(h[8:], uint32(len(s.data)))
		binary.LittleEndian.PutUint32(h[12:], address)
		binary.LittleEndian.PutUint32(h[16:], uint32(len(image.data))-at)
		binary.LittleEndian.PutUint32(h[20:], at)
		binary.LittleEndian.PutUint32(h[36:], initializedRead)
		address += uint32(len(s.data))
	}
	binary.LittleEndian.PutUint16(image.data[header+sectionCountAt:], uint16(len(file.Sections)+len(sections)))
	binary.LittleEndian.PutUint32(image.data[header+imageSizeAt:], alignPage(address))
	binary.LittleEndian.PutUint32(image.data[header+checkSumAt:], 0) // firmware does not look at it
	return image, nil
}

func alignPage(n uint32) uint32 { return (n + sectionPage - 1) / sectionPage * sectionPage }

// kernelArch is the architecture of a Linux kernel that is an EFI program, as
// those of all distributions are; in Go's words.
func kernelArch(kernel []byte) (string, error) {
	file, err := pe.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return "", fmt.Errorf("the kernel is no EFI program: %w", err)
	}
	switch file.Machine {
	case pe.IMAGE_FILE_MACHINE_AMD64:
		return "amd64", nil
	case pe.IMAGE_FILE_MACHINE_ARM64:
		return "arm64", nil
	}
	return "", fmt.Errorf("the kernel is for a machine of type %#x", file.Machine)
}

// readKernel reads the kernel of a directory and makes sure that it runs on
// machines of that architecture.
func readKernel(name, arch string) ([]byte, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	is, err := kernelArch(data)
	switch {
	case err != nil:
		return nil, &Error{code: codeKernel, text: name, err: err}
	case is != arch:
		return nil, &Error{code: CodeArch, text: fmt.Sprintf("%s is a kernel for %s, and the medium is for %s", name, is, arch)}
	}
	return data, nil
}
