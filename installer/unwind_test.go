package main

import (
	"errors"
	"slices"
	"testing"
)

// TestUnwinding: what could not be closed, as somebody works in it, is closed by
// the next call, in the same order, and nothing is closed twice.
func TestUnwinding(t *testing.T) {
	var closed []string
	busy := true
	var u unwinding
	for _, what := range []string{"keys", "disks", "mounts", "lease"} {
		u.push(what, func() error {
			if busy && (what == "disks" || what == "mounts") {
				return errors.New("busy")
			}
			closed = append(closed, what)
			return nil
		})
	}
	if err := u.close(); err == nil || !slices.Equal(closed, []string{"lease", "keys"}) {
		t.Errorf("closed %q, %v", closed, err)
	}
	busy = false
	if err := u.close(); err != nil || !slices.Equal(closed, []string{"lease", "keys", "mounts", "disks"}) {
		t.Errorf("closed %q, %v", closed, err)
	}
	if err := u.close(); err != nil || len(closed) != 4 {
		t.Errorf("closed %q, %v", closed, err)
	}
}
