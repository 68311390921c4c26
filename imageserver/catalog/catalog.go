// Package catalog is the set of images that a server knows by name: which
// names are possible, what a name means, and which image is the newest of a
// stream.
//
// It holds no files: catalog/store keeps the entries, and the objects and
// manifests lie in an object.Store.
package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
)

// Entry is one image.
type Entry struct {
	Name    string
	Digest  object.Digest // of the manifest
	Added   time.Time     // UTC
	Bytes   uint64        // unpacked bytes of the distinct files
	Objects uint64        // distinct files
	Inodes  uint64
	// Attributes are those of the manifest.
	Attributes map[string]string
	// AddedBy is the subject of the client certificate; empty without TLS.
	AddedBy string
	// Expires is when the image may go (UTC); the zero time means never.
	Expires time.Time
}

// Kind says why a request was refused.
type Kind uint8

// The kinds of an Error.
const (
	BadName  Kind = iota // no image can have this name
	NotFound             // there is none
	Taken                // the name belongs to another manifest, or is a stream
	InUse                // an alias means the image
)

// Error is a name that cannot be used. Its codes are explained in
// docs/errors.md.
type Error struct {
	Kind Kind
	text string
}

// Error is the text, with the nearest names where there are some.
func (e *Error) Error() string { return e.text }

// Code is the stable code: SRV-010 (bad name), SRV-011 (not found), SRV-012
// (taken), SRV-015 (in use).
func (e *Error) Code() string {
	return map[Kind]string{BadName: "SRV-010", NotFound: "SRV-011", Taken: "SRV-012", InUse: "SRV-015"}[e.Kind]
}

// maxName is the longest name, in bytes: it is also a file name, and those end
// at 255.
const maxName = 200

// pin separates a name from the manifest's digest that it is pinned to.
const pin = "@"

// CheckName says whether an image or a stream can have this name: elements of
// [A-Za-z0-9._:+-], separated by "/", none of them empty, "." or "..", at most
// 200 bytes together. The error is an *Error.
func CheckName(name string) error {
	bad := func(format string, args ...any) error {
		return &Error{BadName, fmt.Sprintf("%.*q cannot name an image: ", maxName, name) + fmt.Sprintf(format, args...)}
	}
	if name == "" {
		return bad("it is empty")
	}
	if len(name) > maxName {
		return bad("it is longer than %d bytes", maxName)
	}
	for element := range strings.SplitSeq(name, "/") {
		switch {
		case element == "":
			return bad("it begins or ends with a slash, or has two in a row")
		case element == "." || element == "..":
			return bad("%q is no element of a name", element)
		}
		for _, r := range element {
			if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._:+-", r)) {
				return bad("%q is not one of A-Z a-z 0-9 . _ : + - /", r)
			}
		}
	}
	return nil
}

// SplitPin takes "@sha256:<hex>" off a name. The digest is zero where there is
// none. The error is an *Error.
func SplitPin(name string) (string, object.Digest, error) {
	bare, text, pinned := strings.Cut(name, pin)
	if err := CheckName(bare); err != nil {
		return "", object.Digest{}, err
	}
	if !pinned {
		return bare, object.Digest{}, nil
	}
	digest, err := object.ParseDigest(text)
	if err != nil {
		return "", object.Digest{}, &Error{BadName, fmt.Sprintf("%q: behind %q stands no digest (sha256:<64 hexadecimal digits>)", name, pin)}
	}
	return bare, digest, nil
}

// Catalog is a set of entries with different names, of aliases that mean some of
// them, and of streams' retentions. The zero Catalog is empty. It is not safe
// for concurrent use.
type Catalog struct {
	entries    []Entry          // sorted by name
	aliases    map[string]Alias // by their name
	retentions map[string]Retention
}

// New is the catalog of these entries. It fails where one has an impossible
// name or two have the same.
func New(entries []Entry) (*Catalog, error) {
	c := &Catalog{entries: slices.SortedFunc(slices.Values(entries), func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })}
	for i, entry := range c.entries {
		if err := CheckName(entry.Name); err != nil {
			return nil, err
		}
		if i > 0 && c.entries[i-1].Name == entry.Name {
			return nil, &Error{Taken, fmt.Sprintf("two images are named %s", entry.Name)}
		}
	}
	return c, nil
}

// Len is the number of images.
func (c *Catalog) Len() int { return len(c.entries) }

// Resolve is the image that a name means: the one of exactly this name or that
// an alias of this name means, else the one added last below it. A name with a digest behind it means an image
// of that manifest only. The error is an *Error that names the nearest names.
func (c *Catalog) Resolve(name string) (Entry, error) {
	bare, digest, err := SplitPin(name)
	if err != nil {
		return Entry{}, err
	}
	if entry, ok := c.meant(bare); ok {
		if !digest.IsZero() && entry.Digest != digest {
			return Entry{}, &Error{NotFound, fmt.Sprintf("image %s is %s now, not %s", bare, entry.Digest, digest)}
		}
		return entry, nil
	}
	below := c.List(bare)
	if !digest.IsZero() {
		below = slices.DeleteFunc(below, func(e Entry) bool { return e.Digest != digest })
	}
	if len(below) == 0 {
		return Entry{}, &Error{NotFound, "there is no image " + name + c.nearest(bare)}
	}
	return slices.MaxFunc(below, func(a, b Entry) int {
		return cmp.Or(a.Added.Compare(b.Added), cmp.Compare(a.Name, b.Name))
	}), nil
}

// List is the entries whose name is prefix or lies below it, sorted by name;
// all of them where prefix is empty.
func (c *Catalog) List(prefix string) []Entry {
	if prefix == "" {
		return slices.Clone(c.entries)
	}
	var found []Entry
	for _, entry := range c.entries {
		if entry.Name == prefix || strings.HasPrefix(entry.Name, prefix+"/") {
			found = append(found, entry)
		}
	}
	return found
}

// Prepare decides whether an entry can be added at the time now. It returns
// the entry to write, with its time, or the one that is there already (and
// true) where it has the same name and manifest. Times only grow, so that the
// newest is always the one added last, also after the clock was set back. The
// error is an *Error.
func (c *Catalog) Prepare(entry Entry, now time.Time) (Entry, bool, error) {
	if err := CheckName(entry.Name); err != nil {
		return Entry{}, false, err
	}
	if there, ok := c.exact(entry.Name); ok {
		if there.Digest == entry.Digest {
			return there, true, nil
		}
		return Entry{}, false, &Error{Taken, fmt.Sprintf("%s is another image already (%s); choose a new version, or delete that one first", entry.Name, there.Digest)}
	}
	if err := c.free(entry.Name); err != nil {
		return Entry{}, false, err
	}
	entry.Added = now.UTC()
	for _, other := range c.entries {
		if !entry.Added.After(other.Added) {
			entry.Added = other.Added.Add(time.Nanosecond)
		}
	}
	return entry, false, nil
}

// free says why no image and no alias can have a name, other than that an image
// has it.
func (c *Catalog) free(name string) error {
	if alias, ok := c.aliases[name]; ok {
		return &Error{Taken, fmt.Sprintf("%s is an alias of %s; choose another name, or delete the alias first", name, alias.Image)}
	}
	if below := c.below(name); below != "" {
		return &Error{Taken, fmt.Sprintf("%s is a stream (%s lies below it); choose a name that ends with a version", name, below)}
	}
	for parent := Stream(name); parent != ""; parent = Stream(parent) {
		if _, ok := c.exact(parent); ok {
			return &Error{Taken, fmt.Sprintf("%s is an image, so nothing can be added below it", parent)}
		}
		if _, ok := c.aliases[parent]; ok {
			return &Error{Taken, fmt.Sprintf("%s is an alias, so nothing can be added below it", parent)}
		}
	}
	return nil
}

// below is an image or alias below a name, "" where there is none.
func (c *Catalog) below(name string) string {
	for _, entry := range c.entries {
		if strings.HasPrefix(entry.Name, name+"/") {
			return entry.Name
		}
	}
	for alias := range c.aliases {
		if strings.HasPrefix(alias, name+"/") {
			return alias
		}
	}
	return ""
}

// Put adds or replaces an entry, as it is.
func (c *Catalog) Put(entry Entry) {
	i, found := c.search(entry.Name)
	if found {
		c.entries[i] = entry
		return
	}
	c.entries = slices.Insert(c.entries, i, entry)
}

// Remove takes an entry out and returns it, unless digest is not zero and the
// entry has another, or an alias means it. The error is an *Error.
func (c *Catalog) Remove(name string, digest object.Digest) (Entry, error) {
	entry, err := c.Removable(name, digest)
	if err != nil {
		return Entry{}, err
	}
	i, _ := c.search(name)
	c.entries = slices.Delete(c.entries, i, i+1)
	return entry, nil
}

// Removable is Get, and an error also where an alias means the image.
func (c *Catalog) Removable(name string, digest object.Digest) (Entry, error) {
	entry, err := c.Get(name, digest)
	if err != nil {
		return Entry{}, err
	}
	if aliases := c.AliasesOf(name); len(aliases) > 0 {
		return Entry{}, &Error{InUse, fmt.Sprintf("image %s is what %s means; promote another image to that name, or delete the alias, first", name, strings.Join(aliases, " and "))}
	}
	return entry, nil
}

// Get is the entry of exactly this name, unless digest is not zero and the
// entry has another. The error is an *Error.
func (c *Catalog) Get(name string, digest object.Digest) (Entry, error) {
	if err := CheckName(name); err != nil {
		return Entry{}, err
	}
	entry, ok := c.exact(name)
	switch {
	case !ok && len(c.List(name)) > 0:
		return Entry{}, &Error{NotFound, fmt.Sprintf("%s is a stream; name one of its images%s", name, c.nearest(name))}
	case !ok:
		return Entry{}, &Error{NotFound, "there is no image " + name + c.nearest(name)}
	case !digest.IsZero() && entry.Digest != digest:
		return Entry{}, &Error{NotFound, fmt.Sprintf("image %s is %s now, not %s", name, entry.Digest, digest)}
	}
	return entry, nil
}

func (c *Catalog) exact(name string) (Entry, bool) {
	i, found := c.search(name)
	if !found {
		return Entry{}, false
	}
	return c.entries[i], true
}

func (c *Catalog) search(name string) (int, bool) {
	return slices.BinarySearchFunc(c.entries, name, func(e Entry, name string) int { return cmp.Compare(e.Name, name) })
}

// nearest is "; the nearest names are …", at most three of them, images and
// streams, or nothing where none is near.
func (c *Catalog) nearest(name string) string {
	distances := map[string]int{}
	names := slices.Collect(maps.Keys(c.aliases))
	for _, entry := range c.entries {
		names = append(names, entry.Name)
	}
	for _, candidate := range names {
		for {
			d := distance(name, candidate)
			if strings.HasPrefix(candidate, name) || strings.HasPrefix(name, candidate) {
				d = min(d, 2) // cut short, or one element too many
			}
			if d <= 1+min(len(name), len(candidate))/3 {
				distances[candidate] = d
			}
			slash := strings.LastIndexByte(candidate, '/')
			if slash < 0 {
				break
			}
			candidate = candidate[:slash]
		}
	}
	names = slices.SortedFunc(maps.Keys(distances), func(a, b string) int {
		return cmp.Or(cmp.Compare(distances[a], distances[b]), cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	switch len(names) {
	case 0:
		if len(c.entries) == 0 {
			return "; the server has no image at all"
		}
		return ""
	case 1:
		return "; the nearest name is " + names[0]
	}
	return "; the nearest names are " + strings.Join(names[:min(len(names), 3)], ", ")
}

// distance is how many letters must be inserted, deleted or exchanged to make
// b of a (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
