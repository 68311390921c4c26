// Package boot chooses what the new OS is started with: its kernel and initrd,
// the boot loader that the firmware can start, and the kernel's command line.
//
// It reads nothing but its arguments. Package bootloader installs what was
// chosen, package kexec starts it.
package boot

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/storage"
)

// Names of boot loaders, as they stand in an image's attribute "bootloaders".
const (
	GrubPC  = "grub-pc"  // GRUB in the disk's BIOS boot partition
	GrubEFI = "grub-efi" // GRUB as an EFI program, behind shim where the image has it
	// ShimGrub is shim and GRUB as the vendor has built and signed them, in the
	// image's own /boot/efi.
	ShimGrub    = "shim-grub"
	SystemdBoot = "systemd-boot"
)

// EFIStub is the kernel started by the firmware itself: every kernel is an EFI
// program (Documentation/admin-guide/efi-stub.rst). It is what remains when the
// image has no boot loader for UEFI.
const EFIStub = "efi-stub"

// Initramfs programs, as they stand in an image's attribute "initramfs".
const (
	InitramfsTools = "initramfs-tools"
	Dracut         = "dracut"
	Mkinitcpio     = "mkinitcpio"
)

// Codes of this package's errors.
const (
	CodeNoKernel = "BOO-001" // the image has no kernel
	CodeNoInitrd = "BOO-002" // the image has no initrd
	CodeNoLoader = "BOO-003" // the image has no boot loader for the firmware
	CodeOption   = "BOO-004" // a kernel option that cannot be written
	CodeFirmware = "BOO-005" // firmware that is not known
	CodeUnsigned = "BOO-006" // Secure Boot, and a loader that it refuses
	CodeRebuild  = "BOO-007" // nothing in the image can make the initrd that the layout needs
)

// Error is a refusal of this package.
type Error struct {
	ID   string // one of the Code constants
	Text string
}

// Error is the text without the code.
func (e *Error) Error() string { return e.Text }

// Code is the stable code, as in docs/errors.md.
func (e *Error) Code() string { return e.ID }

// Machine is what the choice depends on besides the image.
type Machine struct {
	// Firmware is storage.BIOS or storage.UEFI, or storage.Both for a disk that
	// must start with either.
	Firmware storage.Firmware
	// Consoles are the active consoles, tty0 or ttyS0 for example, in the order of
	// /sys/class/tty/console/active: the last one is /dev/console.
	Consoles []string
	// RootUUID is the UUID of the root file system, in blkid's spelling.
	RootUUID string
	// RootOptions are the kernel's words, after root=, by which the initrd finds
	// or mounts the root file system: rootflags=subvol=@ for example.
	RootOptions []string
	// SecureBoot says that the firmware starts signed programs only.
	SecureBoot bool
	// NewInitrd says that the image's own initrd cannot find the root file system
	// of this layout: it is made again.
	NewInitrd bool
}

// Choice is what the new OS is started with.
type Choice struct {
	// Kernel and Initrd are absolute paths in the new OS.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	// KernelVersion is uname -r of the kernel, empty when the image does not say.
	KernelVersion string `json:"kernelVersion,omitempty"`
	// CommandLine is for kexec and for the boot loader alike.
	CommandLine string `json:"commandLine"`
	// RootOptions, Defaults, Consoles and Options are the parts of CommandLine
	// that a boot loader's configuration repeats for kernels that are installed
	// later: the layout's, the image's own, the machine's, the site's.
	RootOptions []string `json:"rootOptions,omitempty"`
	Defaults    string   `json:"defaults,omitempty"`
	Consoles    []string `json:"consoles"`
	Options     string   `json:"options,omitempty"`
	// Loaders to install, in this order: one for BIOS, one for UEFI.
	Loaders []string `json:"loaders"`
	// NewInitrd is the program that makes the initrd again, in the new root and
	// once; empty where the image's own will do.
	NewInitrd string `json:"newInitrd,omitempty"`
}

// UEFI is the loader that UEFI firmware starts, empty when there is none.
func (c Choice) UEFI() string {
	for _, loader := range c.Loaders {
		if loader != GrubPC {
			return loader
		}
	}
	return ""
}

// Choose decides from the image's attributes (the image.Attr… names), the
// configured kernel options (added at the end of the command line, so that they
// win) and the machine. Its error joins every refusal, each an [*Error].
func Choose(attributes map[string]string, options string, m Machine) (Choice, error) {
	var refusals []error
	refuse := func(code, format string, args ...any) {
		refusals = append(refusals, &Error{ID: code, Text: fmt.Sprintf(format, args...)})
	}

	c := Choice{
		Kernel:        rooted(attributes[image.AttrKernel]),
		Initrd:        rooted(attributes[image.AttrInitrd]),
		KernelVersion: attributes[image.AttrKernelVersion],
	}
	if c.Kernel == "" {
		refuse(CodeNoKernel, "the image has no kernel below /boot: install a kernel package in it and add it again")
	}
	if c.Initrd == "" {
		refuse(CodeNoInitrd, "the image has no initrd for its kernel: run update-initramfs or dracut in it and add it again")
	}

	c.Loaders = loaders(attributes, m, refuse)
	if m.NewInitrd {
		c.NewInitrd = attributes[image.AttrInitramfs]
		if !slices.Contains([]string{InitramfsTools, Dracut, Mkinitcpio}, c.NewInitrd) {
			refuse(CodeRebuild, "the layout's root file system needs an initrd of its own, and nothing in the image can make one (it has %s): install initramfs-tools or dracut in it", orNone(c.NewInitrd))
		}
	}

	c.RootOptions, c.Defaults = m.RootOptions, defaults(attributes[image.AttrKernelOptions])
	words := append([]string{"root=UUID=" + m.RootUUID, "ro"}, m.RootOptions...)
	if c.Defaults != "" {
		words = append(words, c.Defaults)
	}
	for _, console := range m.Consoles {
		c.Consoles = append(c.Consoles, "console="+consoleWord(console))
	}
	words = append(words, c.Consoles...)
	extra, err := CheckOptions(options)
	if err != nil {
		refusals = append(refusals, err)
	}
	c.Options = extra
	if extra != "" {
		words = append(words, extra)
	}
	c.CommandLine = strings.Join(words, " ")
	// COMMAND_LINE_SIZE is 2048 on amd64 and arm64, with the final NUL.
	if len(c.CommandLine) > 2047 {
		refuse(CodeOption, "the kernel command line is %d bytes long: the kernel takes 2047, shorten KernelOptions", len(c.CommandLine))
	}
	if len(refusals) > 0 {
		return Choice{}, errors.Join(refusals...)
	}
	return c, nil
}

// loaders chooses one boot loader for each kind of firmware.
func loaders(attributes map[string]string, m Machine, refuse func(code, format string, args ...any)) []string {
	have := strings.Split(attributes[image.AttrBootloaders], ",")
	if !slices.Contains([]storage.Firmware{storage.BIOS, storage.UEFI, storage.Both}, m.Firmware) {
		refuse(CodeFirmware, "firmware %q is not known: want bios, uefi or both", m.Firmware)
		return nil
	}
	var chosen []string
	if m.Firmware != storage.UEFI {
		if !slices.Contains(have, GrubPC) {
			refuse(CodeNoLoader, "the image has no boot loader for BIOS firmware: it needs %s, and has %s", GrubPC, orNone(attributes[image.AttrBootloaders]))
		}
		chosen = append(chosen, GrubPC)
	}
	if m.Firmware == storage.BIOS {
		return chosen
	}
	uefi := EFIStub
	for _, loader := range []string{GrubEFI, ShimGrub, SystemdBoot} {
		if slices.Contains(have, loader) {
			uefi = loader
			break
		}
	}
	switch {
	case m.SecureBoot && uefi == GrubEFI && !slices.Contains(have, "shim"):
		refuse(CodeUnsigned, "Secure Boot is on, and the image's GRUB is not signed: install shim-signed and grub-efi-amd64-signed in the image, or turn Secure Boot off")
	case m.SecureBoot && uefi == EFIStub:
		refuse(CodeUnsigned, "Secure Boot is on, and the image has no boot loader that it starts: install shim-signed and grub-efi-amd64-signed in the image, or turn Secure Boot off")
	case uefi == EFIStub && attributes[image.AttrArch] == "arm64":
		refuse(CodeNoLoader, "the image has no boot loader for UEFI firmware: install grub-efi or systemd-boot in it")
	}
	return append(chosen, uefi)
}

// defaults are the image's own kernel options, less those that say which disk
// is booted and how: the layout decides that. Of what cannot be written in
// every place where it must stand, nothing is taken.
func defaults(options string) string {
	clean, err := CheckOptions(options)
	if err != nil {
		return ""
	}
	words := strings.Fields(clean)
	words = slices.DeleteFunc(words, func(word string) bool {
		name, _, _ := strings.Cut(word, "=")
		return slices.Contains([]string{"root", "rootflags", "rootfstype", "ro", "rw", "initrd", "BOOT_IMAGE", "resume"}, name)
	})
	return strings.Join(words, " ")
}

// CheckOptions returns the words of a kernel command line separated by single
// spaces. It refuses, with an [*Error], what a shell-quoted line of
// /etc/default/grub, GRUB's own menu or the kernel could misread: control
// characters, unbalanced double quotes and the characters of misread.
func CheckOptions(options string) (string, error) {
	const misread = "$`\\';&|<>{}"
	for _, r := range options {
		if r == ' ' || r == '\t' {
			continue
		}
		if r < 0x20 || r > 0x7e || strings.ContainsRune(misread, r) {
			return "", &Error{ID: CodeOption, Text: fmt.Sprintf("kernel options contain %q: plain printable ASCII without any of %s is possible", r, misread)}
		}
	}
	if strings.Count(options, `"`)%2 != 0 {
		return "", &Error{ID: CodeOption, Text: "kernel options have an opening quote that nothing closes"}
	}
	quoted := false
	words := strings.FieldsFunc(options, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t')
	})
	return strings.Join(words, " "), nil
}

// consoleWord is a console's name with the speed that serial lines have by
// convention of PC firmware; the kernel's own default is 9600.
func consoleWord(name string) string {
	if strings.HasPrefix(name, "ttyS") || strings.HasPrefix(name, "ttyAMA") {
		return name + ",115200n8"
	}
	return name
}

func rooted(p string) string {
	if p == "" {
		return ""
	}
	return path.Join("/", p)
}

func orNone(list string) string {
	if list == "" {
		return "none"
	}
	return list
}
