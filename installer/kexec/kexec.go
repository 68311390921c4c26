// Package kexec hands the machine over to another kernel without the
// firmware: Load puts kernel, initrd and command line into memory while the
// target's file-systems are still mounted, Execute starts them when
// everything has been unmounted. It never chooses what to boot, and what
// happens when it fails is its caller's business: by then the disk is
// bootable, so a reboot by the firmware is always possible.
package kexec

import (
	"errors"
	"fmt"
	"os"

	ukexec "github.com/u-root/u-root/pkg/boot/kexec"
	"golang.org/x/sys/unix"
)

// Codes of Error.
const (
	CodeLoad    = "BOO-036" // the kernel did not accept what it was given
	CodeRefused = "BOO-037" // Secure Boot or lockdown does not allow this kernel
	CodeExecute = "BOO-038" // the loaded kernel was not started
)

// Error is a hand-over that did not happen.
type Error struct {
	code string
	err  error
}

// Error says what was tried and how the kernel answered.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap is the kernel's answer, a unix.Errno below it.
func (e *Error) Unwrap() error { return e.err }

// Code is one of CodeLoad, CodeRefused and CodeExecute.
func (e *Error) Code() string { return e.code }

// maxCommandLine is COMMAND_LINE_SIZE of x86 and arm64, less the final NUL;
// kexec_file_load(2) says only "invalid argument" to a longer one.
const maxCommandLine = 2047

// Load hands kernel, initrd (nil for none) and command line to
// kexec_file_load(2). The files are read whole before it returns and may be
// closed and unmounted afterwards. Loading again replaces what was loaded.
func Load(kernel, initrd *os.File, commandLine string) error {
	if len(commandLine) > maxCommandLine {
		return &Error{CodeLoad, fmt.Errorf("loading the new kernel: its command line has %d bytes, %d are possible", len(commandLine), maxCommandLine)}
	}
	err := ukexec.FileLoad(kernel, initrd, commandLine)
	if err == nil {
		return nil
	}
	code := CodeLoad
	for _, refusal := range []unix.Errno{unix.ENOKEY, unix.EKEYREJECTED, unix.EPERM, unix.EBADMSG, unix.EACCES} {
		if errors.Is(err, refusal) {
			code = CodeRefused
		}
	}
	return &Error{code, fmt.Errorf("loading the new kernel %s: %w", kernel.Name(), err)}
}

// Loaded says whether a kernel is loaded, from
// /sys/kernel/kexec_loaded (Documentation/ABI/testing/sysfs-kernel-kexec).
func Loaded() bool {
	data, err := os.ReadFile("/sys/kernel/kexec_loaded")
	return err == nil && len(data) > 0 && data[0] == '1'
}

// Execute starts the loaded kernel; what is mounted must have been unmounted
// and synced. It returns only if that failed.
func Execute() error {
	if err := ukexec.Reboot(); err != nil {
		return &Error{CodeExecute, fmt.Errorf("starting the new kernel: %w", err)}
	}
	return &Error{CodeExecute, errors.New("starting the new kernel: the running kernel came back from kexec without an error")}
}
