package ingest

import (
	"context"
	"crypto/sha256"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// tree collects entries in the order of the source.
type tree struct {
	entries map[string]*image.Entry
	// again are entries whose path was there before.
	again []*image.Entry
	// acls are POSIX ACLs in text form, by path. Their names are looked up
	// in the image's own passwd and group when these are known.
	acls map[string][]textACL
	// lower holds what lies below the layer that is read; nil without layers.
	lower map[string]*image.Entry
}

func newTree() *tree {
	return &tree{entries: make(map[string]*image.Entry), acls: make(map[string][]textACL)}
}

// add takes an entry, whose digest may still be computed.
func (t *tree) add(e *image.Entry) {
	if _, found := t.entries[e.Path]; found {
		t.again = append(t.again, e)
		return
	}
	t.entries[e.Path] = e
}

// inode follows a hard link to the entry that has the metadata.
func (t *tree) inode(path string) (*image.Entry, bool) {
	for range len(t.entries) + 1 {
		e, found := t.entries[path]
		if !found {
			e, found = t.lower[path]
			return e, found
		}
		if e.Type != image.Hardlink {
			return e, true
		}
		path = e.Target
	}
	return nil, false
}

// content returns the bytes of a file of the image, if they were kept.
func (t *tree) content(path string, contents map[object.Digest][]byte) []byte {
	e, found := t.inode(path)
	if !found {
		return nil
	}
	return contents[e.Digest]
}

// manifest brings everything into order. All digests must be there.
func (t *tree) manifest(contents map[object.Digest][]byte) (*image.Manifest, error) {
	for _, path := range slices.Sorted(maps.Keys(t.acls)) {
		if e, found := t.entries[path]; found {
			for _, acl := range t.acls[path] {
				if err := acl.attach(e, func(path string) []byte { return t.content(path, contents) }); err != nil {
					return nil, err
				}
			}
		}
	}
	for _, e := range t.again {
		// tar lists a file twice when it is told to; that is harmless as
		// long as both say the same. Which of two different ones is meant,
		// nobody can know.
		first := t.entries[e.Path]
		if inode, found := t.inode(e.Path); e.Type == image.Hardlink && found {
			if target, found := t.inode(e.Target); found && target == inode {
				continue
			}
		}
		if !reflect.DeepEqual(*first, *e) {
			return nil, refuse(e.Path, "it is there twice, with different content or metadata")
		}
	}
	if root, found := t.entries["."]; found && root.Type != image.Dir {
		return nil, refuse(".", "the root is no directory")
	}
	for _, path := range slices.Sorted(maps.Keys(t.entries)) {
		t.addParents(path)
	}
	if err := t.orderLinks(); err != nil {
		return nil, err
	}
	m := &image.Manifest{Entries: make([]image.Entry, 0, len(t.entries))}
	for _, path := range slices.SortedFunc(maps.Keys(t.entries), image.Compare) {
		if parent := t.entries[image.Parent(path)]; parent.Type != image.Dir {
			return nil, refuse(path, "%q, which should hold it, is no directory", parent.Path)
		}
		m.Entries = append(m.Entries, *t.entries[path])
	}
	return m, nil
}

// addParents adds the directories above path that the source does not list,
// as tar would make them.
func (t *tree) addParents(path string) {
	for {
		if _, found := t.entries[path]; !found {
			t.entries[path] = &image.Entry{Path: path, Type: image.Dir, Mode: 0o755}
		}
		if path == "." {
			return
		}
		path = image.Parent(path)
	}
}

// orderLinks makes the first name of each inode, in the order of paths, the
// one that has the metadata, and lets the others point to it.
func (t *tree) orderLinks() error {
	names := make(map[*image.Entry][]string)
	for path, e := range t.entries {
		if e.Type != image.Hardlink {
			continue
		}
		inode, found := t.inode(path)
		if !found {
			return refuse(path, "hard link to %q, which is not there", e.Target)
		}
		if inode.Type == image.Dir {
			return refuse(path, "hard link to the directory %q", e.Target)
		}
		names[inode] = append(names[inode], path)
	}
	for inode, paths := range names {
		paths = append(paths, inode.Path)
		slices.SortFunc(paths, image.Compare)
		inode.Path = paths[0]
		t.entries[paths[0]] = inode
		for _, path := range paths[1:] {
			t.entries[path] = &image.Entry{Path: path, Type: image.Hardlink, Target: paths[0]}
		}
	}
	return nil
}

// hashAll reads r to its end.
func hashAll(ctx context.Context, r io.Reader, also io.Writer) (object.Digest, uint64, error) {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(h, also), &contextReader{ctx, r})
	var d object.Digest
	h.Sum(d[:0])
	return d, uint64(n), err
}

// contextReader ends when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// cleanPath brings the name of a tar entry into the form of a manifest: "./"
// before it and "/" behind it go. Anything that reaches out of the tree, or
// would need more mending than that, is refused.
func cleanPath(name string) (string, error) {
	path := name
	for strings.HasPrefix(path, "./") {
		path = path[2:]
	}
	path = strings.TrimSuffix(path, "/")
	if strings.HasPrefix(name, "/") {
		return "", refuse(name, "its name begins with a slash; make the tar with relative names (tar -C ROOT -c .)")
	}
	if path == "" || path == "." {
		if name == "" {
			return "", refuse(name, "it has no name")
		}
		return ".", nil
	}
	if err := image.CheckPath(path); err != nil {
		return "", refuse(name, "%v", err)
	}
	return path, nil
}
