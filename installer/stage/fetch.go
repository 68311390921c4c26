package stage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

const (
	batchObjects = 1000
	batchBytes   = 32 << 20 // unpacked
	attempts     = 2        // for an object that comes wrong or not at all
	breaks       = 10       // in a row, in the middle of an object

	firstPause = 500 * time.Millisecond
	lastPause  = 10 * time.Second
)

// fetch gets what feed says, from as many streams as the options want, and
// lets workers verify and keep what comes beside them.
func (s *stage) fetch(ctx context.Context, servers []Fetcher, feed func(ctx context.Context, out chan<- []object.Digest) error) error {
	s.jobs = make(chan job)
	var workers sync.WaitGroup
	for range s.options.Workers {
		workers.Go(s.work)
	}
	defer workers.Wait()
	defer close(s.jobs)
	group, ctx := errgroup.WithContext(ctx)
	queue := make(chan []object.Digest)
	group.Go(func() error {
		defer close(queue)
		return feed(ctx, queue)
	})
	for range s.options.Streams {
		group.Go(func() error {
			one := &stream{stage: s, servers: servers, failures: failures{}}
			for batch := range queue {
				if err := one.fetchAll(ctx, batch); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// send divides what is still missing of objects, and was not sent before, into
// batches, in their order. It is not called twice at a time.
func (s *stage) send(ctx context.Context, objects []image.Object, out chan<- []object.Digest) error {
	var batch []object.Digest
	var bytes uint64
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case out <- batch:
			batch, bytes = nil, 0
			return nil
		}
	}
	for _, n := range objects {
		if s.sent[n.Digest] || !s.wanted(n.Digest, n.Size) {
			continue
		}
		s.sent[n.Digest] = true
		if len(batch) == batchObjects || bytes+n.Size > batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		batch, bytes = append(batch, n.Digest), bytes+n.Size
	}
	return flush()
}

// stream is one sequence of calls of Fetch.
type stream struct {
	*stage
	servers  []Fetcher
	at       int // the server that is asked at present
	tried    int // servers that have failed since the last whole object
	failures failures
}

func (s *stream) server() Fetcher { return s.servers[s.at] }

// next turns to another server, where there is one.
func (s *stream) next(cause error) {
	s.tried++
	if len(s.servers) == 1 {
		return
	}
	s.at = (s.at + 1) % len(s.servers)
	s.log("%v; asking the next image server", cause)
}

// failures are the objects that came wrong or not at all.
type failures map[object.Digest]*failed

type failed struct {
	calls   int    // for this object alone, or in which it came wrong
	damaged *Error // if it was ever said to be
}

// note keeps what was said of an object in a call for many.
func (f failures) note(d object.Digest, failure *Error) *failed {
	if f[d] == nil {
		f[d] = &failed{}
	}
	if failure.code == CodeDamaged {
		f[d].damaged = failure
	}
	return f[d]
}

// add returns nil as long as the object may be asked for again, at each of so
// many servers, then the failure that tells most: a server that has found damage may have moved the
// object aside, and say the next time that it has none.
func (f failures) add(d object.Digest, failure *Error, servers int) error {
	one := f.note(d, failure)
	one.calls++
	switch {
	case one.calls < max(attempts, servers):
		return nil
	case one.damaged != nil:
		return one.damaged
	}
	return failure
}

// fetchAll gets all of digests, in as many calls as it takes.
func (s *stream) fetchAll(ctx context.Context, digests []object.Digest) error {
	if len(s.servers) == 0 && len(digests) > 0 {
		return missing(digests[0], errors.New("the medium does not have it whole, and no image server is named"))
	}
	pause, broken := firstPause, 0
	for len(digests) > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		r := newReceiver(ctx, s.stage, digests)
		s.ask()
		err := s.server().Fetch(ctx, digests, r.piece)
		s.answered()
		r.close()
		if r.refused != nil {
			return r.refused
		}
		for d, damage := range r.damaged {
			if err := s.failures.add(d, &Error{CodeDamaged, fmt.Errorf("the image server sent it wrong, also when it was asked again: %w", damage), d}, len(s.servers)); err != nil {
				return err
			}
			s.log("%v; asking for it again", damage)
		}
		var undelivered []object.Digest // and not because of what came
		rest := digests[:0:0]
		for _, d := range digests {
			if !r.asked[d] {
				continue
			}
			rest = append(rest, d)
			if r.damaged[d] == nil {
				undelivered = append(undelivered, d)
			}
		}
		progress := len(rest) < len(digests)
		digests = rest
		if progress {
			s.tried = 0
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch judge(err) {
		case fine, aboutObjects:
			if len(undelivered) > 1 && err != nil {
				for _, d := range undelivered {
					if strings.Contains(err.Error(), d.Hex()) {
						s.failures.note(d, missing(d, err))
					}
				}
				// One of them it was; the others shall come.
				half := len(undelivered) / 2
				for _, part := range [][]object.Digest{undelivered[:half], undelivered[half:]} {
					if err := s.fetchAll(ctx, part); err != nil {
						return err
					}
				}
				digests = digests[:0]
				for d := range r.damaged {
					digests = append(digests, d)
				}
				continue
			}
			for _, d := range undelivered {
				if err := s.failures.add(d, missing(d, err), len(s.servers)); err != nil {
					return err
				}
				s.next(missing(d, err))
			}
			for _, damage := range r.damaged {
				s.next(damage)
				break
			}
		case final:
			if s.next(err); s.tried >= len(s.servers) {
				return fmt.Errorf("fetching objects: %w", err)
			}
		case lost:
			switch {
			case progress:
				pause, broken = firstPause, 0
			case r.got > 0:
				broken++
			}
			if broken == breaks {
				return &Error{code: CodeAway, err: fmt.Errorf("the connection to the image server broke %d times before a whole object had come: %w", broken, err)}
			}
			if s.next(err); s.tried%len(s.servers) != 0 {
				continue // another one may be there
			}
			if err := s.waitForServer(ctx, pause, err); err != nil {
				return err
			}
			pause = min(2*pause, lastPause)
		}
	}
	return nil
}

// Missing is the error of an object that no server has.
func Missing(d object.Digest) *Error { return missing(d, nil) }

// missing is the error of an object that the server did not send.
func missing(d object.Digest, err error) *Error {
	if err == nil {
		return &Error{CodeMissing, fmt.Errorf("the image server did not send object %s: %w", d, object.ErrNotFound), d}
	}
	code := CodeMissing
	if errors.Is(err, object.ErrDamaged) || codeOf(err) == client.CodeDamaged || codeOf(err) == client.CodeWrongAnswer {
		code = CodeDamaged
	}
	if !strings.Contains(err.Error(), d.Hex()) {
		err = fmt.Errorf("object %s: %w", d, err)
	}
	return &Error{code, err, d}
}

// waitForServer pauses, if the server has not been away for too long.
func (s *stage) waitForServer(ctx context.Context, pause time.Duration, cause error) error {
	s.mu.Lock()
	away := time.Since(s.heard)
	if away < s.options.Patience {
		if !s.waiting && s.options.Log != nil {
			s.options.Log(fmt.Sprintf("the image server does not answer, trying for %s more: %v", (s.options.Patience - away).Round(time.Second), cause))
		}
		s.waiting = true
		if s.options.Wait != nil {
			s.options.Wait("the image server to come back", time.Now().Add(min(pause, s.options.Patience-away)))
		}
	}
	s.mu.Unlock()
	if away >= s.options.Patience {
		return &Error{code: CodeAway, err: fmt.Errorf("the image server has sent nothing for %s: %w", away.Round(time.Second), cause)}
	}
	timer := time.NewTimer(min(pause, s.options.Patience-away))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// ask says that something is asked for: time in which nothing was does not
// count as the server's.
func (s *stage) ask() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking++; s.asking == 1 && !s.waiting {
		s.heard = time.Now()
	}
}

func (s *stage) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking--
}

// hear says that something came from the server.
func (s *stage) hear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	if s.waiting {
		s.waiting = false
		if s.options.Wait != nil {
			s.options.Wait("", time.Time{})
		}
	}
}

// verdict is what an error of Fetch means for those who asked.
type verdict int

const (
	fine         verdict = iota
	aboutObjects         // one of the objects is missing or damaged at the server
	final                // asking again will not help
	lost                 // the connection, which may come back
)

func judge(err error) verdict {
	switch code := codeOf(err); {
	case err == nil:
		return fine
	case errors.Is(err, object.ErrNotFound), errors.Is(err, object.ErrDamaged),
		code == client.CodeNoObject, code == client.CodeDamaged, code == client.CodeWrongAnswer:
		return aboutObjects
	case strings.HasPrefix(code, "TRU-"),
		code == client.CodeRefused, code == client.CodeBadName, code == client.CodeOtherVersion:
		return final
	default:
		return lost
	}
}

func codeOf(err error) string {
	var coded interface{ Code() string }
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}
