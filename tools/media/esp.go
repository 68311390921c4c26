package media

import (
	"errors"
	"os"
)

// esp is what UEFI starts from: the files of a FAT file system, and where in them
// kernel and initramfs lie.
type esp struct {
	files             []volumeFile
	kernel, initramfs place
	least             int64 // bytes that the file system has at least
}

// place is a byte of a file.
type place struct {
	file   string
	offset int64
}

// removableProgram is what a UEFI firmware starts from a medium (UEFI
// specification, 3.5.1.1).
var removableProgram = map[string]string{
	"amd64": "EFI/BOOT/BOOTX64.EFI",
	"arm64": "EFI/BOOT/BOOTAA64.EFI",
}

// signedChain is a boot loader that a firmware starts with Secure Boot on: shim,
// signed by Microsoft, which knows Debian's key, and GRUB, signed with that.
type signedChain struct {
	shim, grub debianFile
	grubName   string // beside shim, which looks for it by this name
}

var signed = map[string]signedChain{
	"amd64": {debianFile{"shim-signed", "usr/lib/shim/shimx64.efi.signed"},
		debianFile{"grub-efi-amd64-signed", "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"}, "grubx64.efi"},
	"arm64": {debianFile{"shim-signed", "usr/lib/shim/shimaa64.efi.signed"},
		debianFile{"grub-efi-arm64-signed", "usr/lib/grub/arm64-efi-signed/grubaa64.efi.signed"}, "grubaa64.efi"},
}

// espFiles are a unified kernel image, or a signed boot loader with kernel and
// initramfs beside it.
func (b *bootable) espFiles() (esp, error) {
	if !b.secureBoot {
		program, err := b.uki()
		if err != nil {
			return esp{}, err
		}
		name := removableProgram[b.arch]
		return esp{
			files:  []volumeFile{{path: name, data: program.data}},
			kernel: place{name, program.offset[linuxSection]}, initramfs: place{name, program.offset[initrdSection]},
		}, nil
	}
	chain := signed[b.arch]
	shim, err := b.files.read(chain.shim)
	if err != nil {
		return esp{}, err
	}
	grub, err := b.files.read(chain.grub)
	if err != nil {
		return esp{}, err
	}
	menu := "echo 'Firstlight: loading the kernel and the initramfs'\nlinux /" + kernelName + " " + b.commandLine + "\ninitrd /" + initrdName + "\nboot\n"
	return esp{
		files: []volumeFile{
			{path: removableProgram[b.arch], data: shim},
			{path: "EFI/BOOT/" + chain.grubName, data: grub},
			{path: "EFI/debian/grub.cfg", data: []byte(menu)}, // where Debian's GRUB looks
			{path: kernelName, data: b.kernel},
			{path: initrdName, data: b.initramfs},
		},
		kernel: place{file: kernelName}, initramfs: place{file: initrdName},
		// From here on each file begins on a border of a CD's sectors.
		least: 33 << 20,
	}, nil
}

// writeESP makes that file system; kernel and initramfs, whose places in it are
// returned, begin on a border of a CD's sectors.
func writeESP(name string, e esp) (size, kernelAt, initramfsAt int64, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// How long the tables are depends on the size, and where the files begin on
	// the tables: one of a few sizes fits.
	for size = max(fatSize(e.files, 0), e.least); ; size += fatRounding {
		if err := f.Truncate(0); err != nil {
			return 0, 0, 0, err
		}
		if err := f.Truncate(size); err != nil {
			return 0, 0, 0, err
		}
		at, err := writeFAT(f, 0, size, espLabel, e.files)
		if err != nil {
			return 0, 0, 0, err
		}
		kernelAt, initramfsAt = at[e.kernel.file]+e.kernel.offset, at[e.initramfs.file]+e.initramfs.offset
		if kernelAt%cdSector == 0 && initramfsAt%cdSector == 0 {
			return size, kernelAt, initramfsAt, nil
		}
		if size > 2*max(fatSize(e.files, 0), e.least) {
			return 0, 0, 0, errors.New("no size of the EFI file system puts the kernel on a border of the CD's sectors")
		}
	}
}

// espLabel is the label of that file system.
const espLabel = "FIRSTL_EFI"
