package bootloader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/tool"
)

// grub is GRUB 2 as Debian and its relatives have it; the names of Fedora's
// are tried too.
type grub struct {
	system
	installer, configurer string // programs
	directory             string // below /boot
}

// newGrub finds the programs. A GRUB that the vendor has built whole needs no
// grub-install.
func newGrub(s system, installs bool) (grub, error) {
	var missing []error
	for _, name := range []string{"grub", "grub2"} {
		var err error
		if installs {
			_, err = tool.Look(s.target.Root, name+"-install")
		}
		if err == nil {
			_, err = tool.Look(s.target.Root, name+"-mkconfig")
		}
		if err == nil {
			return grub{system: s, installer: name + "-install", configurer: name + "-mkconfig", directory: "boot/" + name}, nil
		}
		missing = append(missing, err)
	}
	return grub{}, &Error{CodeNoProgram, fmt.Errorf("the image has no GRUB: %w", errors.Join(missing...))}
}

// quickly runs do twice: at first with udevadm(8) failing at once in the new
// root. grub-probe asks it where a partition begins, some twenty times in
// each of the dozen calls that grub-mkconfig makes, while the answer stands
// in HDIO_GETGEO as well, which GRUB asks where udevadm fails. With a slow
// processor or many disks that is most of the time that GRUB takes. Disks
// that know no geometry still need udevadm: what fails without it is run once
// more with it.
func (g grub) quickly(ctx context.Context, do func(context.Context) error) error {
	if err := g.linkByUUID(); err != nil {
		return err
	}
	var hidden mount.Stack
	for _, name := range []string{"usr/bin/udevadm", "bin/udevadm", "usr/sbin/udevadm", "sbin/udevadm"} {
		if info, err := g.root.Lstat(name); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if err := hidden.Mount("/dev/null", filepath.Join(g.target.Root, name), "", unix.MS_BIND, ""); err != nil {
			return &Error{CodeConfigure, errors.Join(err, hidden.Close())}
		}
	}
	err := do(ctx)
	if e := hidden.Close(); e != nil {
		return errors.Join(err, &Error{CodeConfigure, e})
	}
	if err != nil && ctx.Err() == nil {
		err = do(ctx)
	}
	return err
}

// linkByUUID makes the link that udev would make, as no udev runs here:
// without it grub-mkconfig writes root=/dev/vda2, which is right only as
// long as no disk is added (10_linux).
func (g grub) linkByUUID() error {
	const directory = "dev/disk/by-uuid"
	link := directory + "/" + g.target.RootUUID
	if _, err := g.root.Lstat(link); err == nil {
		return nil
	}
	device, err := filepath.Rel("/"+directory, g.target.RootDevice)
	if err == nil {
		err = g.root.MkdirAll(directory, 0o755)
	}
	if err == nil {
		err = g.root.Symlink(device, link)
	}
	if err != nil {
		return &Error{CodeConfigure, fmt.Errorf("naming the root file-system by its UUID: %w", err)}
	}
	return nil
}

// grubPC is GRUB in the BIOS boot partition of each disk.
type grubPC struct{ grub }

func newGrubPC(s system) (loader, error) {
	g, err := newGrub(s, true)
	return grubPC{g}, err
}

// prepare writes everything but the boot sector and what it starts.
func (g grubPC) prepare(ctx context.Context) error {
	return g.quickly(ctx, func(ctx context.Context) error {
		if err := g.configure(ctx); err != nil {
			return err
		}
		return g.install(ctx, g.target.Disks[0], "--no-bootsector")
	})
}

func (g grubPC) install(ctx context.Context, disk string, more ...string) error {
	args := append([]string{"--target=i386-pc", "--boot-directory=/boot", "--recheck"}, more...)
	if err := g.command(ctx, g.installer, append(args, disk)...); err != nil {
		return &Error{CodeInstall, fmt.Errorf("installing GRUB for BIOS on %s: %w", disk, err)}
	}
	return nil
}

// finish writes the core image into the BIOS boot partition and the boot
// sector before it, on every disk.
func (g grubPC) finish(ctx context.Context) error {
	return g.quickly(ctx, func(ctx context.Context) error {
		setup := g.setupProgram()
		for _, disk := range g.target.Disks {
			if setup == "" {
				if err := g.install(ctx, disk); err != nil {
					return err
				}
				continue
			}
			if err := g.command(ctx, setup, "--directory=/"+g.directory+"/i386-pc", disk); err != nil {
				return &Error{CodeInstall, fmt.Errorf("writing GRUB's boot sector to %s: %w", disk, err)}
			}
		}
		return nil
	})
}

// setupProgram is what grub-install itself runs in the end; "" where it is not
// found.
func (g grubPC) setupProgram() string {
	name := strings.TrimSuffix(g.installer, "-install") + "-bios-setup"
	for _, candidate := range []string{name, "/usr/lib/grub/i386-pc/grub-bios-setup"} {
		if found, err := tool.Look(g.target.Root, candidate); err == nil {
			return found
		}
	}
	return ""
}

// grubEFI is GRUB as an EFI program. Where the image has shim and a signed
// GRUB, grub-install takes these.
type grubEFI struct{ grub }

func newGrubEFI(s system) (loader, error) {
	g, err := newGrub(s, true)
	return grubEFI{g}, err
}

// prepare writes GRUB to a directory of the ESP that no firmware looks into by
// itself.
func (g grubEFI) prepare(ctx context.Context) error {
	arch := map[string]string{"amd64": "x86_64-efi", "arm64": "arm64-efi"}[g.target.Arch]
	return g.quickly(ctx, func(ctx context.Context) error {
		if err := g.configure(ctx); err != nil {
			return err
		}
		if err := g.command(ctx, g.installer, "--target="+arch, "--boot-directory=/boot", "--efi-directory=/"+esp, "--no-nvram", "--recheck"); err != nil {
			return &Error{CodeInstall, fmt.Errorf("installing GRUB for UEFI: %w", err)}
		}
		return nil
	})
}

func (g grubEFI) finish(context.Context) error { return g.startShimOrGrub() }

// startShimOrGrub makes firmware start what is in the vendor's directory of
// the ESP: shim where there is one, which starts the GRUB beside it, else GRUB.
func (g grub) startShimOrGrub() error {
	arch, _ := efiArch(g.target.Arch)
	for _, vendor := range g.below(esp + "/EFI") {
		if strings.EqualFold(vendor.Name(), "BOOT") {
			continue
		}
		has := make(map[string]bool)
		for _, file := range g.below(path.Join(esp, "EFI", vendor.Name())) {
			has[file.Name()] = true
		}
		in := func(name string) string { return path.Join("EFI", vendor.Name(), name) }
		shim, itself := "shim"+arch+".efi", "grub"+arch+".efi"
		if !has[itself] {
			continue
		}
		// A signed GRUB looks for its configuration in the vendor's directory by the
		// name that was built in, and else beside itself.
		var companions []string
		for _, name := range []string{"mm" + arch + ".efi", "grub.cfg"} {
			if has[name] {
				companions = append(companions, in(name))
			}
		}
		if !has[shim] {
			return g.startFrom(in(itself), companions...)
		}
		return g.startFrom(in(shim), append(companions, in(itself))...)
	}
	return &Error{CodeInstall, fmt.Errorf("there is no GRUB in a directory below /%s/EFI", esp)}
}

// shimGrub is shim and GRUB that came with the image, in its /boot/efi: Fedora
// and its relatives, whose grub-install refuses to make one for UEFI.
type shimGrub struct{ grub }

func newShimGrub(s system) (loader, error) {
	g, err := newGrub(s, false)
	return shimGrub{g}, err
}

// prepare writes the small configuration beside the signed GRUB, which only
// finds the real one: its name there is built in.
func (g shimGrub) prepare(ctx context.Context) error {
	err := g.quickly(ctx, g.configure)
	if err != nil {
		return err
	}
	arch, _ := efiArch(g.target.Arch)
	// $prefix is that of the root file-system, or of /boot where that is a volume.
	text := fmt.Sprintf("search --no-floppy --fs-uuid --set=root %s\nset prefix=($root)%s\nexport prefix\nconfigfile $prefix/grub.cfg\n",
		g.bootUUID(), g.bootPrefix())
	for _, vendor := range g.below(esp + "/EFI") {
		if _, err := g.root.Stat(path.Join(esp, "EFI", vendor.Name(), "grub"+arch+".efi")); err != nil || strings.EqualFold(vendor.Name(), "BOOT") {
			continue
		}
		if err := g.writeWhole(path.Join(esp, "EFI", vendor.Name(), "grub.cfg"), strings.NewReader(text)); err != nil {
			return &Error{CodeConfigure, fmt.Errorf("configuring GRUB on the EFI system partition: %w", err)}
		}
	}
	return nil
}

func (g shimGrub) finish(context.Context) error { return g.startShimOrGrub() }

// bootUUID is the UUID of the file-system that holds /boot.
func (g shimGrub) bootUUID() string {
	if g.target.BootUUID != "" {
		return g.target.BootUUID
	}
	return g.target.RootUUID
}

// bootPrefix is GRUB's directory as seen from the top of that file-system.
func (g shimGrub) bootPrefix() string {
	if g.target.BootUUID != "" {
		return "/" + strings.TrimPrefix(g.directory, "boot/")
	}
	return "/" + g.directory
}

// configure writes our settings and has GRUB make its menu of them, now and
// whenever a kernel is installed later.
func (g grub) configure(ctx context.Context) error {
	settings := Settings(g.target.Choice)
	file := target.File{Path: "/etc/default/grub.d/firstlight.cfg", Mode: 0o644, Data: []byte(settings)}
	if !g.readsDirectory() {
		const name = "etc/default/grub"
		existing, err := g.root.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &Error{CodeConfigure, fmt.Errorf("reading /%s: %w", name, err)}
		}
		existing = bytes.TrimSuffix(existing, []byte("\n"+settings)) // of a first try
		file.Path, file.Data = "/"+name, append(existing, "\n"+settings...)
	}
	if err := target.Write(g.root, file); err != nil {
		return &Error{CodeConfigure, fmt.Errorf("configuring GRUB: %w", err)}
	}
	menu := g.directory + "/grub.cfg"
	if err := g.root.MkdirAll(g.directory, 0o755); err != nil {
		return &Error{CodeConfigure, fmt.Errorf("configuring GRUB: %w", err)}
	}
	if err := g.command(ctx, g.configurer, "-o", "/"+menu); err != nil {
		return &Error{CodeConfigure, fmt.Errorf("making GRUB's menu: %w", err)}
	}
	data, err := g.root.ReadFile(menu)
	if err != nil {
		return &Error{CodeConfigure, fmt.Errorf("reading GRUB's menu: %w", err)}
	}
	if strings.Contains(string(data), "blscfg") && !strings.Contains(string(data), path.Base(g.target.Choice.Kernel)) {
		g.warn("GRUB's menu lies in /boot/loader/entries and was not checked")
		return nil
	}
	if err := CheckMenu(string(data), g.target); err != nil {
		return &Error{CodeWrong, fmt.Errorf("GRUB's menu, /%s, would not boot the new system: %w", menu, err)}
	}
	return nil
}

// readsDirectory says whether grub-mkconfig reads /etc/default/grub.d, which
// Debian and its relatives have added.
func (g grub) readsDirectory() bool {
	for _, directory := range []string{"usr/sbin", "sbin", "usr/bin"} {
		if script, err := g.root.ReadFile(path.Join(directory, g.configurer)); err == nil {
			return strings.Contains(string(script), "default/grub.d")
		}
	}
	return false
}
