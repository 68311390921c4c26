package main

import (
	"context"
	"errors"
	"testing"
)

func TestGateHoldsUntilReleased(t *testing.T) {
	g := newGate()
	if err := g.pass(t.Context(), func() { t.Error("waited at an open gate") }); err != nil {
		t.Fatal(err)
	}
	g.hold()
	g.hold()
	waiting, passed := make(chan struct{}), make(chan error)
	go func() { passed <- g.pass(t.Context(), func() { close(waiting) }) }()
	<-waiting
	select {
	case err := <-passed:
		t.Fatalf("passed a held gate: %v", err)
	default:
	}
	g.release()
	g.release()
	if err := <-passed; err != nil {
		t.Fatal(err)
	}
}

func TestGateEndsWithItsContext(t *testing.T) {
	g := newGate()
	g.hold()
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	cancel(stopped)
	if err := g.pass(ctx, func() {}); !errors.Is(err, stopped) {
		t.Errorf("got %v, want %v", err, stopped)
	}
}
