package main

import (
	"context"
	"sync"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/shell"
)

// approval is what operators have said to the plan. It may be given as soon as
// there is one.
type approval struct {
	mu       sync.Mutex
	hash     string        // of the plan that needs it; empty: none does
	by       string        // who has approved it
	approved chan struct{} // closed by the first approval
}

// need says that the plan of that hash is carried out only once approved.
func (a *approval) need(hash string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hash, a.approved = hash, make(chan struct{})
}

// give approves the plan of that hash, and no other.
func (a *approval) give(hash, by string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.hash == "":
		return shell.NotNow("there is no plan that waits for approval")
	case hash != a.hash:
		return shell.NotNow("this is not the hash of the plan that this machine would carry out; look at it again: firstlight installer-shell HOST plan")
	case a.by == "":
		a.by = by
		close(a.approved)
	}
	return nil
}

// approve is what operators call.
func (i *installation) approve(hash, by string) error {
	if err := i.approval.give(hash, by); err != nil {
		return err
	}
	i.model.Logf(i.steering.phase(), "%s approves the plan %s", by, hash)
	return nil
}

// awaitApproval returns once an operator has approved the plan, where the site
// wants that: all that can be tried has been, and no disk has been written to.
func (i *installation) awaitApproval(ctx context.Context) error {
	if !i.plan.RequireApproval {
		return nil
	}
	a := &i.approval
	since := time.Now().UTC()
	select {
	case <-a.approved:
	default:
		i.model.Approval(&progress.Approval{Plan: a.hash, Since: since})
		i.model.Wait(progress.Commit, "approval of the plan (firstlight installer-shell HOST approve "+a.hash+")")
		i.model.Logf(progress.Commit, "waiting for approval: firstlight installer-shell HOST approve %s", a.hash)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-a.approved:
	}
	a.mu.Lock()
	by := a.by
	a.mu.Unlock()
	i.model.Wait(progress.Commit, "")
	i.model.Approval(&progress.Approval{Plan: a.hash, Since: since, By: by})
	i.model.Logf(progress.Commit, "the plan is carried out as %s has approved it", by)
	return nil
}
