package media

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/firstlight/firstlight/storage"
)

// ISO writes an image that boots as a CD and when it is written to a disk as it
// is, such as a USB stick, by BIOS (amd64 only) and by UEFI. UEFI starts a
// unified kernel image from a small FAT file system in it; BIOS starts isolinux,
// whose kernel and initramfs are the same bytes: the CD's directory points into
// the FAT file system. Mistakes in the options are of type *Error; nothing is
// written then.
func ISO(ctx context.Context, options BootOptions) (Report, error) {
	if options.SecureBoot {
		return Report{}, &Error{code: codeUsage, text: "Debian's signed GRUB does not find its way on a CD: make a stick, by media usb"}
	}
	b, err := prepare(ctx, options)
	if err != nil {
		return Report{}, err
	}
	defer b.close()
	label := isoLabel
	if len(b.carried) > 0 {
		label = storage.MediumLabel
	}
	err = replaceFile(options.Out, b.mode, func(f *os.File) error {
		disc, err := b.writeISO(f, label, b.carried...)
		if err != nil {
			return err
		}
		return b.writeSystemArea(f, disc, mbrEntry{status: 0x80, kind: 0xef, start: disc.esp / sector, sectors: disc.espSize / sector})
	})
	if err != nil {
		return Report{}, fmt.Errorf("writing %s: %w", options.Out, err)
	}
	return b.finished(options.Out)
}

// isoLabel is the label of an image that carries nothing but the installer. It
// is not the one that the installer looks for: a volume with that may lie beside
// it.
const isoLabel = "FIRSTL_BOOT"

// sector is what disks count in, cdSector what CDs do, in bytes.
const (
	sector   = 512
	cdSector = 2048
)

// Debian's boot files for BIOS.
var (
	isolinuxBin = debianFile{"isolinux", "usr/lib/ISOLINUX/isolinux.bin"}
	hybridMBR   = debianFile{"isolinux", "usr/lib/ISOLINUX/isohdpfx.bin"}
	ldlinux     = debianFile{"syslinux-common", "usr/lib/syslinux/modules/bios/ldlinux.c32"}
)

// bootsBIOS says whether machines of the medium's architecture may have BIOS.
func (b *bootable) bootsBIOS() bool { return b.arch == "amd64" }

// disc says where on an ISO image its parts lie, in bytes.
type disc struct {
	size         int64
	esp, espSize int64
	isolinux     int64 // 0 where there is none
}

// Names on the CD. Each is unlike the others also in eight and three capital
// letters, which is all that isolinux sees. There are no directories: go-diskfs
// v1.9.4 mixes up those of the two trees, with short names and with long ones.
const (
	espName      = "efi.img"
	kernelName   = "vmlinuz"
	initrdName   = "initrd.img"
	isolinuxName = "isolinux.bin"
)

// writeISO writes the file system of a CD to f, with further files in its root.
func (b *bootable) writeISO(f *os.File, label string, further ...volumeFile) (disc, error) {
	start, err := b.espFiles()
	if err != nil {
		return disc{}, err
	}
	workspace, err := os.MkdirTemp(filepath.Dir(f.Name()), ".iso-*")
	if err != nil {
		return disc{}, err
	}
	defer os.RemoveAll(workspace) // what is left of it says nothing of the image
	espSize, kernelAt, initramfsAt, err := writeESP(filepath.Join(workspace, espName), start)
	if err != nil {
		return disc{}, err
	}
	files := further
	if b.bootsBIOS() {
		bios, err := b.biosFiles()
		if err != nil {
			return disc{}, err
		}
		files = append(files, bios...)
	}
	for _, one := range files {
		if err := one.writeBelow(workspace); err != nil {
			return disc{}, err
		}
	}
	if err := b.finalize(f, workspace, label); err != nil {
		return disc{}, fmt.Errorf("making the CD's file system: %w", err)
	}
	tree, err := readISO(f)
	if err != nil {
		return disc{}, err
	}
	made := disc{size: tree.size, esp: tree.catalog[len(tree.catalog)-1], espSize: espSize}
	if b.bootsBIOS() {
		made.isolinux = tree.catalog[0]
		tree.redirect(kernelName, made.esp+kernelAt, len(b.kernel))
		tree.redirect(initrdName, made.esp+initramfsAt, len(b.initramfs))
	}
	if err := tree.write(f); err != nil {
		return disc{}, err
	}
	b.report.part("boot files and padding", tree.size-b.report.Bytes-bytesOf(further))
	if len(further) > 0 {
		b.report.part("images", bytesOf(further))
	}
	return made, f.Truncate(tree.size)
}

func bytesOf(files []volumeFile) int64 {
	var total int64
	for _, f := range files {
		total += f.bytes()
	}
	return total
}

// biosFiles are what isolinux needs. Kernel and initramfs are one byte long:
// their entries will point elsewhere.
func (b *bootable) biosFiles() ([]volumeFile, error) {
	program, err := b.files.read(isolinuxBin)
	if err != nil {
		return nil, err
	}
	module, err := b.files.read(ldlinux)
	if err != nil {
		return nil, err
	}
	// The serial console of isolinux is the kernel's first port; a machine
	// without one loses nothing.
	menu := "serial 0 115200\nprompt 0\ndefault firstlight\nsay Firstlight: loading the kernel and the initramfs\n" +
		"label firstlight\n  kernel /" + kernelName + "\n  initrd /" + initrdName + "\n  append " + b.commandLine + "\n"
	return []volumeFile{
		{path: isolinuxName, data: program},
		{path: "ldlinux.c32", data: module},
		{path: "isolinux.cfg", data: []byte(menu)},
		{path: kernelName, data: []byte{0}},
		{path: initrdName, data: []byte{0}},
	}, nil
}

// writeBelow copies the file into a directory.
func (f volumeFile) writeBelow(dir string) (err error) {
	name := filepath.Join(dir, filepath.FromSlash(f.path))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if f.from != "" {
		return os.Link(f.from, name)
	}
	return os.WriteFile(name, f.data, 0o644)
}

// finalize has go-diskfs make the CD's file system of what is in workspace.
func (b *bootable) finalize(f *os.File, workspace, label string) error {
	volume, err := iso9660.Create(file.New(f, false), 0, 0, cdSector, workspace)
	if err != nil {
		return err
	}
	var boot []*iso9660.ElToritoEntry
	if b.bootsBIOS() {
		entry := &iso9660.ElToritoEntry{Platform: iso9660.BIOS, Emulation: iso9660.NoEmulation, BootFile: isolinuxName, BootTable: true}
		entry.SetLoadSize(cdSector / sector)
		boot = append(boot, entry)
	}
	entry := &iso9660.ElToritoEntry{Platform: iso9660.EFI, Emulation: iso9660.NoEmulation, BootFile: espName, HideBootFile: true}
	// To the end of the CD (UEFI specification, 13.3.2.1): the field is too
	// small for the size.
	entry.SetLoadSize(0)
	boot = append(boot, entry)
	return volume.Finalize(iso9660.FinalizeOptions{
		Joliet: true, VolumeIdentifier: label,
		ElTorito: &iso9660.ElTorito{HideBootCatalog: true, Entries: boot},
	})
}

// mbrEntry is an entry of a partition table in an MBR.
type mbrEntry struct {
	status, kind   byte
	start, sectors int64 // of 512 bytes
}

// writeSystemArea puts into the CD's first bytes, which a CD does not use, what
// makes a disk of it: a partition table, and for BIOS a program that loads
// isolinux (syslinux, doc/isolinux.txt, "HYBRID CD-ROM/HARD DISK MODE").
func (b *bootable) writeSystemArea(f *os.File, made disc, entry mbrEntry) error {
	area := make([]byte, sector)
	if b.bootsBIOS() {
		program, err := b.files.read(hybridMBR)
		if err != nil {
			return err
		}
		const isolinuxAt = 432 // where that program looks for the number of isolinux's first sector
		if len(program) > isolinuxAt {
			return &Error{code: codeBootFile, text: fmt.Sprintf("%s is too large for an MBR", hybridMBR.path)}
		}
		copy(area, program)
		binary.LittleEndian.PutUint64(area[isolinuxAt:], uint64(made.isolinux/sector))
	}
	copy(area[440:], "1stL") // the disk's number, which systems may tell it by
	e := area[446:]
	e[0], e[4] = entry.status, entry.kind
	copy(e[1:], "\xfe\xff\xff") // no cylinders: what counts are sectors
	copy(e[5:], "\xfe\xff\xff")
	binary.LittleEndian.PutUint32(e[8:], uint32(entry.start))
	binary.LittleEndian.PutUint32(e[12:], uint32(min(entry.sectors, 1<<32-1)))
	area[510], area[511] = 0x55, 0xaa
	_, err := f.WriteAt(area, 0)
	return err
}
