package stage

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
)

// wholeBytes is the size up to which a file is read into memory. A larger one
// of which it is not clear what it is, is read once more to be packed.
const wholeBytes = 1 << 20

const (
	// A walk is ahead of the reading of what it found by at most so many names
	// of all trees together, in chunks.
	aheadNames = 1 << 18
	chunkNames = 128
	// hopeless is how many objects of a tree may find no room before the rest
	// of it is left.
	hopeless = 1000
)

// search looks for what is wanted in all trees. Each is walked at once, which
// shows what sizes there are; files are read tree after tree.
type search struct {
	*stage
	walks []*walk
	ended chan struct{} // closed when every tree has been read

	known chan struct{}       // closed when every tree has been walked
	sizes map[uint64]struct{} // wanted ones that files have; under stage.mu until then
}

// walk is one tree on its way.
type walk struct {
	*search
	Tree
	ctx    context.Context
	stop   context.CancelCauseFunc
	chunks chan []file
	ended  chan struct{} // closed when all names are in chunks, or nobody wants them any more

	unreadable, noRoom, found atomic.Uint64
	first                     atomic.Pointer[error] // of the unreadable ones
}

// file is one whose size is wanted.
type file struct {
	name string
	size uint64
}

// newSearch begins to walk.
func (s *stage) newSearch(ctx context.Context) *search {
	all := &search{stage: s, ended: make(chan struct{}), known: make(chan struct{}), sizes: map[uint64]struct{}{}}
	room := max(1, aheadNames/chunkNames/max(1, len(s.options.Trees)))
	for _, tree := range s.options.Trees {
		w := &walk{search: all, Tree: tree, chunks: make(chan []file, room), ended: make(chan struct{})}
		w.ctx, w.stop = context.WithCancelCause(ctx)
		all.walks = append(all.walks, w)
		go w.list()
	}
	go func() {
		for _, w := range all.walks {
			select {
			case <-w.ended:
			case <-w.ctx.Done():
			}
		}
		close(all.known)
	}()
	return all
}

// nowhere waits until every tree has been walked and returns the objects that
// no file can be, as none has their size.
func (s *search) nowhere(ctx context.Context) []image.Object {
	select {
	case <-s.known:
	case <-ctx.Done():
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var objects []image.Object
	for _, n := range s.need {
		if _, some := s.sizes[n.Size]; !some {
			objects = append(objects, n)
		}
	}
	return objects
}

// notFound waits for the end of the search and returns what is still missing.
func (s *search) notFound(ctx context.Context) []image.Object {
	select {
	case <-s.ended:
	case <-ctx.Done():
		return nil
	}
	return s.stillMissing()
}

// run takes what is wanted from the trees. What cannot be read there is no
// error: the file-system may be damaged, and the server has everything.
func (s *search) run(ctx context.Context) error {
	defer close(s.ended)
	defer func() {
		for _, w := range s.walks {
			w.stop(nil)
		}
	}()
	for _, w := range s.walks {
		if _, _, any := s.wantedSize(0); !any {
			return nil
		}
		if err := w.read(ctx); err != nil {
			return err
		}
	}
	return nil
}

// read takes what is wanted from one tree, while it is walked.
func (w *walk) read(ctx context.Context) error {
	group, reading := errgroup.WithContext(w.ctx)
	for range runtime.NumCPU() {
		group.Go(func() error {
			buffer := make([]byte, wholeBytes)
			for chunk := range w.chunks {
				for _, f := range chunk {
					if err := w.try(reading, f, buffer); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	begun := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	switch err := w.await(ctx, ended, w.stop, &w.found); {
	case errors.Is(err, errSlow):
		w.log("%s: %v", w.Name, err)
	case err != nil:
		return err
	}
	w.log("%d objects from %s in %s", w.found.Load(), w.Name, time.Since(begun).Round(100*time.Millisecond))
	if n := w.unreadable.Load(); n > 0 {
		w.log("%s: %d files or directories could not be read, the first: %v", w.Name, n, *w.first.Load())
	}
	if n := w.noRoom.Load(); n > 0 {
		w.log("%s: no room for %d objects, the server will be asked for them", w.Name, n)
	}
	return nil
}

// try takes one file if it is wanted. Its error is the end of the search.
func (w *walk) try(ctx context.Context, f file, buffer []byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch took, err := w.take(ctx, f, buffer); {
	case err == nil && took:
		w.found.Add(1)
	case errors.Is(err, pack.ErrFull):
		// The server packs better than we do in a hurry, and the limit is made for
		// that. Where many do not fit, memory is low and full.
		if w.noRoom.Add(1) == hopeless {
			err := fmt.Errorf("%w: there is no room for more", errSlow)
			w.stop(err)
			return err
		}
	case errors.Is(err, errPack):
		return w.refused(err)
	case err != nil:
		w.note(err)
	}
	return nil
}

func (w *walk) note(err error) {
	if w.unreadable.Add(1) == 1 {
		w.first.Store(&err)
	}
}

// errSlow is why a tree was not searched to its end.
var errSlow = errors.New("left unfinished")

// lastRead is how long a search that was stopped may take to notice. A read
// from a broken disk can hang for minutes, and cannot be interrupted: it is
// left behind, and what it brings is not used.
const lastRead = 5 * time.Second

// await waits for the end of a search, which stop stops when it takes too
// long or has found nothing for too long.
func (s *stage) await(ctx context.Context, ended <-chan error, stop context.CancelCauseFunc, found *atomic.Uint64) error {
	tick := time.NewTicker(min(s.options.Idle, s.options.Search) / 10)
	defer tick.Stop()
	begun := time.Now()
	last, seen := begun, uint64(0)
	var slow error
	for slow == nil {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			slow = context.Cause(ctx)
		case now := <-tick.C:
			if n := found.Load(); n > seen {
				last, seen = now, n
			}
			switch {
			case now.Sub(begun) > s.options.Search:
				slow = fmt.Errorf("%w after %s", errSlow, s.options.Search)
			case now.Sub(last) > s.options.Idle:
				slow = fmt.Errorf("%w: nothing was found in it for %s", errSlow, s.options.Idle)
			}
		}
	}
	stop(slow)
	select {
	case <-ended:
		return slow
	case <-time.After(lastRead):
		return fmt.Errorf("%w; it does not answer", slow)
	}
}

// list sends the regular files of the tree whose size is wanted.
func (w *walk) list() {
	defer close(w.ended)
	defer close(w.chunks)
	below := w.Below
	if below == nil {
		below = []string{"."}
	}
	var chunk []file
	flush := func() error {
		if len(chunk) == 0 {
			return nil
		}
		select {
		case <-w.ctx.Done():
			return fs.SkipAll
		case w.chunks <- chunk:
			chunk = nil
			return nil
		}
	}
	for _, top := range below {
		err := fs.WalkDir(w.FS, top, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				if !errors.Is(err, fs.ErrNotExist) {
					w.note(err)
				}
				return nil
			}
			if w.ctx.Err() != nil {
				return fs.SkipAll
			}
			if !d.Type().IsRegular() {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				w.note(err)
				return nil
			}
			size := uint64(info.Size())
			n, _, any := w.wantedSize(size)
			if !any {
				return fs.SkipAll
			}
			if n == 0 || size == 0 {
				return nil
			}
			w.mu.Lock()
			w.sizes[size] = struct{}{}
			w.mu.Unlock()
			if chunk = append(chunk, file{name, size}); len(chunk) == chunkNames {
				return flush()
			}
			return nil
		})
		if err != nil {
			w.note(err)
		}
	}
	_ = flush() // nobody wants the rest
}

// errPack marks errors of the pack, in contrast to those of the tree.
var errPack = errors.New("adding to the pack")

// take hashes one file and adds it to the pack if it is wanted.
func (w *walk) take(ctx context.Context, f file, buffer []byte) (took bool, err error) {
	n, one, _ := w.wantedSize(f.size)
	if n == 0 {
		return false, nil // it was, when its name was read
	}
	if f.size > wholeBytes {
		digest := one
		if n > 1 {
			if digest, err = w.hash(f, buffer); err != nil || !w.wanted(digest, f.size) {
				return false, err
			}
		}
		return w.takeLarge(ctx, f, digest, n == 1)
	}
	opened, err := w.FS.Open(f.name)
	if err != nil {
		return false, err
	}
	defer opened.Close() // only read from
	data := buffer[:f.size]
	if _, err := io.ReadFull(opened, data); err != nil {
		return false, err
	}
	digest := object.Of(data)
	if ctx.Err() != nil || !w.wanted(digest, f.size) {
		return false, nil
	}
	if _, err := w.writer.AppendUnpacked(digest, data); err != nil {
		return false, fmt.Errorf("%w: %w", errPack, err)
	}
	w.have(digest, w.Source)
	return true, nil
}

// hash reads a whole file.
func (w *walk) hash(f file, buffer []byte) (object.Digest, error) {
	opened, err := w.FS.Open(f.name)
	if err != nil {
		return object.Digest{}, err
	}
	defer opened.Close() // only read from
	hash := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{opened}, buffer); err != nil {
		return object.Digest{}, err
	}
	return object.Digest(hash.Sum(nil)), nil
}

// takeLarge packs a file while it reads it. Where it is only a guess that the
// file is that object (a large file of exactly the size of one that is missing
// mostly is), another content is no error.
func (w *walk) takeLarge(ctx context.Context, f file, digest object.Digest, guess bool) (took bool, err error) {
	opened, err := w.FS.Open(f.name)
	if err != nil {
		return false, err
	}
	defer opened.Close() // only read from
	source := &source{r: opened}
	_, err = w.writer.AppendFrom(digest, f.size, source)
	switch {
	case err == nil && ctx.Err() == nil:
		w.have(digest, w.Source)
		return true, nil
	case err == nil: // given up meanwhile: it lies in the pack, and whoever brings it again will see that
		return false, nil
	case source.failed:
		return false, err
	case errors.Is(err, object.ErrDamaged) && guess:
		return false, nil
	case errors.Is(err, object.ErrDamaged):
		return false, err // the file's fault, not the pack's
	}
	return false, fmt.Errorf("%w: %w", errPack, err)
}

// source remembers whether reading failed.
type source struct {
	r      io.Reader
	failed bool
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.failed = true
	}
	return n, err
}
