package upstream

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Images is the catalog of upstream, and the one here where that cannot be
// reached. What upstream says is written down here. It is safe for concurrent
// use.
type Images struct {
	*store.Store
	objects *Store
	log     *slog.Logger

	mutex   sync.Mutex
	aliases map[string][]string // as upstream said last, by image
}

// NewImages is the catalog here, kept up to date through the connection of
// objects.
func NewImages(here *store.Store, objects *Store, log *slog.Logger) *Images {
	return &Images{Store: here, objects: objects, log: log, aliases: make(map[string][]string)}
}

// Resolve asks upstream what a name means.
func (i *Images) Resolve(name string) (catalog.Entry, error) {
	ctx, cancel := context.WithTimeout(i.objects.ctx, nameTimeout)
	defer cancel()
	source, err := i.objects.connect(ctx)
	if err != nil {
		return i.Store.Resolve(name)
	}
	start := time.Now()
	found, err := source.Find(ctx, name)
	i.objects.took("find", start)
	var coded *client.Error
	switch {
	case err == nil:
		return i.learn(found), nil
	case errors.As(err, &coded) && coded.Code() == client.CodeNoImage:
		// It is gone upstream, so it goes here; where it never was, the
		// catalog here says so, with the nearest names.
		if _, err := i.Store.Delete(name, object.Digest{}); err != nil && !errors.As(err, new(*catalog.Error)) {
			i.log.Warn("forgetting an image that is gone upstream", "name", name, "error", err)
		}
	default:
		i.log.Warn("asking upstream for an image; what is known here counts", "name", name, "error", err)
	}
	return i.Store.Resolve(name)
}

// List asks upstream for its images.
func (i *Images) List(prefix string) []catalog.Entry {
	ctx, cancel := context.WithTimeout(i.objects.ctx, nameTimeout)
	defer cancel()
	source, err := i.objects.connect(ctx)
	if err != nil {
		return i.Store.List(prefix)
	}
	start := time.Now()
	found, err := source.List(ctx, prefix)
	i.objects.took("list", start)
	if err != nil {
		i.log.Warn("asking upstream for its images; what is known here counts", "error", err)
		return i.Store.List(prefix)
	}
	entries := make([]catalog.Entry, len(found))
	for n, one := range found {
		entries[n] = i.remember(one)
	}
	return entries
}

// Here are the images that were asked for and are known here.
func (i *Images) Here() []catalog.Entry { return i.Store.List("") }

// AliasesOf are the aliases that upstream named last.
func (i *Images) AliasesOf(image string) []string {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	return i.aliases[image]
}

// remember is an image of upstream as an entry.
func (i *Images) remember(found client.Image) catalog.Entry {
	i.mutex.Lock()
	i.aliases[found.Name] = found.Aliases
	i.mutex.Unlock()
	return catalog.Entry{
		Name: found.Name, Digest: found.Digest, Added: found.Added, Bytes: found.Bytes, Objects: found.Objects,
		Inodes: found.Inodes, Attributes: found.Attributes, AddedBy: found.AddedBy, Expires: found.Expires,
	}
}

// learn remembers an image and writes it down.
func (i *Images) learn(found client.Image) catalog.Entry {
	entry := i.remember(found)
	if err := i.Store.Mirror(entry); err != nil {
		i.log.Warn("writing down an image of upstream", "name", entry.Name, "error", err)
	}
	return entry
}
