package bootloader

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/firstlight/firstlight/installer/target"
)

// systemdBoot is systemd-boot with kernel and initrd beside it on the ESP, as
// kernel-install(8) lays them out: a kernel that is installed later goes the
// same way.
type systemdBoot struct{ system }

// token names the new system on the ESP. The machine id, which is usual, is
// made at the first boot only.
func (s *systemdBoot) token() string { return cmp.Or(s.target.ID, "linux") }

// prepare writes the loader, kernel, initrd and the entry that names them (UAPI
// group, boot loader specification, type 1). None of them is found by firmware.
func (s *systemdBoot) prepare(context.Context) error {
	c := s.target.Choice
	directory := path.Join(s.token(), cmp.Or(c.KernelVersion, "installed"))
	if err := s.copyWhole(path.Join(esp, s.program()), s.source()); err != nil {
		return &Error{CodeInstall, fmt.Errorf("copying systemd-boot to the EFI system partition: %w", err)}
	}
	for to, from := range map[string]string{"linux": c.Kernel, "initrd.img": c.Initrd} {
		if err := s.copyWhole(path.Join(esp, directory, to), target.Name(from)); err != nil {
			return &Error{CodeInstall, fmt.Errorf("copying %s to the EFI system partition: %w", from, err)}
		}
	}
	entry := fmt.Sprintf("title %s\nversion %s\nsort-key %s\nlinux /%s/linux\ninitrd /%s/initrd.img\noptions %s\n",
		s.target.Name, c.KernelVersion, s.token(), directory, directory, c.CommandLine)
	for name, text := range map[string]string{
		"loader/loader.conf": "timeout 2\n",
		"loader/entries/" + s.token() + "-" + cmp.Or(c.KernelVersion, "installed") + ".conf": entry,
	} {
		if err := s.writeWhole(path.Join(esp, name), strings.NewReader(text)); err != nil {
			return &Error{CodeConfigure, fmt.Errorf("configuring systemd-boot: %w", err)}
		}
	}
	err := target.Write(s.root,
		target.File{Path: "/etc/kernel/cmdline", Mode: 0o644, Data: []byte(c.CommandLine + "\n")},
		target.File{Path: "/etc/kernel/entry-token", Mode: 0o644, Data: []byte(s.token() + "\n")},
		target.File{Path: "/etc/kernel/install.conf", Mode: 0o644, Data: []byte("layout=bls\n")})
	if err != nil {
		return &Error{CodeConfigure, fmt.Errorf("configuring kernel-install: %w", err)}
	}
	return nil
}

func (s *systemdBoot) finish(context.Context) error { return s.startFrom(s.program()) }

// program is where bootctl(1) puts it, below the ESP.
func (s *systemdBoot) program() string {
	arch, _ := efiArch(s.target.Arch)
	return "EFI/systemd/systemd-boot" + arch + ".efi"
}

// source is the image's; a signed one goes before.
func (s *systemdBoot) source() string {
	arch, _ := efiArch(s.target.Arch)
	name := "usr/lib/systemd/boot/efi/systemd-boot" + arch + ".efi"
	if _, err := s.root.Stat(name + ".signed"); err == nil {
		return name + ".signed"
	}
	return name
}
