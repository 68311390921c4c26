package main

import (
	"context"
	"crypto/rand"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/kexec"
	"github.com/firstlight/firstlight/installer/watchdog"
	"github.com/firstlight/firstlight/storage/tool"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// Files of the initramfs; see docs/installer.md.
const (
	buildTimestamp = "/build-timestamp"
	caFile         = "/etc/ssl/CA.pem"
	certFile       = "/etc/ssl/installer/cert.pem"
	keyFile        = "/etc/ssl/installer/key.pem"
	trustDirectory = "/etc/installer/trust"
	mediumOptions  = "/etc/installer/options"
)

// env is the machine as the pipeline sees it: every seam between deciding and
// the kernel, in one place.
type env struct {
	sys, proc fs.FS
	now       func() time.Time
	setClock  func(time.Time) error
	writeRTC  func(time.Time) error
	trust     trustFiles
	random    io.Reader
	tpm       string // its device
	runner    tool.Runner
	loadNext  func(kernel, initrd *os.File, commandLine string) error
	tryNext   func(ctx context.Context, kernel, initrd kexec.Content, commandLine string) error
	startNext func() error // returns only on failure
	// armWatchdog starts the hardware watchdog; disarm stops it.
	armWatchdog func() (seconds int, disarm func() error, err error)
	reboot      func() error // returns only on failure
	powerOff    func() error // the same
	// inMemory says whether the running system's root file-system lies in
	// memory: the only place from which disks may be erased.
	inMemory bool
}

// trustFiles are the files that say whom the installer trusts and who it is.
type trustFiles struct {
	ca, cert, key string
	keys          string // directory of those who sign bundles
}

// realEnv is the machine itself.
func realEnv(opt options) env {
	return env{
		sys:       os.DirFS(opt.sysfsDirectory),
		proc:      os.DirFS(opt.procDirectory),
		now:       time.Now,
		setClock:  setSystemClock,
		writeRTC:  writeRTC,
		trust:     trustFiles{ca: caFile, cert: certFile, key: keyFile, keys: trustDirectory},
		random:    rand.Reader,
		tpm:       tpm2.Device,
		runner:    tool.Exec{},
		loadNext:  kexec.Load,
		tryNext:   kexec.Try,
		startNext: kexec.Execute,
		armWatchdog: func() (int, func() error, error) {
			w, err := watchdog.Arm(watchdog.Device, opt.kexecPatience)
			if err != nil {
				return 0, nil, err
			}
			return w.Seconds, w.Disarm, nil
		},
		reboot:   rebootMachine,
		powerOff: powerOffMachine,
		inMemory: rootIsInMemory(),
	}
}

// rebootMachine restarts the machine through its firmware (reboot(2)).
func rebootMachine() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

// powerOffMachine switches the machine off (reboot(2)).
func powerOffMachine() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// rootIsInMemory reports whether / is a ramfs or tmpfs, as an initramfs is
// (statfs(2)). Where that cannot be told it is not.
func rootIsInMemory() bool {
	var root unix.Statfs_t
	if err := unix.Statfs("/", &root); err != nil {
		return false
	}
	return root.Type == unix.RAMFS_MAGIC || root.Type == unix.TMPFS_MAGIC
}
