// Package bulk is how many objects travel in one HTTP/1.1 answer: what the RPC
// GetObjects does, at a fraction of its cost. Both ends use it; neither the
// system nor the network is touched here.
//
// The request is a POST to Path whose body holds the wanted digests, 32 bytes
// each, at most MaxDigests of them. Who may call is who may call GetObjects. An
// answer other than 200 has a line of text as its body. Servers before this
// format answer 404 or 405.
//
// The answer is a row of frames. Each begins with a head of 12 bytes, numbers
// little-endian: uint8 kind, 3 bytes of zero, uint32 bytes of records, uint32
// bytes of data.
//
//	0 still   the server lives and has nothing to send yet
//	1 pieces  records, one for each piece, then their data one after the other
//	2 end     everything that was asked for has been sent
//	3 failed  the answer ends here: records are a uvarint gRPC status code and
//	          text
//
// A record is, as uvarints except the flags: the index of the digest in the
// request, a byte of flags (bits 0–3 object.Encoding, bit 4: the piece is the
// whole object), the unpacked size and, unless raw, the stored size, and unless
// whole, offset and length of the piece in the stored bytes. The pieces of an
// object come in order. An answer that stops without end or failed was cut off.
package bulk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/firstlight/firstlight/imageserver/object"
)

// The request and the answer.
const (
	// Path is where the request goes.
	Path = "/v1/objects"
	// Verify, "full", in the query asks the server to decode and hash each
	// object once more, whatever it knows of it.
	Verify = "verify"
	// RequestType and AnswerType are the media types; the answer's names the
	// format.
	RequestType = "application/vnd.firstlight.digests"
	AnswerType  = "application/vnd.firstlight.objects; format=1"
	// MaxDigests is how many objects one request names at most.
	MaxDigests = 65536
)

const (
	headSize = 12

	kindStill  = 0
	kindPieces = 1
	kindEnd    = 2
	kindFailed = 3

	flagWhole    = 0x10
	encodingBits = 0x0f

	// What a reader takes in one frame, in bytes.
	maxRecords = 64 << 10
	maxData    = 1 << 20

	// What a Frame holds, in bytes: it fits into a processor's cache from the
	// reading of an object to its sending.
	frameRecords = 16 << 10
	frameData    = 256 << 10
	// recordSize is the most that a record takes: 3 + 1 + 3 × 10 + 3.
	recordSize = 40
)

// MaxPiece is how many bytes of an object one piece of a Frame has at most.
const MaxPiece = frameData

// Frame gathers pieces to be sent together. The zero Frame is empty and ready.
type Frame struct {
	records [frameRecords]byte
	buffer  [headSize + frameRecords + frameData]byte
	nr, nd  int // bytes of records, of data
}

// dataStart is where data begin in the buffer; head and records are put before
// them, so that a frame is one run of bytes.
const dataStart = headSize + frameRecords

// Reset empties the frame.
func (f *Frame) Reset() { f.nr, f.nd = 0, 0 }

// Empty says that nothing was added.
func (f *Frame) Empty() bool { return f.nr == 0 }

// Room is where the data of the next piece are to be put: so many bytes as are
// free. It is empty where the frame is full.
func (f *Frame) Room() []byte {
	if frameRecords-f.nr < recordSize {
		return nil
	}
	return f.buffer[dataStart+f.nd:]
}

// Add adds the piece whose n bytes of data stand at the beginning of Room: of
// the object that is the index-th of the request, from offset on.
func (f *Frame) Add(index int, info object.Info, offset uint64, n int) {
	r := binary.AppendUvarint(f.records[:f.nr], uint64(index))
	flags := byte(info.Encoding)
	whole := offset == 0 && uint64(n) == info.StoredSize
	if whole {
		flags |= flagWhole
	}
	r = append(r, flags)
	r = binary.AppendUvarint(r, info.Size)
	if info.Encoding != object.Raw {
		r = binary.AppendUvarint(r, info.StoredSize)
	}
	if !whole {
		r = binary.AppendUvarint(r, offset)
		r = binary.AppendUvarint(r, uint64(n))
	}
	f.nr = len(r)
	f.nd += n
}

// Bytes are the frame as it is sent, valid until it is changed.
func (f *Frame) Bytes() []byte {
	start := dataStart - f.nr - headSize
	head(f.buffer[start:], kindPieces, f.nr, f.nd)
	copy(f.buffer[start+headSize:], f.records[:f.nr])
	return f.buffer[start : dataStart+f.nd]
}

func head(b []byte, kind byte, records, data int) {
	binary.LittleEndian.PutUint32(b, uint32(kind))
	binary.LittleEndian.PutUint32(b[4:], uint32(records))
	binary.LittleEndian.PutUint32(b[8:], uint32(data))
}

// Still is the frame by which a server that waits shows that it lives.
func Still() []byte { return make([]byte, headSize) }

// End is the last frame of a complete answer.
func End() []byte {
	b := make([]byte, headSize)
	head(b, kindEnd, 0, 0)
	return b
}

// Failed is the last frame of an answer that had to stop, for the reason of a
// gRPC status.
func Failed(code uint32, text string) []byte {
	b := make([]byte, headSize, headSize+binary.MaxVarintLen32+len(text))
	b = binary.AppendUvarint(b, uint64(code))
	b = append(b, text[:min(len(text), maxRecords/2)]...)
	head(b, kindFailed, len(b)-headSize, 0)
	return b
}

// ErrMalformed is wrapped where an answer contradicts itself or the request.
var ErrMalformed = errors.New("the answer is malformed")

// Failure is what a server said in a failed frame.
type Failure struct {
	Code uint32 // of gRPC
	Text string
}

// Error is the text.
func (f *Failure) Error() string { return f.Text }

// Reader takes an answer apart. It holds one frame in memory, 1.1 MiB at most.
type Reader struct {
	r       io.Reader
	digests []object.Digest
	buffer  []byte
	pieces  []object.Piece
	err     error
}

// NewReader reads the answer r to a request for digests.
func NewReader(r io.Reader, digests []object.Digest) *Reader {
	return &Reader{r: r, digests: digests}
}

// Next returns the pieces of the next frame, none for a server that waits. They
// are valid until the next call. After the end of a complete answer the error
// is io.EOF; of one that was cut off, io.ErrUnexpectedEOF; of one that failed, a
// *Failure. Otherwise it wraps ErrMalformed, or is the error of r.
func (r *Reader) Next() ([]object.Piece, error) {
	if r.err != nil {
		return nil, r.err
	}
	var pieces []object.Piece
	pieces, r.err = r.next()
	return pieces, r.err
}

func (r *Reader) next() ([]object.Piece, error) {
	var h [headSize]byte
	if err := r.fill(h[:]); err != nil {
		return nil, err
	}
	kind := binary.LittleEndian.Uint32(h[:])
	records, data := binary.LittleEndian.Uint32(h[4:]), binary.LittleEndian.Uint32(h[8:])
	if records > maxRecords || data > maxData {
		return nil, fmt.Errorf("a frame of %d and %d bytes: %w", records, data, ErrMalformed)
	}
	if kind != kindPieces && data > 0 || kind != kindPieces && kind != kindFailed && records > 0 {
		return nil, fmt.Errorf("a frame of kind %d with %d and %d bytes: %w", kind, records, data, ErrMalformed)
	}
	if need := int(records + data); cap(r.buffer) < need {
		r.buffer = make([]byte, max(need, dataStart+frameData))
	}
	b := r.buffer[:records+data]
	if err := r.fill(b); err != nil {
		return nil, err
	}
	switch kind {
	case kindStill:
		return nil, nil
	case kindPieces:
		return r.split(b[:records], b[records:])
	case kindEnd:
		return nil, io.EOF
	case kindFailed:
		code, n := binary.Uvarint(b)
		if n <= 0 || code == 0 || code > 16 {
			return nil, fmt.Errorf("a failure without a reason: %w", ErrMalformed)
		}
		return nil, &Failure{uint32(code), string(b[n:])}
	}
	return nil, fmt.Errorf("a frame of the unknown kind %d: %w", kind, ErrMalformed)
}

// fill reads b completely; an answer never ends between frames.
func (r *Reader) fill(b []byte) error {
	_, err := io.ReadFull(r.r, b)
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// split gives each record its data.
func (r *Reader) split(records, data []byte) ([]object.Piece, error) {
	r.pieces = r.pieces[:0]
	for len(records) > 0 {
		p, length, rest, err := r.record(records)
		if err != nil {
			return nil, err
		}
		if length > uint64(len(data)) {
			return nil, fmt.Errorf("object %s: a piece of %d bytes, %d are there: %w", p.Digest, length, len(data), ErrMalformed)
		}
		p.Data, data = data[:length:length], data[length:]
		r.pieces = append(r.pieces, p)
		records = rest
	}
	if len(data) > 0 {
		return nil, fmt.Errorf("%d bytes of no object: %w", len(data), ErrMalformed)
	}
	return r.pieces, nil
}

// record reads the first of records.
func (r *Reader) record(records []byte) (p object.Piece, length uint64, rest []byte, err error) {
	short := false
	number := func() uint64 {
		v, n := binary.Uvarint(records)
		if n <= 0 {
			short, records = true, nil
			return 0
		}
		records = records[n:]
		return v
	}
	index := number()
	if short || len(records) == 0 {
		return p, 0, nil, fmt.Errorf("a record is cut off: %w", ErrMalformed)
	}
	if index >= uint64(len(r.digests)) {
		return p, 0, nil, fmt.Errorf("object %d came, %d were asked for: %w", index, len(r.digests), ErrMalformed)
	}
	flags := records[0]
	records = records[1:]
	p.Digest, p.Encoding = r.digests[index], object.Encoding(flags&encodingBits)
	p.Size = number()
	p.StoredSize = p.Size
	if p.Encoding != object.Raw {
		p.StoredSize = number()
	}
	length = p.StoredSize
	if flags&flagWhole == 0 {
		p.Offset, length = number(), number()
	}
	if short || flags&^(flagWhole|encodingBits) != 0 {
		return p, 0, nil, fmt.Errorf("object %s: its record is cut off or of an unknown kind: %w", p.Digest, ErrMalformed)
	}
	if err := p.Validate(); err != nil {
		return p, 0, nil, fmt.Errorf("%w: %w", err, ErrMalformed)
	}
	if p.Offset > p.StoredSize || length > p.StoredSize-p.Offset {
		return p, 0, nil, fmt.Errorf("object %s: more bytes than its %d: %w", p.Digest, p.StoredSize, ErrMalformed)
	}
	return p, length, records, nil
}
