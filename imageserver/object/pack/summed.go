package pack

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// openSummed unpacks a large object whose encoded bytes have a sum. Where
// io.EOF would stand its Read returns an error that wraps object.ErrDamaged if
// the bytes are not those that were verified.
func openSummed(l location, stored io.Reader) (io.ReadCloser, error) {
	s := &summing{r: stored}
	unpacked, err := zstd.NewReader(l.info.Encoding, s)
	if err != nil {
		return nil, err
	}
	return &summed{ReadCloser: unpacked, location: l, stored: s}, nil
}

// summing sums up what is read from it.
type summing struct {
	r   io.Reader
	sum uint32
	n   uint64
}

func (s *summing) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum = crc32.Update(s.sum, castagnoli, p[:n])
	s.n += uint64(n)
	return n, err
}

type summed struct {
	io.ReadCloser
	location location
	stored   *summing
	got      uint64
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	s.got += uint64(n)
	if s.got > s.location.info.Size {
		return n, s.wrong()
	}
	if err == io.EOF || err != nil && errors.Is(err, object.ErrDamaged) {
		if verdict := s.verdict(); verdict != nil {
			err = verdict
		}
	}
	return n, err
}

// verdict judges what has been read. Behind the frame nothing may follow that
// was not verified with it: the sum is that of all stored bytes.
func (s *summed) verdict() error {
	info := s.location.info
	if _, err := io.Copy(io.Discard, s.stored); err != nil {
		return err
	}
	if s.stored.n != info.StoredSize || s.stored.sum != s.location.sum || s.got != info.Size {
		return s.wrong()
	}
	return nil
}

func (s *summed) wrong() error {
	return fmt.Errorf("object %s: its bytes are not those that were verified: %w", s.location.info.Digest, object.ErrDamaged)
}
