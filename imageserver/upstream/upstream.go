// Package upstream makes an image server a cache of another: what it does not
// have it gets from there, verified, and keeps.
//
// However many want an object at once, it is fetched once. Names are asked
// upstream each time; while that cannot be reached, what is known of them
// counts. The package never changes anything upstream, and deletes nothing here
// except the names of images that are gone there.
package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
)

const (
	// chunk is how many objects are fetched, and made durable, together.
	chunk = 512
	// fetches is how many fetches run at once; more wait.
	fetches = 4
	// nameTimeout bounds how long a question about a name waits for upstream.
	nameTimeout = 10 * time.Second
	// dialPause is the time after a failed connection in which none is tried.
	dialPause = 3 * time.Second
	// mostFresh bounds how many fetched objects are remembered that nobody opened.
	mostFresh = 1 << 20
)

// Source is the server that is mirrored; client.Client is one.
type Source interface {
	Find(ctx context.Context, name string) (client.Image, error)
	List(ctx context.Context, prefix string) ([]client.Image, error)
	Manifest(ctx context.Context, name string) (client.Found, error)
	Have(ctx context.Context, digests []object.Digest) ([]bool, error)
	Fetch(ctx context.Context, digests []object.Digest, f func(object.Piece) error) error
}

// Batch takes objects, verifies them and makes them durable together, as
// dir.Batch does.
type Batch interface {
	Put(ctx context.Context, info object.Info, r io.Reader) error
	Commit(ctx context.Context) error
	Abort() error
}

// Error is a failure to get something from upstream.
type Error struct {
	text string
	err  error
}

// Error is the text and its cause.
func (e *Error) Error() string { return e.text + ": " + e.err.Error() }

// Code is the stable code: IMG-026.
func (e *Error) Code() string { return "IMG-026" }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// Temporary says that another try may succeed.
func (e *Error) Temporary() bool { return true }

// Options are what a Store works with.
type Options struct {
	// Dial connects to upstream. It is called again after it failed.
	Dial func(ctx context.Context) (Source, error)
	// Objects and Begin are the store here.
	Objects object.Store
	Begin   func() Batch
	// Asked is told, for each object that is opened, whether it was here already.
	// nil: nobody is told.
	Asked func(hit bool)
	// Observe is told how long each request to upstream took. nil: nobody is told.
	Observe func(op string, took time.Duration)
	Log     *slog.Logger
}

// Store is the object store here, filled from upstream as objects are asked
// for. Stat and List know only what is here. It is safe for concurrent use.
type Store struct {
	object.Store
	options Options
	ctx     context.Context
	cancel  context.CancelFunc
	places  chan struct{}
	running sync.WaitGroup

	mutex   sync.Mutex
	flights map[object.Digest]*flight
	fresh   map[object.Digest]bool // fetched, and not opened since

	// sizing is held while upstream is asked for an image's stored sizes; sizes are
	// those of the manifest sized.
	sizing sync.Mutex
	sized  object.Digest
	sizes  map[object.Digest]uint64

	dialling sync.Mutex
	source   Source
	failed   error     // of the last connection
	retry    time.Time // not before
}

// flight is a fetch that everybody who wants the object waits for.
type flight struct {
	done chan struct{}
	err  error // once done
}

// New is a Store. Close ends what it fetches.
func New(options Options) *Store {
	if options.Asked == nil {
		options.Asked = func(bool) {}
	}
	if options.Observe == nil {
		options.Observe = func(string, time.Duration) {}
	}
	s := &Store{Store: options.Objects, options: options, places: make(chan struct{}, fetches), flights: make(map[object.Digest]*flight), fresh: make(map[object.Digest]bool)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close gives up what is being fetched and waits until that has ended. It does
// not close the store or the source.
func (s *Store) Close() {
	s.cancel()
	s.running.Wait()
}

// connect is the connection to upstream.
func (s *Store) connect(ctx context.Context) (Source, error) {
	s.dialling.Lock()
	defer s.dialling.Unlock()
	if s.source != nil {
		return s.source, nil
	}
	if time.Now().Before(s.retry) {
		return nil, s.failed
	}
	source, err := s.options.Dial(ctx)
	if err != nil {
		s.failed, s.retry = &Error{"upstream", err}, time.Now().Add(dialPause)
		return nil, s.failed
	}
	s.source = source
	return source, nil
}

// Open is the store's, after the object was fetched if need be.
func (s *Store) Open(ctx context.Context, digest object.Digest) (io.ReadCloser, error) {
	r, err := s.Store.Open(ctx, digest)
	if !errors.Is(err, object.ErrNotFound) {
		s.asked(digest, err)
		return r, err
	}
	if err := s.Get(ctx, digest); err != nil {
		return nil, err
	}
	s.asked(digest, nil)
	return s.Store.Open(ctx, digest)
}

// OpenStored is the store's, after the object was fetched if need be.
func (s *Store) OpenStored(ctx context.Context, digest object.Digest) (*object.Stored, error) {
	stored, err := s.Store.OpenStored(ctx, digest)
	if !errors.Is(err, object.ErrNotFound) {
		s.asked(digest, err)
		return stored, err
	}
	if err := s.Get(ctx, digest); err != nil {
		return nil, err
	}
	s.asked(digest, nil)
	return s.Store.OpenStored(ctx, digest)
}

// asked counts an object that was opened. One that was fetched for its first reader
// was not here already.
func (s *Store) asked(digest object.Digest, err error) {
	if err != nil {
		return
	}
	s.mutex.Lock()
	fresh := s.fresh[digest]
	delete(s.fresh, digest)
	s.mutex.Unlock()
	s.options.Asked(!fresh)
}

// StoredSizes is how many bytes the objects of an image have upstream.
func (s *Store) StoredSizes(ctx context.Context, name string, manifest object.Digest) (map[object.Digest]uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, nameTimeout)
	defer cancel()
	source, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	// One question for all who install the same image at once.
	s.sizing.Lock()
	defer s.sizing.Unlock()
	if s.sized == manifest {
		return s.sizes, nil
	}
	defer s.took("manifest", time.Now())
	found, err := source.Manifest(ctx, name+"@"+manifest.String())
	if err != nil {
		return nil, &Error{"asking upstream for an image", err}
	}
	s.sized, s.sizes = manifest, found.Stored
	return found.Stored, nil
}

func (s *Store) took(op string, start time.Time) { s.options.Observe(op, time.Since(start)) }

// DeleteMany is the store's where it has one.
func (s *Store) DeleteMany(ctx context.Context, digests []object.Digest) error {
	if many, ok := s.Store.(interface {
		DeleteMany(ctx context.Context, digests []object.Digest) error
	}); ok {
		return many.DeleteMany(ctx, digests)
	}
	for _, digest := range digests {
		if err := s.Delete(ctx, digest); err != nil {
			return err
		}
	}
	return nil
}

// Get waits until the object, which is not here, was fetched.
func (s *Store) Get(ctx context.Context, digest object.Digest) error {
	f := s.claim([]object.Digest{digest})[digest]
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Prefetch begins to fetch those of the objects that are not here, in their
// order, and does not wait for that.
func (s *Store) Prefetch(digests []object.Digest) {
	infos, err := s.Stat(s.ctx, digests)
	if err != nil {
		return // who opens the objects will be told
	}
	here := make(map[object.Digest]bool, len(infos))
	for _, info := range infos {
		here[info.Digest] = true
	}
	s.claim(slices.DeleteFunc(slices.Clone(digests), func(d object.Digest) bool { return here[d] }))
}

// claim joins the fetches of these objects that run, and begins one of the rest.
func (s *Store) claim(digests []object.Digest) map[object.Digest]*flight {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	flights := make(map[object.Digest]*flight, len(digests))
	var mine []object.Digest
	for _, digest := range digests {
		f := s.flights[digest]
		if f == nil {
			f = &flight{done: make(chan struct{})}
			s.flights[digest] = f
			mine = append(mine, digest)
		}
		flights[digest] = f
	}
	if len(mine) > 0 {
		// Whoever asked first may go away; the others still wait.
		s.running.Go(func() { s.fetchAll(s.ctx, mine) })
	}
	return flights
}

// finish ends the flights of objects that were fetched, or could not be.
func (s *Store) finish(err error, digests ...object.Digest) { s.land(err, err == nil, digests...) }

func (s *Store) land(err error, fetched bool, digests ...object.Digest) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, digest := range digests {
		if f := s.flights[digest]; f != nil {
			delete(s.flights, digest)
			if len(s.fresh) == mostFresh {
				clear(s.fresh)
			}
			if fetched {
				s.fresh[digest] = true
			}
			f.err = err
			close(f.done)
		}
	}
}

func (s *Store) fetchAll(ctx context.Context, digests []object.Digest) {
	select {
	case s.places <- struct{}{}:
		defer func() { <-s.places }()
	case <-ctx.Done():
		s.finish(ctx.Err(), digests...)
		return
	}
	// Between the look that missed them and the claim, another fetch may have
	// brought some.
	digests, err := s.missing(ctx, digests)
	if err != nil {
		s.finish(err, digests...)
		return
	}
	if len(digests) == 0 {
		return
	}
	source, err := s.connect(ctx)
	if err != nil {
		s.finish(err, digests...)
		return
	}
	start := time.Now()
	have, err := source.Have(ctx, digests)
	s.took("have", start)
	if err != nil {
		s.finish(&Error{"asking upstream for objects", err}, digests...)
		return
	}
	var there []object.Digest
	for i, digest := range digests {
		if !have[i] {
			s.finish(fmt.Errorf("object %s, upstream neither: %w", digest, object.ErrNotFound), digest)
			continue
		}
		there = append(there, digest)
	}
	for len(there) > 0 {
		n := min(chunk, len(there))
		s.fetch(ctx, source, there[:n])
		there = there[n:]
	}
}

// missing are those of the digests that are not here; the flights of the others
// end.
func (s *Store) missing(ctx context.Context, digests []object.Digest) ([]object.Digest, error) {
	infos, err := s.Stat(ctx, digests)
	if err != nil {
		return digests, err
	}
	here := make(map[object.Digest]bool, len(infos))
	for _, info := range infos {
		here[info.Digest] = true
	}
	var missing []object.Digest
	for _, digest := range digests {
		if here[digest] {
			s.land(nil, false, digest)
		} else {
			missing = append(missing, digest)
		}
	}
	return missing, nil
}

// fetch gets objects; where one of them fails, each of the rest by itself.
func (s *Store) fetch(ctx context.Context, source Source, digests []object.Digest) {
	a := &arrival{ctx: ctx, batch: s.options.Begin(), left: make(map[object.Digest]bool)}
	for _, digest := range digests {
		a.left[digest] = true
	}
	start := time.Now()
	err := source.Fetch(ctx, digests, a.piece)
	s.took("fetch", start)
	a.abandon()
	if commitErr := a.batch.Commit(ctx); commitErr != nil {
		s.finish(commitErr, digests...)
		return
	}
	for digest, refused := range a.refused {
		s.options.Log.Error("upstream sent a damaged object", "digest", digest, "error", refused)
		s.finish(fmt.Errorf("from upstream: %w: %w", refused, object.ErrDamaged), digest)
	}
	s.finish(nil, a.whole...)
	if err == nil {
		return
	}
	var rest []object.Digest
	for _, digest := range digests {
		if a.left[digest] {
			rest = append(rest, digest)
		}
	}
	if len(rest) > 1 && a.failed == nil && ctx.Err() == nil && oneIsBad(err) {
		for _, digest := range rest {
			s.fetch(ctx, source, []object.Digest{digest})
		}
		return
	}
	if a.failed != nil {
		s.finish(a.failed, rest...)
		return
	}
	s.options.Log.Warn("fetching from upstream", "objects", len(rest), "error", err)
	s.finish(&Error{"fetching from upstream", err}, rest...)
}

// oneIsBad says whether an error is about one of several objects.
func oneIsBad(err error) bool {
	var coded *client.Error
	return errors.As(err, &coded) && (coded.Code() == client.CodeNoObject || coded.Code() == client.CodeDamaged)
}

// arrival is one answer of upstream on its way into the store.
type arrival struct {
	ctx     context.Context
	batch   Batch
	left    map[object.Digest]bool // not yet arrived
	whole   []object.Digest
	refused map[object.Digest]error
	failed  error // of the store here

	large map[object.Digest]*incoming // of which pieces have come
}

// incoming is an object on its way into the batch. Pieces of several may be mixed.
type incoming struct {
	pipe   *io.PipeWriter
	result chan error
}

// piece puts one piece where it belongs. A refused object is no error.
func (a *arrival) piece(p object.Piece) error {
	if p.Offset == 0 && p.Last() {
		return a.ended(p.Digest, a.batch.Put(a.ctx, p.Info, bytes.NewReader(p.Data)))
	}
	if p.Offset == 0 {
		a.begin(p.Info)
	}
	one := a.large[p.Digest]
	if one == nil {
		return nil // the rest of an object that was refused
	}
	_, err := one.pipe.Write(p.Data)
	if err == nil && !p.Last() {
		return nil
	}
	err = errors.Join(one.pipe.Close(), <-one.result)
	delete(a.large, p.Digest)
	return a.ended(p.Digest, err)
}

// begin lets the batch read an object as it comes.
func (a *arrival) begin(info object.Info) {
	r, w := io.Pipe()
	one := &incoming{w, make(chan error, 1)}
	if a.large == nil {
		a.large = make(map[object.Digest]*incoming)
	}
	a.large[info.Digest] = one
	go func() {
		err := a.batch.Put(a.ctx, info, r)
		r.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		one.result <- err
	}()
}

// ended notes what became of an object.
func (a *arrival) ended(digest object.Digest, err error) error {
	switch {
	case err == nil:
		a.whole = append(a.whole, digest)
	case errors.Is(err, object.ErrRefused):
		if a.refused == nil {
			a.refused = make(map[object.Digest]error)
		}
		a.refused[digest] = err
	default:
		a.failed = err
		return err
	}
	delete(a.left, digest)
	return nil
}

// abandon ends the objects of which not everything came.
func (a *arrival) abandon() {
	for digest, one := range a.large {
		one.pipe.CloseWithError(io.ErrUnexpectedEOF)
		<-one.result
		delete(a.large, digest)
	}
}
