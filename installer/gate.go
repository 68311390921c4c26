package main

import (
	"context"
	"sync"
)

// gate is what a phase, or the hand-over, passes through. It is open, unless
// somebody holds it.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed while the gate is open
}

func newGate() *gate {
	g := &gate{opened: make(chan struct{})}
	close(g.opened)
	return g
}

// hold closes the gate. Holding it twice is holding it once.
func (g *gate) hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.held() {
		g.opened = make(chan struct{})
	}
}

// release opens the gate.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.held() {
		close(g.opened)
	}
}

func (g *gate) held() bool {
	select {
	case <-g.opened:
		return false
	default:
		return true
	}
}

// pass returns once the gate is open, or with the error of ctx. Where it has
// to wait it calls waiting first.
func (g *gate) pass(ctx context.Context, waiting func()) error {
	g.mu.Lock()
	opened, held := g.opened, g.held()
	g.mu.Unlock()
	if held {
		waiting()
	}
	select {
	case <-opened:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
