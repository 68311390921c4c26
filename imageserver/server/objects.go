package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// GetObjects reads, decodes and hashes objects on several goroutines and sends
// what is right.
func (s *Server) GetObjects(request *pb.GetObjectsRequest, stream grpc.ServerStreamingServer[pb.GetObjectsResponse]) error {
	digests, err := splitDigests(request.GetDigests())
	if err != nil {
		return err
	}
	if err := s.places.take(stream.Context(), func() error { return stream.Send(&pb.GetObjectsResponse{}) }); err != nil {
		return s.failed("GetObjects", err)
	}
	defer s.places.leave()
	if ahead, ok := s.options.Objects.(interface {
		Prefetch(digests []object.Digest)
	}); ok {
		ahead.Prefetch(digests)
	}
	group, ctx := errgroup.WithContext(stream.Context())
	messages := make(chan *pb.GetObjectsResponse, s.options.Workers)
	workers, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range s.options.Workers {
		workers.Go(func() error {
			r := &reader{store: s.options.Objects, messages: messages, damaged: s.options.Damaged}
			for {
				i := next.Add(1) - 1
				if i >= int64(len(digests)) {
					return r.flush(ctx)
				}
				if err := r.read(ctx, digests[i]); err != nil {
					return err
				}
			}
		})
	}
	group.Go(func() error {
		defer close(messages)
		return workers.Wait()
	})
	group.Go(func() error {
		for answer := range messages {
			if err := sends(func() error { return stream.Send(answer) }); err != nil {
				return err
			}
		}
		return nil
	})
	err = group.Wait()
	if err != nil {
		err = s.failed("GetObjects", err)
	}
	return err
}

// reader fills messages with verified objects.
type reader struct {
	store    object.Store
	messages chan<- *pb.GetObjectsResponse
	answer   *pb.GetObjectsResponse
	buffer   []byte // its beginning is in answer, the rest is free
	begun    bool   // a part of the object is in the messages
	damaged  func(ctx context.Context, digest object.Digest)
}

// read puts one object into messages. A damaged one is read a second time after
// somebody was told, who may have healed it.
func (r *reader) read(ctx context.Context, digest object.Digest) error {
	r.begun = false
	err := r.readOnce(ctx, digest)
	if r.damaged == nil || !errors.Is(err, object.ErrDamaged) {
		return err
	}
	r.damaged(ctx, digest)
	if r.begun {
		return err
	}
	if again := r.readOnce(ctx, digest); again == nil || !errors.Is(again, object.ErrNotFound) {
		return again
	}
	return err
}

func (r *reader) readOnce(ctx context.Context, digest object.Digest) error {
	stored, err := r.store.OpenStored(ctx, digest)
	if err != nil {
		return err
	}
	if stored.StoredSize <= message && stored.Size <= zstd.Whole {
		err = r.small(ctx, stored)
	} else {
		err = r.large(ctx, stored)
	}
	return errors.Join(err, stored.Close())
}

// small verifies an object before anything of it is sent.
func (r *reader) small(ctx context.Context, stored *object.Stored) error {
	data, err := r.take(ctx, stored.StoredSize)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(stored, data); err != nil {
		return fmt.Errorf("reading object %s: %w", stored.Digest, cutOff(err))
	}
	if err := zstd.Verify(stored.Info, data); err != nil {
		return err
	}
	r.add(object.Piece{Info: stored.Info, Data: data})
	return nil
}

// large verifies an object while it is sent: its last piece waits for the
// verdict.
func (r *reader) large(ctx context.Context, stored *object.Stored) (err error) {
	verifier := zstd.NewVerifier(stored.Info)
	closed := false
	defer func() {
		if !closed {
			// The verdict on half an object says nothing; err has the reason.
			_ = verifier.Close()
		}
	}()
	for offset := uint64(0); ; {
		data, err := r.take(ctx, min(message, stored.StoredSize-offset))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(stored, data); err != nil {
			return fmt.Errorf("reading object %s: %w", stored.Digest, cutOff(err))
		}
		if _, err := verifier.Write(data); err != nil {
			return err
		}
		piece := object.Piece{Info: stored.Info, Offset: offset, Data: data}
		offset += uint64(len(data))
		if piece.Last() {
			closed = true
			if err := verifier.Close(); err != nil {
				return err
			}
			r.add(piece)
			return nil
		}
		r.add(piece)
	}
}

// cutOff says that a file which ends early is a damaged object.
func cutOff(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("it is cut off: %w", object.ErrDamaged)
	}
	return err
}

// take is room for n bytes in the message; one that is full is sent first.
func (r *reader) take(ctx context.Context, n uint64) ([]byte, error) {
	if uint64(len(r.buffer)) < n {
		if err := r.flush(ctx); err != nil {
			return nil, err
		}
		r.buffer = make([]byte, message)
	}
	return r.buffer[:n:n], nil
}

// add puts a piece, whose data take gave, into the message.
func (r *reader) add(piece object.Piece) {
	if r.answer == nil {
		r.answer = &pb.GetObjectsResponse{}
	}
	r.begun = true
	r.answer.Pieces = append(r.answer.Pieces, pieceToWire(piece))
	r.buffer = r.buffer[len(piece.Data):]
}

func (r *reader) flush(ctx context.Context) error {
	if r.answer == nil {
		return nil
	}
	select {
	case r.messages <- r.answer:
		r.answer, r.buffer = nil, nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The size of a batch: large enough that its syncs cost little, small enough
// that a client hears of progress.
const (
	batchObjects = 4096
	batchBytes   = 64 << 20
)

// upload is one PutObjects call.
type upload struct {
	server *Server
	stream grpc.BidiStreamingServer[pb.PutObjectsRequest, pb.PutObjectsResponse]
	full   chan *writing // to be committed, in order
	batch  *writing
	large  *largePut
}

// writing is a batch whose objects are being verified and written.
type writing struct {
	batch   Batch
	group   *errgroup.Group
	ctx     context.Context
	digests []object.Digest
	sums    []summed
	bytes   uint64
}

// summed is the sum of an object's encoded bytes.
type summed struct {
	info object.Info
	crc  uint32
}

// largePut is an object whose pieces are still coming.
type largePut struct {
	info object.Info
	next uint64
	crc  uint32 // of what has come
	pipe *io.PipeWriter
}

// PutObjects takes objects. One goroutine receives, several verify and write,
// one commits batches and acknowledges them in order.
func (s *Server) PutObjects(stream grpc.BidiStreamingServer[pb.PutObjectsRequest, pb.PutObjectsResponse]) error {
	if err := s.writable(); err != nil {
		return err
	}
	// From here on what the client asks for is kept for it; the header tells it.
	defer s.uses.begin(stream.Context())()
	if err := stream.SendHeader(nil); err != nil {
		return s.failed("PutObjects", err)
	}
	if err := s.places.take(stream.Context(), func() error { return stream.Send(&pb.PutObjectsResponse{}) }); err != nil {
		return s.failed("PutObjects", err)
	}
	defer s.places.leave()
	u := &upload{server: s, stream: stream, full: make(chan *writing, 1)}
	group, ctx := errgroup.WithContext(stream.Context())
	group.Go(func() error { return u.commit(ctx) })
	group.Go(func() error {
		defer close(u.full)
		return u.receive(ctx)
	})
	err := group.Wait()
	for w := range u.full { // what commit no longer took
		err = errors.Join(err, w.giveUp())
	}
	if err != nil {
		return s.failed("PutObjects", err)
	}
	return nil
}

// giveUp ends a batch that will not be committed. Its failure, if it has one,
// is not the cause.
func (w *writing) giveUp() error {
	_ = w.group.Wait()
	return w.batch.Abort()
}

// commit makes batches durable, in order, and says so.
func (u *upload) commit(ctx context.Context) error {
	var durable uint64
	for w := range u.full {
		if err := u.commitOne(ctx, w, durable); err != nil {
			return errors.Join(err, w.batch.Abort())
		}
		durable += uint64(len(w.digests))
		if err := u.stream.Send(&pb.PutObjectsResponse{Objects: durable}); err != nil {
			return err
		}
	}
	return nil
}

// repeatInterval is the time after which the client is told again what it knows,
// so that it can tell a busy disk from a dead server.
const repeatInterval = 10 * time.Second

// commitOne makes a batch durable. While that takes, it repeats what was
// durable before.
func (u *upload) commitOne(ctx context.Context, w *writing, durable uint64) error {
	committed := make(chan error, 1)
	go func() {
		err := w.group.Wait()
		if err == nil {
			err = u.server.commit(ctx, w)
		}
		committed <- err
	}()
	ticker := time.NewTicker(repeatInterval)
	defer ticker.Stop()
	for {
		select {
		case err := <-committed:
			return err
		case <-ticker.C:
			if err := u.stream.Send(&pb.PutObjectsResponse{Objects: durable}); err != nil {
				return errors.Join(err, <-committed)
			}
		}
	}
}

// commit makes one batch durable and counts what is new.
func (s *Server) commit(ctx context.Context, w *writing) error {
	before, err := statAll(ctx, s.options.Objects, s.options.Workers, w.digests)
	if err != nil {
		return err
	}
	if err := w.batch.Commit(ctx); err != nil {
		return err
	}
	for _, one := range w.sums {
		s.sums.learn(one.info, one.crc)
	}
	s.options.Metrics.stored(uint64(len(w.digests)-len(before)), w.bytes-storedBytes(before))
	return nil
}

func storedBytes(infos []object.Info) uint64 {
	var sum uint64
	for _, info := range infos {
		sum += info.StoredSize
	}
	return sum
}

// receive takes pieces until the client has closed its side.
func (u *upload) receive(ctx context.Context) (err error) {
	defer func() {
		if u.large != nil {
			u.large.pipe.CloseWithError(context.Canceled)
		}
		if u.batch != nil {
			err = errors.Join(err, u.batch.giveUp())
		}
	}()
	requests := make(chan *pb.PutObjectsRequest)
	ended := make(chan error, 1)
	// Recv cannot be told to stop before the call has ended, and the call ends
	// only after a failed commit is known here.
	go func() {
		for {
			request, err := u.stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case requests <- request:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-ended:
			if err != io.EOF {
				return err
			}
			if u.large != nil {
				return status.Errorf(codes.InvalidArgument, "object %s ended at %d of %d bytes", u.large.info.Digest, u.large.next, u.large.info.StoredSize)
			}
			return u.finish(ctx)
		case request := <-requests:
			for _, wire := range request.GetPieces() {
				if err := u.take(ctx, wire); err != nil {
					return err
				}
			}
		}
	}
}

// take puts one piece where it belongs.
func (u *upload) take(ctx context.Context, wire *pb.Piece) error {
	piece, err := pieceFromWire(wire)
	if err != nil {
		return err
	}
	if u.batch == nil {
		group, groupCtx := errgroup.WithContext(ctx)
		// One more than the workers: the large object, whose bytes this very
		// goroutine brings.
		group.SetLimit(u.server.options.Workers + 1)
		u.batch = &writing{batch: u.server.options.Begin(), group: group, ctx: groupCtx}
	}
	if piece.Offset == 0 {
		// Before it is put: a store may leave an object that it has as it is.
		u.server.uses.gate.RLock()
		u.server.uses.note(time.Now(), piece.Digest)
		u.server.uses.gate.RUnlock()
	}
	if u.batch.ctx.Err() != nil { // an object was refused; Wait says which
		return u.batch.group.Wait()
	}
	switch {
	case u.large == nil && piece.Offset == 0 && piece.Last():
		w, data := u.batch, piece.Data
		w.group.Go(func() error { return w.batch.Put(w.ctx, piece.Info, bytes.NewReader(data)) })
	case u.large == nil && piece.Offset == 0:
		read, write := io.Pipe()
		u.large = &largePut{info: piece.Info, pipe: write}
		w := u.batch
		w.group.Go(func() error {
			err := w.batch.Put(w.ctx, piece.Info, read)
			read.CloseWithError(errors.Join(err, io.ErrClosedPipe))
			return err
		})
		return u.more(ctx, piece)
	case u.large == nil:
		return status.Errorf(codes.InvalidArgument, "object %s begins at %d", piece.Digest, piece.Offset)
	default:
		return u.more(ctx, piece)
	}
	return u.ended(ctx, piece.Info, crc32.Checksum(piece.Data, castagnoli))
}

// more writes a piece of the large object.
func (u *upload) more(ctx context.Context, piece object.Piece) error {
	l := u.large
	if piece.Info != l.info || piece.Offset != l.next || len(piece.Data) == 0 {
		return status.Errorf(codes.InvalidArgument, "object %s: a piece at %d follows, expected %s at %d", piece.Digest, piece.Offset, l.info.Digest, l.next)
	}
	if _, err := l.pipe.Write(piece.Data); err != nil {
		return err
	}
	l.next += uint64(len(piece.Data))
	l.crc = crc32.Update(l.crc, castagnoli, piece.Data)
	if !piece.Last() {
		return nil
	}
	u.large = nil
	if err := l.pipe.Close(); err != nil {
		return err
	}
	return u.ended(ctx, piece.Info, l.crc)
}

// ended counts an object that has come completely, with the sum of its encoded
// bytes.
func (u *upload) ended(ctx context.Context, info object.Info, crc uint32) error {
	u.batch.digests = append(u.batch.digests, info.Digest)
	u.batch.sums = append(u.batch.sums, summed{info, crc})
	u.batch.bytes += info.StoredSize
	if len(u.batch.digests) < batchObjects && u.batch.bytes < batchBytes {
		return nil
	}
	return u.finish(ctx)
}

// finish hands the batch to commit.
func (u *upload) finish(ctx context.Context) error {
	if u.batch == nil {
		return nil
	}
	select {
	case u.full <- u.batch:
		u.batch = nil
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// put stores one object that is in memory.
func (s *Server) put(ctx context.Context, info object.Info, encoded []byte) error {
	before, err := s.options.Objects.Stat(ctx, []object.Digest{info.Digest})
	if err != nil {
		return err
	}
	if err := s.options.Objects.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
		return err
	}
	s.options.Metrics.stored(uint64(1-len(before)), info.StoredSize-storedBytes(before))
	return nil
}

// statAll is Stat on several goroutines, without duplicates.
func statAll(ctx context.Context, store object.Store, workers int, digests []object.Digest) ([]object.Info, error) {
	seen := make(map[object.Digest]bool, len(digests))
	unique := make([]object.Digest, 0, len(digests))
	for _, digest := range digests {
		if !seen[digest] {
			seen[digest] = true
			unique = append(unique, digest)
		}
	}
	const chunk = 512
	results := make([][]object.Info, (len(unique)+chunk-1)/chunk)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(workers)
	for i := range results {
		group.Go(func() (err error) {
			results[i], err = store.Stat(ctx, unique[i*chunk:min((i+1)*chunk, len(unique))])
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	infos := make([]object.Info, 0, len(unique))
	for _, result := range results {
		infos = append(infos, result...)
	}
	return infos, nil
}

func splitDigests(joined []byte) ([]object.Digest, error) {
	const length = len(object.Digest{})
	if len(joined)%length != 0 || len(joined) > maxDigests*length {
		return nil, status.Errorf(codes.InvalidArgument, "%d bytes are no digests of %d bytes each, at most %d of them", len(joined), length, maxDigests)
	}
	digests := make([]object.Digest, len(joined)/length)
	for i := range digests {
		digests[i] = object.Digest(joined[i*length:])
	}
	return digests, nil
}

func imageToWire(entry catalog.Entry) *pb.Image {
	return &pb.Image{
		Name: entry.Name, Digest: bytes.Clone(entry.Digest[:]), Added: entry.Added.UnixNano(),
		Bytes: entry.Bytes, Objects: entry.Objects, Inodes: entry.Inodes,
		Attributes: entry.Attributes, AddedBy: entry.AddedBy, Expires: nanoseconds(entry.Expires),
	}
}

// nanoseconds is a time on the wire, where 0 is none.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func pieceToWire(piece object.Piece) *pb.Piece {
	return &pb.Piece{
		Digest: bytes.Clone(piece.Digest[:]), Encoding: pb.Encoding(piece.Encoding),
		Size: piece.Size, StoredSize: piece.StoredSize, Offset: piece.Offset, Data: piece.Data,
	}
}

// pieceFromWire checks a piece by itself. The error is a status.
func pieceFromWire(wire *pb.Piece) (object.Piece, error) {
	var piece object.Piece
	if len(wire.GetDigest()) != len(piece.Digest) {
		return piece, status.Error(codes.InvalidArgument, "a piece without a digest")
	}
	if wire.GetEncoding() < 0 || wire.GetEncoding() > pb.Encoding_ENCODING_ZSTD {
		return piece, status.Errorf(codes.InvalidArgument, "encoding %d is unknown", wire.GetEncoding())
	}
	piece.Info = object.Info{
		Digest: object.Digest(wire.GetDigest()), Encoding: object.Encoding(wire.GetEncoding()),
		Size: wire.GetSize(), StoredSize: wire.GetStoredSize(),
	}
	piece.Offset, piece.Data = wire.GetOffset(), wire.GetData()
	if err := piece.Info.Validate(); err != nil {
		return piece, status.Error(codes.InvalidArgument, err.Error())
	}
	if piece.Offset > piece.StoredSize || uint64(len(piece.Data)) > piece.StoredSize-piece.Offset {
		return piece, status.Errorf(codes.InvalidArgument, "object %s: more bytes than its %d", piece.Digest, piece.StoredSize)
	}
	return piece, nil
}
