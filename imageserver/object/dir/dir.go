// Package dir keeps objects as files in a directory.
//
// Below the directory lie objects/ab/<hex> for a raw object and
// objects/ab/<hex>.zst for a packed one, an ordinary zstd file, so that a
// person can check any of them with zstdcat and sha256sum; "ab" are the first
// two digits. What is being written lies in tmp/<random>/, which one process
// holds by a lock (flock(2)); what a dead one left there is removed by the
// next Open. Several processes may use one directory at once. The package
// knows no names of images and deletes nothing by itself. Only the owner can read the
// files: an image may hold secrets such as /etc/shadow.
package dir

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

const (
	objectsName = "objects"
	tempName    = "tmp"
	lockName    = "lock"
	packed      = ".zst"

	// syncAllAbove is the number of files above which one syncfs(2) is
	// cheaper than an fsync(2) of each, although it also writes what other
	// programs left dirty in the file-system.
	syncAllAbove = 32
	// syncers is how many files are synced at once, so that the journal
	// can join their commits.
	syncers = 16
)

// Store is a directory of objects. It is an object.Store, safe for concurrent
// use.
type Store struct {
	path string
	temp string   // this process's directory of unfinished files
	lock *os.File // keeps temp from being removed by others
	next atomic.Uint64
}

var _ object.Store = (*Store)(nil)

// Open opens the store at path, and makes it if it is not there. Close lets
// it go.
func Open(path string) (*Store, error) {
	s := &Store{path: path}
	for _, d := range []string{path, filepath.Join(path, objectsName), filepath.Join(path, tempName)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("making the object store: %w", err)
		}
	}
	made := false
	for i := range 256 {
		err := os.Mkdir(filepath.Join(path, objectsName, hex.EncodeToString([]byte{byte(i)})), 0o700)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("making the object store: %w", err)
		}
		made = made || err == nil
	}
	if made {
		for _, d := range []string{filepath.Join(path, objectsName), path, filepath.Dir(filepath.Clean(path))} {
			if err := syncFile(d); err != nil {
				return nil, fmt.Errorf("making the object store: %w", err)
			}
		}
	}
	if err := s.openTemp(); err != nil {
		return nil, fmt.Errorf("opening the object store: %w", err)
	}
	return s, nil
}

// openTemp makes and locks a directory for this process, and removes those
// that no process holds any more.
func (s *Store) openTemp() error {
	parent := filepath.Join(s.path, tempName)
	// One process at a time comes and cleans up.
	door, err := os.OpenFile(filepath.Join(parent, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer door.Close() // which also unlocks it
	if err := unix.Flock(int(door.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", door.Name(), err)
	}
	left, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, entry := range left {
		if entry.IsDir() {
			if err := removeAbandoned(filepath.Join(parent, entry.Name())); err != nil {
				return err
			}
		}
	}
	var name [8]byte
	rand.Read(name[:]) // never fails, crypto/rand says
	s.temp = filepath.Join(parent, hex.EncodeToString(name[:]))
	if err := os.Mkdir(s.temp, 0o700); err != nil {
		return err
	}
	s.lock, err = os.Open(s.temp)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("locking %s: %w", s.temp, err), s.lock.Close())
	}
	return nil
}

func removeAbandoned(path string) error {
	d, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil // somebody is at work there
	}
	return os.RemoveAll(path)
}

// Close removes what was begun and not committed. Batches must not be used
// afterwards.
func (s *Store) Close() error {
	return errors.Join(os.RemoveAll(s.temp), s.lock.Close())
}

// file returns the path of an object in one of its two encodings.
func (s *Store) file(d object.Digest, e object.Encoding) string {
	name := d.Hex()
	path := filepath.Join(s.path, objectsName, name[:2], name)
	if e == object.Zstd {
		path += packed
	}
	return path
}

// openFile opens the object's file and reads what it is.
func (s *Store) openFile(d object.Digest) (*os.File, object.Info, error) {
	info := object.Info{Digest: d, Encoding: object.Zstd}
	f, err := os.Open(s.file(d, object.Zstd))
	if errors.Is(err, fs.ErrNotExist) {
		info.Encoding = object.Raw
		f, err = os.Open(s.file(d, object.Raw))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, info, fmt.Errorf("object %s: %w", d, object.ErrNotFound)
	}
	if err != nil {
		return nil, info, fmt.Errorf("object %s: %w", d, err)
	}
	if err := describe(f, &info); err != nil {
		return nil, info, errors.Join(fmt.Errorf("object %s: %w", d, err), f.Close())
	}
	return f, info, nil
}

// describe fills in the sizes.
func describe(f *os.File, info *object.Info) error {
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	info.StoredSize = uint64(stat.Size())
	info.Size = info.StoredSize
	if info.Encoding == object.Zstd {
		var head [zstd.HeadSize]byte
		n, err := f.ReadAt(head[:], 0)
		if err != nil && err != io.EOF {
			return err
		}
		info.Size, err = zstd.ContentSize(head[:n])
		return err
	}
	return nil
}

// Open returns the unpacked, verified bytes: see object.Getter.
func (s *Store) Open(ctx context.Context, d object.Digest) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, info, err := s.openFile(d)
	if err != nil {
		return nil, err
	}
	unpacked, err := zstd.Open(info, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &opened{unpacked, f}, nil
}

type opened struct {
	io.ReadCloser
	file *os.File
}

func (o *opened) Close() error { return errors.Join(o.ReadCloser.Close(), o.file.Close()) }

// OpenStored returns the encoded bytes, unverified: see object.Store.
func (s *Store) OpenStored(ctx context.Context, d object.Digest) (*object.Stored, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, info, err := s.openFile(d)
	if err != nil {
		return nil, err
	}
	return &object.Stored{Info: info, ReadCloser: f}, nil
}

// Stat reads the sizes of the wanted objects: see object.Store. An object
// whose file does not even begin like one is left out, as if it were missing,
// so that it is added again.
func (s *Store) Stat(ctx context.Context, digests []object.Digest) ([]object.Info, error) {
	infos := make([]object.Info, 0, len(digests))
	for _, d := range digests {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, info, err := s.openFile(d)
		if errors.Is(err, object.ErrNotFound) || errors.Is(err, object.ErrDamaged) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("object %s: %w", d, err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// List calls f for each object, by the first digits of its digest: see
// object.Store. Objects that are listed may be damaged.
func (s *Store) List(ctx context.Context, f func(object.Info) error) error {
	for i := range 256 {
		names, err := os.ReadDir(filepath.Join(s.path, objectsName, hex.EncodeToString([]byte{byte(i)})))
		if err != nil {
			return fmt.Errorf("listing objects: %w", err)
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			digits, isPacked := strings.CutSuffix(name.Name(), packed)
			d, err := object.ParseDigest("sha256:" + digits)
			if err != nil {
				continue // not ours
			}
			file, info, err := s.openFile(d)
			if errors.Is(err, object.ErrNotFound) || errors.Is(err, object.ErrDamaged) {
				continue // deleted just now, or no object at all
			}
			if err != nil {
				return err
			}
			if err := file.Close(); err != nil {
				return fmt.Errorf("object %s: %w", d, err)
			}
			if !isPacked && info.Encoding == object.Zstd {
				continue // both encodings are there; it is listed once
			}
			if err := f(info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete removes the object: see object.Store. It is durable on return.
func (s *Store) Delete(ctx context.Context, d object.Digest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	removed := false
	for _, e := range []object.Encoding{object.Raw, object.Zstd} {
		err := os.Remove(s.file(d, e))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("deleting object %s: %w", d, err)
		}
		removed = removed || err == nil
	}
	if !removed {
		return nil
	}
	if err := syncFile(filepath.Dir(s.file(d, object.Raw))); err != nil {
		return fmt.Errorf("deleting object %s: %w", d, err)
	}
	return nil
}

// Put adds one object: see object.Store. Many small ones are better put into
// a Batch.
func (s *Store) Put(ctx context.Context, info object.Info, r io.Reader) error {
	b := s.Begin()
	defer b.Abort()
	if err := b.Put(ctx, info, r); err != nil {
		return err
	}
	return b.Commit(ctx)
}

// Batch adds many objects, of which none is visible before Commit and all are
// durable after it, at the price of a few syncs for all of them. It is safe
// for concurrent use, except that Commit and Abort come after all Puts.
type Batch struct {
	store   *Store
	mutex   sync.Mutex
	pending map[object.Digest]pendingFile
}

type pendingFile struct {
	path     string
	encoding object.Encoding
}

// Begin begins a Batch. Abort must be called if Commit is not.
func (s *Store) Begin() *Batch {
	return &Batch{store: s, pending: make(map[object.Digest]pendingFile)}
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
	path := filepath.Join(b.store.temp, fmt.Sprintf("%d-%s", b.store.next.Add(1), info.Digest.Hex()))
	if err := writeVerified(ctx, path, info, r); err != nil {
		return errors.Join(err, remove(path))
	}
	b.mutex.Lock()
	before, twice := b.pending[info.Digest]
	b.pending[info.Digest] = pendingFile{path, info.Encoding}
	b.mutex.Unlock()
	if twice {
		return remove(before.path)
	}
	return nil
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
	return len(b.pending)
}

// Abort gives up what was not committed. After Commit it does nothing.
func (b *Batch) Abort() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	var all error
	for _, p := range b.pending {
		all = errors.Join(all, remove(p.path))
	}
	clear(b.pending)
	return all
}

// Commit makes the objects visible and durable: first their bytes are synced,
// then they get their names, then the names are synced. If it fails, some of
// them may already be there, each of them whole; the rest is given up. The
// Batch is then empty and may be used again.
func (b *Batch) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return errors.Join(err, b.Abort())
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if len(b.pending) == 0 {
		return nil
	}
	paths := make([]string, 0, len(b.pending))
	for _, p := range b.pending {
		paths = append(paths, p.path)
	}
	err := b.store.syncAll(paths)
	directories := make(map[string]bool)
	for d, p := range b.pending {
		if err != nil {
			err = errors.Join(err, remove(p.path))
			continue
		}
		name := b.store.file(d, p.encoding)
		directories[filepath.Dir(name)] = true
		if err = os.Rename(p.path, name); err != nil {
			err = errors.Join(err, remove(p.path))
			continue
		}
		// What was there in the other encoding is now one too many.
		err = remove(b.store.file(d, object.Zstd-p.encoding))
	}
	clear(b.pending)
	if err == nil {
		paths = paths[:0]
		for d := range directories {
			paths = append(paths, d)
		}
		err = b.store.syncAll(paths)
	}
	if err != nil {
		return fmt.Errorf("committing objects: %w", err)
	}
	return nil
}

// syncAll makes files or directories of the store durable.
func (s *Store) syncAll(paths []string) error {
	if len(paths) > syncAllAbove {
		// Since Linux 5.8 syncfs(2) reports write errors as fsync(2) does.
		switch err := unix.Syncfs(int(s.lock.Fd())); err {
		case nil:
			return nil
		case unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP:
			// This file-system wants each by itself.
		default:
			return fmt.Errorf("syncfs: %w", err)
		}
	}
	var group errgroup.Group
	group.SetLimit(syncers)
	for _, p := range paths {
		group.Go(func() error { return syncFile(p) })
	}
	return group.Wait()
}

// syncFile is fsync(2) of a file or directory.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
