// Package dir keeps objects in a directory.
//
// Small objects lie together in packs, packs/<sequence>-<random>.pack of a few
// MiB (package object/pack says how), because an image has tens of thousands of
// them. Larger ones are files of their own: objects/ab/<hex> for a raw object
// and objects/ab/<hex>.zst for a compressed one, an ordinary zstd file, so that
// a person can check it with zstdcat and sha256sum; "ab" are the first two
// digits. packs/format holds the version of this layout: in format 1 all
// objects were files, and such a directory is used as it is.
//
// Packs are never changed. Of an object that lies in several, the pack with the
// highest sequence counts. packs/dead lists what no longer counts in packs: what was
// deleted or damaged; a pack of which little counts any more is written anew.
//
// What is being written lies in tmp/<random>/, which one process holds by a lock
// (flock(2)); what a dead one left there is removed by the next Open. What was
// found damaged lies in quarantine/, for a person to look at, until the object
// is put again. Several processes may use one directory at once. The package
// knows no names of images and deletes nothing by itself. Only the owner can
// read the files: an image may hold secrets such as /etc/shadow.
package dir

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
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
	zstdSuffix  = ".zst"

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

	packs *packs
	// renaming is held for reading while a batch's objects get their names, and
	// for writing while a damaged object loses its own.
	renaming sync.RWMutex
	// maintaining is held while objects are deleted, moved aside or moved to
	// other packs.
	maintaining sync.Mutex
	quarantine  quarantine
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
	if err := s.openPacks(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the object store: %w", err), s.Close())
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
	if s.packs != nil {
		s.packs.close()
	}
	return errors.Join(os.RemoveAll(s.temp), s.lock.Close())
}

// file returns the path of an object in one of its two encodings.
func (s *Store) file(d object.Digest, e object.Encoding) string {
	name := d.Hex()
	path := filepath.Join(s.path, objectsName, name[:2], name)
	if e == object.Zstd {
		path += zstdSuffix
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

// OpenStored returns the encoded bytes, unverified: see object.Store.
func (s *Store) OpenStored(ctx context.Context, d object.Digest) (*object.Stored, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	stored, err := s.openStored(d)
	if errors.Is(err, object.ErrNotFound) {
		if changed, refreshErr := s.packs.refresh(); refreshErr != nil || !changed {
			return nil, errors.Join(err, refreshErr)
		}
		stored, err = s.openStored(d)
	}
	return stored, err
}

func (s *Store) openStored(d object.Digest) (*object.Stored, error) {
	// A pack may be written anew between the look and the opening.
	for range 3 {
		at, found := s.packs.get(d)
		if !found {
			break
		}
		f, err := s.packs.acquire(at.pack)
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := s.packs.reload(); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("object %s: %w", d, err)
		}
		section := io.NewSectionReader(f, int64(at.offset), int64(at.stored))
		return &object.Stored{Info: at.info(d), ReadCloser: &packed{section, s.packs, at.pack}}, nil
	}
	f, info, err := s.openFile(d)
	if err != nil {
		return nil, err
	}
	return &object.Stored{Info: info, ReadCloser: f}, nil
}

// packed are the bytes of an object in a pack.
type packed struct {
	*io.SectionReader
	packs *packs
	pack  *packFile // nil once closed
}

func (p *packed) Close() error {
	if p.pack == nil {
		return nil
	}
	err := p.packs.release(p.pack)
	p.pack = nil
	return err
}

// Stat reads the sizes of the wanted objects: see object.Store. An object
// whose file does not even begin like one is left out, as if it were missing,
// so that it is added again.
func (s *Store) Stat(ctx context.Context, digests []object.Digest) ([]object.Info, error) {
	infos, missing, err := s.stat(ctx, digests)
	if err != nil || !missing {
		return infos, err
	}
	if changed, err := s.packs.refresh(); err != nil || !changed {
		return infos, err
	}
	infos, _, err = s.stat(ctx, digests)
	return infos, err
}

func (s *Store) stat(ctx context.Context, digests []object.Digest) (infos []object.Info, missing bool, err error) {
	infos = make([]object.Info, 0, len(digests))
	for _, d := range digests {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		if at, found := s.packs.get(d); found {
			infos = append(infos, at.info(d))
			continue
		}
		f, info, err := s.openFile(d)
		if errors.Is(err, object.ErrNotFound) || errors.Is(err, object.ErrDamaged) {
			missing = true
			continue
		}
		if err != nil {
			return nil, false, err
		}
		if err := f.Close(); err != nil {
			return nil, false, fmt.Errorf("object %s: %w", d, err)
		}
		infos = append(infos, info)
	}
	return infos, missing, nil
}

// List calls f for each object, pack by pack and then file by file: see
// object.Store. Objects that are listed may be damaged.
func (s *Store) List(ctx context.Context, f func(object.Info) error) error {
	for _, pack := range s.packs.all() {
		locations, err := s.packs.live(pack)
		if err != nil {
			return fmt.Errorf("listing objects: %w", err)
		}
		for _, l := range locations {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f(l.Info); err != nil {
				return err
			}
		}
	}
	return s.listFiles(ctx, f)
}

func (s *Store) listFiles(ctx context.Context, f func(object.Info) error) error {
	for i := range 256 {
		names, err := os.ReadDir(filepath.Join(s.path, objectsName, hex.EncodeToString([]byte{byte(i)})))
		if err != nil {
			return fmt.Errorf("listing objects: %w", err)
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			digits, isZstd := strings.CutSuffix(name.Name(), zstdSuffix)
			d, err := object.ParseDigest("sha256:" + digits)
			if err != nil {
				continue // not ours
			}
			if _, found := s.packs.get(d); found {
				continue // the pack counts
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
			if !isZstd && info.Encoding == object.Zstd {
				continue // both encodings are there; it is listed once
			}
			if err := f(info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete removes the object: see object.Store. It is durable on return. Many
// are better given to DeleteMany.
func (s *Store) Delete(ctx context.Context, d object.Digest) error {
	return s.DeleteMany(ctx, []object.Digest{d})
}

// DeleteMany removes objects, durably on return, at the price of a few syncs for
// all of them. Missing ones are no error. When it fails, some may be gone.
func (s *Store) DeleteMany(ctx context.Context, digests []object.Digest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.maintaining.Lock()
	defer s.maintaining.Unlock()
	directories := make(map[string]bool)
	for _, d := range digests {
		for _, e := range []object.Encoding{object.Raw, object.Zstd} {
			name := s.file(d, e)
			err := os.Remove(name)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("deleting object %s: %w", d, err)
			}
			if err == nil {
				directories[filepath.Dir(name)] = true
			}
		}
	}
	if err := s.packs.kill(digests); err != nil {
		return fmt.Errorf("deleting objects: %w", err)
	}
	if err := s.syncAll(slices.Collect(maps.Keys(directories))); err != nil {
		return fmt.Errorf("deleting objects: %w", err)
	}
	// The objects are gone. Room that cannot be had back now, because the disk
	// is full or failing, is had back at the next deletion.
	_ = s.reclaim(ctx)
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
