package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/object/s3"
	"github.com/firstlight/firstlight/imageserver/scrub"
	"github.com/firstlight/firstlight/imageserver/server"
)

// stores are where objects and images are kept: in --data, or in the bucket of
// --store.
type stores struct {
	objects object.Store
	begin   func() server.Batch
	scrub   scrub.Store
	images  *store.Store
	// shared is objects again where other servers use them too, else nil.
	shared      server.Shared
	quarantined func() ([]object.Digest, []string)
	ready       func(context.Context) error
	closers     []func() error
}

// close lets everything go, the last thing first.
func (s *stores) close() error {
	var all error
	for i := len(s.closers) - 1; i >= 0; i-- {
		all = errors.Join(all, s.closers[i]())
	}
	return all
}

// openStores opens what the options name. What it has opened is closed where it
// fails.
func openStores(ctx context.Context, options options, metrics *server.Metrics, log *slog.Logger) (*stores, error) {
	s := new(stores)
	open := s.openDirectory
	if options.Store != "" {
		open = s.openBucket
	}
	if err := open(ctx, options, metrics, log); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// openDirectory opens the embedded store.
func (s *stores) openDirectory(_ context.Context, options options, metrics *server.Metrics, log *slog.Logger) error {
	objects, err := dir.Open(options.Data)
	if err != nil {
		return fmt.Errorf("opening the object store: %w", err)
	}
	s.closers = append(s.closers, objects.Close)
	s.objects, s.scrub, s.quarantined = metrics.Timed("dir", objects), objects, objects.Quarantined
	s.begin = func() server.Batch { return metrics.TimedBatch("dir", objects.Begin()) }
	s.ready = func(context.Context) error { return errors.Join(hasCatalog(options.Data), hasRoom(options.Data)) }
	s.images, err = store.Open(options.Data, store.Options{Now: time.Now, Log: log, Disposable: options.Upstream != ""})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.images.Close)
	return nil
}

// openBucket opens a bucket; --data is then its cache.
func (s *stores) openBucket(ctx context.Context, options options, metrics *server.Metrics, log *slog.Logger) error {
	bucket, err := s3.OpenBucket(options.Store, metrics.Backend("s3"))
	if err != nil {
		return err
	}
	objects, err := s3.Open(ctx, s3.Options{
		Bucket: bucket, Cache: options.Data, CacheBytes: uint64(options.CacheSize * (1 << 30)), Asked: metrics.Cache("s3"), Log: log,
	})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, objects.Close)
	s.objects, s.scrub, s.quarantined, s.shared = objects, objects, objects.Quarantined, objects
	s.begin = func() server.Batch { return objects.Begin() }
	s.ready = func(ctx context.Context) error { return errors.Join(objects.Ready(ctx), hasRoom(options.Data)) }
	s.images, err = store.OpenBucket(ctx, objects, store.Options{Now: time.Now, Log: log, Disposable: options.Upstream != ""})
	if err != nil {
		return err
	}
	s.closers = append(s.closers, s.images.Close)
	return nil
}
