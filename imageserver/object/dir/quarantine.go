package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

const quarantineName = "quarantine"

// quarantine is what was found damaged and is not repaired.
type quarantine struct {
	path  string
	mutex sync.Mutex
	files map[object.Digest][]string // names of what was kept of it
	packs []string                   // whole packs that could not be read
}

func (s *Store) openQuarantine() error {
	q := &s.quarantine
	q.path = filepath.Join(s.path, quarantineName)
	q.files = make(map[object.Digest][]string)
	if err := os.MkdirAll(q.path, 0o700); err != nil {
		return err
	}
	names, err := os.ReadDir(q.path)
	if err != nil {
		return err
	}
	for _, name := range names {
		digits, _, _ := strings.Cut(name.Name(), ".")
		if d, err := object.ParseDigest("sha256:" + digits); err == nil {
			q.files[d] = append(q.files[d], name.Name())
		} else if strings.HasSuffix(name.Name(), packSuffix) {
			q.packs = append(q.packs, name.Name())
		}
	}
	return nil
}

// setPackAside moves a pack away that cannot be read.
func (s *Store) setPackAside(name string) error {
	if err := os.Rename(filepath.Join(s.packs.path, name), filepath.Join(s.quarantine.path, name)); err != nil {
		return err
	}
	s.quarantine.packs = append(s.quarantine.packs, name)
	return errors.Join(syncFile(s.packs.path), syncFile(s.quarantine.path))
}

// repaired removes what was kept of an object that is there again.
func (q *quarantine) repaired(d object.Digest) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	for _, name := range q.files[d] {
		// What stays is only shown as damaged until it is put again.
		_ = remove(filepath.Join(q.path, name))
	}
	delete(q.files, d)
}

// Quarantined are the objects that were found damaged and have not been put
// again, sorted, and the names of packs that could not be read at all; which
// objects those held is not known.
func (s *Store) Quarantined() (objects []object.Digest, packs []string) {
	q := &s.quarantine
	q.mutex.Lock()
	defer q.mutex.Unlock()
	for d := range q.files {
		objects = append(objects, d)
	}
	slices.SortFunc(objects, object.Digest.Compare)
	return objects, slices.Clone(q.packs)
}

// Scrub reads an object as it is stored and verifies it. A damaged one is moved
// aside, so that Stat and OpenStored say from then on that it is not there, and
// Put repairs it; the error then wraps object.ErrDamaged. Other errors mean that
// nothing is known. wait, which may be nil, is called with the number of bytes
// before they are read.
func (s *Store) Scrub(ctx context.Context, d object.Digest, wait func(ctx context.Context, bytes int) error) error {
	if wait == nil {
		wait = func(ctx context.Context, _ int) error { return ctx.Err() }
	}
	at, inPack := s.packs.get(d)
	stored, err := s.openStored(d)
	var looked os.FileInfo
	if err == nil {
		if f, ok := stored.ReadCloser.(*os.File); ok {
			looked, err = f.Stat()
			inPack = false
		}
		if err == nil {
			err = verifyStored(ctx, stored, wait)
		}
		err = errors.Join(err, stored.Close())
	} else if looked, inPack, err = s.unopened(d, inPack, err); err == nil {
		return nil
	}
	switch {
	case err == nil, errors.Is(err, object.ErrNotFound):
		return err
	case errors.Is(err, object.ErrDamaged):
	case errors.Is(err, syscall.EIO): // a bad sector
		err = fmt.Errorf("%w: %w", err, object.ErrDamaged)
	default:
		return err
	}
	s.maintaining.Lock()
	defer s.maintaining.Unlock()
	s.renaming.Lock()
	defer s.renaming.Unlock()
	if inPack {
		return errors.Join(err, s.setPackedAside(d, at))
	}
	return errors.Join(err, s.setFileAside(d, looked))
}

// unopened judges an object whose file is there but does not begin like one.
func (s *Store) unopened(d object.Digest, inPack bool, err error) (os.FileInfo, bool, error) {
	if inPack || !errors.Is(err, object.ErrDamaged) {
		return nil, inPack, err
	}
	looked, statErr := os.Stat(s.file(d, object.Zstd))
	if statErr != nil {
		return nil, false, errors.Join(err, statErr)
	}
	return looked, false, err
}

// verifyStored verifies the bytes of an object, piece by piece.
func verifyStored(ctx context.Context, stored *object.Stored, wait func(context.Context, int) error) error {
	v := zstd.NewVerifier(stored.Info)
	var failed error
	buffer := make([]byte, min(stored.StoredSize, 1<<20))
	for left := stored.StoredSize; left > 0 && failed == nil; {
		n := int(min(left, uint64(len(buffer))))
		if failed = wait(ctx, n); failed != nil {
			break
		}
		if _, failed = io.ReadFull(stored, buffer[:n]); failed != nil {
			if failed == io.EOF || failed == io.ErrUnexpectedEOF {
				failed = fmt.Errorf("object %s is cut off: %w", stored.Digest, object.ErrDamaged)
			}
			break
		}
		_, failed = v.Write(buffer[:n])
		left -= uint64(n)
	}
	// The verdict on half an object says nothing.
	if verdict := v.Close(); failed == nil {
		failed = verdict
	}
	return failed
}

// setPackedAside keeps a copy of the bytes and lets them count no more.
func (s *Store) setPackedAside(d object.Digest, at place) error {
	if now, found := s.packs.get(d); !found || now != at {
		return nil // it was put again, or is gone
	}
	q := &s.quarantine
	name := d.Hex() + "." + at.pack.name + "." + shortRandom()
	file, err := s.packs.acquire(at.pack)
	if err == nil {
		bytes := make([]byte, at.stored)
		n, _ := file.ReadAt(bytes, int64(at.offset))
		// The copy is for a person to look at. Without it the store is as well
		// off; the name alone tells of the damage.
		_ = os.WriteFile(filepath.Join(q.path, name), bytes[:n], 0o600)
		err = s.packs.release(at.pack)
	}
	if err := errors.Join(err, s.packs.kill([]object.Digest{d})); err != nil {
		return fmt.Errorf("moving object %s aside: %w", d, err)
	}
	q.add(d, name)
	return syncFile(q.path)
}

// setFileAside moves the object's file away, if it is still the one that was
// looked at.
func (s *Store) setFileAside(d object.Digest, looked os.FileInfo) error {
	q := &s.quarantine
	for _, e := range []object.Encoding{object.Zstd, object.Raw} {
		path := s.file(d, e)
		now, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if looked == nil || !os.SameFile(looked, now) {
			return nil // it was put again
		}
		name := filepath.Base(path) + "." + shortRandom()
		if err := os.Rename(path, filepath.Join(q.path, name)); err != nil {
			return fmt.Errorf("moving object %s aside: %w", d, err)
		}
		q.add(d, name)
		return errors.Join(syncFile(filepath.Dir(path)), syncFile(q.path))
	}
	return nil
}

func (q *quarantine) add(d object.Digest, name string) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	q.files[d] = append(q.files[d], name)
}
