// Package bootdisk makes a disk that boots: it runs our own installer in a virtual
// machine (QEMU) whose disk is a file. What comes out is what a real machine would
// have on its disk.
//
// It needs qemu-system, and neither root nor a network outside the machine: the
// installer reaches one image server, which listens on this host's loopback. It knows
// nothing of images; the configuration in the boot medium says what is installed.
package bootdisk

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Host is where the installer sees the loopback of this host.
const Host = "10.0.2.2"

// DefaultMAC is the address of the machine's NIC where nothing else is said.
const DefaultMAC = "52:54:00:12:34:56"

const (
	// upTime is how long the installer may take to say its first line before KVM
	// is given up; translated it may take as long as silence allows.
	upTime = 60 * time.Second
	// silence is how long the machine may say nothing.
	silence = 15 * time.Minute
)

// Error is a disk that could not be made; docs/errors.md explains its codes.
type Error struct {
	code, text string
	err        error
}

// Error is the text, with the cause where there is one.
func (e *Error) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}

// Code is the stable code: IMG-021 (QEMU or the firmware is missing, or fails),
// IMG-022 (the installer in the machine failed).
func (e *Error) Code() string { return e.code }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// Options say what machine is run.
type Options struct {
	// Kernel and Initramfs are what it boots.
	Kernel, Initramfs string
	// Disk is the file that becomes the disk, of Bytes bytes; it is made anew.
	Disk  string
	Bytes int64
	// UEFI lets the machine have a UEFI firmware (OVMF) instead of a BIOS.
	UEFI bool
	// MAC of its NIC; empty means DefaultMAC.
	MAC string
	// MemoryMiB of the machine; 0 means 2048.
	MemoryMiB int
	// Accel is how QEMU runs it: "kvm", "tcg", or empty for KVM where that works.
	Accel string
	// CommandLine is put behind the kernel's command line.
	CommandLine string
	// Said is told what the installer says, a line each, from one goroutine.
	Said func(line string)
}

var (
	installerLine = regexp.MustCompile(`^\[ *\d+\.\d{3}\] [a-z]+: `)
	failedLine    = regexp.MustCompile(`FAILED ([A-Z]{3}-\d{3}): (.*)`)
	handOverLine  = regexp.MustCompile(`^\[ *\d+\.\d{3}\] finish: handing over to `)
)

// errSlow says that the installer was not up in time.
var errSlow = errors.New("the installer was not up in time")

// Make installs. The disk is whole and synced when it returns nil; otherwise what is
// there is of no use. Ending ctx ends the machine.
func Make(ctx context.Context, options Options) error {
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return &Error{"IMG-021", "a bootable disk is made in a virtual machine, and qemu-system-x86_64 is missing (Debian: apt-get install qemu-system-x86)", nil}
	}
	switch options.Accel {
	case "kvm", "tcg":
		return run(ctx, program, options, options.Accel, silence)
	case "":
	default:
		return &Error{"IMG-021", fmt.Sprintf("%q is no way to run a machine: have kvm, tcg", options.Accel), nil}
	}
	if kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		if err := kvm.Close(); err != nil {
			return err
		}
		// A host may offer it and then not get a kernel booted.
		err := run(ctx, program, options, "kvm", upTime)
		if !errors.Is(err, errSlow) {
			return err
		}
		options.Said("no installer under KVM; once more without")
	}
	return run(ctx, program, options, "tcg", silence)
}

// run is one machine. first is how long it may take until the installer speaks.
func run(ctx context.Context, program string, options Options, accel string, first time.Duration) (err error) {
	if err := emptyDisk(options.Disk, options.Bytes); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "firstlight-machine-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	args, err := arguments(options, accel, scratch)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, program, args...)
	// It never outlives this program.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	runtime.LockOSThread() // the death signal is sent when the thread that forks ends
	defer runtime.UnlockOSThread()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return &Error{"IMG-021", "starting QEMU", err}
	}
	w := &watch{options: options, cancel: cancel, timer: time.AfterFunc(first, func() { cancel(errSlow) })}
	readErr := w.read(console)
	w.timer.Stop()
	waitErr := cmd.Wait()
	switch cause := context.Cause(ctx); {
	case w.failed != nil:
		return w.failed
	case cause != nil && errors.Is(cause, errSlow) && !w.spoke:
		return &Error{"IMG-022", "in the virtual machine", errSlow}
	case cause != nil:
		return cause
	case waitErr != nil:
		return &Error{"IMG-021", "QEMU: " + strings.TrimSpace(stderr.String()), waitErr}
	case readErr != nil:
		return readErr
	case !w.handedOver:
		return &Error{"IMG-022", "the machine went off before the installer was done; its last lines:\n" + strings.Join(w.last, "\n"), nil}
	}
	return syncFile(options.Disk)
}

// watch follows the console.
type watch struct {
	options    Options
	cancel     context.CancelCauseFunc
	timer      *time.Timer
	spoke      bool // the installer has
	handedOver bool
	failed     error
	last       []string
}

func (w *watch) read(console io.Reader) error {
	lines := bufio.NewScanner(console)
	lines.Buffer(make([]byte, 64<<10), 1<<20)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		w.last = append(w.last, line)
		w.last = w.last[max(0, len(w.last)-20):]
		if installerLine.MatchString(line) { // the kernel's own have six decimals
			w.spoke = true
			w.options.Said(line)
		}
		w.handedOver = w.handedOver || handOverLine.MatchString(line)
		if w.spoke {
			w.timer.Reset(silence)
		}
		if m := failedLine.FindStringSubmatch(line); m != nil && w.failed == nil {
			w.failed = &Error{"IMG-022", "the installer in the virtual machine says " + m[1] + ": " + m[2], nil}
			w.cancel(w.failed) // it would wait for a person
		}
	}
	return lines.Err()
}

func arguments(options Options, accel, scratch string) ([]string, error) {
	cpu := "max"
	if accel == "kvm" {
		cpu = "host"
	}
	mac := options.MAC
	if mac == "" {
		mac = DefaultMAC
	}
	memory := options.MemoryMiB
	if memory == 0 {
		memory = 2048
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(min(4, runtime.NumCPU())), "-m", strconv.Itoa(memory),
		"-display", "none", "-vga", "none", "-no-reboot", "-serial", "stdio", "-device", "virtio-rng-pci",
		"-kernel", options.Kernel, "-initrd", options.Initramfs,
		"-append", strings.TrimSpace("console=ttyS0,115200 ip=dhcp " + options.CommandLine),
		// What is lost with the host is made again.
		"-drive", "if=none,id=disk,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap,file=" + escape(options.Disk),
		"-device", "virtio-blk-pci,drive=disk,serial=firstlight",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=,mac=" + mac,
	}
	if !options.UEFI {
		return append(args, "-machine", "pc,graphics=off"), nil
	}
	code, vars, err := firmware()
	if err != nil {
		return nil, err
	}
	memoryOfIts := filepath.Join(scratch, "vars")
	content, err := os.ReadFile(vars)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(memoryOfIts, content, 0o600); err != nil {
		return nil, err
	}
	return append(args, "-machine", "q35,graphics=off",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file="+escape(code),
		"-drive", "if=pflash,unit=1,format=raw,file="+escape(memoryOfIts)), nil
}

// firmware is where Debian and others put OVMF.
func firmware() (code, vars string, err error) {
	for _, at := range []struct{ code, vars string }{
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
		{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
		{"/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"},
		{"/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"},
	} {
		if _, err := os.Stat(at.code); err == nil {
			return at.code, at.vars, nil
		}
	}
	return "", "", &Error{"IMG-021", "a UEFI firmware for the virtual machine is missing (Debian: apt-get install ovmf)", nil}
}

// escape doubles commas, which separate the parts of a QEMU option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// emptyDisk makes a sparse file of zeros, in place of what was there.
func emptyDisk(path string, bytes int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(bytes), f.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Convert writes a raw disk as a qcow2, compressed where zstd or zlib helps.
func Convert(ctx context.Context, raw, qcow2 string) error {
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		return &Error{"IMG-021", "a qcow2 is written by qemu-img, which is missing (Debian: apt-get install qemu-utils)", nil}
	}
	cmd := exec.CommandContext(ctx, program, "convert", "-f", "raw", "-O", "qcow2", "-c", raw, qcow2)
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &Error{"IMG-021", "qemu-img: " + strings.TrimSpace(string(out)), err}
	}
	return syncFile(qcow2)
}
