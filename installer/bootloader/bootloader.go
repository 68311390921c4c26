// Package bootloader makes the new system's disks bootable with the boot
// loaders that its own image brings: programs are run in the new root, files
// are taken from it, so that loader, modules and configuration always fit
// together. It decides nothing: package boot did.
//
// It runs last of everything that writes to the target, and what firmware
// starts is the last that it writes: the BIOS boot sector, \EFI\BOOT and the
// firmware's boot menu. Until then nothing of the new system can start, and
// afterwards it is whole.
package bootloader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/efiboot"
	"github.com/firstlight/firstlight/storage/tool"
)

// Target is the system to make bootable.
type Target struct {
	// Root is the directory where the new root is mounted, with everything
	// below it, and with /dev, /proc and /sys of the running system bound
	// in (mount.Stack.System).
	Root string
	// Arch is the GOARCH of the new system.
	Arch string
	// Name is what a boot menu calls it: "Debian GNU/Linux 12 (bookworm)".
	Name string
	// ID is a short name for files: os-release's ID.
	ID string
	// Disks are the devices of the boot disk and of its mirror: "/dev/vda".
	Disks []string
	// RootDevice and RootUUID are device and UUID of the file-system at /.
	RootDevice, RootUUID string
	// BootUUID is that of the file-system at /boot, empty where it lies in the
	// root.
	BootUUID string
	// ESPs are the EFI system partitions, one a disk in the order of Disks;
	// what is written at /boot/efi reaches all of them.
	ESPs []efiboot.Partition
	// Variables is the directory with the firmware's variables, empty where the
	// running machine has none.
	Variables string
	// Choice is what is to be booted.
	Choice boot.Choice
	// Sync has everything written to the new system's disks, past its
	// file-systems too, and says whether they have taken it: no loader is
	// installed over something that is not there.
	Sync func() error
}

// SettingsFiles are the files outside /boot in which Install may leave settings of ours,
// for those who want to know what was written: any of them may not be there.
func SettingsFiles() []string {
	return []string{"/etc/default/grub.d/firstlight.cfg", "/etc/default/grub", "/etc/kernel/cmdline", "/etc/kernel/entry-token"}
}

// Codes of Error.
const (
	CodeNotMounted = "BOO-020" // the root is not as Target says
	CodeNoProgram  = "BOO-021" // the image lacks a program of its loader
	CodeInstall    = "BOO-022" // the loader could not be installed
	CodeConfigure  = "BOO-023" // its configuration could not be written
	CodeWrong      = "BOO-024" // its configuration would not boot the new system
	CodeInitrd     = "BOO-025" // the initrd could not be made again
)

// Error is why the disk is not bootable.
type Error struct {
	code string
	err  error
}

// Error says what was being done, with the last words of the program.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// Code is one of the constants of this package.
func (e *Error) Code() string { return e.code }

// patience bounds each program: grub-probe reads every disk that it finds, an
// initrd is packed by one slow processor.
const patience = 10 * time.Minute

// loader is a boot loader of the image.
type loader interface {
	// prepare writes everything but what firmware starts. It may be called
	// again when it failed.
	prepare(ctx context.Context) error
	// finish writes that, in no time and with as little as possible that can
	// fail. It comes once, when what prepare has written is on the disk.
	finish(ctx context.Context) error
}

// Install makes the initrd again where the choice says so, installs the boot
// loaders with run, and writes their configuration. Of what fails without
// harm, such as an entry in the firmware's own boot menu, warn is told.
func Install(ctx context.Context, run tool.Runner, t Target, warn func(string)) error {
	root, err := os.OpenRoot(t.Root)
	if err != nil {
		return &Error{CodeNotMounted, fmt.Errorf("opening the new root: %w", err)}
	}
	defer root.Close() // a directory: nothing is lost
	s := system{run: run, root: root, target: t, warn: warn}
	if err := s.checkMounts(); err != nil {
		return err
	}
	if err := s.makeInitrd(ctx); err != nil {
		return err
	}
	var loaders []loader
	for _, name := range t.Choice.Loaders {
		l, err := s.loader(name)
		if err != nil {
			return err
		}
		loaders = append(loaders, l)
	}
	for _, l := range loaders {
		if err := l.prepare(ctx); err != nil {
			return err
		}
	}
	// What a loader finds must be there before the loader is.
	if err := t.Sync(); err != nil {
		return err
	}
	for _, l := range loaders {
		if err := l.finish(ctx); err != nil {
			return err
		}
	}
	return t.Sync()
}

// system is the new system while it is made bootable.
type system struct {
	run    tool.Runner
	root   *os.Root
	target Target
	warn   func(string)
}

func (s system) loader(name string) (loader, error) {
	switch name {
	case boot.GrubPC:
		return newGrubPC(s)
	case boot.GrubEFI:
		return newGrubEFI(s)
	case boot.ShimGrub:
		return newShimGrub(s)
	case boot.SystemdBoot:
		return &systemdBoot{s}, nil
	case boot.EFIStub:
		return &efiStub{s}, nil
	}
	return nil, &Error{CodeInstall, fmt.Errorf("the boot loader %q is not known", name)}
}

func (s system) checkMounts() error {
	for _, d := range []string{"dev", "proc", "sys"} {
		entries, err := fs.ReadDir(s.root.FS(), d)
		if err != nil || len(entries) == 0 {
			return &Error{CodeNotMounted, errors.Join(fmt.Errorf("/%s of the running system is not bound into %s", d, s.target.Root), err)}
		}
	}
	return nil
}

// command runs a program in the new root.
func (s system) command(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := s.run.Run(ctx, tool.Cmd{Name: name, Args: args, Root: s.target.Root})
	return err
}

// makeInitrd makes the initrd again, for a layout whose root the image's own
// would not find: fstab, crypttab and mdadm.conf of this machine go into it.
func (s system) makeInitrd(ctx context.Context) error {
	version, initrd := s.target.Choice.KernelVersion, s.target.Choice.Initrd
	var err error
	switch s.target.Choice.NewInitrd {
	case "":
		return nil
	case boot.InitramfsTools:
		err = s.command(ctx, "mkinitramfs", "-o", initrd, version)
	case boot.Dracut:
		err = s.command(ctx, "dracut", "--force", "--kver", version, initrd)
	case boot.Mkinitcpio:
		err = s.command(ctx, "mkinitcpio", "-k", version, "-g", initrd)
	default:
		err = fmt.Errorf("the program %q is not known", s.target.Choice.NewInitrd)
	}
	if err != nil {
		return &Error{CodeInitrd, fmt.Errorf("making %s for this machine: %w", initrd, err)}
	}
	return nil
}
