package bootloader

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/firstlight/firstlight/installer/bootloader/launcher"
	"github.com/firstlight/firstlight/installer/target"
)

// efiStub is the kernel as its own loader. The boot menu's entry starts it with
// its options. Firmware without that entry starts \EFI\BOOT and gives no
// options: there lies a program of some hundred bytes that knows them.
type efiStub struct{ system }

const (
	stubKernel = "EFI/Linux-stub/vmlinuz.efi"
	stubInitrd = "EFI/Linux-stub/initrd.img"
)

func (s *efiStub) options() string {
	return `initrd=\` + strings.ReplaceAll(stubInitrd, "/", `\`) + " " + s.target.Choice.CommandLine
}

// prepare copies kernel and initrd to the ESP, where the firmware reads.
func (s *efiStub) prepare(context.Context) error {
	for to, from := range map[string]string{stubKernel: s.target.Choice.Kernel, stubInitrd: s.target.Choice.Initrd} {
		if err := s.copyWhole(path.Join(esp, to), target.Name(from)); err != nil {
			return &Error{CodeInstall, fmt.Errorf("copying %s to the EFI system partition: %w", from, err)}
		}
	}
	return nil
}

func (s *efiStub) finish(context.Context) error {
	program, err := launcher.New(s.target.Arch, "/"+stubKernel, s.options())
	if err == nil {
		err = s.writeWhole(s.removable(), bytes.NewReader(program))
	}
	if err != nil {
		return &Error{CodeInstall, fmt.Errorf("writing \\EFI\\BOOT: %w", err)}
	}
	s.putEntries(stubKernel, s.options())
	return nil
}
