package server

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errBusy is the answer to a transfer for which there is no place, not even in
// the queue.
var errBusy = status.Error(codes.ResourceExhausted, "the image server is busy: too many transfers run and wait; try again in a minute, or raise --max-transfers")

// places bounds how many transfers run at once, and how many wait for that.
type places struct {
	running chan struct{}
	mutex   sync.Mutex
	waiting int
	queue   int
}

// silent says nothing.
func silent() error { return nil }

// queueFactor is how many transfers may wait for each that may run.
const queueFactor = 16

// leastQueue is how many may wait at least.
const leastQueue = 4

func newPlaces(transfers int) *places {
	return &places{running: make(chan struct{}, transfers), queue: max(transfers*queueFactor, leastQueue)}
}

// take waits for a place, which leave gives back. Every repeatInterval of the
// waiting it calls still, which tells the client that the server lives.
func (p *places) take(ctx context.Context, still func() error) error {
	select {
	case p.running <- struct{}{}:
		return nil
	default:
	}
	p.mutex.Lock()
	if p.waiting >= p.queue {
		p.mutex.Unlock()
		return errBusy
	}
	p.waiting++
	p.mutex.Unlock()
	defer func() {
		p.mutex.Lock()
		p.waiting--
		p.mutex.Unlock()
	}()
	ticker := time.NewTicker(repeatInterval)
	defer ticker.Stop()
	for {
		select {
		case p.running <- struct{}{}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			if err := still(); err != nil {
				return err
			}
		}
	}
}

func (p *places) leave() { <-p.running }

// counts are the transfers that run and wait now.
func (p *places) counts() (running, waiting int) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	return len(p.running), p.waiting
}

// errStalled ends a transfer whose client takes nothing, so that others get its
// place.
var errStalled = status.Error(codes.DeadlineExceeded, "the client took nothing for two minutes")

// stallLimit is how long a client may take nothing.
const stallLimit = 2 * time.Minute

// sends runs send and gives up waiting for it after stallLimit. What is given
// up ends when the call has.
func sends(send func() error) error {
	sent := make(chan error, 1)
	go func() { sent <- send() }()
	timer := time.NewTimer(stallLimit)
	defer timer.Stop()
	select {
	case err := <-sent:
		return err
	case <-timer.C:
		return errStalled
	}
}
