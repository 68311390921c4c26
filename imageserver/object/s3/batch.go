package s3

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// inMemory is the number of stored bytes up to which an object is verified before
// anything is written.
const inMemory = 1 << 20

// Batch adds many objects, of which none is visible before Commit and all are
// durable after it. It is safe for concurrent use, except that Commit and Abort
// come after all Puts.
type Batch struct {
	store *Store
	mutex sync.Mutex
	packs []*pending // the last one is being filled
}

// pending is a pack that is being written on the local disk.
type pending struct {
	path   string
	file   *os.File
	writer *pack.Writer
}

// Begin begins a Batch. Abort must be called if Commit is not.
func (s *Store) Begin() *Batch { return &Batch{store: s} }

// Put verifies an object and writes it, as Store.Put does, but leaves making it
// visible and durable to Commit.
func (b *Batch) Put(ctx context.Context, info object.Info, r io.Reader) error {
	if err := errors.Join(ctx.Err(), info.Validate()); err != nil {
		return err
	}
	if info.StoredSize <= inMemory {
		encoded := make([]byte, info.StoredSize+1)
		n, err := io.ReadFull(r, encoded)
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return fmt.Errorf("receiving object %s: %w", info.Digest, err)
		}
		if err := zstd.Verify(info, encoded[:n]); err != nil {
			return fmt.Errorf("%w: %w", object.ErrRefused, err)
		}
		return b.append(info, encoded[:n])
	}
	return b.large(ctx, info, r)
}

// append adds verified bytes.
func (b *Batch) append(info object.Info, encoded []byte) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for _, p := range b.packs {
		if p.writer.Has(info.Digest) {
			return nil
		}
	}
	p, err := b.room(info.StoredSize)
	if err != nil {
		return err
	}
	return p.writer.AppendVerified(info, encoded)
}

// large writes and verifies an object that comes bit by bit.
func (b *Batch) large(ctx context.Context, info object.Info, r io.Reader) error {
	r = &breakable{ctx, r}
	b.mutex.Lock()
	for _, p := range b.packs {
		if p.writer.Has(info.Digest) {
			b.mutex.Unlock()
			_, err := io.Copy(io.Discard, r)
			return err
		}
	}
	p, err := b.room(info.StoredSize)
	b.mutex.Unlock()
	if err != nil {
		return err
	}
	if err := p.writer.AppendStored(info, r); errors.Is(err, object.ErrDamaged) {
		return fmt.Errorf("%w: %w", object.ErrRefused, err)
	} else if err != nil {
		return fmt.Errorf("adding object %s: %w", info.Digest, err)
	}
	return nil
}

// breakable ends with its context.
type breakable struct {
	ctx context.Context
	r   io.Reader
}

func (b *breakable) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.r.Read(p)
}

// room is a pack with room for so many bytes; a larger object has one of its own.
// mutex is held.
func (b *Batch) room(size uint64) (*pending, error) {
	if n := len(b.packs); n > 0 {
		if used := b.packs[n-1].writer.Used(); used == 0 || used+size <= packSize {
			return b.packs[n-1], nil
		}
	}
	var random [8]byte
	rand.Read(random[:]) // never fails, crypto/rand says
	p := &pending{path: filepath.Join(b.store.temp, "new-"+hex.EncodeToString(random[:]))}
	var err error
	if p.file, err = os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, fmt.Errorf("beginning a pack: %w", err)
	}
	if p.writer, err = pack.NewWriter(p.file, pack.Options{}); err != nil {
		return nil, errors.Join(fmt.Errorf("beginning a pack: %w", err), p.file.Close(), os.Remove(p.path))
	}
	b.packs = append(b.packs, p)
	return p, nil
}

// Commit makes the objects durable in the bucket and visible to every server. If
// it fails, some of them may be there, each of them whole; the rest is given up.
// The Batch is then empty and may be used again.
func (b *Batch) Commit(ctx context.Context) error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for len(b.packs) > 0 {
		if err := b.commitOne(ctx, b.packs[0]); err != nil {
			return errors.Join(fmt.Errorf("committing objects: %w", err), b.giveUp())
		}
		b.packs = b.packs[1:]
	}
	return nil
}

// commitOne uploads a pack, then its index, by which it counts.
func (b *Batch) commitOne(ctx context.Context, one *pending) error {
	s := b.store
	size, err := one.writer.Finish()
	if err != nil {
		return err
	}
	// What is announced is what lies in the file, not what was meant to.
	data, err := encodeIndex(one.file, size)
	if err != nil {
		return err
	}
	p := &packed{id: s.newID()}
	if p.size, p.objects, err = decodeIndex(data); err != nil {
		return err
	}
	if len(p.objects) == 0 {
		return errors.Join(one.file.Close(), os.Remove(one.path))
	}
	if _, err := s.bucket.write(ctx, packsBelow+p.id+packSuffix, io.NewSectionReader(one.file, 0, size), size, Always); err != nil {
		return err
	}
	tag, err := s.bucket.Put(ctx, indexBelow+p.id, data, IfNew)
	if err != nil {
		return err
	}
	p.written = s.bucket.now()
	s.notes.put(Entry{Key: indexBelow + p.id, Tag: tag}, data)
	s.index.add(p)
	if err := s.cache.keep(p, one.file, one.path); err != nil {
		s.log.Warn("putting a pack into the cache", "pack", p.id, "error", err)
	}
	s.repaired(ctx, p)
	return nil
}

// Abort gives up what was not committed. After Commit it does nothing.
func (b *Batch) Abort() error {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.giveUp()
}

func (b *Batch) giveUp() error {
	var all error
	for _, p := range b.packs {
		all = errors.Join(all, p.file.Close(), os.Remove(p.path))
	}
	b.packs = nil
	return all
}
