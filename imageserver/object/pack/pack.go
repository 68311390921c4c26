// Package pack keeps many objects in one append-only file.
//
// A pack is a header, the encoded bytes of its objects one after the other,
// and, once finished, an index of them at its end by which it can be opened
// again. Until then the index is in memory only. The bytes of objects never
// stay on the Go heap: they are written to and read from the file, through
// buffers that are used again. The package opens no file itself.
package pack

import "io"

// File is what a pack is written to and read from. *os.File is one.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// Options for a Writer.
type Options struct {
	// Limit is the most bytes that the pack may take in the file, 0 means
	// no limit. An object that does not fit is refused with ErrFull. Holes
	// between objects do not count.
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

