package server

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/proto/imageserver/bulk"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// requestTimeout bounds the time in which a request for objects has to come.
const requestTimeout = 30 * time.Second

// Calls are those RPCs that are served over HTTP/1.1 too: GetObjects, as package
// bulk has it. insecure is that of the gRPC server.
func (s *Server) Calls(insecure bool) []auth.Call {
	return []auth.Call{auth.NewCall(Policy(), insecure, bulk.Path, pb.ImageServer_GetObjects_FullMethodName, http.HandlerFunc(s.bulk))}
}

// bulk answers one request for objects.
func (s *Server) bulk(w http.ResponseWriter, r *http.Request) {
	answer := &bulkAnswer{w: w, control: http.NewResponseController(w), metrics: s.options.Metrics}
	err := s.sendObjects(r, answer)
	if err != nil {
		err = s.failed("GetObjects", err)
	}
	s.options.Metrics.objectRequests.WithLabelValues("get", status.Code(err).String()).Inc()
	answer.end(err)
}

func (s *Server) sendObjects(r *http.Request, answer *bulkAnswer) error {
	digests, err := requested(r, answer.control)
	if err != nil {
		return err
	}
	if err := s.places.take(r.Context(), answer.still); err != nil {
		return err
	}
	defer s.places.leave()
	if ahead, ok := s.options.Objects.(interface {
		Prefetch(digests []object.Digest)
	}); ok {
		ahead.Prefetch(digests)
	}
	group, ctx := errgroup.WithContext(r.Context())
	frames := make(chan *bulk.Frame, s.options.Workers)
	group.Go(func() error { return s.fillFrames(ctx, digests, r.URL.Query().Get(bulk.Verify) == "full", frames) })
	group.Go(func() error { return answer.frames(ctx, frames) })
	return group.Wait()
}

// requested reads the digests of a request.
func requested(r *http.Request, control *http.ResponseController) ([]object.Digest, error) {
	if err := control.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return nil, err
	}
	const most = bulk.MaxDigests * len(object.Digest{})
	joined, err := io.ReadAll(io.LimitReader(r.Body, int64(most)+1))
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "reading the request: %v", err)
	}
	if err := control.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return splitDigests(joined)
}

// fillFrames puts the objects into frames, on several goroutines, and closes
// frames.
func (s *Server) fillFrames(ctx context.Context, digests []object.Digest, full bool, frames chan<- *bulk.Frame) error {
	defer close(frames)
	workers, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(s.options.Workers, max(1, len(digests))) {
		workers.Go(func() error {
			f := &filler{store: s.options.Objects, sums: &s.sums, full: full, frames: frames, damaged: s.options.Damaged}
			defer f.drop()
			for {
				first := int(next.Add(neighbours) - neighbours)
				if first >= len(digests) {
					return f.flush(ctx)
				}
				for i := first; i < min(first+neighbours, len(digests)); i++ {
					if err := f.object(ctx, i, digests[i]); err != nil {
						return err
					}
				}
			}
		})
	}
	return workers.Wait()
}

// neighbours is how many objects that follow each other one goroutine reads:
// they often lie side by side.
const neighbours = 16

// framePool: frames are used again, and cleared by nobody.
var framePool = sync.Pool{New: func() any { return new(bulk.Frame) }}

// filler fills frames with verified objects.
type filler struct {
	store   object.Store
	sums    *sums
	full    bool // decode and hash, whatever is known
	frames  chan<- *bulk.Frame
	frame   *bulk.Frame
	held    []*bulk.Frame // full ones that wait for the verdict on their object
	holding bool
	begun   bool // a part of the object may be on its way
	damaged func(ctx context.Context, digest object.Digest)
}

// object puts one object into frames. A damaged one is read a second time after
// somebody was told, who may have healed it.
func (f *filler) object(ctx context.Context, index int, digest object.Digest) error {
	f.begun = false
	err := f.once(ctx, index, digest)
	if f.damaged == nil || !errors.Is(err, object.ErrDamaged) {
		return err
	}
	f.damaged(ctx, digest)
	if f.begun {
		return err
	}
	if again := f.once(ctx, index, digest); again == nil || !errors.Is(again, object.ErrNotFound) {
		return again
	}
	return err
}

func (f *filler) once(ctx context.Context, index int, digest object.Digest) error {
	stored, err := f.store.OpenStored(ctx, digest)
	if err != nil {
		return err
	}
	if stored.StoredSize <= bulk.MaxPiece {
		err = f.small(ctx, index, stored)
	} else {
		err = f.large(ctx, index, stored)
	}
	if closeErr := stored.Close(); err == nil {
		err = closeErr
	}
	return err
}

// small verifies an object before anything of it is sent.
func (f *filler) small(ctx context.Context, index int, stored *object.Stored) error {
	data, err := f.room(ctx, int(stored.StoredSize))
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(stored, data); err != nil {
		return fmt.Errorf("reading object %s: %w", stored.Digest, cutOff(err))
	}
	sum := crc32.Checksum(data, castagnoli)
	if f.full || !f.sums.right(stored.Info, sum) {
		if err := zstd.Verify(stored.Info, data); err != nil {
			return err
		}
		f.sums.learn(stored.Info, sum)
	}
	f.frame.Add(index, stored.Info, 0, len(data))
	return nil
}

// heldObject is up to how many stored bytes a whole object waits for its
// verdict, so that one which is healed meanwhile can take its place.
const heldObject = 1 << 20

// large verifies an object while it is sent: its last piece, or all of it,
// waits for the verdict.
func (f *filler) large(ctx context.Context, index int, stored *object.Stored) error {
	if stored.StoredSize > heldObject {
		f.begun = true
		return f.pieces(ctx, index, stored)
	}
	if err := f.flush(ctx); err != nil {
		return err
	}
	f.holding = true
	err := f.pieces(ctx, index, stored)
	f.holding = false
	if err != nil {
		f.drop()
		return err
	}
	for i, frame := range f.held {
		if err := f.send(ctx, frame); err != nil {
			f.held = f.held[i:]
			return err
		}
	}
	f.held = f.held[:0]
	return nil
}

func (f *filler) pieces(ctx context.Context, index int, stored *object.Stored) error {
	var verifier *zstd.Verifier
	// Asked once: what is known may be forgotten, or learnt anew, meanwhile.
	before, known := f.sums.known(stored.Info)
	if f.full || !known {
		verifier = zstd.NewVerifier(stored.Info)
		// The verdict on half an object says nothing; of a whole one it is asked
		// for below, and Close may be called twice.
		defer func() { _ = verifier.Close() }()
	}
	var sum uint32
	for offset := uint64(0); offset < stored.StoredSize; {
		left := stored.StoredSize - offset
		data, err := f.room(ctx, int(min(bulk.MaxPiece, left)))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(stored, data); err != nil {
			return fmt.Errorf("reading object %s: %w", stored.Digest, cutOff(err))
		}
		sum = crc32.Update(sum, castagnoli, data)
		if verifier != nil {
			if _, err := verifier.Write(data); err != nil {
				return err
			}
		}
		if uint64(len(data)) == left {
			if err := f.verdict(stored.Info, sum, before, verifier); err != nil {
				return err
			}
		}
		f.frame.Add(index, stored.Info, offset, len(data))
		offset += uint64(len(data))
	}
	return nil
}

// verdict judges a large object of which everything was read: by the verifier, or
// where there is none by the sum that was known before.
func (f *filler) verdict(info object.Info, sum, before uint32, verifier *zstd.Verifier) error {
	if verifier != nil {
		if err := verifier.Close(); err != nil {
			return err
		}
		f.sums.learn(info, sum)
		return nil
	}
	if sum == before {
		return nil
	}
	// What was sent is not what was verified once; the client, who has a part of
	// it, asks again.
	f.sums.forget(info.Digest)
	return fmt.Errorf("object %s: its stored bytes have changed: %w", info.Digest, object.ErrDamaged)
}

// room is where the next n bytes go; a frame that is too full is sent first.
func (f *filler) room(ctx context.Context, n int) ([]byte, error) {
	if f.frame != nil && len(f.frame.Room()) < n {
		if err := f.flush(ctx); err != nil {
			return nil, err
		}
	}
	if f.frame == nil {
		f.frame = framePool.Get().(*bulk.Frame)
		f.frame.Reset()
	}
	return f.frame.Room()[:n], nil
}

// flush sends the frame, or holds it back.
func (f *filler) flush(ctx context.Context) error {
	if f.frame == nil || f.frame.Empty() {
		return nil
	}
	if f.holding {
		f.held = append(f.held, f.frame)
		f.frame = nil
		return nil
	}
	err := f.send(ctx, f.frame)
	if err == nil {
		f.frame = nil
	}
	return err
}

func (f *filler) send(ctx context.Context, frame *bulk.Frame) error {
	select {
	case f.frames <- frame:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// drop gives back the frames that are not sent.
func (f *filler) drop() {
	if f.frame != nil {
		framePool.Put(f.frame)
		f.frame = nil
	}
	for _, frame := range f.held {
		framePool.Put(frame)
	}
	f.held = f.held[:0]
}

// bulkAnswer writes an answer. It is used by one goroutine at a time.
type bulkAnswer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	metrics *Metrics
	begun   bool  // the header has been sent
	broken  error // of the connection
}

// write sends b, and gives up a client who takes nothing.
func (a *bulkAnswer) write(b []byte) error {
	if !a.begun {
		a.w.Header().Set("Content-Type", bulk.AnswerType)
		a.begun = true
	}
	if err := a.control.SetWriteDeadline(time.Now().Add(stallLimit)); err != nil {
		return err
	}
	n, err := a.w.Write(b)
	a.metrics.sentBytes.Add(float64(n))
	if err == nil {
		return nil
	}
	a.broken = err
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStalled
	}
	return status.Error(codes.Canceled, err.Error())
}

// still tells the client that the server lives.
func (a *bulkAnswer) still() error {
	if err := a.write(bulk.Still()); err != nil {
		return err
	}
	return a.control.Flush()
}

// frames sends frames until there are no more.
func (a *bulkAnswer) frames(ctx context.Context, frames <-chan *bulk.Frame) error {
	ticker := time.NewTicker(repeatInterval)
	defer ticker.Stop()
	for {
		select {
		case frame, more := <-frames:
			if !more {
				return nil // all were sent, or who fills them says why not
			}
			err := a.write(frame.Bytes())
			framePool.Put(frame)
			if err != nil {
				return err
			}
			ticker.Reset(repeatInterval)
		case <-ticker.C:
			if err := a.still(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// end ends the answer, with the status err or well.
func (a *bulkAnswer) end(err error) {
	s := status.Convert(err)
	switch {
	case a.broken != nil:
		return // nobody listens
	case !a.begun && s.Code() == codes.InvalidArgument:
		http.Error(a.w, s.Message(), http.StatusBadRequest)
	case !a.begun && s.Code() == codes.ResourceExhausted:
		http.Error(a.w, s.Message(), http.StatusServiceUnavailable)
	case err == nil:
		_ = a.write(bulk.End()) // the client sees when the end is missing
	default:
		_ = a.write(bulk.Failed(uint32(s.Code()), s.Message())) // likewise
	}
}
