// Package bootloader makes the new system's disk bootable with the boot
// loader that its own image brings, run in the new root, so that loader,
// modules and configuration always fit together. It runs last of everything
// that writes to the target. It decides nothing: package boot did.
package bootloader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/tool"
)

// Target is the system to make bootable.
type Target struct {
	// Root is the directory where the new root is mounted, with everything
	// below it, and with /dev, /proc and /sys of the running system bound
	// in (mount.Stack.System).
	Root string
	// Disk is the boot disk's device: "/dev/vda".
	Disk string
	// RootDevice and RootUUID are device and UUID of the file-system at /.
	RootDevice, RootUUID string
	// Choice is what is to be booted.
	Choice boot.Choice
}

// Codes of Error.
const (
	CodeNotMounted = "BOO-020" // the root is not as Target says
	CodeNoProgram  = "BOO-021" // the image lacks a program of its loader
	CodeInstall    = "BOO-022" // the loader could not be installed
	CodeConfigure  = "BOO-023" // its configuration could not be written
	CodeWrong      = "BOO-024" // its configuration would not boot the new system
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

// patience bounds each program: grub-probe reads every disk that it finds,
// and one of them may be broken.
const patience = 5 * time.Minute

// Install installs the boot loaders of t.Choice with run and writes their
// configuration. Of what fails without harm, such as an entry in the
// firmware's own boot menu, warn is told.
func Install(ctx context.Context, run tool.Runner, t Target, warn func(string)) error {
	root, err := os.OpenRoot(t.Root)
	if err != nil {
		return &Error{CodeNotMounted, fmt.Errorf("opening the new root: %w", err)}
	}
	defer root.Close() // a directory: nothing is lost
	g := &grub{run: run, root: root, target: t, warn: warn}
	if err := g.prepare(); err != nil {
		return err
	}
	restore, err := g.hideUdevadm()
	if err != nil {
		return err
	}
	err = g.make(ctx)
	if e := restore(); e != nil {
		return errors.Join(err, &Error{CodeConfigure, e})
	}
	if err != nil && ctx.Err() == nil {
		err = g.make(ctx)
	}
	if err != nil {
		return err
	}
	unix.Sync() // GRUB writes into gaps that belong to no file-system
	return nil
}

// hideUdevadm makes udevadm(8) fail at once in the new root until restore is
// called. grub-probe asks it where a partition begins, some twenty times in
// each of the dozen calls that grub-mkconfig makes, while the answer stands
// in HDIO_GETGEO as well, which GRUB asks where udevadm fails. With a slow
// processor or many disks that is most of the time that GRUB takes. Disks
// that know no geometry still need udevadm: whoever fails without it is run
// once more with it.
func (g *grub) hideUdevadm() (restore func() error, err error) {
	var hidden mount.Stack
	for _, name := range []string{"usr/bin/udevadm", "bin/udevadm", "usr/sbin/udevadm", "sbin/udevadm"} {
		if info, err := g.root.Lstat(name); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if err := hidden.Mount("/dev/null", filepath.Join(g.target.Root, name), "", unix.MS_BIND, ""); err != nil {
			return nil, &Error{CodeConfigure, errors.Join(err, hidden.Close())}
		}
	}
	return hidden.Close, nil
}

// make installs every loader and makes their menu.
func (g *grub) make(ctx context.Context) error {
	for _, loader := range g.target.Choice.Loaders {
		var err error
		switch loader {
		case boot.GrubPC:
			err = g.installBIOS(ctx)
		case boot.GrubEFI:
			err = g.installUEFI(ctx)
		default:
			err = &Error{CodeInstall, fmt.Errorf("the boot loader %q is not known", loader)}
		}
		if err != nil {
			return err
		}
	}
	return g.configure(ctx)
}

// grub is GRUB 2 as Debian and its relatives have it; the names of Fedora's
// are tried too.
type grub struct {
	run    tool.Runner
	root   *os.Root
	target Target
	warn   func(string)

	installer, configurer string // programs
	directory             string // below /boot
}

// prepare finds the programs and what they need.
func (g *grub) prepare() error {
	for _, d := range []string{"dev", "proc", "sys"} {
		entries, err := fs.ReadDir(g.root.FS(), d)
		if err != nil || len(entries) == 0 {
			return &Error{CodeNotMounted, errors.Join(fmt.Errorf("/%s of the running system is not bound into %s", d, g.target.Root), err)}
		}
	}
	var missing []error
	for _, name := range []string{"grub", "grub2"} {
		_, err := tool.Look(g.target.Root, name+"-install")
		if err == nil {
			_, err = tool.Look(g.target.Root, name+"-mkconfig")
		}
		if err != nil {
			missing = append(missing, err)
			continue
		}
		g.installer, g.configurer, g.directory = name+"-install", name+"-mkconfig", "boot/"+name
		return g.linkByUUID()
	}
	return &Error{CodeNoProgram, fmt.Errorf("the image has no GRUB: %w", errors.Join(missing...))}
}

// linkByUUID makes the link that udev would make, as no udev runs here:
// without it grub-mkconfig writes root=/dev/vda2, which is right only as
// long as no disk is added (10_linux).
func (g *grub) linkByUUID() error {
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

// command runs a program in the new root.
func (g *grub) command(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := g.run.Run(ctx, tool.Cmd{Name: name, Args: args, Root: g.target.Root})
	return err
}

func (g *grub) installBIOS(ctx context.Context) error {
	err := g.command(ctx, g.installer, "--target=i386-pc", "--boot-directory=/boot", "--recheck", g.target.Disk)
	if err != nil {
		return &Error{CodeInstall, fmt.Errorf("installing GRUB for BIOS on %s: %w", g.target.Disk, err)}
	}
	return nil
}

// installUEFI puts GRUB where every firmware looks (UEFI 2.10, 3.5.1.1,
// \EFI\BOOT\BOOTX64.EFI), which needs no entry in the firmware's memory, and
// then under the system's own name with such an entry.
func (g *grub) installUEFI(ctx context.Context) error {
	arch := map[string]string{"amd64": "x86_64-efi", "arm64": "arm64-efi"}[runtime.GOARCH]
	common := []string{"--target=" + arch, "--boot-directory=/boot", "--efi-directory=/boot/efi", "--recheck"}
	if err := g.command(ctx, g.installer, append(slices.Clone(common), "--removable", "--no-nvram")...); err != nil {
		return &Error{CodeInstall, fmt.Errorf("installing GRUB for UEFI: %w", err)}
	}
	if _, err := g.root.Stat("sys/firmware/efi"); err == nil {
		err := g.command(ctx, g.installer, common...)
		if err == nil {
			return nil
		}
		g.warn(fmt.Sprintf("the firmware took no boot entry; it will start \\EFI\\BOOT of the disk instead: %v", err))
	}
	if err := g.command(ctx, g.installer, append(slices.Clone(common), "--no-nvram")...); err != nil {
		g.warn(fmt.Sprintf("GRUB is in \\EFI\\BOOT only: %v", err))
	}
	return nil
}

// configure writes our settings and has GRUB make its menu of them, now and
// whenever a kernel is installed later.
func (g *grub) configure(ctx context.Context) error {
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
func (g *grub) readsDirectory() bool {
	for _, directory := range []string{"usr/sbin", "sbin", "usr/bin"} {
		if script, err := g.root.ReadFile(path.Join(directory, g.configurer)); err == nil {
			return strings.Contains(string(script), "default/grub.d")
		}
	}
	return false
}

// Settings are the lines of /etc/default/grub that make GRUB boot what was
// chosen: the same command line as kexec's, on the same consoles.
func Settings(c boot.Choice) string {
	words := slices.Clone(c.Consoles)
	if c.Options != "" {
		words = append(words, c.Options)
	}
	lines := []string{
		"# Written when this system was installed. These lines win over /etc/default/grub.",
		"GRUB_DEFAULT=0",
		"GRUB_TIMEOUT_STYLE=menu",
		"GRUB_TIMEOUT=2",
		"GRUB_RECORDFAIL_TIMEOUT=2",
		"GRUB_CMDLINE_LINUX_DEFAULT=''",
		// Options hold no single quote (boot.CheckOptions).
		"GRUB_CMDLINE_LINUX='" + strings.Join(words, " ") + "'",
		"GRUB_DISABLE_OS_PROBER=true",
	}
	serialConsole := regexp.MustCompile(`^console=ttyS(\d+)(?:,(\d+))?`)
	for _, console := range c.Consoles {
		if m := serialConsole.FindStringSubmatch(console); m != nil {
			speed := m[2]
			if speed == "" {
				speed = "9600" // the kernel's default, serial-console.rst
			}
			lines = append(lines, "GRUB_TERMINAL='console serial'",
				"GRUB_SERIAL_COMMAND='serial --unit="+m[1]+" --speed="+speed+"'")
			break
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// CheckMenu says whether menu, a grub.cfg, has an entry that boots t's
// kernel with its initrd and every word of its command line.
func CheckMenu(menu string, t Target) error {
	kernel, initrd := path.Base(t.Choice.Kernel), path.Base(t.Choice.Initrd)
	linuxLine := regexp.MustCompile(`(?m)^\s*linux(?:efi|16)?\s+(\S+)\s*(.*)$`)
	initrdLine := regexp.MustCompile(`(?m)^\s*initrd(?:efi|16)?\s+(.*)$`)
	var nearest error
	for _, at := range linuxLine.FindAllStringSubmatchIndex(menu, -1) {
		name, arguments := menu[at[2]:at[3]], strings.Fields(menu[at[4]:at[5]])
		if path.Base(name) != kernel {
			continue
		}
		var lacks []string
		for _, word := range append([]string{"root=UUID=" + t.RootUUID}, strings.Fields(t.Choice.CommandLine)...) {
			if !slices.Contains(arguments, word) && !slices.Contains(lacks, word) {
				lacks = append(lacks, word)
			}
		}
		if i := initrdLine.FindStringSubmatch(menu[at[1]:]); t.Choice.Initrd != "" &&
			(i == nil || !slices.ContainsFunc(strings.Fields(i[1]), func(s string) bool { return path.Base(s) == initrd })) {
			lacks = append(lacks, "the initrd "+initrd)
		}
		if len(lacks) == 0 {
			return nil
		}
		if nearest == nil {
			nearest = fmt.Errorf("the entry of %s lacks %s", kernel, strings.Join(lacks, ", "))
		}
	}
	if nearest == nil {
		nearest = fmt.Errorf("it has no entry of the kernel %s", kernel)
	}
	return nearest
}
