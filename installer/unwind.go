package main

import (
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

// close closes everything, the last first, and joins the errors. What was
// closed is forgotten.
func (u *unwinding) close() error {
	var all []error
	for _, c := range slices.Backward(u.closers) {
		if err := c.close(); err != nil {
			all = append(all, fmt.Errorf("closing %s: %w", c.what, err))
		}
	}
	u.closers = nil
	return errors.Join(all...)
}

// unwind closes everything at an end that has its own error to tell: what
// goes wrong here is logged.
func (u *unwinding) unwind(model *progress.Model) {
	if err := u.close(); err != nil {
		model.Warn(progress.Finish, err.Error())
	}
}
