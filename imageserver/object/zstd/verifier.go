package zstd

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/firstlight/firstlight/imageserver/object"
)

// errAbandoned ends the decoder of a Verifier that is given up.
var errAbandoned = errors.New("verification abandoned")

// buffers of Whole bytes, for objects that are unpacked in one go.
var buffers = sync.Pool{New: func() any { return new([Whole + slack]byte) }}

// Verifier checks one object whose encoded bytes arrive bit by bit. It keeps
// none of them. It is not safe for concurrent use.
type Verifier struct {
	info   object.Info
	got    uint64
	pipe   *io.PipeWriter
	result chan error
	done   bool
	err    error // the outcome, once done
}

// NewVerifier returns a Verifier of the object that info describes. Close
// must be called.
func NewVerifier(info object.Info) *Verifier { return &Verifier{info: info} }

// Add takes the next piece, which must follow the one before.
func (v *Verifier) Add(p object.Piece) error {
	if p.Info != v.info || p.Offset != v.got {
		return fmt.Errorf("object %s: piece at %d, expected %d: %w", v.info.Digest, p.Offset, v.got, object.ErrDamaged)
	}
	_, err := v.Write(p.Data)
	return err
}

// Write takes the next encoded bytes. An early error wraps object.ErrDamaged;
// the outcome is that of Close.
func (v *Verifier) Write(p []byte) (int, error) {
	if len(p) == 0 || v.err != nil {
		return 0, v.err
	}
	if v.got+uint64(len(p)) > v.info.StoredSize {
		err := fmt.Errorf("object %s: more than %d stored bytes: %w", v.info.Digest, v.info.StoredSize, object.ErrDamaged)
		v.fail(err)
		return 0, err
	}
	if v.got == 0 && uint64(len(p)) == v.info.StoredSize && v.info.Size <= Whole {
		v.got = v.info.StoredSize
		buffer := buffers.Get().(*[Whole + slack]byte)
		_, err := Decode(buffer[:0], v.info, p)
		buffers.Put(buffer)
		v.done, v.err = true, err
		if err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if v.pipe == nil {
		v.start()
	}
	n, err := v.pipe.Write(p)
	v.got += uint64(n)
	if err != nil {
		v.fail(err)
		return n, v.err
	}
	return n, nil
}

// start runs the decoder, which pulls, beside the caller, who pushes.
func (v *Verifier) start() {
	r, w := io.Pipe()
	v.pipe, v.result = w, make(chan error, 1)
	go func() {
		err := VerifyFrom(v.info, r)
		// A writer that is still there learns what is wrong.
		r.CloseWithError(err)
		v.result <- err
	}()
}

// VerifyFrom checks one object whose encoded bytes r gives, to its end, in
// memory that does not grow with the object. Errors of r come back as they are;
// bytes that are not what info says are an error that wraps object.ErrDamaged.
func VerifyFrom(info object.Info, r io.Reader) error {
	unpacked, err := Open(info, r)
	if err != nil {
		return err
	}
	buffer := buffers.Get().(*[Whole + slack]byte)
	defer buffers.Put(buffer)
	for {
		if _, err = unpacked.Read(buffer[:128<<10]); err != nil {
			break
		}
	}
	if err == io.EOF {
		err = nil
	}
	return errors.Join(err, unpacked.Close())
}

func (v *Verifier) fail(err error) {
	if v.pipe != nil {
		v.pipe.CloseWithError(errAbandoned)
		if inner := <-v.result; inner != nil && !errors.Is(inner, errAbandoned) {
			err = inner
		}
	}
	v.done, v.err = true, err
}

// Close returns nil only if every byte arrived and is what info says; any
// other outcome wraps object.ErrDamaged. A second call returns the same.
func (v *Verifier) Close() error {
	switch {
	case v.done:
	case v.got < v.info.StoredSize || v.pipe == nil:
		if v.pipe == nil && v.info.StoredSize == 0 {
			_, v.err = Decode(nil, v.info, nil)
			v.done = true
			break
		}
		v.fail(fmt.Errorf("object %s: %d of %d stored bytes are missing: %w",
			v.info.Digest, v.info.StoredSize-v.got, v.info.StoredSize, object.ErrDamaged))
	default:
		err := v.pipe.Close()
		v.err = errors.Join(err, <-v.result)
		v.done = true
	}
	return v.err
}
