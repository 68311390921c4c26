package server

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Shared is what a store can do that other servers use too; s3.Store is one.
//
// Whoever deletes objects looks afterwards which images there are, and whoever adds
// an image looks afterwards which objects are deleted. So of two servers that do
// both at once, at least one sees the other, and either the objects come back or
// the image is refused.
type Shared interface {
	// Refresh learns what others did before it was called.
	Refresh(ctx context.Context) error
	// Revive makes deleted objects count again whose bytes are still there.
	Revive(ctx context.Context, digests []object.Digest) error
	// Free gives back the room of what was deleted longer than grace ago and is
	// not needed.
	Free(ctx context.Context, grace time.Duration, needed func(ctx context.Context) (map[object.Digest]bool, error)) error
	// Since is when an object was last written, by anyone.
	Since(digest object.Digest) time.Time
}

// reviveAll makes sure that what an image needs counts, as far as it is there.
func (s *Server) reviveAll(ctx context.Context, digest object.Digest, manifest *image.Manifest) error {
	if s.options.Shared == nil {
		return nil
	}
	if err := s.options.Shared.Refresh(ctx); err != nil {
		return err
	}
	return s.options.Shared.Revive(ctx, catalog.References(digest, manifest))
}

// stillComplete looks, after an image has got its name, whether another server has
// taken away an object of it meanwhile. Then it loses its name again.
func (s *Server) stillComplete(ctx context.Context, entry catalog.Entry, existed bool, manifest *image.Manifest) error {
	if s.options.Shared == nil {
		return nil
	}
	err := s.reviveAll(ctx, entry.Digest, manifest)
	if err == nil {
		err = s.complete(ctx, manifest)
	}
	if err == nil || existed {
		return err
	}
	_, deleteErr := s.options.Images.Delete(entry.Name, entry.Digest)
	return errors.Join(err, deleteErr)
}

// looked is Images.List after a look at what other servers did, and an error where
// that is not possible: garbage is only collected by what is known for sure.
func (s *Server) looked(ctx context.Context) ([]catalog.Entry, error) {
	if images, ok := s.options.Images.(interface {
		Refresh(ctx context.Context) error
	}); ok {
		if err := images.Refresh(ctx); err != nil {
			return nil, err
		}
	}
	return s.here(), nil
}

// comeBack revives those of the deleted objects that an image needs which another
// server added meanwhile.
func (c *collection) comeBack(ctx context.Context, deleted []object.Digest) error {
	if c.server.options.Shared == nil || c.dryRun {
		return nil
	}
	if err := c.mark(ctx, nil); err != nil {
		return err
	}
	needed := slices.DeleteFunc(slices.Clone(deleted), func(d object.Digest) bool { return !c.marked[d] })
	return c.server.options.Shared.Revive(ctx, needed)
}

// free gives back the room of what was deleted some time ago.
func (c *collection) free(ctx context.Context, grace time.Duration) error {
	if c.server.options.Shared == nil || c.dryRun {
		return nil
	}
	return c.server.options.Shared.Free(ctx, grace, func(ctx context.Context) (map[object.Digest]bool, error) {
		err := c.mark(ctx, nil)
		return c.marked, err
	})
}
