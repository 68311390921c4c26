// Uinit makes an initramfs usable for the installer and keeps watch over it:
// kernel file-systems, modules for the devices that are there, output on
// every console, and a shell for the person who stands before a machine whose
// installation has failed. u-root's init starts it, reaps orphans, and panics
// the kernel when it ends: so it never returns. It sets no clock (the
// installer does) and touches neither network nor disks.
//
// The kernel, too, starts it, as its modprobe(8): `uinit -q -- NAME`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/uinit/modules"
)

const (
	installerProgram = "/bbin/installer"
	defaultShell     = "/bin/sh"
	searchPath       = "/usr/sbin:/usr/bin:/sbin:/bin:/bbin"
	// settle is how long no device may appear before the machine counts as
	// complete, and settleLimit how long that is awaited: USB and SCSI hosts
	// look for their devices in the background.
	settle      = 400 * time.Millisecond
	settleLimit = 8 * time.Second
	// settleUSB is the same with a USB disk: the kernel leaves it alone for a
	// second before it looks (usb-storage.delay_use).
	settleUSB = 1500 * time.Millisecond
)

func main() {
	ctx := context.Background()
	if len(os.Args) == 4 && os.Args[1] == "-q" && os.Args[2] == "--" {
		if err := modprobe(os.Args[3]); err != nil {
			os.Exit(1) // the kernel asks for much that does not exist, and wants no text
		}
		os.Exit(0)
	}
	run(ctx, os.Args[1:])
	select {} // never return: PID 1 would panic
}

// modprobe loads one module that the kernel asks for.
func modprobe(name string) error {
	loader, _, err := openModules()
	if err != nil {
		return err
	}
	return loader.Load(name)
}

// run is the program. args go to the installer.
func run(ctx context.Context, args []string) {
	keepRunning(ctx)
	failures := []error{mountAll(earlyMounts()), leaveMemory(hugePages)}

	consoles := openConsoles(ctx)
	show := func(text string) {
		for _, c := range consoles {
			c.show(text)
		}
	}
	report := func(err error) {
		if err != nil {
			show(fmt.Sprintf("uinit: %v\n", err))
		}
	}
	report(errors.Join(failures...))

	started := time.Now()
	loaded, err := plugDevices(ctx, report)
	report(err)
	report(mountAll(lateMounts()))
	show(fmt.Sprintf("uinit: %d modules loaded in %.1f s\n", loaded, time.Since(started).Seconds()))

	shell := shellProgram(os.DirFS("/proc"))
	var offerOnce sync.Once
	var shells atomic.Int32
	supervise := supervisor{
		program: installerProgram, args: args, environment: environment(),
		restarts: 3, restartDelay: 30 * time.Second,
		show: show,
		offer: func() {
			offerOnce.Do(func() {
				for _, c := range consoles {
					go c.offer(ctx, shell, func(busy bool) {
						if busy {
							shells.Add(1)
						} else {
							shells.Add(-1)
						}
					})
				}
			})
		},
		shellOpen: func() bool { return shells.Load() > 0 },
	}
	supervise.run(ctx)
}

// hugePages is the switch of transparent huge pages
// (Documentation/admin-guide/mm/transhuge.rst).
const hugePages = "/sys/kernel/mm/transparent_hugepage/enabled"

// leaveMemory switches huge pages off: for them the kernel keeps some 60 MB
// free (vm.min_free_kbytes) that a small machine's installation needs, and
// nothing here gains by them. A kernel without the switch has none.
func leaveMemory(setting string) error {
	f, err := os.OpenFile(setting, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString("never")
	return errors.Join(err, f.Close())
}

// keepRunning takes the signals that a terminal sends, and throws them away.
// They are not ignored, because what is ignored is inherited by programs.
func keepRunning(ctx context.Context) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGPIPE)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-signals:
			}
		}
	}()
}

// environment is what programs get instead of u-root's Go paths.
func environment() []string {
	return []string{"PATH=" + searchPath, "HOME=/root", "TERM=linux", "USER=root"}
}

// openConsoles begins to write to every console of the machine.
func openConsoles(ctx context.Context) []*console {
	for _, setting := range environment() {
		name, value, _ := strings.Cut(setting, "=")
		if err := os.Setenv(name, value); err != nil {
			continue // only names with a NUL or `=` fail
		}
	}
	var consoles []*console
	for _, name := range consoleNames(os.DirFS("/sys"), isTTY) {
		c := newConsole(name)
		go c.pump(ctx)
		consoles = append(consoles, c)
	}
	return consoles
}

// openModules reads the running kernel's module index. Without any modules in
// the initramfs the error wraps fs.ErrNotExist.
func openModules() (*modules.Loader, string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, "", err
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(name.Release[:]))
	index, err := modules.Read(os.DirFS(dir))
	if err != nil {
		return nil, dir, err
	}
	return modules.NewLoader(index, modules.InsertFrom(dir, moduleParameters)), dir, nil
}

// moduleParameters are those that this system needs.
func moduleParameters(name string) string {
	switch name {
	case "bonding":
		return "max_bonds=0" // or a bond0 of nobody's appears
	case "watchdog":
		return "stop_on_reboot=0" // a kernel that is started by kexec may hang
	}
	return ""
}

// wantedByInstaller are the modules that the installer needs on every machine
// and no device asks for. Those that a medium leaves out are passed over. The
// rest (vfat, bonding, …) the kernel asks for itself when it needs them.
func wantedByInstaller() []string {
	return []string{"dm-mod", "dm-crypt", "md-mod", "loop", "ext4", "xts", "algif_skcipher", "algif_hash"}
}

// accelerators make encryption and hashing fast. They may take seconds to test
// themselves (in an emulated CPU), and nothing waits for them.
func accelerators() []string {
	return []string{"aesni-intel", "aes_ce_blk", "sha256-ssse3", "sha2-ce", "crc32c-intel"}
}

// plugDevices loads modules for all devices, sees to it that later devices
// and wishes of the kernel are heard, and returns how many were loaded.
func plugDevices(ctx context.Context, report func(error)) (int, error) {
	loader, dir, err := openModules()
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("no modules in %s: is this the kernel that the medium was made for?", dir)
	}
	if err != nil {
		return 0, err
	}
	// call_usermodehelper: the path is started with `-q -- NAME`
	// (kernel/kmod.c, proc(5) /proc/sys/kernel/modprobe).
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte("/bbin/uinit"), 0o644); err != nil {
		report(fmt.Errorf("offering modules to the kernel: %w", err))
	}
	watch, err := modules.OpenWatch()
	if err != nil {
		return 0, err
	}
	load := func(names []string) {
		for _, name := range names {
			err := loader.Load(name)
			// ENODEV: a CPU without these instructions.
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				report(err)
			}
		}
	}
	wanted := wantedByInstaller()
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		wanted = append(wanted, "efivarfs", "vfat", "nls_cp437", "nls_ascii", "nls_iso8859-1")
	}
	var loading sync.WaitGroup
	loading.Go(func() { load(wanted) })

	walk := func() { report(modules.Coldplug(ctx, os.DirFS("/sys"), loader)) }
	walk()
	loading.Wait()
	quiet := settle
	if slices.Contains(loader.Loaded(), "usb_storage") {
		quiet = settleUSB
	}
	limited, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	if err := watch.Handle(limited, quiet, loader, report, walk); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		report(err)
	}
	go load(accelerators())
	go func() {
		report(watch.Handle(ctx, 0, loader, report, walk))
	}()
	return len(loader.Loaded()), nil
}
