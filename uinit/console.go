package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// consoleNames lists the consoles of the machine: the kernel's own, as
// /sys/class/tty/console/active tells them, and the screen and the first
// serial line where they exist. isTTY says whether a name is a working
// terminal.
func consoleNames(sys fs.FS, isTTY func(name string) bool) []string {
	var names []string
	active, err := fs.ReadFile(sys, "class/tty/console/active")
	if err != nil {
		active = nil // no console= at all: the two usual ones remain
	}
	for _, name := range append(strings.Fields(string(active)), "tty0", "ttyS0") {
		if !slices.Contains(names, name) && isTTY(name) {
			names = append(names, name)
		}
	}
	return names
}

// isTTY opens the terminal and asks for its settings. A serial port without
// hardware has a device node too, but answers EIO.
func isTTY(name string) bool {
	f, err := os.OpenFile(filepath.Join("/dev", name), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	working := false
	err = raw.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		working = err == nil
	})
	return err == nil && working
}

// shellProgram is what the kernel command line names by installer.shellCommand=,
// the last one counting, else /bin/sh. It is the installer's own flag:
// a shell on the console and one through the network are the same.
func shellProgram(proc fs.FS) string {
	line, err := fs.ReadFile(proc, "cmdline")
	if err != nil {
		return defaultShell // without /proc there is nothing to obey
	}
	program := defaultShell
	for word := range strings.FieldsSeq(string(line)) {
		// The kernel takes quotes around a value or around the whole word
		// (kernel-parameters.rst).
		if value, ok := strings.CutPrefix(strings.ReplaceAll(word, `"`, ""), "installer.shellCommand="); ok && value != "" {
			program = value
		}
	}
	return program
}

// console is one terminal: what is written to it is shown, late if need be
// but without holding up the others, and a person who presses Enter there
// gets a shell, once that is offered.
type console struct {
	name  string
	lines chan string
	// quiet is held while a shell has the terminal.
	quiet sync.Mutex
}

// maxBehind is how many pieces of output a terminal may be behind (a stopped
// one, or a slow serial line) before it loses some.
const maxBehind = 4096

func newConsole(name string) *console {
	return &console{name: name, lines: make(chan string, maxBehind)}
}

func (c *console) device() string { return filepath.Join("/dev", c.name) }

// show hands text over to be written.
func (c *console) show(text string) {
	select {
	case c.lines <- text:
	default: // full: the log file has it all, and waiting would stop the installation
	}
}

// write writes text to the terminal, which f is where it is open already, and
// returns the terminal as it is open then, or nil. After a failure it is opened
// anew, once for each text: a USB serial line may be replugged, and the kernel
// hangs a terminal up when the shell that had it ends (disassociate_ctty).
func (c *console) write(f *os.File, text string) *os.File {
	for range 2 {
		if f == nil {
			opened, err := os.OpenFile(c.device(), os.O_WRONLY|unix.O_NOCTTY, 0)
			if err != nil {
				return nil
			}
			f = opened
		}
		n, err := f.WriteString(text)
		if err == nil {
			return f
		}
		text = text[n:]
		_ = f.Close() // it failed already
		f = nil
	}
	return nil
}

// pump writes what show was given, until the context ends.
func (c *console) pump(ctx context.Context) {
	var f *os.File
	for {
		select {
		case <-ctx.Done():
			return
		case text := <-c.lines:
			c.quiet.Lock()
			f = c.write(f, text)
			c.quiet.Unlock()
		}
	}
}

// offer waits for Enter and runs a shell, again and again, until the context
// ends. busy is told when a shell begins and when it ends.
func (c *console) offer(ctx context.Context, shell string, busy func(bool)) {
	for ctx.Err() == nil {
		c.show("\nPress Enter for a shell on " + c.name + ".\n")
		if err := c.waitForEnter(); err != nil {
			pause(ctx, 10*time.Second) // no input to be had here; never a busy loop
			continue
		}
		busy(true)
		err := c.shell(ctx, shell)
		busy(false)
		if err != nil {
			c.show(fmt.Sprintf("uinit: shell: %v\n", err))
			pause(ctx, time.Second)
		}
	}
}

func (c *console) waitForEnter() error {
	f, err := os.OpenFile(c.device(), os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if errors.Is(err, io.EOF) && line == "" {
		return fmt.Errorf("%s hung up", c.name)
	}
	return err
}

// shell runs a shell that has the terminal for its own: a session, with the
// terminal controlling it, so that Ctrl-C reaches what runs there.
func (c *console) shell(ctx context.Context, program string) error {
	c.quiet.Lock()
	defer c.quiet.Unlock()
	f, err := os.OpenFile(c.device(), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, program)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f, f, f
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil // the last command's status; not a failure of the shell
	}
	return err
}

// pause waits for a while or for the end of the context.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
