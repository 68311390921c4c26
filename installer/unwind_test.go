package main

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
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

// TestUnwindingWhatHasFailed: what ran in the background and has failed is not
// waited for again by the next call, which would never end.
func TestUnwindingWhatHasFailed(t *testing.T) {
	var u unwinding
	u.run("the DHCP lease", func(ctx context.Context) error {
		<-ctx.Done()
		return errors.New("no such interface")
	})
	if err := u.close(); err == nil {
		t.Error("its error is not told")
	}
	ended := make(chan error)
	go func() { ended <- u.close() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the second call waits for what has ended")
	}
}
