package catalog

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Alias is a second name of an image. It moves from one image to another in one
// step, so whoever resolves it gets the one or the other.
type Alias struct {
	Name  string
	Image string    // name of the image that it means
	Set   time.Time // UTC
	SetBy string    // subject of the client certificate; empty without TLS
}

// Retention says how many images of a stream are kept.
type Retention struct {
	Stream string
	Keep   int       // the newest so many; at least 1
	Set    time.Time // UTC
	SetBy  string
}

// Stream is the name above an image's name, "" where there is none.
func Stream(name string) string {
	return name[:max(strings.LastIndexByte(name, '/'), 0)]
}

// meant is the image of exactly this name, or the one that an alias means.
func (c *Catalog) meant(name string) (Entry, bool) {
	if alias, ok := c.aliases[name]; ok {
		name = alias.Image
	}
	return c.exact(name)
}

// Alias is the alias of exactly this name.
func (c *Catalog) Alias(name string) (Alias, bool) {
	alias, ok := c.aliases[name]
	return alias, ok
}

// Aliases are all aliases, sorted by name.
func (c *Catalog) Aliases() []Alias {
	return slices.SortedFunc(maps.Values(c.aliases), func(a, b Alias) int { return cmp.Compare(a.Name, b.Name) })
}

// AliasesOf are the names of the aliases that mean an image, sorted.
func (c *Catalog) AliasesOf(image string) []string {
	var names []string
	for name, alias := range c.aliases {
		if alias.Image == image {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// PrepareAlias decides whether name can mean the image that target resolves to
// at the time now: an alias moves, an image or a stream stays what it is. It
// returns the alias to write, and the image. The error is an *Error.
func (c *Catalog) PrepareAlias(name, target, by string, now time.Time) (Alias, Entry, error) {
	if err := CheckName(name); err != nil {
		return Alias{}, Entry{}, err
	}
	entry, err := c.Resolve(target)
	if err != nil {
		return Alias{}, Entry{}, err
	}
	if _, ok := c.exact(name); ok {
		return Alias{}, Entry{}, &Error{Taken, fmt.Sprintf("%s is an image; an alias needs a name of its own", name)}
	}
	if _, ok := c.aliases[name]; !ok {
		if err := c.free(name); err != nil {
			return Alias{}, Entry{}, err
		}
	}
	return Alias{Name: name, Image: entry.Name, Set: now.UTC(), SetBy: by}, entry, nil
}

// PutAlias adds or replaces an alias, as it is.
func (c *Catalog) PutAlias(alias Alias) {
	if c.aliases == nil {
		c.aliases = make(map[string]Alias)
	}
	c.aliases[alias.Name] = alias
}

// RemoveAlias takes an alias out; a missing one is no error.
func (c *Catalog) RemoveAlias(name string) { delete(c.aliases, name) }

// Retention is what was said of a stream.
func (c *Catalog) Retention(stream string) (Retention, bool) {
	retention, ok := c.retentions[stream]
	return retention, ok
}

// PutRetention sets how many images a stream keeps; Keep of 0 means all again.
func (c *Catalog) PutRetention(retention Retention) {
	if retention.Keep == 0 {
		delete(c.retentions, retention.Stream)
		return
	}
	if c.retentions == nil {
		c.retentions = make(map[string]Retention)
	}
	c.retentions[retention.Stream] = retention
}

// Due is an image whose time has come, and why.
type Due struct {
	Entry  Entry
	Reason string
}

// Due are the images that may be deleted at the time now, sorted by name: those
// whose time is over, and of a stream with a retention those directly below it
// that are older than its newest ones. An image that an alias means is never
// due.
func (c *Catalog) Due(now time.Time) []Due {
	meant := make(map[string]bool)
	for _, alias := range c.aliases {
		meant[alias.Image] = true
	}
	var due []Due
	streams := make(map[string][]Entry)
	for _, entry := range c.entries {
		expired := !entry.Expires.IsZero() && !entry.Expires.After(now)
		switch {
		case expired && !meant[entry.Name]:
			due = append(due, Due{entry, "expired " + entry.Expires.UTC().Format(time.RFC3339)})
		case !expired:
			streams[Stream(entry.Name)] = append(streams[Stream(entry.Name)], entry)
		}
	}
	for stream, retention := range c.retentions {
		entries := streams[stream]
		slices.SortFunc(entries, func(a, b Entry) int {
			return cmp.Or(b.Added.Compare(a.Added), cmp.Compare(b.Name, a.Name))
		})
		for _, entry := range entries[min(retention.Keep, len(entries)):] {
			if !meant[entry.Name] {
				due = append(due, Due{entry, fmt.Sprintf("stream %s keeps the newest %d", stream, retention.Keep)})
			}
		}
	}
	slices.SortFunc(due, func(a, b Due) int { return cmp.Compare(a.Entry.Name, b.Entry.Name) })
	return due
}

// References are the objects that an image needs to stay whole: its manifest,
// the objects of that, and the package list that an attribute names. The list
// need not be on the server.
func References(digest object.Digest, manifest *image.Manifest) []object.Digest {
	references := []object.Digest{digest}
	for _, needed := range manifest.Objects() {
		references = append(references, needed.Digest)
	}
	if list, err := object.ParseDigest(manifest.Attributes[image.AttrPackages]); err == nil {
		references = append(references, list)
	}
	return references
}
