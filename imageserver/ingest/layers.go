package ingest

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Whiteouts of a layer: OCI image specification, layer.md, "Whiteouts".
const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// layer is one tar of a container image.
type layer struct {
	name string // for messages
	// digest is of the bytes that open gives; zero where none was announced.
	digest object.Digest
	open   func() (io.ReadCloser, error)
}

// layers are applied one after the other, the lowest first. They are read twice:
// once to see which entries are left at the end, and once for the content of
// those.
func layers(ctx context.Context, all []layer, sink Sink, options Options) (*image.Manifest, error) {
	in := newIntake(ctx, sink, options)
	s := &stack{names: make(map[string]*image.Entry), acls: make(map[*image.Entry][]textACL)}
	var read [][]*image.Entry // of each layer, in the order of its headers
	for _, one := range all {
		entries, err := s.apply(in, one)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", one.name, err)
		}
		read = append(read, entries)
	}
	left := make(map[*image.Entry]bool)
	for _, e := range s.names {
		left[e] = true
	}
	for i, one := range all {
		if err := contents(in, one, read[i], left, options); err != nil {
			// A worker's error came first and is why reading ended.
			if workerErr := in.group.Wait(); workerErr != nil && in.ctx.Err() != nil && ctx.Err() == nil {
				err = workerErr
			}
			return nil, fmt.Errorf("layer %s: %w", one.name, err)
		}
	}
	if err := in.group.Wait(); err != nil {
		return nil, err
	}
	return in.finish(s.tree(), options)
}

// stack is what the layers so far add up to. Names of one inode share an entry.
type stack struct {
	names map[string]*image.Entry
	acls  map[*image.Entry][]textACL
}

// eachHeader calls f for every entry of a layer, and checks that its bytes are
// the announced ones.
func eachHeader(in *intake, one layer, f func(archive *tar.Reader, header *tar.Header) error) (err error) {
	file, err := one.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	hashed := &hashing{r: file, hash: sha256.New()}
	plain, closePlain, err := decompress(hashed)
	if err != nil {
		return err
	}
	defer closePlain()
	if err := eachEntry(in.ctx, plain, f); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, hashed); err != nil {
		return err
	}
	var got object.Digest
	hashed.hash.Sum(got[:0])
	if !one.digest.IsZero() && got != one.digest {
		return fmt.Errorf("its bytes hash to %s, announced is %s: %w", got, one.digest, ErrSource)
	}
	return nil
}

type hashing struct {
	r    io.Reader
	hash hash.Hash
}

func (h *hashing) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	return n, err
}

// apply reads the headers of a layer and puts its entries onto the stack. It
// returns them in their order, nil for whiteouts and further names.
func (s *stack) apply(in *intake, one layer) ([]*image.Entry, error) {
	t := newTree()
	t.lower = s.names
	var read []*image.Entry
	var gone, opaque []string
	err := eachHeader(in, one, func(_ *tar.Reader, header *tar.Header) error {
		if name, kind, err := whiteout(header.Name); kind != noWhiteout {
			read = append(read, nil)
			switch kind {
			case whiteoutName:
				gone = append(gone, name)
			case whiteoutBelow:
				opaque = append(opaque, name)
			}
			return err
		}
		e, err := entryOf(header, t)
		if err != nil || e == nil {
			read = append(read, nil)
			return err
		}
		if e.Type == image.Hardlink {
			read = append(read, nil)
			t.add(e)
			return nil
		}
		read = append(read, e)
		t.add(e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, e := range t.again {
		if t.entries[e.Path].Type != image.Dir || e.Type != image.Dir {
			return nil, refuse(e.Path, "it is twice in the layer")
		}
		t.entries[e.Path] = e // the later one, as tar would
	}
	// Whiteouts speak of lower layers only, wherever they stand.
	s.remove(gone, opaque)
	for _, name := range slices.SortedFunc(maps.Keys(t.entries), image.Compare) {
		e := t.entries[name]
		if e.Type == image.Hardlink {
			target, found := t.inode(e.Target)
			if !found {
				return nil, refuse(name, "hard link to %q, which is not there", e.Target)
			}
			if target.Type == image.Dir {
				return nil, refuse(name, "hard link to the directory %q", e.Target)
			}
			e = target
		}
		if before, found := s.names[name]; found && before.Type == image.Dir && e.Type != image.Dir {
			s.remove([]string{name}, nil)
		}
		s.names[name] = e
		if acls := t.acls[name]; len(acls) > 0 {
			s.acls[e] = acls
		}
	}
	return read, nil
}

// The kinds of whiteouts.
const (
	noWhiteout    = iota
	whiteoutName  // the name goes
	whiteoutBelow // all below the name goes
	whiteoutOther // aufs keeps its own files under such names
)

// whiteout reads an entry's name as a whiteout and says what it takes away.
func whiteout(header string) (name string, kind int, err error) {
	dir, base := path.Split(strings.TrimSuffix(header, "/"))
	rest, is := strings.CutPrefix(base, whiteoutPrefix)
	switch {
	case !is:
		return "", noWhiteout, nil
	case base == whiteoutOpaque:
		if dir == "" {
			dir = "./"
		}
		name, err = cleanPath(dir)
		return name, whiteoutBelow, err
	case strings.HasPrefix(rest, whiteoutPrefix):
		return "", whiteoutOther, nil
	case rest == "", rest == ".", rest == "..":
		return "", whiteoutName, refuse(header, "a whiteout of no name")
	}
	name, err = cleanPath(dir + rest)
	return name, whiteoutName, err
}

// remove takes names and all below them away; of opaque directories only what
// is below.
func (s *stack) remove(gone, opaque []string) {
	if len(gone)+len(opaque) == 0 {
		return
	}
	removed := make(map[string]bool, len(gone))
	emptied := make(map[string]bool, len(opaque))
	for _, name := range gone {
		removed[name] = true
	}
	for _, name := range opaque {
		emptied[name] = true
	}
	for name := range s.names {
		if removed[name] {
			delete(s.names, name)
			continue
		}
		for above := name; above != "."; {
			above = image.Parent(above)
			if removed[above] || emptied[above] {
				delete(s.names, name)
				break
			}
		}
	}
}

// contents takes the content of those entries of a layer that are left.
func contents(in *intake, one layer, read []*image.Entry, left map[*image.Entry]bool, options Options) error {
	wanted := false
	for _, e := range read {
		wanted = wanted || e != nil && left[e] && e.Size > 0
	}
	if !wanted {
		return nil
	}
	i := 0
	err := eachHeader(in, one, func(archive *tar.Reader, header *tar.Header) error {
		if i == len(read) {
			return fmt.Errorf("%q: %w", header.Name, ErrChanged)
		}
		e := read[i]
		i++
		if e == nil || !left[e] || e.Size == 0 {
			return nil
		}
		if name, err := cleanPath(header.Name); err != nil || name != e.Path || header.Size != int64(e.Size) {
			return fmt.Errorf("%q: %w", header.Name, ErrChanged)
		}
		return readContent(archive, e, in, options)
	})
	if err == nil && i != len(read) {
		err = ErrChanged
	}
	return err
}

// tree is the stack as a tree whose further names are hard links.
func (s *stack) tree() *tree {
	names := make(map[*image.Entry][]string)
	for name, e := range s.names {
		names[e] = append(names[e], name)
	}
	t := newTree()
	for e, all := range names {
		slices.SortFunc(all, image.Compare)
		e.Path = all[0]
		t.entries[e.Path] = e
		for _, name := range all[1:] {
			t.entries[name] = &image.Entry{Path: name, Type: image.Hardlink, Target: e.Path}
		}
		for _, acl := range s.acls[e] {
			acl.path = e.Path
			t.acls[e.Path] = append(t.acls[e.Path], acl)
		}
	}
	return t
}
