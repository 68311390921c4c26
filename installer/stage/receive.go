package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/firstlight/firstlight/imageserver/object"
)

// wholePiece is the size in encoded bytes up to which an object that comes in
// one piece is handed to a worker, in a copy; a larger one is passed on while
// it comes.
const wholePiece = 1 << 20

// pieces are buffers of such copies. They hold no state.
var pieces = sync.Pool{New: func() any { return new([]byte) }}

// job is a whole object for a worker.
type job struct {
	receiver *receiver
	info     object.Info
	encoded  *[]byte
}

// work verifies and keeps objects until there are no more.
func (s *stage) work() {
	for j := range s.jobs {
		err := errAbandoned
		if j.receiver.ctx.Err() == nil {
			err = s.sink.Append(j.info, *j.encoded)
		}
		pieces.Put(j.encoded)
		j.receiver.settle(j.info.Digest, err)
		j.receiver.pending.Done()
	}
}

// errAbandoned ends the arrival of an object whose call has ended.
var errAbandoned = errors.New("the object is not whole")

// receiver takes the pieces of one call of Fetch.
type receiver struct {
	*stage
	ctx      context.Context // of the call
	arriving map[object.Digest]*arrival
	got      int // pieces
	pending  sync.WaitGroup

	state   sync.Mutex             // of what is below, until close returns
	asked   map[object.Digest]bool // and not yet kept
	damaged map[object.Digest]error
	refused error // by who keeps the objects: the end
}

// arrival is an object whose bytes are on their way to the sink.
type arrival struct {
	info object.Info
	next uint64         // offset in the encoded bytes
	pipe *io.PipeWriter // nil: a worker has it whole
}

func newReceiver(ctx context.Context, s *stage, digests []object.Digest) *receiver {
	r := &receiver{stage: s, ctx: ctx, arriving: map[object.Digest]*arrival{},
		asked: map[object.Digest]bool{}, damaged: map[object.Digest]error{}}
	for _, d := range digests {
		r.asked[d] = true
	}
	return r
}

// expects says whether pieces of d are of use, or why nothing is any more.
func (r *receiver) expects(d object.Digest) (bool, error) {
	r.state.Lock()
	defer r.state.Unlock()
	return r.asked[d] && r.damaged[d] == nil, r.refused
}

// piece takes one piece. Damage is noted and does not end the call: the
// objects that follow may be whole.
func (r *receiver) piece(p object.Piece) error {
	r.hear()
	r.got++
	if expected, err := r.expects(p.Digest); !expected || err != nil {
		return err
	}
	a := r.arriving[p.Digest]
	if a == nil {
		if a = r.begin(p); a == nil {
			return nil
		}
	}
	switch {
	case a.pipe == nil: // a worker has all of it, and this is too much
		return nil
	case p.Info != a.info || p.Offset != a.next:
		a.pipe.CloseWithError(fmt.Errorf("a piece of it at %d came instead of that at %d: %w", p.Offset, a.next, object.ErrDamaged))
		return nil
	}
	a.next += uint64(len(p.Data))
	// It fails when who reads has ended, and settle is told why.
	_, _ = a.pipe.Write(p.Data)
	if p.Last() {
		_ = a.pipe.Close() // never fails
	}
	return nil
}

// begin looks at the first piece of an object; nil when there is nothing more
// to be done with it.
func (r *receiver) begin(p object.Piece) *arrival {
	d := p.Digest
	r.mu.Lock()
	size := r.missing[d]
	r.mu.Unlock()
	switch {
	case p.Size != size:
		r.settle(d, fmt.Errorf("the server says it has %d bytes, the manifest %d: %w", p.Size, size, object.ErrDamaged))
		return nil
	case p.Offset != 0:
		r.settle(d, fmt.Errorf("its beginning did not come: %w", object.ErrDamaged))
		return nil
	}
	a := &arrival{info: p.Info}
	r.arriving[d] = a
	r.pending.Add(1)
	if p.Last() && len(p.Data) <= wholePiece {
		encoded := pieces.Get().(*[]byte)
		*encoded = append((*encoded)[:0], p.Data...)
		r.jobs <- job{r, p.Info, encoded}
		return nil
	}
	reader, writer := io.Pipe()
	a.pipe = writer
	go func() {
		defer r.pending.Done()
		err := r.sink.AppendStored(a.info, reader)
		reader.CloseWithError(err) // nil: what else comes is not needed
		r.settle(d, err)
	}()
	return a
}

// settle ends the arrival of d with err.
func (r *receiver) settle(d object.Digest, err error) {
	r.state.Lock()
	defer r.state.Unlock()
	switch {
	case err == nil:
		delete(r.asked, d)
		r.have(d, FromServer)
	case errors.Is(err, errAbandoned):
	case errors.Is(err, object.ErrDamaged), errors.Is(err, object.ErrRefused):
		if !strings.Contains(err.Error(), d.Hex()) {
			err = fmt.Errorf("object %s: %w", d, err)
		}
		r.damaged[d] = err
	case r.refused == nil:
		r.refused = r.stage.refused(err)
	}
}

// close gives up what is incomplete and waits for the rest to be kept.
func (r *receiver) close() {
	for _, a := range r.arriving {
		if a.pipe != nil && a.next < a.info.StoredSize {
			a.pipe.CloseWithError(errAbandoned)
		}
	}
	r.pending.Wait()
}
