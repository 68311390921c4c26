// Package zstd packs and unpacks objects: object.Raw and object.Zstd.
//
// It is the one place that knows the compression library. A packed object is
// one zstd frame (RFC 8878) whose header states the content size and whose
// window is at most 8 MiB, so that whoever unpacks knows beforehand how much
// memory and room that takes, and a lying frame is found out before anything
// grows. Encoders and decoders are kept in pools, work on the calling
// goroutine and have small windows. The package does no input or output of
// its own.
package zstd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/firstlight/firstlight/imageserver/object"
)

const (
	// Whole is the number of unpacked bytes up to which objects are packed
	// and unpacked in memory in one go; larger ones are streamed.
	Whole = 1 << 20

	// window of what is packed here, in bytes.
	window = 1 << 20
	// maxWindow is what is accepted from others, in bytes: RFC 8878 (3.1.1.1.2)
	// recommends that every decoder supports 8 MiB.
	maxWindow = 8 << 20
	// slack is room behind the bytes to be unpacked, in bytes: the decoder then
	// copies in larger steps.
	slack = 32
	// worthwhile: fewer bytes than these are not packed.
	worthwhile = 96
)

// The pools hold no state between uses; they only spare allocations.
var (
	wholeEncoders  = sync.Pool{New: func() any { return newEncoder(true) }}
	streamEncoders = sync.Pool{New: func() any { return newEncoder(false) }}
	wholeDecoders  = sync.Pool{New: func() any { return newDecoder(true, true) }}
	streamDecoders = sync.Pool{New: func() any { return newDecoder(false, true) }}
	// Of frames that are known to be those that were verified before.
	knownWholeDecoders  = sync.Pool{New: func() any { return newDecoder(true, false) }}
	knownStreamDecoders = sync.Pool{New: func() any { return newDecoder(false, false) }}
)

func newEncoder(whole bool) *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window),
		zstd.WithSingleSegment(whole), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // only options out of range, which are constants
	}
	return e
}

// newDecoder makes a decoder that checks the frame's own checksum or, which saves
// a fourteenth of its time, does not.
func newDecoder(whole, check bool) *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(!check),
		zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecodeBuffersBelow(0), zstd.WithDecodeAllCapLimit(whole))
	if err != nil {
		panic(err) // only options out of range, which are constants
	}
	return d
}

// Encode packs src. The result is a frame appended to dst if that saves at
// least 5 % of src, otherwise object.Raw and src itself.
func Encode(dst, src []byte) (object.Encoding, []byte) {
	if len(src) < worthwhile {
		return object.Raw, src
	}
	pool := &wholeEncoders
	if len(src) > window {
		pool = &streamEncoders
	}
	e := pool.Get().(*zstd.Encoder)
	defer pool.Put(e)
	out := e.EncodeAll(src, dst)
	if packed := len(out) - len(dst); packed > len(src)-len(src)/20 {
		return object.Raw, src
	}
	return object.Zstd, out
}

// Writer packs one object as it is written.
type Writer struct {
	e *zstd.Encoder
}

// NewWriter returns a Writer of one frame with size unpacked bytes into w.
// Both w and the number of bytes written must keep to that: Close fails if
// not. It is meant for objects larger than Whole; size must be at least 256.
func NewWriter(w io.Writer, size uint64) *Writer {
	e := streamEncoders.Get().(*zstd.Encoder)
	e.ResetContentSize(w, int64(size))
	return &Writer{e: e}
}

// Write packs p.
func (w *Writer) Write(p []byte) (int, error) {
	if w.e == nil {
		return 0, io.ErrClosedPipe
	}
	return w.e.Write(p)
}

// ReadFrom packs what r gives.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	if w.e == nil {
		return 0, io.ErrClosedPipe
	}
	return w.e.ReadFrom(r)
}

// Close ends the frame. It must be called, also after an error; a second call
// does nothing.
func (w *Writer) Close() error {
	if w.e == nil {
		return nil
	}
	err := w.e.Close()
	w.e.Reset(nil)
	streamEncoders.Put(w.e)
	w.e = nil
	return err
}

// HeadSize is how many bytes ContentSize needs at most.
const HeadSize = 18

// ContentSize reads the unpacked size from the first bytes of a frame. A
// frame that does not state it, or that wants a larger window than 8 MiB, is
// an error that wraps object.ErrDamaged.
func ContentSize(head []byte) (uint64, error) {
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return 0, fmt.Errorf("zstd header: %w: %w", err, object.ErrDamaged)
	}
	switch {
	case h.Skippable, !h.HasFCS:
		return 0, fmt.Errorf("zstd frame does not state its size: %w", object.ErrDamaged)
	case h.DictionaryID != 0:
		return 0, fmt.Errorf("zstd frame needs a dictionary: %w", object.ErrDamaged)
	case h.SingleSegment && h.FrameContentSize > maxWindow, !h.SingleSegment && h.WindowSize > maxWindow:
		return 0, fmt.Errorf("zstd frame needs more than %d bytes of memory: %w", maxWindow, object.ErrDamaged)
	}
	return h.FrameContentSize, nil
}

// Decode appends the unpacked, verified bytes of one whole object to dst.
// They are not what info says: an error that wraps object.ErrDamaged. No more
// than Capacity(info.Size) bytes are ever allocated, so the caller bounds
// info.Size.
func Decode(dst []byte, info object.Info, encoded []byte) ([]byte, error) {
	out, err := unpack(dst, info, encoded, &wholeDecoders)
	if err != nil {
		return out, err
	}
	if object.Of(out[len(dst):]) != info.Digest {
		return out[:len(dst)], fmt.Errorf("object %s: its bytes are not what the digest says: %w", info.Digest, object.ErrDamaged)
	}
	return out, nil
}

// Capacity is how many bytes dst best has free to unpack an object of size.
func Capacity(size uint64) int { return int(size) + slack }

// Unpack is Decode of encoded bytes that the caller knows to be the very ones
// that were verified before, by a sum of them: sizes are checked, the digest is
// not.
func Unpack(dst []byte, info object.Info, encoded []byte) ([]byte, error) {
	return unpack(dst, info, encoded, &knownWholeDecoders)
}

func unpack(dst []byte, info object.Info, encoded []byte, decoders *sync.Pool) ([]byte, error) {
	if uint64(len(encoded)) != info.StoredSize {
		return dst, fmt.Errorf("object %s: %d stored bytes of %d: %w", info.Digest, len(encoded), info.StoredSize, object.ErrDamaged)
	}
	start := len(dst)
	switch info.Encoding {
	case object.Raw:
		dst = append(dst, encoded...)
	case object.Zstd:
		if err := checkHead(encoded, info); err != nil {
			return dst, err
		}
		// The capacity is the limit of the decoder.
		end := start + Capacity(info.Size)
		if cap(dst) < end {
			grown := make([]byte, start, end)
			copy(grown, dst)
			dst = grown
		}
		d := decoders.Get().(*zstd.Decoder)
		out, err := d.DecodeAll(encoded, dst[:start:end])
		decoders.Put(d)
		if err != nil {
			return dst[:start], fmt.Errorf("object %s: %w: %w", info.Digest, err, object.ErrDamaged)
		}
		dst = out
	default:
		return dst, fmt.Errorf("object %s: %s: %w", info.Digest, info.Encoding, object.ErrDamaged)
	}
	if uint64(len(dst)-start) != info.Size {
		return dst[:start], fmt.Errorf("object %s: its bytes are not what the digest says: %w", info.Digest, object.ErrDamaged)
	}
	return dst, nil
}

// Verify checks the encoded bytes of one whole object, in memory that does
// not grow with the object.
func Verify(info object.Info, encoded []byte) error {
	if info.Size > Whole || uint64(len(encoded)) != info.StoredSize {
		return VerifyFrom(info, bytes.NewReader(encoded))
	}
	buffer := buffers.Get().(*[Whole + slack]byte)
	defer buffers.Put(buffer)
	_, err := Decode(buffer[:0], info, encoded)
	return err
}

func checkHead(head []byte, info object.Info) error {
	size, err := ContentSize(head)
	if err == nil && size != info.Size {
		err = fmt.Errorf("zstd frame holds %d bytes, not %d: %w", size, info.Size, object.ErrDamaged)
	}
	if err != nil {
		return fmt.Errorf("object %s: %w", info.Digest, err)
	}
	return nil
}

// NewReader unpacks r without verifying it, not even by the frame's checksum: it
// is for bytes that the caller knows by a sum of them. Frames that cannot be
// unpacked are errors that wrap object.ErrDamaged; errors of r itself come back as
// they are. It must be closed; that does not close r.
func NewReader(encoding object.Encoding, r io.Reader) (io.ReadCloser, error) {
	return newReader(encoding, r, &knownStreamDecoders)
}

func newReader(encoding object.Encoding, r io.Reader, decoders *sync.Pool) (io.ReadCloser, error) {
	switch encoding {
	case object.Raw:
		return io.NopCloser(r), nil
	case object.Zstd:
		d := decoders.Get().(*zstd.Decoder)
		source := &sourceReader{r: r}
		if err := d.Reset(source); err != nil {
			return nil, fmt.Errorf("zstd: %w: %w", err, object.ErrDamaged)
		}
		return &reader{d: d, source: source, decoders: decoders}, nil
	}
	return nil, fmt.Errorf("%s: %w", encoding, object.ErrDamaged)
}

// sourceReader remembers the error of the reader below the decoder, so that a
// failing disk is not taken for a damaged object.
type sourceReader struct {
	r   io.Reader
	err error
}

func (s *sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.err = err
	}
	return n, err
}

type reader struct {
	d        *zstd.Decoder
	source   *sourceReader
	decoders *sync.Pool // where d goes back to
}

func (r *reader) Read(p []byte) (int, error) {
	if r.d == nil {
		return 0, io.ErrClosedPipe
	}
	n, err := r.d.Read(p)
	switch {
	case err == nil, err == io.EOF:
		return n, err
	case r.source.err != nil:
		return n, r.source.err
	}
	return n, fmt.Errorf("zstd: %w: %w", err, object.ErrDamaged)
}

func (r *reader) Close() error {
	if r.d == nil {
		return nil
	}
	// Reset(nil) forgets the source and never fails with a live decoder.
	err := r.d.Reset(nil)
	r.decoders.Put(r.d)
	r.d = nil
	return err
}

// Open unpacks and verifies: r gives the encoded bytes of the object that
// info describes. Its Read returns an error that wraps object.ErrDamaged
// where io.EOF would stand if anything is not as info says: digest, unpacked
// size or stored size. It must be closed; that does not close r.
func Open(info object.Info, r io.Reader) (io.ReadCloser, error) {
	counted := &exactReader{r: r, info: info, left: info.StoredSize}
	var source io.Reader = counted
	if info.Encoding == object.Zstd {
		head := make([]byte, min(HeadSize, info.StoredSize))
		if _, err := io.ReadFull(counted, head); err != nil {
			return nil, err
		}
		if err := checkHead(head, info); err != nil {
			return nil, err
		}
		source = &joined{head: head, r: counted}
	}
	unpacked, err := newReader(info.Encoding, source, &streamDecoders)
	if err != nil {
		return nil, err
	}
	return &verified{Reader: object.VerifyReader(unpacked, info.Digest, info.Size), Closer: unpacked}, nil
}

type verified struct {
	io.Reader
	io.Closer
}

// joined gives head and then r, as io.MultiReader does, without its
// allocations.
type joined struct {
	head []byte
	r    io.Reader
}

func (j *joined) Read(p []byte) (int, error) {
	if len(j.head) > 0 {
		n := copy(p, j.head)
		j.head = j.head[n:]
		return n, nil
	}
	return j.r.Read(p)
}

// exactReader holds r to exactly the announced number of stored bytes.
type exactReader struct {
	r    io.Reader
	info object.Info
	left uint64
}

func (e *exactReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if e.left == 0 {
		var one [1]byte
		n, err := e.r.Read(one[:])
		if n > 0 {
			return 0, fmt.Errorf("object %s: more than %d stored bytes: %w", e.info.Digest, e.info.StoredSize, object.ErrDamaged)
		}
		return 0, err
	}
	if uint64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= uint64(n)
	if e.left > 0 && (err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)) {
		err = fmt.Errorf("object %s: %d of %d stored bytes are missing: %w", e.info.Digest, e.left, e.info.StoredSize, object.ErrDamaged)
	}
	return n, err
}
