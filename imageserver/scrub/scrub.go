// Package scrub reads a store's objects over and over, slowly, so that damage is
// found before somebody needs the object.
//
// It decides when to read and how fast; the store itself verifies an object and
// moves a damaged one aside. It knows no encoding and no network.
package scrub

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
)

// Store is what is scrubbed; dir.Store is one.
type Store interface {
	List(ctx context.Context, f func(object.Info) error) error
	// Scrub verifies an object and moves it aside if it is damaged; its error
	// then wraps object.ErrDamaged. wait is called with the number of bytes
	// before they are read.
	Scrub(ctx context.Context, digest object.Digest, wait func(ctx context.Context, bytes int) error) error
}

// Options are what a Scrubber works with.
type Options struct {
	Store Store
	// BytesPerSecond is how fast it reads; 0 means as fast as it can.
	BytesPerSecond uint64
	// Interval is the time from the beginning of one pass to that of the next,
	// unless a pass takes longer.
	Interval time.Duration
	// Heal gets a whole copy of an object that was moved aside; nil where there
	// is nowhere to get it from.
	Heal func(ctx context.Context, digest object.Digest) error
	Log  *slog.Logger
}

// Report is what was done since the start.
type Report struct {
	Objects, Bytes  uint64 // verified
	Damaged, Healed uint64 // objects
	Passes          uint64 // over the whole store
	// LastPass is when the last whole pass ended, LastTook how long it took;
	// zero before the first.
	LastPass time.Time
	LastTook time.Duration
}

// Scrubber scrubs one store.
type Scrubber struct {
	options Options

	mutex  sync.Mutex
	report Report
	next   time.Time // before it, no more bytes are read
}

// New is a Scrubber; Run makes it work.
func New(options Options) *Scrubber { return &Scrubber{options: options} }

// Report is what was done so far.
func (s *Scrubber) Report() Report {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.report
}

// Run makes one pass after the other until ctx ends.
func (s *Scrubber) Run(ctx context.Context) {
	for {
		start := time.Now()
		err := s.Pass(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.options.Log.Error("scrubbing the objects", "error", err)
		}
		pause := time.NewTimer(max(time.Until(start.Add(s.options.Interval)), time.Second))
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

// Pass reads every object once. Damaged objects are no error.
func (s *Scrubber) Pass(ctx context.Context) error {
	start := time.Now()
	err := s.options.Store.List(ctx, func(info object.Info) error { return s.one(ctx, info) })
	if err != nil {
		return err
	}
	s.count(func(r *Report) {
		r.Passes++
		r.LastPass = time.Now()
		r.LastTook = time.Since(start)
	})
	return nil
}

func (s *Scrubber) one(ctx context.Context, info object.Info) error {
	err := s.options.Store.Scrub(ctx, info.Digest, s.wait)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, object.ErrNotFound): // deleted since it was listed
		return nil
	case errors.Is(err, object.ErrDamaged):
		s.options.Log.Error("object damaged, moved aside", "digest", info.Digest, "error", err)
		s.count(func(r *Report) { r.Damaged++ })
		s.Heal(ctx, info.Digest)
	case err != nil:
		// One object that cannot be read must not keep the others from being
		// looked at.
		s.options.Log.Error("scrubbing an object", "digest", info.Digest, "error", err)
		return nil
	}
	s.count(func(r *Report) {
		r.Objects++
		r.Bytes += info.StoredSize
	})
	return nil
}

// Damaged is to be called where an object turned out damaged as it was read. It
// is moved aside, unless it is whole after all, and healed where that is
// possible.
func (s *Scrubber) Damaged(ctx context.Context, digest object.Digest) {
	err := s.options.Store.Scrub(ctx, digest, nil)
	if !errors.Is(err, object.ErrDamaged) {
		return
	}
	s.options.Log.Error("object damaged, moved aside", "digest", digest, "error", err)
	s.count(func(r *Report) { r.Damaged++ })
	s.Heal(ctx, digest)
}

// Heal tries to get an object that was moved aside.
func (s *Scrubber) Heal(ctx context.Context, digest object.Digest) {
	if s.options.Heal == nil {
		return
	}
	if err := s.options.Heal(ctx, digest); err != nil {
		s.options.Log.Warn("a damaged object could not be got from upstream", "digest", digest, "error", err)
		return
	}
	s.options.Log.Info("damaged object healed from upstream", "digest", digest)
	s.count(func(r *Report) { r.Healed++ })
}

func (s *Scrubber) count(change func(*Report)) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	change(&s.report)
}

// wait lets bytes through at the rate.
func (s *Scrubber) wait(ctx context.Context, bytes int) error {
	if s.options.BytesPerSecond == 0 {
		return ctx.Err()
	}
	s.mutex.Lock()
	now := time.Now()
	s.next = later(s.next, now)
	pause := s.next.Sub(now)
	s.next = s.next.Add(time.Duration(float64(bytes) / float64(s.options.BytesPerSecond) * float64(time.Second)))
	s.mutex.Unlock()
	// Short pauses are saved up: timers are coarse, objects small.
	if pause < 5*time.Millisecond {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
