// Package qemu starts virtual machines for the demo and the tests: with disks,
// one NIC behind QEMU's own DHCP, TFTP and NAT, a serial console that can be
// waited for and typed on, and a power button. It never leaves a machine
// running after its starter has gone, unless told to keep it.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firstlight/firstlight/hack/child"
)

// Program is the emulator that is started, ProgramARM64 the one for that
// architecture.
const (
	Program      = "qemu-system-x86_64"
	ProgramARM64 = "qemu-system-aarch64"
)

// Config says what machine to start. The zero value of a field is the default
// that its comment names.
type Config struct {
	// Dir is an existing directory for the machine's sockets and what QEMU
	// itself had to say (qemu.log). Its path must be short: a socket's may have
	// 107 bytes.
	Dir string
	// Log is the file that QEMU copies the console to, with every control
	// character; it is overwritten. It is console.log in Dir by default.
	Log string
	// ARM64 makes it a machine of that architecture, which has UEFI (Vars) and no
	// other firmware, and is always translated.
	ARM64 bool
	// Accel is what NewProbe(…).Accel answered; "" is AccelTCG.
	Accel Accel
	// MemoryMiB is 2048 by default, CPUs 2.
	MemoryMiB, CPUs int
	// Disks are in the order in which the firmware tries them.
	Disks []Disk
	// Net is the machine's NIC behind QEMU's own network: its first NIC.
	Net Net
	// Cables are further virtio NICs, each with a cable to another machine.
	Cables []Cable
	// Shell adds a second serial port, whose socket is shell.sock in Dir.
	Shell bool
	// FromNetwork makes the firmware boot from the NIC (SeaBIOS and iPXE)
	// before it tries the disks; otherwise it never looks at the network.
	FromNetwork bool
	// Kernel, Initrd (files) and CommandLine boot a kernel without firmware.
	Kernel, Initrd, CommandLine string
	// Vars is the memory of a UEFI firmware (CreateVars), which the machine
	// changes; empty means BIOS firmware. With SecureBoot the firmware can do it;
	// whether it does is up to the keys in Vars.
	Vars       string
	SecureBoot bool
	// TPM is the directory, with an absolute path, that keeps the state of a
	// TPM 2.0; empty means there is none.
	TPM string
	// NoReboot makes QEMU end where the machine would restart.
	NoReboot bool
	// Display shows the machine's screen in a window; serial console and
	// everything else stay the same.
	Display bool
	// Lines is called with each complete line of the console, in order, from
	// one goroutine; nil does nothing.
	Lines func(line string)
	// Keep lets the machine live on when its starter ends without having
	// called Stop or Kill.
	Keep bool
	// Namespace is the network namespace (ip-netns(8)) that QEMU runs in; empty
	// is this process's own. A tap device of the namespace is given in Args.
	Namespace string
	// Args are further arguments for QEMU.
	Args []string
}

// Net is a virtio NIC on a network of its own, 10.0.2.0/24: the host's
// loopback is 10.0.2.2, its resolver 10.0.2.3, and the DHCP server of QEMU
// hands out 10.0.2.15.
type Net struct {
	// MAC is 52:54:00:12:34:56 by default.
	MAC string
	// TFTP is the directory that is served from 10.0.2.2, BootFile the file
	// that the DHCP server names.
	TFTP, BootFile string
	// Forwards maps TCP ports on the host's loopback to ports of the machine.
	Forwards map[int]int
	// Silent connects the NIC to a network where nobody answers: carrier, but
	// no DHCP, no TFTP, nothing.
	Silent bool
	// Absent leaves this NIC out.
	Absent bool
}

// Machine is a running machine.
type Machine struct {
	*Console
	config Config
	proc   *child.Child
	tpm    *child.Child // nil where there is none
	qmp    *control
	stderr *os.File
	serial net.Conn
	read   chan struct{}
}

func (c Config) arguments() ([]string, error) {
	if c.Accel == "" {
		c.Accel = AccelTCG
	}
	if c.Log == "" {
		c.Log = c.path("console.log")
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 2048
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.Net.MAC == "" {
		c.Net.MAC = "52:54:00:12:34:56"
	}
	machine, firmware := c.firmware()
	cpu := c.Accel.CPU()
	if c.ARM64 {
		c.Accel, cpu = AccelTCG, "cortex-a57"
	} else if !c.Display {
		// SeaBIOS then shows its screen, and with it iPXE and GRUB, on the
		// serial console.
		machine += ",graphics=off"
	}
	args := []string{
		"-nodefaults", "-no-user-config",
		"-machine", machine, "-accel", string(c.Accel), "-cpu", cpu,
		"-smp", strconv.Itoa(c.CPUs), "-m", strconv.Itoa(c.MemoryMiB),
		"-device", "virtio-rng-pci",
		"-chardev", "socket,id=console,path=" + escape(c.path("console.sock")) + ",server=on,wait=on,logfile=" + escape(c.Log) + ",logappend=off",
		"-serial", "chardev:console",
		"-qmp", "unix:" + escape(c.path("qmp.sock")) + ",server=on,wait=off",
	}
	args = append(append(args, firmware...), c.tpmArguments()...)
	if c.Display {
		args = append(args, "-vga", "std")
	} else {
		args = append(args, "-display", "none", "-vga", "none")
	}
	if c.NoReboot {
		args = append(args, "-no-reboot")
	}
	first := 1 // boot index of the first disk
	nic := "virtio-net-pci,netdev=n0,mac=" + c.Net.MAC
	if c.FromNetwork {
		nic += ",bootindex=0"
	} else {
		nic += ",romfile="
	}
	switch {
	case c.Net.Absent:
	case c.Net.Silent:
		args = append(args, "-netdev", "hubport,id=n0,hubid=0", "-device", nic)
	default:
		// IPv6 stays on: without it iPXE waits long for a router.
		user := "user,id=n0"
		if c.Net.TFTP != "" {
			user += ",tftp=" + escape(c.Net.TFTP)
		}
		if c.Net.BootFile != "" {
			user += ",bootfile=" + escape(c.Net.BootFile)
		}
		for host, guest := range c.Net.Forwards {
			user += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", host, guest)
		}
		args = append(args, "-netdev", user, "-device", nic)
	}
	for i, cable := range c.Cables {
		args = append(args, cable.arguments(i)...)
	}
	if c.Shell {
		args = append(args, "-chardev", "socket,id=shell,path="+escape(c.path(ShellSocket))+",server=on,wait=off", "-serial", "chardev:shell")
	}
	for i, d := range c.Disks {
		disk, err := d.arguments(i, first+i)
		if err != nil {
			return nil, err
		}
		args = append(args, disk...)
	}
	if c.Kernel != "" {
		args = append(args, "-kernel", c.Kernel)
		if c.Initrd != "" {
			args = append(args, "-initrd", c.Initrd)
		}
		if c.CommandLine != "" {
			args = append(args, "-append", c.CommandLine)
		}
	}
	return append(args, c.Args...), nil
}

func (c Config) path(name string) string { return filepath.Join(c.Dir, name) }

// escape doubles commas, which separate the parts of a QEMU option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// CreateDisk makes an empty sparse raw disk of that many bytes, in place of
// what was there.
func CreateDisk(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("creating a disk: %w", err)
	}
	if err := f.Truncate(size); err != nil {
		return errors.Join(fmt.Errorf("creating a disk: %w", err), f.Close())
	}
	return f.Close()
}

// Start starts a machine. The caller ends it with Stop or Kill. Ending ctx
// ends the start, not the machine.
func Start(ctx context.Context, c Config) (*Machine, error) {
	args, err := c.arguments()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"console.sock", "qmp.sock"} {
		if n := len(c.path(name)); n > 107 {
			return nil, fmt.Errorf("the path of %s has %d bytes, a socket's may have 107", c.path(name), n)
		}
		if err := os.Remove(c.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("removing an old socket: %w", err)
		}
	}
	stderr, err := os.Create(c.path("qemu.log"))
	if err != nil {
		return nil, fmt.Errorf("starting a machine: %w", err)
	}
	var tpm *child.Child
	if c.TPM != "" {
		if tpm, err = c.startTPM(stderr); err != nil {
			return nil, errors.Join(err, stderr.Close())
		}
	}
	program := Program
	if c.ARM64 {
		program = ProgramARM64
	}
	if c.Namespace != "" {
		args = append([]string{"netns", "exec", c.Namespace, program}, args...)
		program = "ip"
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = stderr, stderr
	proc, err := child.Start(cmd, c.Keep)
	if err != nil {
		if tpm != nil {
			tpm.Stop(0)
		}
		return nil, errors.Join(err, stderr.Close())
	}
	m := &Machine{config: c, proc: proc, tpm: tpm, stderr: stderr, read: make(chan struct{})}
	if err := m.connect(ctx); err != nil {
		m.Kill()
		if said, _ := os.ReadFile(c.path("qemu.log")); len(said) > 0 {
			err = fmt.Errorf("%w; QEMU said: %s", err, strings.TrimSpace(string(said)))
		}
		return nil, err
	}
	return m, nil
}

func (m *Machine) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	serial, err := m.dial(ctx, "console.sock")
	if err != nil {
		return err
	}
	m.serial = serial
	m.Console = newConsole(serial, m.config.Lines)
	go func() {
		defer close(m.read)
		m.Console.read(serial)
	}()
	conn, err := m.dial(ctx, "qmp.sock")
	if err != nil {
		return err
	}
	m.qmp, err = newControl(ctx, conn)
	return err
}

// dial connects to a socket that QEMU is about to make.
func (m *Machine) dial(ctx context.Context, name string) (net.Conn, error) {
	for {
		conn, err := net.Dial("unix", m.config.path(name))
		if err == nil {
			return conn, nil
		}
		select {
		case <-m.proc.Done():
			return nil, fmt.Errorf("QEMU ended at once: %w", m.proc.Wait(ctx))
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for QEMU to open %s: %w", name, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// PID is the process id of QEMU.
func (m *Machine) PID() int { return m.proc.PID() }

// Done is closed when the machine is off.
func (m *Machine) Done() <-chan struct{} { return m.proc.Done() }

// Wait waits until the machine is off.
func (m *Machine) Wait(ctx context.Context) error { return m.proc.Wait(ctx) }

// ShellSocket is the name of the second serial port's socket, in Config.Dir.
const ShellSocket = "shell.sock"

// Reset presses the reset button.
func (m *Machine) Reset(ctx context.Context) error {
	return m.qmp.execute(ctx, "system_reset", nil, nil)
}

// Pause holds the machine's processors, Continue lets them go on.
func (m *Machine) Pause(ctx context.Context) error { return m.qmp.execute(ctx, "stop", nil, nil) }

// Continue undoes Pause.
func (m *Machine) Continue(ctx context.Context) error { return m.qmp.execute(ctx, "cont", nil, nil) }

// Stop pulls the plug, after QEMU has written out what it holds itself, and
// returns when the machine is gone.
func (m *Machine) Stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err := m.qmp.execute(ctx, "quit", nil, nil)
	if err == nil {
		err = m.proc.Wait(ctx)
	}
	m.Kill()
	return err
}

// Kill ends the machine's process by its id. It may be called at any time and
// more than once; when it returns the machine is gone.
func (m *Machine) Kill() {
	m.proc.Stop(0)
	if m.tpm != nil {
		// It ends by itself when QEMU has gone, and writes its state first.
		m.tpm.Stop(2 * time.Second)
	}
	if m.serial != nil {
		// What the machine wrote last is read before the console closes.
		select {
		case <-m.read:
		case <-time.After(2 * time.Second):
		}
		_ = m.serial.Close() // nothing is lost by it: QEMU is gone
	}
	if m.qmp != nil {
		_ = m.qmp.conn.Close() // as above
	}
	_ = m.stderr.Close() // as above
}

// Release lets go of a machine that was started with Keep, without ending it.
func (m *Machine) Release() {
	_ = m.serial.Close() // QEMU goes on without a reader
	_ = m.qmp.conn.Close()
	_ = m.stderr.Close()
}

// Writes is what a machine has asked one of its disks to change since it was
// started.
type Writes struct {
	Operations uint64 // write requests
	Bytes      uint64
	Discards   uint64 // requests to forget sectors
	Failed     uint64 // write requests that failed
}

// None is true if the disk was asked for nothing.
func (w Writes) None() bool { return w.Operations == 0 && w.Bytes == 0 && w.Discards == 0 }

// Writes returns what was written to each disk, in the order of Config.Disks,
// as QEMU's block layer counted it. It does not say what the bytes were: a
// write of what was there already counts.
func (m *Machine) Writes(ctx context.Context) ([]Writes, error) {
	var stats []struct {
		// Device is a device's name, or the path of a part of it in QEMU's
		// tree of objects.
		Device string `json:"qdev"`
		Stats  struct {
			Operations uint64 `json:"wr_operations"`
			Bytes      uint64 `json:"wr_bytes"`
			Discards   uint64 `json:"unmap_operations"`
			Failed     uint64 `json:"failed_wr_operations"`
		} `json:"stats"`
	}
	if err := m.qmp.execute(ctx, "query-blockstats", nil, &stats); err != nil {
		return nil, err
	}
	all := make([]Writes, len(m.config.Disks))
	found := 0
	for _, s := range stats {
		for n := range all {
			if strings.Contains("/"+s.Device+"/", "/"+diskName(n)+"/") {
				all[n] = Writes{s.Stats.Operations, s.Stats.Bytes, s.Stats.Discards, s.Stats.Failed}
				found++
			}
		}
	}
	if found != len(all) {
		return nil, fmt.Errorf("QEMU counted the writes of %d disks, there are %d", found, len(all))
	}
	return all, nil
}

// Socket is the path of the machine's serial console. Only one at a time can
// be connected to it: after Release it is free.
func (m *Machine) Socket() string { return m.config.path("console.sock") }
