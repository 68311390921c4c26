package stage

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
)

const (
	batchObjects = 1000
	batchBytes   = 32 << 20 // unpacked
	attempts     = 2        // for an object that comes wrong or not at all
	breaks       = 10       // in a row, in the middle of an object

	firstPause = 500 * time.Millisecond
	lastPause  = 10 * time.Second
)

// fetch gets what is still missing from the server, in the order in which
// the image needs it.
func (s *stage) fetch(ctx context.Context, server Fetcher) error {
	var batches [][]object.Digest
	var batch []object.Digest
	var bytes uint64
	seen := map[object.Digest]bool{}
	for _, n := range s.need {
		if seen[n.Digest] || !s.wanted(n.Digest, n.Size) {
			continue
		}
		seen[n.Digest] = true
		if len(batch) > 0 && (len(batch) == batchObjects || bytes+n.Size > batchBytes) {
			batches, batch, bytes = append(batches, batch), nil, 0
		}
		batch, bytes = append(batch, n.Digest), bytes+n.Size
	}
	if len(batch) > 0 {
		batches = append(batches, batch)
	}
	s.heard = time.Now()
	group, ctx := errgroup.WithContext(ctx)
	queue := make(chan []object.Digest)
	group.Go(func() error {
		defer close(queue)
		for _, b := range batches {
			select {
			case <-ctx.Done():
				return nil
			case queue <- b:
			}
		}
		return nil
	})
	for range s.options.Streams {
		group.Go(func() error {
			failures := failures{}
			for b := range queue {
				if err := s.fetchAll(ctx, server, b, failures); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
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

// add returns nil as long as the object may be asked for again, then the
// failure that tells most: a server that has found damage may have moved the
// object aside, and say the next time that it has none.
func (f failures) add(d object.Digest, failure *Error) error {
	one := f.note(d, failure)
	one.calls++
	switch {
	case one.calls < attempts:
		return nil
	case one.damaged != nil:
		return one.damaged
	}
	return failure
}

// fetchAll gets all of digests, in as many calls as it takes.
func (s *stage) fetchAll(ctx context.Context, server Fetcher, digests []object.Digest, failures failures) error {
	pause, broken := firstPause, 0
	for len(digests) > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		r := &receiver{stage: s, asked: map[object.Digest]bool{}, open: map[object.Digest]*pack.Appender{}, damaged: map[object.Digest]error{}}
		for _, d := range digests {
			r.asked[d] = true
		}
		err := server.Fetch(ctx, digests, r.piece)
		r.close()
		if r.refused != nil {
			return r.refused
		}
		for d, damage := range r.damaged {
			if err := failures.add(d, &Error{CodeDamaged, fmt.Errorf("the image server sent it wrong, also when it was asked again: %w", damage), d}); err != nil {
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
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch judge(err) {
		case fine, aboutObjects:
			if len(undelivered) > 1 && err != nil {
				for _, d := range undelivered {
					if strings.Contains(err.Error(), d.Hex()) {
						failures.note(d, missing(d, err))
					}
				}
				// One of them it was; the others shall come.
				half := len(undelivered) / 2
				for _, part := range [][]object.Digest{undelivered[:half], undelivered[half:]} {
					if err := s.fetchAll(ctx, server, part, failures); err != nil {
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
				if err := failures.add(d, missing(d, err)); err != nil {
					return err
				}
			}
		case final:
			return fmt.Errorf("fetching objects: %w", err)
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
			if err := s.waitForServer(ctx, pause, err); err != nil {
				return err
			}
			pause = min(2*pause, lastPause)
		}
	}
	return nil
}

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
			s.options.Wait("the image server to come back")
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

// hear says that something came from the server.
func (s *stage) hear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heard = time.Now()
	if s.waiting {
		s.waiting = false
		if s.options.Wait != nil {
			s.options.Wait("")
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

// receiver takes the pieces of one call of Fetch.
type receiver struct {
	*stage
	asked   map[object.Digest]bool // and not yet delivered whole
	open    map[object.Digest]*pack.Appender
	damaged map[object.Digest]error
	got     int   // pieces
	refused error // by the pack: the end
}

// piece takes one piece. Damage is noted and does not end the call: the
// objects that follow may be whole.
func (r *receiver) piece(p object.Piece) error {
	r.hear()
	r.got++
	d := p.Digest
	if !r.asked[d] || r.damaged[d] != nil {
		return nil
	}
	if p.Offset == 0 && r.open[d] == nil {
		r.mu.Lock()
		size := r.missing[d]
		r.mu.Unlock()
		if p.Size != size {
			r.damaged[d] = fmt.Errorf("object %s: the server says it has %d bytes, the manifest %d: %w", d, p.Size, size, object.ErrDamaged)
			return nil
		}
		if p.Last() {
			return r.settle(d, r.writer.Append(p.Info, p.Data))
		}
		out, err := r.writer.Create(p.Info)
		if err != nil {
			return r.settle(d, err)
		}
		r.open[d] = out
	}
	out := r.open[d]
	if out == nil {
		r.damaged[d] = fmt.Errorf("object %s: its beginning did not come: %w", d, object.ErrDamaged)
		return nil
	}
	if err := out.Add(p); err != nil {
		return r.settle(d, err)
	}
	if p.Last() {
		return r.settle(d, out.Commit())
	}
	return nil
}

// settle ends the arrival of d with err.
func (r *receiver) settle(d object.Digest, err error) error {
	if out := r.open[d]; out != nil {
		out.Abort() // does nothing after Commit
		delete(r.open, d)
	}
	switch {
	case err == nil:
		delete(r.asked, d)
		r.have(d, FromServer)
		return nil
	case errors.Is(err, object.ErrDamaged), errors.Is(err, object.ErrRefused):
		if !strings.Contains(err.Error(), d.Hex()) {
			err = fmt.Errorf("object %s: %w", d, err)
		}
		r.damaged[d] = err
		return nil
	default:
		r.refused = r.stage.refused(err)
		return r.refused
	}
}

// close gives up what is incomplete.
func (r *receiver) close() {
	for d, out := range r.open {
		out.Abort()
		delete(r.open, d)
	}
}
