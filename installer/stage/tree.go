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

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
)

// wholeBytes is the size up to which a file is read once, into memory; a
// larger one is read again when it turns out to be wanted.
const wholeBytes = 1 << 20

// search takes what is wanted from tree. What cannot be read there is no
// error: the file-system may be damaged, and the server has everything.
func (s *stage) search(ctx context.Context, tree Tree) error {
	if _, any := s.wantedSize(0); !any {
		return nil
	}
	var unreadable, noRoom, found atomic.Uint64
	var first atomic.Pointer[error]
	note := func(err error) {
		if unreadable.Add(1) == 1 {
			first.Store(&err)
		}
	}
	limited, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	group, searching := errgroup.WithContext(limited)
	files := make(chan string, 64)
	group.Go(func() error {
		defer close(files)
		return s.walk(searching, tree, files, note)
	})
	for range runtime.NumCPU() {
		group.Go(func() error {
			buffer := make([]byte, wholeBytes)
			for name := range files {
				took, err := s.take(searching, tree, name, buffer)
				switch {
				case err == nil && took:
					found.Add(1)
				case errors.Is(err, pack.ErrFull):
					noRoom.Add(1) // packed fast it is larger than from the server, which the limit is made for
				case errors.Is(err, errPack):
					return s.refused(err)
				case err != nil:
					note(err)
				}
				if searching.Err() != nil {
					return context.Cause(searching)
				}
			}
			return nil
		})
	}
	begun := time.Now()
	ended := make(chan error, 1)
	go func() { ended <- group.Wait() }()
	switch err := s.await(ctx, ended, stop, &found); {
	case errors.Is(err, errSlow):
		s.log("%s: %v", tree.Name, err)
	case err != nil:
		return err
	}
	s.log("%d objects from %s in %s", found.Load(), tree.Name, time.Since(begun).Round(100*time.Millisecond))
	if n := unreadable.Load(); n > 0 {
		s.log("%s: %d files or directories could not be read, the first: %v", tree.Name, n, *first.Load())
	}
	if n := noRoom.Load(); n > 0 {
		s.log("%s: no room for %d objects, the server will be asked for them", tree.Name, n)
	}
	return nil
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

// walk sends the regular files of tree whose size is wanted.
func (s *stage) walk(ctx context.Context, tree Tree, files chan<- string, note func(error)) error {
	below := tree.Below
	if below == nil {
		below = []string{"."}
	}
	for _, top := range below {
		err := fs.WalkDir(tree.FS, top, func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				if !errors.Is(err, fs.ErrNotExist) {
					note(err)
				}
				return nil
			}
			if !d.Type().IsRegular() {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				note(err)
				return nil
			}
			this, any := s.wantedSize(uint64(info.Size()))
			if !any {
				return fs.SkipAll
			}
			if !this || info.Size() == 0 {
				return nil
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case files <- name:
				return nil
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// errPack marks errors of the pack, in contrast to those of the tree.
var errPack = errors.New("adding to the pack")

// take hashes one file and adds it to the pack if it is wanted.
func (s *stage) take(ctx context.Context, tree Tree, name string, buffer []byte) (took bool, err error) {
	f, err := tree.FS.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close() // only read from
	n, err := io.ReadFull(f, buffer)
	short := err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)
	if err != nil && !short {
		return false, err
	}
	if short {
		digest := object.Of(buffer[:n])
		if ctx.Err() != nil || !s.wanted(digest, uint64(n)) {
			return false, nil
		}
		if _, err := s.writer.AppendUnpacked(digest, buffer[:n]); err != nil {
			return false, fmt.Errorf("%w: %w", errPack, err)
		}
		s.have(digest, tree.Source)
		return true, nil
	}
	hash := sha256.New()
	hash.Write(buffer[:n])
	rest, err := io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{f}, buffer)
	if err != nil {
		return false, err
	}
	digest, size := object.Digest(hash.Sum(nil)), uint64(n)+uint64(rest)
	if ctx.Err() != nil || !s.wanted(digest, size) {
		return false, nil
	}
	again, err := tree.FS.Open(name)
	if err != nil {
		return false, err
	}
	defer again.Close() // only read from
	source := &source{r: again}
	if _, err := s.writer.AppendFrom(digest, size, source); err != nil {
		if source.failed || errors.Is(err, object.ErrDamaged) {
			return false, err // the file's fault, not the pack's
		}
		return false, fmt.Errorf("%w: %w", errPack, err)
	}
	s.have(digest, tree.Source)
	return true, nil
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
