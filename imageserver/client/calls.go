package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// maxDigests is how many objects one request names at most.
const maxDigests = 65536

// maxManifest bounds a manifest's unpacked bytes, so that a lying server
// cannot fill the memory: about four million inodes.
const maxManifest = 512 << 20

// message is about how many bytes of objects go into one message.
const message = 1 << 20

// stall ends a call's context when a wait lasts too long.
type stall struct {
	timer *time.Timer
	limit time.Duration

	mutex   sync.Mutex
	waiting bool
}

// watch is a context for one call. Only the waits between begin and end count.
// The caller calls cancel when the call is over.
func (c *Client) watch(ctx context.Context, doing string) (context.Context, *stall, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	limit := c.options.Stall
	timer := time.AfterFunc(limit, func() {
		cancel(&Error{CodeLost, fmt.Sprintf("%s: image server %s sent nothing for %s", doing, c.address, limit), nil})
	})
	timer.Stop()
	s := &stall{timer: timer, limit: limit}
	return ctx, s, func() {
		s.end()
		cancel(nil)
	}
}

func (s *stall) begin() { s.set(true) }
func (s *stall) end()   { s.set(false) }

func (s *stall) set(waiting bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.waiting = waiting
	if waiting {
		s.timer.Reset(s.limit)
	} else {
		s.timer.Stop()
	}
}

// alive gives a wait that is under way its full time again.
func (s *stall) alive() {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.waiting {
		s.timer.Reset(s.limit)
	}
}

func (c *Client) manifest(ctx context.Context, name string) (Found, error) {
	doing := "getting image " + name
	pinned, err := pin(name)
	if err != nil {
		return Found{}, &Error{CodeBadName, doing, err}
	}
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	wrong := func(format string, args ...any) error {
		return &Error{CodeWrongAnswer, doing, fmt.Errorf(format, args...)}
	}
	stream, err := c.rpc.GetImage(ctx, &pb.GetImageRequest{Name: name})
	if err != nil {
		return Found{}, c.failedName(ctx, doing, err)
	}
	var (
		found   Found
		info    object.Info
		encoded []byte
		sizes   []uint64
	)
	for first := true; ; first = false {
		stall.begin()
		answer, err := stream.Recv()
		stall.end()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Found{}, c.failedName(ctx, doing, err)
		}
		if first {
			if found.Image, err = fromWire(answer.GetImage()); err != nil {
				return Found{}, wrong("%w", err)
			}
		}
		for _, wire := range answer.GetManifest() {
			piece, err := pieceFromWire(wire)
			switch {
			case err != nil:
				return Found{}, wrong("%w", err)
			case piece.Size > maxManifest || piece.StoredSize > maxManifest:
				return Found{}, wrong("a manifest of %d bytes is more than the %d that are taken", piece.Size, maxManifest)
			case len(encoded) > 0 && piece.Info != info || piece.Offset != uint64(len(encoded)):
				return Found{}, wrong("the pieces of the manifest do not fit together")
			}
			info = piece.Info
			encoded = append(encoded, piece.Data...)
		}
		sizes = append(sizes, answer.GetStoredSizes()...)
	}
	if info.Digest != found.Digest {
		return Found{}, wrong("the manifest is %s, announced was %s", info.Digest, found.Digest)
	}
	if err := asPinned(doing, found.Image, pinned); err != nil {
		return Found{}, err
	}
	if found.Raw, err = zstd.Decode(nil, info, encoded); err != nil {
		return Found{}, wrong("the manifest: %w", err)
	}
	manifest, err := image.Decode(found.Raw)
	if err != nil {
		return Found{}, fmt.Errorf("image %s: %w", found.Name, err)
	}
	objects := manifest.Objects()
	found.Stored = make(map[object.Digest]uint64, len(objects))
	for i := range min(len(objects), len(sizes)) {
		if sizes[i] > 0 {
			found.Stored[objects[i].Digest] = sizes[i]
		}
	}
	return found, nil
}

func (c *Client) find(ctx context.Context, name string) (Image, error) {
	doing := "looking for image " + name
	pinned, err := pin(name)
	if err != nil {
		return Image{}, &Error{CodeBadName, doing, err}
	}
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	stall.begin()
	answer, err := c.rpc.FindLatest(ctx, &pb.FindLatestRequest{Name: name})
	stall.end()
	if err != nil {
		return Image{}, c.failedName(ctx, doing, err)
	}
	found, err := fromWire(answer.GetImage())
	if err == nil {
		err = asPinned(doing, found, pinned)
	}
	return found, err
}

// pin is the digest behind the @ of a name; zero where there is none.
func pin(name string) (object.Digest, error) {
	_, text, pinned := strings.Cut(name, "@")
	if !pinned {
		return object.Digest{}, nil
	}
	return object.ParseDigest(text)
}

// asPinned is an error where an image was asked for by its digest and is
// another: the server's word does not count for that.
func asPinned(doing string, found Image, pinned object.Digest) error {
	if pinned != (object.Digest{}) && found.Digest != pinned {
		return &Error{CodeWrongAnswer, doing, fmt.Errorf("the manifest is %s, and %s was asked for", found.Digest, pinned)}
	}
	return nil
}

func (c *Client) list(ctx context.Context, prefix string) ([]Image, error) {
	const doing = "listing images"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	stream, err := c.rpc.ListImages(ctx, &pb.ListImagesRequest{Prefix: prefix})
	if err != nil {
		return nil, c.failedName(ctx, doing, err)
	}
	var images []Image
	for {
		stall.begin()
		answer, err := stream.Recv()
		stall.end()
		if err == io.EOF {
			return images, nil
		}
		if err != nil {
			return nil, c.failedName(ctx, doing, err)
		}
		for _, wire := range answer.GetImages() {
			one, err := fromWire(wire)
			if err != nil {
				return nil, err
			}
			images = append(images, one)
		}
	}
}

func (c *Client) have(ctx context.Context, digests []object.Digest) ([]bool, error) {
	const doing = "asking which objects the server has"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	have := make([]bool, 0, len(digests))
	for len(have) < len(digests) {
		batch := digests[len(have):min(len(have)+maxDigests, len(digests))]
		stall.begin()
		answer, err := c.rpc.HaveObjects(ctx, &pb.HaveObjectsRequest{Digests: joinDigests(batch)})
		stall.end()
		if err != nil {
			return nil, c.failed(ctx, doing, err)
		}
		if len(answer.GetHave()) != len(batch) {
			return nil, &Error{CodeWrongAnswer, doing, fmt.Errorf("%d answers to %d questions", len(answer.GetHave()), len(batch))}
		}
		have = append(have, answer.GetHave()...)
	}
	return have, nil
}

func (c *Client) addImage(ctx context.Context, name string, raw []byte) (Image, bool, error) {
	doing := "adding image " + name
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	stream, err := c.rpc.AddImage(ctx)
	if err != nil {
		return Image{}, false, c.failed(ctx, doing, err)
	}
	info := object.Info{Digest: object.Of(raw), Size: uint64(len(raw))}
	encoding, encoded := zstd.Encode(nil, raw)
	info.Encoding, info.StoredSize = encoding, uint64(len(encoded))

	request := &pb.AddImageRequest{Name: name, Digest: info.Digest[:]}
	for offset := 0; offset < len(encoded) || offset == 0; offset += message {
		data := encoded[offset:min(offset+message, len(encoded))]
		request.Manifest = []*pb.Piece{pieceToWire(object.Piece{Info: info, Offset: uint64(offset), Data: data})}
		stall.begin()
		err := stream.Send(request)
		stall.end()
		if errors.Is(err, io.EOF) {
			break // the server has answered; CloseAndRecv says what
		}
		if err != nil {
			return Image{}, false, c.failed(ctx, doing, err)
		}
		request = &pb.AddImageRequest{}
	}
	stall.begin()
	answer, err := stream.CloseAndRecv()
	stall.end()
	if err != nil {
		return Image{}, false, c.failed(ctx, doing, err)
	}
	added, err := fromWire(answer.GetImage())
	return added, answer.GetExisted(), err
}

func (c *Client) delete(ctx context.Context, name string, digest object.Digest) (Image, error) {
	doing := "deleting image " + name
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	request := &pb.DeleteImageRequest{Name: name}
	if !digest.IsZero() {
		request.Digest = digest[:]
	}
	stall.begin()
	answer, err := c.rpc.DeleteImage(ctx, request)
	stall.end()
	if err != nil {
		return Image{}, c.failedName(ctx, doing, err)
	}
	return fromWire(answer.GetImage())
}

// open streams one object: Fetch pushes, the reader pulls.
func (c *Client) open(ctx context.Context, digest object.Digest) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	reader, writer := io.Pipe()
	infos := make(chan object.Info, 1)
	failed := make(chan error, 1)
	go func() {
		err := c.fetch(ctx, []object.Digest{digest}, func(p object.Piece) error {
			if p.Offset == 0 {
				infos <- p.Info
			}
			_, err := writer.Write(p.Data)
			return err
		})
		writer.CloseWithError(err) // nil is io.EOF
		failed <- err
	}()
	var info object.Info
	select {
	case info = <-infos:
	case err := <-failed:
		cancel()
		return nil, errors.Join(err, reader.Close())
	}
	unpacked, err := zstd.Open(info, reader)
	if err != nil {
		cancel()
		return nil, errors.Join(err, reader.Close())
	}
	return &opened{unpacked, reader, cancel}, nil
}

type opened struct {
	io.ReadCloser
	pipe   *io.PipeReader
	cancel context.CancelFunc
}

func (o *opened) Close() error {
	o.cancel()
	return errors.Join(o.ReadCloser.Close(), o.pipe.Close())
}

func joinDigests(digests []object.Digest) []byte {
	joined := make([]byte, 0, len(digests)*len(object.Digest{}))
	for _, digest := range digests {
		joined = append(joined, digest[:]...)
	}
	return joined
}

// fromWire checks and copies an image of the catalog.
func fromWire(wire *pb.Image) (Image, error) {
	if wire == nil || wire.GetName() == "" || len(wire.GetDigest()) != len(object.Digest{}) {
		return Image{}, &Error{CodeWrongAnswer, "the server's answer names no image", nil}
	}
	return Image{
		Name: wire.GetName(), Digest: object.Digest(wire.GetDigest()),
		Added: time.Unix(0, wire.GetAdded()).UTC(),
		Bytes: wire.GetBytes(), Objects: wire.GetObjects(), Inodes: wire.GetInodes(),
		Attributes: wire.GetAttributes(), AddedBy: wire.GetAddedBy(),
		Expires: timeFromWire(wire.GetExpires()), Aliases: wire.GetAliases(),
	}, nil
}

// timeFromWire reads nanoseconds since 1970; 0 is no time.
func timeFromWire(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds).UTC()
}

func pieceFromWire(wire *pb.Piece) (object.Piece, error) {
	var piece object.Piece
	if len(wire.GetDigest()) != len(piece.Digest) {
		return piece, errors.New("a piece without a digest")
	}
	if wire.GetEncoding() != pb.Encoding_ENCODING_RAW && wire.GetEncoding() != pb.Encoding_ENCODING_ZSTD {
		return piece, fmt.Errorf("an encoding (%d) that this program does not know", wire.GetEncoding())
	}
	piece.Info = object.Info{
		Digest: object.Digest(wire.GetDigest()), Encoding: object.Encoding(wire.GetEncoding()),
		Size: wire.GetSize(), StoredSize: wire.GetStoredSize(),
	}
	piece.Offset, piece.Data = wire.GetOffset(), wire.GetData()
	return piece, piece.Info.Validate()
}

func pieceToWire(piece object.Piece) *pb.Piece {
	return &pb.Piece{
		Digest: bytes.Clone(piece.Digest[:]), Encoding: pb.Encoding(piece.Encoding),
		Size: piece.Size, StoredSize: piece.StoredSize, Offset: piece.Offset, Data: piece.Data,
	}
}
