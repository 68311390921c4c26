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
	GrubPC  = "grub-pc"
	GrubEFI = "grub-efi"
)

// Codes of this package's errors.
const (
	CodeNoKernel = "BOO-001" // the image has no kernel
	CodeNoInitrd = "BOO-002" // the image has no initrd
	CodeNoLoader = "BOO-003" // the image has no boot loader for the firmware
	CodeOption   = "BOO-004" // a kernel option that cannot be written
	CodeFirmware = "BOO-005" // firmware that is not known
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
	// Consoles and Options are the parts of CommandLine that a boot loader's
	// configuration repeats for kernels that are installed later.
	Consoles []string `json:"consoles"`
	Options  string   `json:"options,omitempty"`
	// Loaders to install, in this order: grub-pc, grub-efi.
	Loaders []string `json:"loaders"`
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

	have := strings.Split(attributes[image.AttrBootloaders], ",")
	want := map[storage.Firmware][]string{
		storage.BIOS: {GrubPC},
		storage.UEFI: {GrubEFI},
		storage.Both: {GrubPC, GrubEFI},
	}[m.Firmware]
	if want == nil {
		refuse(CodeFirmware, "firmware %q is not known: want bios, uefi or both", m.Firmware)
	}
	for _, loader := range want {
		if !slices.Contains(have, loader) {
			refuse(CodeNoLoader, "the image has no boot loader for %s: it needs %s, and has %s",
				firmwareName(m.Firmware), loader, orNone(attributes[image.AttrBootloaders]))
		}
	}
	c.Loaders = want

	words := []string{"root=UUID=" + m.RootUUID, "ro"}
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

func firmwareName(f storage.Firmware) string {
	switch f {
	case storage.BIOS:
		return "BIOS firmware"
	case storage.UEFI:
		return "UEFI firmware"
	}
	return "BIOS and UEFI firmware"
}

func orNone(list string) string {
	if list == "" {
		return "none"
	}
	return list
}
