package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/firstlight/firstlight/imageserver/object"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// arriving is an object of which pieces are expected.
type arriving struct {
	info object.Info
	next uint64 // offset in the encoded bytes
	done bool
}

func (c *Client) fetch(ctx context.Context, digests []object.Digest, f func(object.Piece) error) error {
	wanted := make(map[object.Digest]*arriving, len(digests))
	unique := make([]object.Digest, 0, len(digests))
	for _, digest := range digests {
		if wanted[digest] == nil {
			wanted[digest] = &arriving{}
			unique = append(unique, digest)
		}
	}
	for len(unique) > 0 {
		n := min(len(unique), maxDigests)
		err := errNoBulk
		if c.bulk.usable() {
			err = c.fetchBulk(ctx, unique[:n], wanted, f)
		}
		if err == errNoBulk {
			err = c.fetchBatch(ctx, unique[:n], wanted, f)
		}
		if err != nil {
			return err
		}
		unique = unique[n:]
	}
	return nil
}

// fetchBatch gets objects by gRPC, for servers that know no bulk answers.
func (c *Client) fetchBatch(ctx context.Context, digests []object.Digest, wanted map[object.Digest]*arriving, f func(object.Piece) error) error {
	const doing = "fetching objects"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	stream, err := c.rpc.GetObjects(ctx, &pb.GetObjectsRequest{Digests: joinDigests(digests)})
	if err != nil {
		return c.failed(ctx, doing, err)
	}
	missing := len(digests)
	for {
		stall.begin()
		answer, err := stream.Recv()
		stall.end()
		if err == io.EOF {
			break
		}
		if err != nil {
			return c.failed(ctx, doing, err)
		}
		for _, wire := range answer.GetPieces() {
			piece, err := pieceFromWire(wire)
			if err != nil {
				return &Error{CodeWrongAnswer, doing, err}
			}
			if err := wanted[piece.Digest].accept(piece); err != nil {
				return &Error{CodeWrongAnswer, doing, err}
			}
			if piece.Last() {
				missing--
			}
			if err := f(piece); err != nil {
				return err
			}
		}
	}
	if missing > 0 {
		return &Error{CodeWrongAnswer, doing, fmt.Errorf("%d of %d objects did not come", missing, len(digests))}
	}
	return nil
}

// accept checks that a piece was asked for and is the next of its object.
func (a *arriving) accept(piece object.Piece) error {
	switch {
	case a == nil:
		return fmt.Errorf("object %s came, and nobody asked for it", piece.Digest)
	case a.done:
		return fmt.Errorf("object %s came twice", piece.Digest)
	case a.next > 0 && piece.Info != a.info:
		return fmt.Errorf("object %s changed on the way", piece.Digest)
	case piece.Offset != a.next:
		return fmt.Errorf("object %s: a piece at %d, expected at %d", piece.Digest, piece.Offset, a.next)
	case uint64(len(piece.Data)) > piece.StoredSize-piece.Offset:
		return fmt.Errorf("object %s: more bytes than its %d", piece.Digest, piece.StoredSize)
	case len(piece.Data) == 0 && !piece.Last():
		return fmt.Errorf("object %s: an empty piece", piece.Digest)
	}
	a.info = piece.Info
	a.next += uint64(len(piece.Data))
	a.done = piece.Last()
	return nil
}

// errEnded says that the server has ended a call while it was being sent to;
// the receiving side learns why.
var errEnded = errors.New("the server has ended the call")

func (c *Client) upload(ctx context.Context, next func(context.Context) (Offer, error)) error {
	const doing = "uploading objects"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	stream, err := c.rpc.PutObjects(ctx)
	if err != nil {
		return c.failed(ctx, doing, err)
	}
	// Only once the server knows of the upload does it keep what it says that
	// it has: what is asked for before could be collected as garbage. An error
	// here comes again, with its reason, from the stream itself.
	stall.begin()
	_, _ = stream.Header()
	stall.end()
	// While one goroutine sends, this one takes the acknowledgements: the
	// server commits as it goes, and repeats itself while a commit takes long.
	// Sending waits within the stall limit, and after the last byte so does
	// each acknowledgement.
	sender := &sender{send: func(request *pb.PutObjectsRequest) error {
		stall.begin()
		defer stall.end()
		err := stream.Send(request)
		if errors.Is(err, io.EOF) {
			return errEnded
		}
		return err
	}}
	sent := make(chan error, 1)
	go func() {
		err := sender.all(ctx, next)
		if err == nil {
			stall.begin()
			err = stream.CloseSend()
		} else if !errors.Is(err, errEnded) {
			cancel() // nothing more comes: do not wait for an answer
		}
		sent <- err
	}()
	var durable uint64
	var answered error
	for answered == nil {
		var answer *pb.PutObjectsResponse
		if answer, answered = stream.Recv(); answered == nil {
			durable = answer.GetObjects()
			stall.alive()
		}
	}
	stall.end()
	if answered != io.EOF {
		answered = c.failed(ctx, doing, answered)
	}
	cancel() // the call is over: next must not wait any longer
	switch err := <-sent; {
	case answered != io.EOF && (err == nil || errors.Is(err, errEnded) || errors.Is(err, context.Canceled)):
		return answered
	case err != nil:
		return err
	case durable != sender.objects:
		return &Error{CodeWrongAnswer, doing, fmt.Errorf("%d of %d objects were acknowledged", durable, sender.objects)}
	}
	return nil
}

// sender gathers offers into messages.
type sender struct {
	send    func(*pb.PutObjectsRequest) error
	request *pb.PutObjectsRequest
	size    int
	objects uint64
}

func (s *sender) all(ctx context.Context, next func(context.Context) (Offer, error)) error {
	s.request = &pb.PutObjectsRequest{}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		offer, err := next(ctx)
		if err == io.EOF {
			return s.flush()
		}
		if err != nil {
			return err
		}
		err = s.offer(offer)
		if err = errors.Join(err, offer.Bytes.Close()); err != nil {
			return err
		}
		s.objects++
	}
}

func (s *sender) offer(offer Offer) error {
	if err := offer.Info.Validate(); err != nil {
		return err
	}
	for offset := uint64(0); ; {
		data := make([]byte, min(message, offer.StoredSize-offset))
		if _, err := io.ReadFull(offer.Bytes, data); err != nil {
			return fmt.Errorf("reading object %s to upload it: %w", offer.Digest, err)
		}
		s.request.Pieces = append(s.request.Pieces, pieceToWire(object.Piece{Info: offer.Info, Offset: offset, Data: data}))
		s.size += len(data) + 64 // of the piece's other fields
		offset += uint64(len(data))
		if s.size >= message {
			if err := s.flush(); err != nil {
				return err
			}
		}
		if offset == offer.StoredSize {
			return nil
		}
	}
}

func (s *sender) flush() error {
	if len(s.request.Pieces) == 0 {
		return nil
	}
	err := s.send(s.request)
	s.request, s.size = &pb.PutObjectsRequest{}, 0
	return err
}
