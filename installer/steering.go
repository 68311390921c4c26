package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/shell"
)

// beforeHandOver is what operators call the hand-over, which is no phase.
const beforeHandOver = "hand-over"

// steering is what operators have asked of the installation: a gate before
// each phase, and the one of the hand-over.
type steering struct {
	model    *progress.Model
	handOver *gate

	mu    sync.Mutex
	gates map[progress.Phase]*gate
	begun map[progress.Phase]bool
	holds []progress.Hold // in the order in which they were asked for
}

func newSteering(model *progress.Model) *steering {
	s := &steering{model: model, handOver: newGate(), gates: map[progress.Phase]*gate{}, begun: map[progress.Phase]bool{}}
	for _, phase := range progress.Phases() {
		s.gates[phase] = newGate()
	}
	return s
}

// gate is the one that name means; s.mu is held.
func (s *steering) gate(name string) *gate {
	if name == beforeHandOver {
		return s.handOver
	}
	return s.gates[progress.Phase(name)]
}

// hold closes the gate before a phase that has not begun, or the hand-over.
func (s *steering) hold(before, by string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gate(before)
	switch {
	case g == nil:
		var names []string
		for _, phase := range progress.Phases() {
			names = append(names, string(phase))
		}
		return shell.Unknown("there is no phase %q (%s, %s)", before, strings.Join(names, ", "), beforeHandOver)
	case s.begun[progress.Phase(before)]:
		return shell.NotNow("%s has begun already", before)
	}
	g.hold()
	if !slices.ContainsFunc(s.holds, func(h progress.Hold) bool { return h.Before == before }) {
		s.holds = append(s.holds, progress.Hold{Before: before, By: by, Since: time.Now().UTC()})
	}
	s.model.Holds(s.holds)
	s.model.Logf(s.phase(), "%s holds the installation before %s", by, before)
	return nil
}

// resume opens every gate, and names those that were closed.
func (s *steering) resume(by string) (released []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, hold := range s.holds {
		s.gate(hold.Before).release()
		released = append(released, hold.Before)
	}
	if len(released) == 0 {
		return nil, shell.NotNow("nothing is held")
	}
	s.holds = nil
	s.model.Holds(nil)
	s.model.Logf(s.phase(), "%s lets go on: %s", by, strings.Join(released, ", "))
	return released, nil
}

// releaseHandOver opens the gate of the hand-over alone.
func (s *steering) releaseHandOver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handOver.release()
	s.holds = slices.DeleteFunc(s.holds, func(h progress.Hold) bool { return h.Before == beforeHandOver })
	s.model.Holds(s.holds)
}

// phase is the one under which what operators do is logged.
func (s *steering) phase() progress.Phase {
	if current := s.model.Snapshot().Current(); len(current) > 0 {
		return current[0].Phase
	}
	return progress.Clock
}

// begin returns once phase may begin; then it cannot be held any more.
func (s *steering) begin(ctx context.Context, phase progress.Phase) error {
	for {
		s.mu.Lock()
		g := s.gates[phase]
		if !g.held() {
			s.begun[phase] = true
			s.mu.Unlock()
			s.model.Wait(phase, "")
			return nil
		}
		at := slices.IndexFunc(s.holds, func(h progress.Hold) bool { return h.Before == string(phase) })
		by := s.holds[at].By
		s.mu.Unlock()
		if err := g.pass(ctx, func() {
			s.model.Wait(phase, by+", who holds it (installer-shell HOST resume)")
			s.model.Logf(phase, "held by %s (firstlight installer-shell HOST resume lets it go on)", by)
		}); err != nil {
			return err
		}
	}
}

// errReboot ends an installation because an operator asked for a restart of
// the machine.
var errReboot = errors.New("a reboot was asked for")

// rebootPatience is how long the phases have to stop before a reboot.
const rebootPatience = 20 * time.Second

// askForReboot ends the installation of cancel and sees to it that the
// machine restarts, even where a phase does not stop.
func (i *installation) askForReboot(cancel context.CancelCauseFunc) func(by string) error {
	return func(by string) error {
		if i.opt.dryRun || !i.env.inMemory {
			return shell.NotNow("the installer runs on a system that it does not own, and does not restart it")
		}
		i.model.Logf(i.steering.phase(), "%s restarts the machine", by)
		time.AfterFunc(rebootPatience, func() {
			if err := i.env.reboot(); err != nil {
				i.model.Warn(progress.Finish, fmt.Sprintf("rebooting: %v", err))
			}
		})
		// The answer is on its way before the port closes.
		time.AfterFunc(time.Second, func() { cancel(errReboot) })
		return nil
	}
}

// newShells is the service for operators.
func (i *installation) newShells(cancel context.CancelCauseFunc) *shell.Server {
	return shell.New(shell.Options{
		Command: strings.Fields(i.opt.shellCommand),
		Model:   i.model,
		Hold:    i.steering.hold,
		Resume:  i.steering.resume,
		Approve: i.approve,
		Reboot:  i.askForReboot(cancel),
		Plan: func() ([]byte, string) {
			return i.published.get(&i.published.plan)(), i.model.Snapshot().Facts.Plan
		},
	})
}

// How long open shells hold up what comes next.
const (
	shellsAfterSuccess = 5 * time.Minute
	shellsAfterFailure = time.Hour
)

// waitForShells returns once nobody works in a shell, at the latest at until.
// tell says who is waited for, whenever that changes; nothing at the end.
func (i *installation) waitForShells(ctx context.Context, until time.Time, tell func(text string)) error {
	if i.shells == nil {
		return nil
	}
	before := ""
	for {
		busy, changed := i.shells.Busy()
		left := time.Until(until)
		if len(busy) == 0 || left <= 0 {
			if before != "" {
				tell("")
			}
			return nil
		}
		var names []string
		for _, session := range busy {
			names = append(names, fmt.Sprintf("%d of %s", session.Number, session.Who))
		}
		text := fmt.Sprintf("the end of shell %s, at most until %s UTC", strings.Join(names, ", "), until.UTC().Format(time.TimeOnly))
		if text != before {
			tell(text)
			before = text
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-time.After(left):
		}
	}
}
