package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/firstlight/firstlight/installer/progress"
)

// unwinding is a stack of what was opened. Whatever ends an installation,
// it is closed in reverse: a mount below another one goes first.
type unwinding struct {
	closers []closer
}

type closer struct {
	what  string
	close func() error
}

// push adds what has just been opened.
func (u *unwinding) push(what string, close func() error) {
	u.closers = append(u.closers, closer{what, close})
}

// run starts do in the background and pushes its end: do returns once its context
// has ended. Its error is told once; nobody waits for it a second time.
func (u *unwinding) run(what string, do func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		defer close(done)
		done <- do(ctx)
	}()
	u.push(what, func() error {
		cancel()
		return <-done
	})
}

// close closes everything, the last first, and joins the errors. What was
// closed is forgotten; what was not is tried again by the next call.
func (u *unwinding) close() error {
	var all []error
	var left []closer
	for _, c := range slices.Backward(u.closers) {
		if err := c.close(); err != nil {
			all = append(all, fmt.Errorf("closing %s: %w", c.what, err))
			left = append(left, c)
		}
	}
	slices.Reverse(left)
	u.closers = left
	return errors.Join(all...)
}

// leave closes what the installation opened. Where another one follows at once, or
// the machine restarts, whoever still works in a shell is sent away first: in the
// new system he would keep it mounted, and its disks busy for the next one.
func (i *installation) leave(ctx context.Context) {
	if cause := context.Cause(ctx); i.shells != nil && (errors.Is(cause, errRestart) || errors.Is(cause, errReboot)) {
		i.shells.EndAll(cause.Error())
	}
	i.opened.unwind(i.model)
}

// unwind closes everything at an end that has its own error to tell: what
// goes wrong here is logged.
func (u *unwinding) unwind(model *progress.Model) {
	if err := u.close(); err != nil {
		model.Warn(progress.Finish, err.Error())
	}
}
