// Package pack keeps many objects in one append-only file.
//
// A pack is a header, the encoded bytes of its objects one after the other,
// and, once finished, an index of them at its end by which it can be opened
// again. Until then the index is in memory only. The bytes of objects never
// stay on the Go heap: they are written to and read from the file, through
// buffers that are used again. The package opens no file itself, and it
// verifies what goes in and what comes out: by the digest, or, where the bytes
// were verified by it when they went into this very Writer, by a sum of them
// (CRC-32C) that was taken then.
//
// The layout, format 1 (numbers are little-endian):
//
//	header   "FLPACK\r\n", uint32 format, uint32 zero
//	objects  encoded bytes; there may be holes between them
//	index    per object, sorted by digest: 32 bytes of digest, uint8 encoding,
//	         7 bytes of zero, uint64 size, uint64 stored size, uint64 offset
//	trailer  uint64 number of objects, uint64 offset of the index, 32 bytes
//	         of SHA-256 of index and the two numbers, "FLPKEND\n"
package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

const (
	magic       = "FLPACK\r\n"
	endMagic    = "FLPKEND\n"
	format      = 1
	headerSize  = 16
	recordSize  = 64
	trailerSize = 8 + 8 + 32 + 8
)

// File is what a pack is written to and read from. *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// Options for a Writer.
type Options struct {
	// Limit is the most bytes that objects may take in the file; 0 means no
	// limit. An object that does not fit is refused with ErrFull. Holes
	// between objects do not count: in a sparse file they take no room.
	Limit uint64
}

// Error is an error with a stable code, explained in docs/errors.md.
type Error struct {
	code, text string
}

// Error returns the message without its code.
func (e *Error) Error() string { return e.text }

// Code returns the stable code, for example "IMG-009".
func (e *Error) Code() string { return e.code }

var (
	// ErrMalformed (IMG-009): a file is no pack, unfinished, or its index is
	// damaged.
	ErrMalformed = &Error{"IMG-009", "not a whole pack"}
	// ErrFormat (IMG-010): a pack has a format that is newer than this
	// program.
	ErrFormat = &Error{"IMG-010", "pack has a newer format than this program reads"}
	// ErrFull (IMG-011): an object does not fit within the writer's limit.
	ErrFull = &Error{"IMG-011", "no room left for more objects"}
)

// errFinished is a mistake of the calling program.
var errFinished = errors.New("the pack is already finished")

// location says where an object lies.
type location struct {
	info   object.Info
	offset uint64
	summed bool // sum is that of the encoded bytes as they were verified
	sum    uint32
}

// castagnoli is the polynomial that processors have an instruction for
// (RFC 3720, 12.1).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// contents is the index, shared by a Writer and its Readers.
type contents struct {
	mutex sync.RWMutex
	at    map[object.Digest]location
}

func (c *contents) get(d object.Digest) (location, bool) {
	c.mutex.RLock()
	defer c.mutex.RUnlock()
	l, found := c.at[d]
	return l, found
}

// Writer appends objects to a pack. It is safe for concurrent use: room is
// set aside under a lock, the bytes are written beside each other.
type Writer struct {
	file     File
	limit    uint64
	contents *contents

	mutex    sync.Mutex
	end      uint64 // where the next object begins
	used     uint64 // bytes of objects, set-aside ones included
	open     int    // objects that are being appended
	finished bool
}

// NewWriter begins a pack at the start of file, which it takes to be empty.
func NewWriter(file File, options Options) (*Writer, error) {
	header := make([]byte, headerSize)
	copy(header, magic)
	binary.LittleEndian.PutUint32(header[len(magic):], format)
	if _, err := file.WriteAt(header, 0); err != nil {
		return nil, fmt.Errorf("writing the pack's header: %w", err)
	}
	return &Writer{
		file:     file,
		limit:    options.Limit,
		contents: &contents{at: make(map[object.Digest]location)},
		end:      headerSize,
	}, nil
}

// Reader returns a Reader of everything that has been appended so far and
// will be appended.
func (w *Writer) Reader() *Reader { return &Reader{file: w.file, contents: w.contents} }

// Used returns how many bytes the objects take.
func (w *Writer) Used() uint64 {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return w.used
}

// Has reports whether the object is in the pack.
func (w *Writer) Has(d object.Digest) bool {
	_, found := w.contents.get(d)
	return found
}

// reserve sets room for size bytes aside, which others will not write to.
func (w *Writer) reserve(d object.Digest, size uint64) (uint64, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.finished {
		return 0, errFinished
	}
	if size > 1<<62-w.end {
		return 0, fmt.Errorf("object %s of %d bytes: %w", d, size, ErrFull)
	}
	offset := w.end
	w.end += size
	w.open++
	return offset, nil
}

// use counts size bytes against the limit.
func (w *Writer) use(d object.Digest, size uint64) error {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.limit > 0 && size > w.limit-min(w.used, w.limit) {
		return fmt.Errorf("object %s: %d more bytes, %d of %d taken: %w", d, size, w.used, w.limit, ErrFull)
	}
	w.used += size
	return nil
}

// allot reserves and uses at once, for an object whose stored size is known.
func (w *Writer) allot(d object.Digest, size uint64) (uint64, error) {
	if err := w.use(d, size); err != nil {
		return 0, err
	}
	offset, err := w.reserve(d, size)
	if err != nil {
		w.unuse(size)
	}
	return offset, err
}

func (w *Writer) unuse(size uint64) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.used -= size
}

// release ends what reserve began: taken of the reserved bytes hold an object
// now, the other used ones are free again.
func (w *Writer) release(offset, reserved, used, taken uint64) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.used -= used - taken
	if w.end == offset+reserved {
		w.end = offset + taken
	}
	w.open--
}

func (w *Writer) add(l location) {
	w.contents.mutex.Lock()
	defer w.contents.mutex.Unlock()
	w.contents.at[l.info.Digest] = l
}

// Append verifies the encoded bytes of one whole object (they need not be
// verified before) and adds it. Bytes that are not what info says are an error
// that wraps object.ErrDamaged, and nothing is added. An object that is
// already there is left as it is.
func (w *Writer) Append(info object.Info, encoded []byte) error {
	if w.Has(info.Digest) {
		return nil
	}
	if err := info.Validate(); err != nil {
		return err
	}
	if err := zstd.Verify(info, encoded); err != nil {
		return err
	}
	return w.write(info, encoded)
}

// AppendUnpacked adds an object from its unpacked bytes, which are hashed
// first and then packed where that helps. Bytes that are not what the digest
// says are an error that wraps object.ErrDamaged, and nothing is added. It
// returns what was stored.
func (w *Writer) AppendUnpacked(digest object.Digest, unpacked []byte) (object.Info, error) {
	if l, found := w.contents.get(digest); found {
		return l.info, nil
	}
	if got := object.Of(unpacked); got != digest {
		return object.Info{}, fmt.Errorf("object %s: its bytes hash to %s: %w", digest, got, object.ErrDamaged)
	}
	info := object.Info{Digest: digest, Size: uint64(len(unpacked))}
	buffer := buffers.Get().(*[]byte)
	defer buffers.Put(buffer)
	var encoded []byte
	info.Encoding, encoded = zstd.Encode((*buffer)[:0], unpacked)
	info.StoredSize = uint64(len(encoded))
	if info.Encoding == object.Zstd && cap(encoded) <= largestBuffer {
		*buffer = encoded
	}
	return info, w.write(info, encoded)
}

// AppendVerified is Append of bytes that the caller has verified.
func (w *Writer) AppendVerified(info object.Info, encoded []byte) error {
	if w.Has(info.Digest) {
		return nil
	}
	return w.write(info, encoded)
}

func (w *Writer) write(info object.Info, encoded []byte) error {
	offset, err := w.allot(info.Digest, info.StoredSize)
	if err != nil {
		return err
	}
	if _, err := w.file.WriteAt(encoded, int64(offset)); err != nil {
		w.release(offset, info.StoredSize, info.StoredSize, 0)
		return fmt.Errorf("writing object %s to the pack: %w", info.Digest, err)
	}
	w.add(location{info, offset, true, crc32.Checksum(encoded, castagnoli)})
	w.release(offset, info.StoredSize, info.StoredSize, info.StoredSize)
	return nil
}

// AppendFrom adds an object from a reader of its unpacked bytes, packing it on
// the way, in memory that does not grow with size. Bytes that are not what
// digest and size say are an error that wraps object.ErrDamaged, and nothing
// is added. It returns what was stored.
func (w *Writer) AppendFrom(digest object.Digest, size uint64, r io.Reader) (object.Info, error) {
	if l, found := w.contents.get(digest); found {
		return l.info, nil
	}
	verified := object.VerifyReader(r, digest, size)
	if size <= zstd.Whole {
		buffer := buffers.Get().(*[]byte)
		defer buffers.Put(buffer)
		if uint64(cap(*buffer)) < size {
			*buffer = make([]byte, zstd.Whole)
		}
		unpacked := (*buffer)[:size]
		if _, err := io.ReadFull(verified, unpacked); err != nil {
			return object.Info{}, damagedIfShort(digest, err)
		}
		// Only the end says whether the bytes were right.
		if n, err := verified.Read(make([]byte, 1)); n > 0 || err != io.EOF {
			return object.Info{}, err
		}
		return w.AppendUnpacked(digest, unpacked)
	}
	// A frame of bytes that cannot be packed is larger than they are, by
	// three bytes for each block of 128 KiB, a header and a checksum.
	reserved := size + size/(64<<10)*4 + 1<<10
	offset, err := w.reserve(digest, reserved)
	if err != nil {
		return object.Info{}, err
	}
	// What is written counts as it comes: the object may fit although the
	// worst case would not.
	out := &section{file: w.file, offset: offset, left: reserved, use: func(n uint64) error { return w.use(digest, n) }}
	info := object.Info{Digest: digest, Encoding: object.Zstd, Size: size}
	packer := zstd.NewWriter(out, size)
	_, err = packer.ReadFrom(verified)
	if closeErr := packer.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		w.release(offset, reserved, reserved-out.left, 0)
		return object.Info{}, damagedIfShort(digest, err)
	}
	info.StoredSize = reserved - out.left
	w.add(location{info, offset, true, out.sum})
	w.release(offset, reserved, info.StoredSize, info.StoredSize)
	return info, nil
}

func damagedIfShort(digest object.Digest, err error) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("object %s: cut off: %w", digest, object.ErrDamaged)
	}
	return fmt.Errorf("adding object %s to the pack: %w", digest, err)
}

// section writes to a part of a file.
type section struct {
	file         File
	offset, left uint64
	sum          uint32               // of what was written
	use          func(n uint64) error // may be nil; counts what is written
}

func (s *section) Write(p []byte) (int, error) {
	if uint64(len(p)) > s.left {
		return 0, io.ErrShortWrite
	}
	if s.use != nil {
		if err := s.use(uint64(len(p))); err != nil {
			return 0, err
		}
	}
	n, err := s.file.WriteAt(p, int64(s.offset))
	s.sum = crc32.Update(s.sum, castagnoli, p[:n])
	if s.use != nil && n < len(p) {
		n = len(p) // counted all the same, until the object is given up
	}
	s.offset += uint64(n)
	s.left -= uint64(n)
	return n, err
}

// AppendStored is Append of an object whose encoded bytes r gives, in memory
// that does not grow with it. An object that is already there is left as it is,
// and r is not read.
func (w *Writer) AppendStored(info object.Info, r io.Reader) error {
	if w.Has(info.Digest) {
		return nil
	}
	if err := info.Validate(); err != nil {
		return err
	}
	offset, err := w.allot(info.Digest, info.StoredSize)
	if err != nil {
		return err
	}
	out := &section{file: w.file, offset: offset, left: info.StoredSize}
	if err := zstd.VerifyFrom(info, &copying{r: r, w: out}); err != nil {
		w.release(offset, info.StoredSize, info.StoredSize, 0)
		return err
	}
	w.add(location{info, offset, true, out.sum})
	w.release(offset, info.StoredSize, info.StoredSize, info.StoredSize)
	return nil
}

// copying writes what is read from it. What does not fit any more is the
// verifier's to refuse.
type copying struct {
	r io.Reader
	w *section
}

func (c *copying) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 && c.w.left > 0 {
		if _, err := c.w.Write(p[:min(uint64(n), c.w.left)]); err != nil {
			return n, fmt.Errorf("writing to the pack: %w", err)
		}
	}
	return n, err
}

// Finish writes the index, by which OpenReader can open the pack, and returns
// the length of the file in bytes. Nothing can be appended afterwards. It does
// not sync the file. Objects that are still being appended are an error.
func (w *Writer) Finish() (int64, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.finished {
		return 0, errFinished
	}
	if w.open > 0 {
		return 0, fmt.Errorf("finishing the pack: %d objects are still being appended", w.open)
	}
	w.finished = true
	w.contents.mutex.RLock()
	locations := make([]location, 0, len(w.contents.at))
	for _, l := range w.contents.at {
		locations = append(locations, l)
	}
	w.contents.mutex.RUnlock()
	slices.SortFunc(locations, func(a, b location) int { return a.info.Digest.Compare(b.info.Digest) })

	index := make([]byte, 0, len(locations)*recordSize+trailerSize)
	for _, l := range locations {
		index = append(index, l.info.Digest[:]...)
		index = append(index, byte(l.info.Encoding), 0, 0, 0, 0, 0, 0, 0)
		index = binary.LittleEndian.AppendUint64(index, l.info.Size)
		index = binary.LittleEndian.AppendUint64(index, l.info.StoredSize)
		index = binary.LittleEndian.AppendUint64(index, l.offset)
	}
	index = binary.LittleEndian.AppendUint64(index, uint64(len(locations)))
	index = binary.LittleEndian.AppendUint64(index, w.end)
	sum := object.Of(index)
	index = append(index, sum[:]...)
	index = append(index, endMagic...)
	if _, err := w.file.WriteAt(index, int64(w.end)); err != nil {
		return 0, fmt.Errorf("writing the pack's index: %w", err)
	}
	return int64(w.end) + int64(len(index)), nil
}

// Reader reads objects from a pack, verified. It is an object.Getter and safe
// for concurrent use.
type Reader struct {
	file     io.ReaderAt
	contents *contents
}

var _ object.Getter = (*Reader)(nil)

// OpenReader opens a finished pack of size bytes. A file that is not whole is
// an error that wraps ErrMalformed, one of a newer format ErrFormat.
func OpenReader(file io.ReaderAt, size int64) (*Reader, error) {
	locations, err := ReadIndex(file, size)
	if err != nil {
		return nil, err
	}
	c := &contents{at: make(map[object.Digest]location, len(locations))}
	for _, l := range locations {
		c.at[l.Info.Digest] = location{info: l.Info, offset: l.Offset}
	}
	return &Reader{file: file, contents: c}, nil
}

// Location says where in a pack an object lies.
type Location struct {
	Info   object.Info
	Offset uint64 // of its first encoded byte, in the file
}

// ReadIndex reads the index of a finished pack of size bytes, sorted by digest,
// and nothing of the objects. Its errors are those of OpenReader.
func ReadIndex(file io.ReaderAt, size int64) ([]Location, error) {
	if size < headerSize+trailerSize {
		return nil, fmt.Errorf("pack of %d bytes: %w", size, ErrMalformed)
	}
	var header [headerSize]byte
	if _, err := file.ReadAt(header[:], 0); err != nil {
		return nil, fmt.Errorf("reading the pack's header: %w", err)
	}
	if string(header[:len(magic)]) != magic {
		return nil, fmt.Errorf("no pack header: %w", ErrMalformed)
	}
	if f := binary.LittleEndian.Uint32(header[len(magic):]); f > format {
		return nil, fmt.Errorf("pack of format %d, this program reads up to %d: %w", f, format, ErrFormat)
	} else if f != format {
		return nil, fmt.Errorf("pack of format %d: %w", f, ErrMalformed)
	}
	var trailer [trailerSize]byte
	if _, err := file.ReadAt(trailer[:], size-trailerSize); err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading the pack's trailer: %w", err)
	}
	count := binary.LittleEndian.Uint64(trailer[0:])
	indexAt := binary.LittleEndian.Uint64(trailer[8:])
	// Compared without multiplying or adding what the file says.
	room := uint64(size) - headerSize - trailerSize
	if string(trailer[trailerSize-len(endMagic):]) != endMagic || count > room/recordSize ||
		indexAt != uint64(size)-trailerSize-count*recordSize {
		return nil, fmt.Errorf("no index at the pack's end: %w", ErrMalformed)
	}
	index := make([]byte, count*recordSize+16)
	if _, err := file.ReadAt(index, int64(indexAt)); err != nil {
		return nil, fmt.Errorf("reading the pack's index: %w", err)
	}
	if sum := object.Of(index); !bytes.Equal(sum[:], trailer[16:48]) {
		return nil, fmt.Errorf("the pack's index is damaged: %w", ErrMalformed)
	}
	locations := make([]Location, 0, count)
	for record := range slices.Chunk(index[:count*recordSize], recordSize) {
		l := Location{
			Info: object.Info{
				Digest:     object.Digest(record[:32]),
				Encoding:   object.Encoding(record[32]),
				Size:       binary.LittleEndian.Uint64(record[40:]),
				StoredSize: binary.LittleEndian.Uint64(record[48:]),
			},
			Offset: binary.LittleEndian.Uint64(record[56:]),
		}
		if err := l.Info.Validate(); err != nil {
			return nil, fmt.Errorf("the pack's index: %w: %w", err, ErrMalformed)
		}
		if l.Offset < headerSize || l.Offset > indexAt || l.Info.StoredSize > indexAt-l.Offset {
			return nil, fmt.Errorf("object %s lies outside the pack: %w", l.Info.Digest, ErrMalformed)
		}
		locations = append(locations, l)
	}
	return locations, nil
}

// Len returns the number of objects.
func (r *Reader) Len() int {
	r.contents.mutex.RLock()
	defer r.contents.mutex.RUnlock()
	return len(r.contents.at)
}

// Has reports whether the object is in the pack.
func (r *Reader) Has(d object.Digest) bool {
	_, found := r.contents.get(d)
	return found
}

// Stat returns what is known of each wanted object that is there, in the order
// of the request.
func (r *Reader) Stat(_ context.Context, digests []object.Digest) ([]object.Info, error) {
	infos := make([]object.Info, 0, len(digests))
	for _, d := range digests {
		if l, found := r.contents.get(d); found {
			infos = append(infos, l.info)
		}
	}
	return infos, nil
}

// List calls f for each object, sorted by digest, until f returns an error,
// which it returns.
func (r *Reader) List(ctx context.Context, f func(object.Info) error) error {
	r.contents.mutex.RLock()
	infos := make([]object.Info, 0, len(r.contents.at))
	for _, l := range r.contents.at {
		infos = append(infos, l.info)
	}
	r.contents.mutex.RUnlock()
	slices.SortFunc(infos, func(a, b object.Info) int { return a.Digest.Compare(b.Digest) })
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f(info); err != nil {
			return err
		}
	}
	return nil
}

// OpenStored returns the encoded bytes, unverified.
func (r *Reader) OpenStored(ctx context.Context, digest object.Digest) (*object.Stored, error) {
	l, err := r.find(ctx, digest)
	if err != nil {
		return nil, err
	}
	return &object.Stored{Info: l.info, ReadCloser: io.NopCloser(r.section(l))}, nil
}

// Open returns the unpacked bytes, verified: those of a small object before
// the first of them is given out, those of a large one at its end.
func (r *Reader) Open(ctx context.Context, digest object.Digest) (io.ReadCloser, error) {
	l, err := r.find(ctx, digest)
	if err != nil {
		return nil, err
	}
	if l.info.Size <= zstd.Whole && l.info.StoredSize <= zstd.Whole {
		return r.whole(l)
	}
	if l.summed {
		return openSummed(l, r.section(l))
	}
	return zstd.Open(l.info, r.section(l))
}

func (r *Reader) find(ctx context.Context, digest object.Digest) (location, error) {
	if err := ctx.Err(); err != nil {
		return location{}, err
	}
	l, found := r.contents.get(digest)
	if !found {
		return location{}, fmt.Errorf("object %s: %w", digest, object.ErrNotFound)
	}
	return l, nil
}

func (r *Reader) section(l location) *io.SectionReader {
	return io.NewSectionReader(r.file, int64(l.offset), int64(l.info.StoredSize))
}

// largestBuffer is the capacity in bytes above which a buffer is not used
// again.
const largestBuffer = zstd.Whole + zstd.Whole/4

// buffers are used again by appends and reads of small objects. They hold no
// state.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// whole unpacks and verifies a small object at once.
func (r *Reader) whole(l location) (io.ReadCloser, error) {
	stored := grown(buffers.Get().(*[]byte), int(l.info.StoredSize))
	kept := false
	defer func() {
		if !kept {
			buffers.Put(stored)
		}
	}()
	if n, err := r.file.ReadAt(*stored, int64(l.offset)); n < len(*stored) {
		if err == io.EOF {
			return nil, fmt.Errorf("object %s: the pack is cut off: %w", l.info.Digest, object.ErrDamaged)
		}
		return nil, fmt.Errorf("reading object %s from the pack: %w", l.info.Digest, err)
	}
	decode := zstd.Decode
	if l.summed && crc32.Checksum(*stored, castagnoli) == l.sum {
		decode = zstd.Unpack
		if l.info.Encoding == object.Raw {
			kept = true
			b := &buffered{buffer: stored}
			b.Reset(*stored)
			return b, nil
		}
	}
	unpacked := grown(buffers.Get().(*[]byte), zstd.Capacity(l.info.Size))
	out, err := decode((*unpacked)[:0], l.info, *stored)
	if err != nil {
		buffers.Put(unpacked)
		return nil, err
	}
	*unpacked = out
	b := &buffered{buffer: unpacked}
	b.Reset(out)
	return b, nil
}

// grown gives buffer the length n.
func grown(buffer *[]byte, n int) *[]byte {
	if cap(*buffer) < n {
		*buffer = make([]byte, n, max(n, 16<<10))
	}
	*buffer = (*buffer)[:n]
	return buffer
}

// buffered reads from a buffer and gives it back when closed. Read, WriteTo
// and Len are those of bytes.Reader.
type buffered struct {
	bytes.Reader
	buffer *[]byte
}

func (b *buffered) Close() error {
	if b.buffer == nil {
		return nil
	}
	b.Reset(nil)
	buffers.Put(b.buffer)
	b.buffer = nil
	return nil
}
