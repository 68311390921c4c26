// Package object names the bytes that images are made of.
//
// An object is the whole content of one file, named by the SHA-256 of its
// bytes. How it is stored or sent (as it is, or as a zstd frame) never changes
// its name. The package holds the nouns, the contracts of the stores and the
// verifying reader; it knows no encoding, no disk and no network, and it
// imports the standard library only.
package object

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

// digestPrefix begins the text of a digest, as in the OCI image
// specification ("descriptor.md", Digests).
const digestPrefix = "sha256:"

// Digest is the SHA-256 of an object's unpacked bytes. The zero Digest names
// no object.
type Digest [sha256.Size]byte

// Of returns the digest of b.
func Of(b []byte) Digest { return sha256.Sum256(b) }

// ParseDigest reads "sha256:" and 64 lower-case hexadecimal digits. Anything
// else is an error that wraps ErrDigest.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	digits, found := strings.CutPrefix(s, digestPrefix)
	if !found || len(digits) != 2*len(d) || strings.ToLower(digits) != digits {
		return Digest{}, fmt.Errorf("%q: %w", s, ErrDigest)
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("%q: %w", s, ErrDigest)
	}
	return d, nil
}

// String returns "sha256:" and 64 hexadecimal digits.
func (d Digest) String() string { return digestPrefix + d.Hex() }

// Hex returns the 64 hexadecimal digits alone.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d names no object.
func (d Digest) IsZero() bool { return d == Digest{} }

// Compare orders digests by their bytes, as bytes.Compare does.
func (d Digest) Compare(other Digest) int { return bytes.Compare(d[:], other[:]) }

// MarshalText writes what String returns.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what ParseDigest reads.
func (d *Digest) UnmarshalText(text []byte) error {
	parsed, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = parsed
	return nil
}

// Encoding says how the bytes of an object are stored or sent. The numbers
// are part of stored formats and never change.
type Encoding uint8

const (
	// Raw is the object's own bytes.
	Raw Encoding = 0
	// Zstd is one zstd frame (RFC 8878) whose header states the content
	// size and whose window is at most 8 MiB.
	Zstd Encoding = 1
)

// String returns "raw" or "zstd".
func (e Encoding) String() string {
	switch e {
	case Raw:
		return "raw"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("encoding %d", uint8(e))
}

// Info describes one object as it is stored or sent.
type Info struct {
	// Digest names the unpacked bytes.
	Digest Digest
	// Encoding is how the stored bytes are encoded.
	Encoding Encoding
	// Size is the number of unpacked bytes.
	Size uint64
	// StoredSize is the number of encoded bytes. For Raw it equals Size.
	StoredSize uint64
}

// Validate reports whether i contradicts itself: an encoding that nobody
// knows, a raw object with two sizes, or no name. Its error wraps ErrRefused.
func (i Info) Validate() error {
	switch {
	case i.Digest.IsZero():
		return fmt.Errorf("object without a digest: %w", ErrRefused)
	case i.Encoding > Zstd:
		return fmt.Errorf("object %s: %s is unknown: %w", i.Digest, i.Encoding, ErrRefused)
	case i.Encoding == Raw && i.Size != i.StoredSize:
		return fmt.Errorf("object %s: raw, but %d bytes stored for a size of %d: %w", i.Digest, i.StoredSize, i.Size, ErrRefused)
	}
	return nil
}

// Stored is an object's encoded bytes as a store holds them. They are not
// yet verified: who decodes them verifies them. It must be closed.
type Stored struct {
	Info
	io.ReadCloser
}

// Piece is a run of the encoded bytes of one object. The pieces of an object
// arrive in order and without gaps; pieces of different objects may be mixed.
type Piece struct {
	Info
	// Offset of Data in the encoded bytes.
	Offset uint64
	// Data is valid only until the function that was given the piece
	// returns.
	Data []byte
}

// Last reports whether p ends its object.
func (p Piece) Last() bool { return p.Offset+uint64(len(p.Data)) == p.StoredSize }

// Getter gives out unpacked, verified objects. It is safe for concurrent use.
type Getter interface {
	// Open returns the unpacked bytes. Its Read returns an error that wraps
	// ErrDamaged where io.EOF would stand when they are not what the digest
	// says, so nobody who reads to the end can mistake damaged bytes for
	// whole ones. A missing object is an error that wraps ErrNotFound. The
	// caller closes.
	Open(ctx context.Context, digest Digest) (io.ReadCloser, error)
}

// Store keeps objects. It is safe for concurrent use, also from several
// processes where its package says so.
type Store interface {
	Getter

	// Stat returns what the store knows of each wanted object that it has,
	// in the order of the request. Missing ones are left out.
	Stat(ctx context.Context, digests []Digest) ([]Info, error)

	// OpenStored returns the encoded bytes as they lie in the store,
	// unverified. A missing object is an error that wraps ErrNotFound.
	OpenStored(ctx context.Context, digest Digest) (*Stored, error)

	// Put adds an object. r gives exactly info.StoredSize bytes, encoded as
	// info.Encoding says, and is read to its end. They are decoded, hashed
	// and counted before the object becomes visible; when they are not what
	// info says, the error wraps ErrRefused and nothing is left behind. The
	// object is durable when Put returns. An object that is already there
	// is replaced, which repairs it if it was damaged.
	Put(ctx context.Context, info Info, r io.Reader) error

	// List calls f for each object, in no particular order, and stops at
	// its first error, which it returns.
	List(ctx context.Context, f func(Info) error) error

	// Delete removes an object. A missing object is no error.
	Delete(ctx context.Context, digest Digest) error
}

// Error is an error with a stable code, explained in docs/errors.md. The
// values below are compared with errors.Is; what is returned wraps them.
type Error struct {
	code, text string
}

// Error returns the message without its code.
func (e *Error) Error() string { return e.text }

// Code returns the stable code, for example "IMG-002".
func (e *Error) Code() string { return e.code }

var (
	// ErrNotFound (IMG-001): the store has no such object.
	ErrNotFound = &Error{"IMG-001", "object not found"}
	// ErrDamaged (IMG-002): the bytes are not what the digest says.
	ErrDamaged = &Error{"IMG-002", "object is damaged"}
	// ErrRefused (IMG-003): bytes offered to a store lie about their
	// digest, size or encoding.
	ErrRefused = &Error{"IMG-003", "object refused: its bytes are not what was announced"}
	// ErrDigest (IMG-004): text that should be a digest is none.
	ErrDigest = &Error{"IMG-004", "not a digest (sha256: and 64 lower-case hexadecimal digits)"}
)

// VerifyReader passes on what r gives and checks it against want and size.
// It never passes on more than size bytes. Instead of io.EOF it returns an
// error that wraps ErrDamaged when bytes are missing, too many or wrong. Other
// errors of r are returned as they are, except io.ErrUnexpectedEOF, which
// means missing bytes too.
func VerifyReader(r io.Reader, want Digest, size uint64) io.Reader {
	return &verifyReader{r: r, want: want, left: size, size: size, hash: sha256.New()}
}

type verifyReader struct {
	r          io.Reader
	want       Digest
	size, left uint64
	hash       hash.Hash
	err        error // sticky
}

func (v *verifyReader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if v.left == 0 {
		v.err = v.end()
		return 0, v.err
	}
	if uint64(len(p)) > v.left {
		p = p[:v.left]
	}
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.left -= uint64(n)
	switch {
	case err == nil:
	case (err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)) && v.left > 0:
		v.err = fmt.Errorf("object %s: %d of %d bytes are missing: %w", v.want, v.left, v.size, ErrDamaged)
	case err == io.EOF:
		// The end is judged below or by the next call.
	default:
		v.err = err
	}
	return n, v.err
}

// end is called when size bytes have been passed on: nothing may follow, and
// the digest must be the wanted one.
func (v *verifyReader) end() error {
	var one [1]byte
	for range 100 {
		n, err := v.r.Read(one[:])
		if n > 0 {
			return fmt.Errorf("object %s: more than %d bytes: %w", v.want, v.size, ErrDamaged)
		}
		if err == io.EOF {
			var got Digest
			v.hash.Sum(got[:0])
			if got != v.want {
				return fmt.Errorf("object %s: its bytes hash to %s: %w", v.want, got, ErrDamaged)
			}
			return io.EOF
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("object %s: cut off: %w", v.want, ErrDamaged)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("object %s: %w", v.want, io.ErrNoProgress)
}
