// Package s3 keeps objects in a bucket of an S3-compatible server, for several
// image servers at once that need not know of each other.
//
// Objects lie in packs of up to 64 MiB (package object/pack says how); a larger
// one has a pack of its own. Packs are never changed. In the bucket are
//
//	format            the version of this layout
//	packs/<id>.pack   a pack; <id> begins with the time, so that ids sort by it
//	index/<id>        what the pack holds; it counts once this is there
//	dead/<id>         objects of that pack that do not count any more
//	quarantine/<digest>.<id>
//	                  what was found damaged, for a person to look at
//
// Everything is written whole, what is new under the condition that it is new, and
// what is changed under the condition that nobody else has changed it meanwhile.
// What others did is learned by listing: when something is missing, and at Refresh.
//
// A deleted object is dead at once; its bytes stay for a while (Free), and until
// then Revive makes it count again. So a server that collects garbage cannot take
// away what an image needs that is added through another server: the one looks at
// the images after it has deleted, the other at what is dead after it has added.
//
// Packs that are read are kept on the local disk, up to a size. Nothing there is
// needed: it may be deleted while no server runs on it. The package knows no names
// of images. What it gives out by OpenStored is verified by who decodes it, like
// everywhere; its own indexes carry check sums.
package s3

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

const (
	formatKey   = "format"
	formatNow   = "1\n"
	packsBelow  = "packs/"
	indexBelow  = "index/"
	deadBelow   = "dead/"
	packSuffix  = ".pack"
	quarantined = "quarantine/"

	// packSize is the number of bytes at which a pack is full.
	packSize = 64 << 20
	// atOnce is how many requests about one thing are sent side by side.
	atOnce = 16
)

// Options are what a Store works with.
type Options struct {
	Bucket *Bucket
	// Cache is a directory of this server's own on the local disk, and
	// CacheBytes what the packs in it may take.
	Cache      string
	CacheBytes uint64
	// Asked is told, for each object that is opened, whether its bytes were in
	// the cache. nil: nobody is told.
	Asked func(hit bool)
	Log   *slog.Logger
}

// Store is an object.Store in a bucket. It is safe for concurrent use, and several
// processes may use one bucket, each with a cache directory of its own.
type Store struct {
	options Options
	bucket  *Bucket
	log     *slog.Logger
	lock    *os.File
	temp    string
	notes   notes
	cache   *cache
	index   index
	window  window
	ctx     context.Context // of what goes on after a call has ended
	cancel  context.CancelFunc
	running sync.WaitGroup

	quarantine quarantine
}

var _ object.Store = (*Store)(nil)

// Open looks into the bucket, which must be there, and prepares the cache. The
// error is an *Error. Close lets the cache go.
func Open(ctx context.Context, options Options) (*Store, error) {
	s := &Store{options: options, bucket: options.Bucket, log: options.Log, temp: filepath.Join(options.Cache, "tmp")}
	if s.options.Asked == nil {
		s.options.Asked = func(bool) {}
	}
	if err := s.lockCache(); err != nil {
		return nil, &Error{code: "SRV-016", text: "the cache directory " + options.Cache, err: err}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := s.checkFormat(ctx); err != nil {
		return err
	}
	var err error
	if s.cache, err = openCache(s, filepath.Join(s.options.Cache, "packs"), s.options.CacheBytes); err != nil {
		return &Error{code: "SRV-016", text: "the cache directory " + s.options.Cache, err: err}
	}
	if err := s.Refresh(ctx); err != nil {
		return err
	}
	return s.readQuarantine(ctx)
}

// lockCache makes the cache directory and keeps other processes out of it.
func (s *Store) lockCache() error {
	s.notes.path = filepath.Join(s.options.Cache, "notes")
	for _, directory := range []string{s.temp, s.notes.path} {
		if err := os.MkdirAll(directory, 0o700); err != nil {
			return err
		}
	}
	var err error
	if s.lock, err = os.OpenFile(filepath.Join(s.options.Cache, "cache.lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(errors.New("another image server uses it"), s.lock.Close())
	}
	left, err := os.ReadDir(s.temp)
	if err != nil {
		return errors.Join(err, s.lock.Close())
	}
	for _, name := range left {
		if err := os.RemoveAll(filepath.Join(s.temp, name.Name())); err != nil {
			return errors.Join(err, s.lock.Close())
		}
	}
	return s.notes.forgetOld(time.Now())
}

// checkFormat refuses a newer layout, and writes this one down where there is none.
func (s *Store) checkFormat(ctx context.Context) error {
	data, _, err := s.bucket.Read(ctx, formatKey)
	if errors.Is(err, ErrNoKey) {
		if _, err = s.bucket.Put(ctx, formatKey, []byte(formatNow), IfNew); err == nil {
			return nil
		}
		if errors.Is(err, ErrConflict) {
			data, _, err = s.bucket.Read(ctx, formatKey)
		}
	}
	switch {
	case err != nil:
		return &Error{code: "SRV-016", text: "looking into " + s.bucket.String(), err: err}
	case string(data) != formatNow:
		return &Error{code: "SRV-016", text: fmt.Sprintf("%s has format %.20q, this program reads format 1", s.bucket, strings.TrimSpace(string(data)))}
	}
	return nil
}

// Close ends what is being fetched and lets the cache go.
func (s *Store) Close() error {
	s.cancel()
	s.running.Wait()
	if s.cache != nil {
		s.cache.close()
	}
	return s.lock.Close()
}

// Ready says whether the bucket answers now.
func (s *Store) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, _, err := s.bucket.Read(ctx, formatKey)
	return err
}

// Bucket is where the objects are.
func (s *Store) Bucket() *Bucket { return s.bucket }

// newID is an id for a pack. Later ones sort behind earlier ones, as far as the
// clocks of the servers agree.
func (s *Store) newID() string {
	var random [6]byte
	rand.Read(random[:]) // never fails, crypto/rand says
	return fmt.Sprintf("%016x-%x", s.bucket.now().UnixNano(), random)
}

// validID says whether a key names a pack as newID does.
func validID(id string) bool {
	digits, random, found := strings.Cut(id, "-")
	_, err := hex.DecodeString(digits + random)
	return found && len(digits) == 16 && len(random) == 12 && err == nil
}

// Stat knows objects from the index; where some are missing it first looks
// whether others brought them: see object.Store.
func (s *Store) Stat(ctx context.Context, digests []object.Digest) ([]object.Info, error) {
	infos, missing := s.index.stat(digests)
	if !missing {
		return infos, ctx.Err()
	}
	if err := s.Refresh(ctx); err != nil {
		return nil, err
	}
	infos, _ = s.index.stat(digests)
	return infos, ctx.Err()
}

// Open returns the unpacked, verified bytes: see object.Getter.
func (s *Store) Open(ctx context.Context, d object.Digest) (io.ReadCloser, error) {
	stored, err := s.OpenStored(ctx, d)
	if err != nil {
		return nil, err
	}
	unpacked, err := zstd.Open(stored.Info, stored)
	if err != nil {
		return nil, errors.Join(err, stored.Close())
	}
	return &opened{unpacked, stored}, nil
}

type opened struct {
	io.ReadCloser
	stored io.Closer
}

func (o *opened) Close() error { return errors.Join(o.ReadCloser.Close(), o.stored.Close()) }

// OpenStored returns the encoded bytes, unverified, from the cache or the bucket:
// see object.Store.
func (s *Store) OpenStored(ctx context.Context, d object.Digest) (*object.Stored, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// A second time after a look, as a pack may have gone or come.
	for range 2 {
		at, found := s.index.get(d)
		if found {
			r, err := s.cache.open(ctx, at)
			if !errors.Is(err, ErrNoKey) {
				if err != nil {
					return nil, fmt.Errorf("object %s: %w", d, err)
				}
				return &object.Stored{Info: at.Info, ReadCloser: r}, nil
			}
		}
		if err := s.Refresh(ctx); err != nil {
			return nil, fmt.Errorf("object %s: %w", d, err)
		}
	}
	return nil, fmt.Errorf("object %s: %w", d, object.ErrNotFound)
}

// Prefetch begins to fetch the packs of which these objects are a good part.
func (s *Store) Prefetch(digests []object.Digest) {
	wanted := make(map[*packed]uint64)
	var order []*packed
	for _, d := range digests {
		if at, found := s.index.get(d); found {
			if wanted[at.pack] == 0 {
				order = append(order, at.pack)
			}
			wanted[at.pack] += at.Info.StoredSize
		}
	}
	for _, p := range order {
		s.cache.expect(p, wanted[p])
	}
}

// List calls f for each object, pack by pack: see object.Store. It knows what was
// there at the last Refresh.
func (s *Store) List(ctx context.Context, f func(object.Info) error) error {
	for _, p := range s.index.all() {
		for _, at := range s.index.live(p) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(at.Info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Put adds one object: see object.Store. Many are better put into a Batch.
func (s *Store) Put(ctx context.Context, info object.Info, r io.Reader) error {
	b := s.Begin()
	defer b.Abort()
	if err := b.Put(ctx, info, r); err != nil {
		return err
	}
	return b.Commit(ctx)
}

// Delete lets an object count no more: see object.Store.
func (s *Store) Delete(ctx context.Context, d object.Digest) error {
	return s.DeleteMany(ctx, []object.Digest{d})
}

// each runs f for each of n things, some at once.
func each(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return f(ctx, i)
		})
	}
	return group.Wait()
}
