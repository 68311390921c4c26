package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// Batch adds many objects, of which none is visible before Commit and all are
// durable after it, at the price of a few syncs for all of them. It is safe
// for concurrent use, except that Commit and Abort come after all Puts.
type Batch struct {
	store *Store
	mutex sync.Mutex
	files map[object.Digest]pendingFile
	packs []*pendingPack // the last one is being filled
	count int            // objects in packs
}

type pendingFile struct {
	path     string
	encoding object.Encoding
}

// pendingPack is a pack without its name.
type pendingPack struct {
	path   string
	file   *os.File
	writer *pack.Writer
}

// Begin begins a Batch. Abort must be called if Commit is not.
func (s *Store) Begin() *Batch {
	return &Batch{store: s, files: make(map[object.Digest]pendingFile)}
}

// Put verifies an object and writes it, as Store.Put does, but leaves making
// it visible and durable to Commit.
func (b *Batch) Put(ctx context.Context, info object.Info, r io.Reader) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := info.Validate(); err != nil {
		return err
	}
	if info.StoredSize <= small {
		return b.putSmall(info, r)
	}
	path := b.store.temporary(info.Digest.Hex())
	if err := writeVerified(ctx, path, info, r); err != nil {
		return errors.Join(err, remove(path))
	}
	b.mutex.Lock()
	before, twice := b.files[info.Digest]
	b.files[info.Digest] = pendingFile{path, info.Encoding}
	b.mutex.Unlock()
	if twice {
		return remove(before.path)
	}
	return nil
}

// temporary is a new path for an unfinished file.
func (s *Store) temporary(name string) string {
	return filepath.Join(s.temp, fmt.Sprintf("%d-%s", s.next.Add(1), name))
}

// smallBuffers are used again; they hold no state.
var smallBuffers = sync.Pool{New: func() any { return new([small + 1]byte) }}

// putSmall verifies a small object in memory and appends it to a pack.
func (b *Batch) putSmall(info object.Info, r io.Reader) error {
	buffer := smallBuffers.Get().(*[small + 1]byte)
	defer smallBuffers.Put(buffer)
	n, err := io.ReadFull(r, buffer[:info.StoredSize+1])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return fmt.Errorf("receiving object %s: %w", info.Digest, err)
	}
	encoded := buffer[:n]
	if err := zstd.Verify(info, encoded); err != nil {
		return fmt.Errorf("%w: %w", object.ErrRefused, err)
	}
	return b.append(info, encoded)
}

// append adds verified bytes to the pack that is being filled.
func (b *Batch) append(info object.Info, encoded []byte) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for _, p := range b.packs {
		if p.writer.Has(info.Digest) {
			return nil
		}
	}
	if len(b.packs) == 0 || b.packs[len(b.packs)-1].writer.Used() >= packSize {
		p, err := b.store.newPack()
		if err != nil {
			return err
		}
		b.packs = append(b.packs, p)
	}
	if err := b.packs[len(b.packs)-1].writer.AppendVerified(info, encoded); err != nil {
		return err
	}
	b.count++
	return nil
}

func (s *Store) newPack() (*pendingPack, error) {
	p := &pendingPack{path: s.temporary("pack")}
	var err error
	if p.file, err = os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("beginning a pack: %w", err)
	}
	if p.writer, err = pack.NewWriter(p.file, pack.Options{}); err != nil {
		return nil, errors.Join(fmt.Errorf("beginning a pack: %w", err), p.file.Close(), remove(p.path))
	}
	return p, nil
}

// remove removes a file that may not be there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeVerified writes what r gives to a new file and checks it on the way.
func writeVerified(ctx context.Context, path string, info object.Info, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("adding object %s: %w", info.Digest, err)
	}
	v := zstd.NewVerifier(info)
	err = copyVerified(ctx, f, v, info, r)
	// Close alone says whether the object is whole, and ends the verifier.
	if verdict := v.Close(); err == nil || errors.Is(err, object.ErrDamaged) {
		err = verdict
	}
	if errors.Is(err, object.ErrDamaged) {
		err = fmt.Errorf("%w: %w", object.ErrRefused, err)
	}
	if closeErr := f.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("adding object %s: %w", info.Digest, closeErr)
	}
	return err
}

func copyVerified(ctx context.Context, f *os.File, v *zstd.Verifier, info object.Info, r io.Reader) error {
	// A small object comes in one read and is verified in one go.
	buffer := make([]byte, min(info.StoredSize, zstd.Whole-1)+1)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buffer)
		if n > 0 {
			if _, err := v.Write(buffer[:n]); err != nil {
				return err
			}
			if _, err := f.Write(buffer[:n]); err != nil {
				return fmt.Errorf("adding object %s: %w", info.Digest, err)
			}
		}
		switch {
		case err == io.EOF, err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return fmt.Errorf("receiving object %s: %w", info.Digest, err)
		}
	}
}

// Len returns how many objects wait for Commit.
func (b *Batch) Len() int {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return len(b.files) + b.count
}

// Abort gives up what was not committed. After Commit it does nothing.
func (b *Batch) Abort() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.giveUp()
}

// giveUp removes what has no name yet.
func (b *Batch) giveUp() error {
	var all error
	for _, f := range b.files {
		all = errors.Join(all, remove(f.path))
	}
	for _, p := range b.packs {
		all = errors.Join(all, p.file.Close(), remove(p.path))
	}
	clear(b.files)
	b.packs, b.count = nil, 0
	return all
}

// Commit makes the objects visible and durable: first their bytes are synced,
// then they get their names, then the names are synced. If it fails, some of
// them may already be there, each of them whole; the rest is given up. The
// Batch is then empty and may be used again.
func (b *Batch) Commit(ctx context.Context) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	err := ctx.Err()
	if err == nil && len(b.files)+len(b.packs) > 0 {
		if err = b.commit(nil); err != nil {
			err = fmt.Errorf("committing objects: %w", err)
		}
	}
	err = errors.Join(err, b.giveUp())
	if err != nil {
		return err
	}
	return b.store.mergeSmall(ctx)
}

// commit makes everything durable. Where from is not nil, the objects were
// copied from these packs, and count only if they still lie there.
func (b *Batch) commit(from map[*packFile]bool) error {
	s := b.store
	var paths []string
	for _, f := range b.files {
		paths = append(paths, f.path)
	}
	finished := make([]finishedPack, len(b.packs))
	for i, p := range b.packs {
		size, err := p.writer.Finish()
		if err != nil {
			return err
		}
		// What is read is what lies on the disk, not what was meant to.
		if finished[i].locations, err = pack.ReadIndex(p.file, size); err != nil {
			return err
		}
		finished[i].size = uint64(size)
		paths = append(paths, p.path)
	}
	if err := s.syncAll(paths); err != nil {
		return err
	}
	s.renaming.RLock()
	defer s.renaming.RUnlock()
	directories := make(map[string]bool)
	var replaced []object.Digest
	for d, f := range b.files {
		name := s.file(d, f.encoding)
		directories[filepath.Dir(name)] = true
		if err := os.Rename(f.path, name); err != nil {
			return err
		}
		delete(b.files, d)
		// What was there in the other encoding is now one too many.
		if err := remove(s.file(d, object.Zstd-f.encoding)); err != nil {
			return err
		}
		if _, found := s.packs.get(d); found {
			replaced = append(replaced, d)
		}
		s.quarantine.repaired(d)
	}
	for i, p := range b.packs {
		name, sequence := s.packs.name()
		if err := os.Rename(p.path, filepath.Join(s.packs.path, name)); err != nil {
			return err
		}
		directories[s.packs.path] = true
		finished[i].packFile = &packFile{name: name, sequence: sequence, size: finished[i].size}
		// Visible by its name, so it must not go any more.
		s.packs.add(finished[i].packFile, finished[i].locations, from)
		if from != nil {
			continue
		}
		for _, l := range finished[i].locations {
			for _, e := range []object.Encoding{object.Raw, object.Zstd} {
				if err := remove(s.file(l.Info.Digest, e)); err != nil {
					return err
				}
			}
			s.quarantine.repaired(l.Info.Digest)
		}
	}
	paths = paths[:0]
	for d := range directories {
		paths = append(paths, d)
	}
	if err := s.syncAll(paths); err != nil {
		return err
	}
	// Only now that the files are durable may the older copies go.
	return s.packs.kill(replaced)
}

type finishedPack struct {
	*packFile
	locations []pack.Location
	size      uint64
}
