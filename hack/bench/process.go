package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/child"
)

// timed runs a program to its end and says what it took, its children included.
func timed(ctx context.Context, name string, args ...string) (cost, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	start := time.Now()
	err := cmd.Run()
	took := cost{wall: time.Since(start)}
	if cmd.ProcessState != nil {
		took.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	if err != nil {
		return took, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return took, nil
}

// command runs a program and forgets what it took.
func command(ctx context.Context, name string, args ...string) error {
	_, err := timed(ctx, name, args...)
	return err
}

// daemon is a server that runs beside the measuring.
type daemon struct {
	*child.Child
	log *os.File
}

// reaches says whether a server takes connections at an address.
func reaches(address string) error {
	connection, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	return connection.Close()
}

// start starts a server and waits until reach is content.
func start(ctx context.Context, log string, cmd *exec.Cmd, reach func() error) (*daemon, error) {
	out, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = out, out
	proc, err := child.Start(cmd, false)
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	d := &daemon{proc, out}
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := reach()
		if err == nil {
			return d, nil
		}
		select {
		case <-proc.Done():
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
			if time.Now().Before(deadline) {
				continue
			}
		}
		d.stop()
		said, _ := os.ReadFile(log) // its absence says as much
		return nil, fmt.Errorf("%s does not answer: %w\n%s", cmd.Path, err, said)
	}
}

func (d *daemon) stop() {
	d.Stop(5 * time.Second)
	_ = d.log.Close() // the server wrote to it, we did not
}

// processorTime is what a process has used so far, by its own clock
// (clock_getcpuclockid(3): the process id is part of the clock's).
func processorTime(pid int) (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
		return 0, fmt.Errorf("reading the processor time of %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// used is the processor time of processes while f runs.
func used(f func() error, pids ...int) (time.Duration, error) {
	total := func() (sum time.Duration, err error) {
		for _, pid := range pids {
			t, err := processorTime(pid)
			if err != nil {
				return 0, err
			}
			sum += t
		}
		return sum, nil
	}
	before, err := total()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := total()
	return after - before, err
}
