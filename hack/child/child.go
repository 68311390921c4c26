// Package child starts programs that never outlive the program that started
// them: an image server, a QEMU machine. It is for the demo and the tests; no
// shipped program imports it.
package child

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Child is a started program.
type Child struct {
	name string
	pid  int
	done chan struct{}
	err  error // valid once done is closed
}

// Start starts cmd in a process group of its own, so that a Ctrl-C meant for
// the starting program does not reach it behind that program's back. Unless
// keep is set the kernel kills the child as soon as the starting program is
// gone, however that ended (PR_SET_PDEATHSIG, see prctl(2)).
func Start(cmd *exec.Cmd, keep bool) (*Child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if !keep {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	c := &Child{name: cmd.Path, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The death signal is sent when the thread that forked ends, not when
		// the process does: this thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		c.pid = cmd.Process.Pid
		started <- nil
		c.err = cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	return c, nil
}

// PID is the child's process id.
func (c *Child) PID() int { return c.pid }

// Done is closed when the child has ended.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait waits until the child has ended, and returns how: nil for exit status
// 0, the error of exec.Cmd.Wait otherwise, or the error of ctx.
func (c *Child) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s: %w", c.name, context.Cause(ctx))
	}
}

// Signal sends a signal to the child alone; it is no error if it has ended.
func (c *Child) Signal(sig syscall.Signal) error {
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := syscall.Kill(c.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("sending %s to %s: %w", sig, c.name, err)
	}
	return nil
}

// Stop asks the child to end (SIGTERM), gives it that long, then kills it and
// everything in its process group. When Stop returns the child is gone. It may
// be called more than once.
func (c *Child) Stop(grace time.Duration) {
	if grace > 0 && c.Signal(syscall.SIGTERM) == nil {
		select {
		case <-c.done:
			return
		case <-time.After(grace):
		}
	}
	select {
	case <-c.done:
		return
	default:
	}
	// An error here means that the group is gone already.
	_ = syscall.Kill(-c.pid, syscall.SIGKILL)
	<-c.done
}
