package image

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/object"
)

// Limits of Linux (limits.h, xattr(7)) that a manifest must keep to.
const (
	maxPath       = 4095
	maxName       = 255
	maxXattrName  = 255
	maxXattrValue = 64 << 10
	// maxLinks is how many symbolic links are followed for one path, as in
	// path_resolution(7).
	maxLinks = 40
)

// Compare orders paths as the entries of a manifest are: the root first, then
// by bytes.
func Compare(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == ".":
		return -1
	case b == ".":
		return 1
	}
	return cmp.Compare(a, b)
}

// Parent returns the path of the directory that holds path; that of the root
// is the root.
func Parent(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// CheckPath says what is wrong with path as the path of an entry: it must be
// relative, without empty components, ".", ".." or NUL, and within the limits
// of Linux; "." alone is the root. Its error wraps ErrMalformed.
func CheckPath(path string) error {
	if path == "." {
		return nil
	}
	if len(path) > maxPath {
		return fmt.Errorf("path of %d bytes: %w", len(path), ErrMalformed)
	}
	for name := range strings.SplitSeq(path, "/") {
		switch {
		case name == "", name == ".", name == "..":
			return fmt.Errorf("path %q has a component %q: %w", path, name, ErrMalformed)
		case len(name) > maxName:
			return fmt.Errorf("path %q has a name of %d bytes: %w", path, len(name), ErrMalformed)
		case strings.IndexByte(name, 0) >= 0:
			return fmt.Errorf("path %q has a NUL byte: %w", path, ErrMalformed)
		}
	}
	return nil
}

// Validate checks every rule that Entry and Manifest state. Its error wraps
// ErrMalformed and names the entry.
func (m *Manifest) Validate() error {
	for key, value := range m.Attributes {
		if key == "" || len(key) > maxName || len(value) > maxXattrValue {
			return fmt.Errorf("attribute %.40q: %w", key, ErrMalformed)
		}
	}
	if len(m.Entries) == 0 || m.Entries[0].Path != "." || m.Entries[0].Type != Dir {
		return fmt.Errorf("the first entry is not the root directory: %w", ErrMalformed)
	}
	types := make(map[string]Type, len(m.Entries))
	sizes := make(map[object.Digest]uint64, len(m.Entries))
	for i := range m.Entries {
		e := &m.Entries[i]
		if err := CheckPath(e.Path); err != nil {
			return err
		}
		if i > 0 {
			if before := m.Entries[i-1].Path; Compare(before, e.Path) >= 0 {
				return fmt.Errorf("%q after %q: out of order: %w", e.Path, before, ErrMalformed)
			}
			if t, found := types[Parent(e.Path)]; !found || t != Dir {
				return fmt.Errorf("%q: what should hold it is no directory: %w", e.Path, ErrMalformed)
			}
		}
		if err := e.validate(); err != nil {
			return fmt.Errorf("%q: %w: %w", e.Path, err, ErrMalformed)
		}
		if e.Type == Hardlink {
			if t, found := types[e.Target]; !found || t == Dir || t == Hardlink {
				return fmt.Errorf("%q: hard link to %q, which is no earlier inode: %w", e.Path, e.Target, ErrMalformed)
			}
		}
		if e.Size > 0 {
			if size, found := sizes[e.Digest]; found && size != e.Size {
				return fmt.Errorf("%q: object %s has two sizes: %w", e.Path, e.Digest, ErrMalformed)
			}
			sizes[e.Digest] = e.Size
		}
		types[e.Path] = e.Type
	}
	return nil
}

// validate checks what can be said of an entry by itself.
func (e *Entry) validate() error {
	if e.Type > Socket {
		return fmt.Errorf("unknown type %d", e.Type)
	}
	if e.Type == Hardlink {
		if e.Mode != 0 || e.UID != 0 || e.GID != 0 || e.Seconds != 0 || e.Nanoseconds != 0 || len(e.Xattrs) > 0 {
			return fmt.Errorf("a hard link with metadata of its own")
		}
	}
	if e.Mode > 0o7777 {
		return fmt.Errorf("mode %#o", e.Mode)
	}
	if e.Nanoseconds >= 1e9 {
		return fmt.Errorf("%d nanoseconds", e.Nanoseconds)
	}
	if e.Type != File && e.Size > 0 || e.Digest.IsZero() != (e.Size == 0) {
		return fmt.Errorf("size %d and object do not fit", e.Size)
	}
	hasTarget := e.Type == Symlink || e.Type == Hardlink
	if hasTarget == (e.Target == "") || len(e.Target) > maxPath || strings.IndexByte(e.Target, 0) >= 0 {
		return fmt.Errorf("bad link target %.40q", e.Target)
	}
	isDevice := e.Type == CharDevice || e.Type == BlockDevice
	if !isDevice && (e.Major != 0 || e.Minor != 0) {
		return fmt.Errorf("device numbers, but no device")
	}
	// The kernel's dev_t has 12 and 20 bits.
	if e.Major >= 1<<12 || e.Minor >= 1<<20 {
		return fmt.Errorf("device number %d:%d is out of range", e.Major, e.Minor)
	}
	for i, x := range e.Xattrs {
		if x.Name == "" || len(x.Name) > maxXattrName || strings.IndexByte(x.Name, 0) >= 0 || len(x.Value) > maxXattrValue {
			return fmt.Errorf("bad extended attribute %.40q", x.Name)
		}
		if i > 0 && e.Xattrs[i-1].Name >= x.Name {
			return fmt.Errorf("extended attribute %q out of order", x.Name)
		}
	}
	return nil
}

// Objects returns the objects that the image needs, each once, in the order
// of the first entry that uses them.
func (m *Manifest) Objects() []Object {
	seen := make(map[object.Digest]bool, len(m.Entries))
	var objects []Object
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Size > 0 && !seen[e.Digest] {
			seen[e.Digest] = true
			objects = append(objects, Object{e.Digest, e.Size})
		}
	}
	return objects
}

// Bytes returns the unpacked bytes of all objects together, each counted
// once.
func (m *Manifest) Bytes() uint64 {
	var sum uint64
	for _, o := range m.Objects() {
		sum += o.Size
	}
	return sum
}

// Inodes returns the number of inodes: further names of one inode do not
// count.
func (m *Manifest) Inodes() uint64 {
	var n uint64
	for i := range m.Entries {
		if m.Entries[i].Type != Hardlink {
			n++
		}
	}
	return n
}

// Lookup finds the entry with exactly this path and follows no links. A
// leading slash is ignored; "" and "/" are the root.
func (m *Manifest) Lookup(path string) (Entry, bool) {
	path = strings.TrimPrefix(path, "/")
	if path == "" {
		path = "."
	}
	i, found := slices.BinarySearchFunc(m.Entries, path, func(e Entry, p string) int { return Compare(e.Path, p) })
	if !found {
		return Entry{}, false
	}
	return m.Entries[i], true
}

// Resolve finds the inode that path leads to when the image is the root
// file-system: symbolic links are followed inside the tree, as in
// path_resolution(7), and a hard link gives the entry of its target. The
// Path of what it returns is where the inode really lies.
func (m *Manifest) Resolve(path string) (Entry, bool) {
	at, _ := m.Lookup(".")
	rest := strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if at.Type != Dir {
			return Entry{}, false
		}
		next := at.Path + "/" + name
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			next = Parent(at.Path)
		case at.Path == ".":
			next = name
		}
		e, found := m.Lookup(next)
		if found && e.Type == Hardlink {
			e, found = m.Lookup(e.Target)
		}
		if !found {
			return Entry{}, false
		}
		if e.Type != Symlink {
			at = e
			continue
		}
		if links++; links > maxLinks {
			return Entry{}, false
		}
		if strings.HasPrefix(e.Target, "/") {
			at, _ = m.Lookup(".")
		}
		rest = append(strings.Split(e.Target, "/"), rest...)
	}
	return at, true
}
