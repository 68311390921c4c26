package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/firstlight/firstlight/imageserver/object"
)

// The encoding, format 1. Numbers are unsigned varints (encoding/binary),
// seconds are signed ones; text is its length and its bytes.
//
//	"FLIMAGE\n", format
//	number of attributes, each: key, value        sorted by key
//	number of entries, each:
//	    bytes of the path shared with the entry before, rest of the path
//	    type
//	    hard link: target
//	    others:    mode, uid, gid, seconds, nanoseconds
//	               file: size, and if it is not 0: 32 bytes of digest
//	               symbolic link: target
//	               device: major, minor
//	               number of extended attributes, each: name, value
//
// There is exactly one encoding of a manifest: Decode refuses any other.
const (
	magic  = "FLIMAGE\n"
	format = 1

	// The least bytes that one of each takes: they bound what Decode
	// allocates for a count it has not yet seen the items of.
	leastAttribute = 2
	leastEntry     = 6
	leastXattr     = 2

	// MaxEncoded is the most bytes that an encoded manifest may have.
	MaxEncoded = 128 << 20
)

// Encode returns the one encoding of m. A manifest that breaks its rules is an
// error that wraps ErrMalformed.
func Encode(m *Manifest) ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	return m.encode(), nil
}

func (m *Manifest) encode() []byte {
	b := make([]byte, 0, 64+len(m.Entries)*80)
	b = append(b, magic...)
	b = binary.AppendUvarint(b, format)
	b = binary.AppendUvarint(b, uint64(len(m.Attributes)))
	for _, key := range slices.Sorted(maps.Keys(m.Attributes)) {
		b = appendText(b, key)
		b = appendText(b, m.Attributes[key])
	}
	b = binary.AppendUvarint(b, uint64(len(m.Entries)))
	before := ""
	for i := range m.Entries {
		e := &m.Entries[i]
		shared := sharedPrefix(before, e.Path)
		b = binary.AppendUvarint(b, uint64(shared))
		b = appendText(b, e.Path[shared:])
		before = e.Path
		b = e.append(b)
	}
	return b
}

func (e *Entry) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(e.Type))
	if e.Type == Hardlink {
		return appendText(b, e.Target)
	}
	b = binary.AppendUvarint(b, uint64(e.Mode))
	b = binary.AppendUvarint(b, uint64(e.UID))
	b = binary.AppendUvarint(b, uint64(e.GID))
	b = binary.AppendVarint(b, e.Seconds)
	b = binary.AppendUvarint(b, uint64(e.Nanoseconds))
	switch e.Type {
	case File:
		b = binary.AppendUvarint(b, e.Size)
		if e.Size > 0 {
			b = append(b, e.Digest[:]...)
		}
	case Symlink:
		b = appendText(b, e.Target)
	case CharDevice, BlockDevice:
		b = binary.AppendUvarint(b, uint64(e.Major))
		b = binary.AppendUvarint(b, uint64(e.Minor))
	}
	b = binary.AppendUvarint(b, uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		b = appendText(b, x.Name)
		b = binary.AppendUvarint(b, uint64(len(x.Value)))
		b = append(b, x.Value...)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func sharedPrefix(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Digest returns the digest of the encoded manifest, which names the image.
func (m *Manifest) Digest() (object.Digest, error) {
	b, err := Encode(m)
	if err != nil {
		return object.Digest{}, err
	}
	return object.Of(b), nil
}

// Decode reads what Encode wrote, and nothing else: whatever breaks a rule of
// Manifest or Entry, or could have been encoded otherwise, is an error that
// wraps ErrMalformed. A newer format is an error that wraps ErrFormat.
func Decode(b []byte) (*Manifest, error) {
	m, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("decoding the manifest: %w", err)
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("decoding the manifest: %w", err)
	}
	if !bytes.Equal(m.encode(), b) {
		return nil, fmt.Errorf("decoding the manifest: not the shortest encoding: %w", ErrMalformed)
	}
	return m, nil
}

func decode(b []byte) (*Manifest, error) {
	rest, found := bytes.CutPrefix(b, []byte(magic))
	if !found {
		return nil, fmt.Errorf("it does not begin like one: %w", ErrMalformed)
	}
	if len(b) > MaxEncoded {
		return nil, fmt.Errorf("%d bytes are more than %d: %w", len(b), MaxEncoded, ErrMalformed)
	}
	d := &decoder{rest: rest}
	switch f := d.number(1<<64 - 1); {
	case d.err != nil:
	case f > format:
		return nil, fmt.Errorf("format %d, this program reads up to %d: %w", f, format, ErrFormat)
	case f < format:
		return nil, fmt.Errorf("format %d: %w", f, ErrMalformed)
	}
	m := &Manifest{}
	if n := d.count(leastAttribute); n > 0 {
		m.Attributes = make(map[string]string, n)
		for range n {
			key := d.text()
			value := d.text()
			m.Attributes[key] = value
		}
		// Keys out of order or double come out differently when encoded.
	}
	entries := d.count(leastEntry)
	m.Entries = make([]Entry, 0, min(entries, 64<<10))
	before := ""
	for range entries {
		shared := d.number(uint64(len(before)))
		rest := d.bytes()
		if d.err == nil && int(shared)+len(rest) > maxPath {
			d.fail("path too long")
		}
		if d.err != nil {
			break
		}
		e := Entry{Path: before[:shared] + string(rest)}
		before = e.Path
		d.entry(&e)
		m.Entries = append(m.Entries, e)
	}
	if d.err == nil && len(d.rest) > 0 {
		d.fail("bytes after its end")
	}
	if d.err != nil {
		return nil, fmt.Errorf("at byte %d: %w", len(b)-len(d.rest), d.err)
	}
	return m, nil
}

// decoder reads from rest. After an error everything reads as zero.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%s: %w", what, ErrMalformed)
	}
}

func (d *decoder) number(most uint64) uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail("cut off or not a number")
		return 0
	}
	if v > most {
		d.fail("number out of range")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) signed() int64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.fail("cut off or not a number")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

// count reads a number of items that take at least least bytes each.
func (d *decoder) count(least int) int {
	return int(d.number(uint64(len(d.rest) / least)))
}

// bytes returns a part of the input.
func (d *decoder) bytes() []byte {
	return d.take(int(d.number(uint64(len(d.rest)))))
}

func (d *decoder) take(n int) []byte {
	if n > len(d.rest) {
		d.fail("cut off")
	}
	if d.err != nil {
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) text() string { return string(d.bytes()) }

func (d *decoder) entry(e *Entry) {
	e.Type = Type(d.number(uint64(Socket)))
	if e.Type == Hardlink {
		e.Target = d.text()
		return
	}
	e.Mode = uint32(d.number(0o7777))
	e.UID = uint32(d.number(1<<32 - 1))
	e.GID = uint32(d.number(1<<32 - 1))
	e.Seconds = d.signed()
	e.Nanoseconds = uint32(d.number(1e9 - 1))
	switch e.Type {
	case File:
		if e.Size = d.number(1<<63 - 1); e.Size > 0 {
			copy(e.Digest[:], d.take(len(e.Digest)))
		}
	case Symlink:
		e.Target = d.text()
	case CharDevice, BlockDevice:
		e.Major = uint32(d.number(1<<32 - 1))
		e.Minor = uint32(d.number(1<<32 - 1))
	}
	if n := d.count(leastXattr); n > 0 {
		e.Xattrs = make([]Xattr, n)
		for i := range e.Xattrs {
			e.Xattrs[i].Name = d.text()
			e.Xattrs[i].Value = bytes.Clone(d.bytes())
		}
	}
}
