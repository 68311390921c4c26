package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// windowSize is how many bytes of a pack are read together.
const windowSize = 4 << 20

// window is a part of a pack in memory, for who reads one object after the other.
type window struct {
	mutex sync.Mutex
	pack  string
	from  uint64
	data  []byte
}

// read is the bytes of an object, from the bucket and not from the cache. They are
// valid until the next call.
func (w *window) read(ctx context.Context, b *Bucket, at place) ([]byte, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	end := at.Offset + at.Info.StoredSize
	if w.pack != at.pack.id || at.Offset < w.from || end > w.from+uint64(len(w.data)) {
		length := min(max(windowSize, at.Info.StoredSize), at.pack.size-at.Offset)
		body, _, err := b.open(ctx, packsBelow+at.pack.id+packSuffix, int64(at.Offset), int64(length))
		if err != nil {
			return nil, err
		}
		defer body.Close()
		data := make([]byte, length)
		n, err := io.ReadFull(body, data)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			err = nil // the pack is shorter than its index says; what is missing is damaged
		}
		if err != nil {
			return nil, err
		}
		w.pack, w.from, w.data = at.pack.id, at.Offset, data[:n]
	}
	from := at.Offset - w.from
	return bytes.Clone(w.data[min(from, uint64(len(w.data))):min(from+at.Info.StoredSize, uint64(len(w.data)))]), nil
}

// Scrub verifies an object in the bucket, and in the cache if its pack is there. A
// damaged copy in the cache is only dropped. An object that is damaged in the
// bucket is dead from then on, for every server, a copy of it is put into
// quarantine/, and the error wraps object.ErrDamaged; Put repairs it. wait, which may
// be nil, is called with the number of bytes before they are read.
func (s *Store) Scrub(ctx context.Context, d object.Digest, wait func(ctx context.Context, bytes int) error) error {
	at, found := s.index.get(d)
	if !found {
		return fmt.Errorf("object %s: %w", d, object.ErrNotFound)
	}
	if err := s.scrubCached(ctx, at); err != nil {
		return err
	}
	if wait != nil {
		for left := at.Info.StoredSize; left > 0; {
			n := min(left, windowSize)
			if err := wait(ctx, int(n)); err != nil {
				return err
			}
			left -= n
		}
	}
	kept, err := s.verifyStored(ctx, at)
	if !errors.Is(err, object.ErrDamaged) {
		if errors.Is(err, ErrNoKey) {
			return fmt.Errorf("object %s: %w", d, object.ErrNotFound)
		}
		return err
	}
	return errors.Join(err, s.setAside(ctx, at, kept))
}

// scrubCached drops a pack from the cache in which the object is damaged.
func (s *Store) scrubCached(ctx context.Context, at place) error {
	s.cache.mutex.Lock()
	one := s.cache.packs[at.pack.id]
	here := one != nil && one.whole()
	if here {
		one.readers++
	}
	s.cache.mutex.Unlock()
	if !here {
		return nil
	}
	defer s.cache.leave(one)
	err := verify(ctx, at, io.NewSectionReader(one.file, int64(at.Offset), int64(at.Info.StoredSize)))
	if err != nil && ctx.Err() == nil {
		s.log.Error("a pack in the cache is damaged; it is fetched again", "pack", at.pack.id, "object", at.Info.Digest, "error", err)
		s.cache.forget(at.pack.id)
		return nil
	}
	return err
}

// verify reads an object and verifies it.
func verify(ctx context.Context, at place, r io.Reader) error {
	v := zstd.NewVerifier(at.Info)
	n, err := io.Copy(v, &breakable{ctx, io.LimitReader(r, int64(at.Info.StoredSize))})
	verdict := v.Close()
	switch {
	case err != nil:
		return err
	case uint64(n) < at.Info.StoredSize:
		return fmt.Errorf("object %s is cut off: %w", at.Info.Digest, object.ErrDamaged)
	}
	return verdict
}

// verifyStored verifies an object in the bucket, and returns the bytes of a small
// one.
func (s *Store) verifyStored(ctx context.Context, at place) ([]byte, error) {
	if at.Info.StoredSize <= windowSize {
		encoded, err := s.window.read(ctx, s.bucket, at)
		if err != nil {
			return nil, err
		}
		return encoded, verify(ctx, at, bytes.NewReader(encoded))
	}
	body, _, err := s.bucket.open(ctx, packsBelow+at.pack.id+packSuffix, int64(at.Offset), int64(at.Info.StoredSize))
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return nil, verify(ctx, at, body)
}

// quarantine is what was found damaged and is not repaired.
type quarantine struct {
	mutex sync.Mutex
	keys  map[object.Digest][]string
	packs []string
}

// readQuarantine reads what other servers and earlier ones found.
func (s *Store) readQuarantine(ctx context.Context) error {
	found, err := s.bucket.List(ctx, quarantined)
	if err != nil {
		return err
	}
	for _, e := range found {
		digits, _, _ := strings.Cut(strings.TrimPrefix(e.Key, quarantined), ".")
		if d, err := object.ParseDigest("sha256:" + digits); err == nil {
			s.quarantine.add(d, e.Key)
		}
	}
	return nil
}

func (q *quarantine) add(d object.Digest, key string) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	if q.keys == nil {
		q.keys = make(map[object.Digest][]string)
	}
	q.keys[d] = append(q.keys[d], key)
}

func (q *quarantine) addPack(id string) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	if !slices.Contains(q.packs, id) {
		q.packs = append(q.packs, id)
	}
}

func (q *quarantine) has(d object.Digest) bool {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	return len(q.keys[d]) > 0
}

// setAside keeps a copy of a damaged object and lets it count no more.
func (s *Store) setAside(ctx context.Context, at place, kept []byte) error {
	key := quarantined + at.Info.Digest.Hex() + "." + at.pack.id
	// The copy is for a person to look at; its name alone tells of the damage.
	if _, err := s.bucket.Put(ctx, key, kept, Always); err != nil {
		return err
	}
	if err := s.changeDeadOf(ctx, at.pack, []object.Digest{at.Info.Digest}, true); err != nil {
		return err
	}
	s.quarantine.add(at.Info.Digest, key)
	return nil
}

// repaired forgets the damaged copies of what is there again.
func (s *Store) repaired(ctx context.Context, p *packed) {
	q := &s.quarantine
	var keys []string
	q.mutex.Lock()
	for _, l := range p.objects {
		keys = append(keys, q.keys[l.Info.Digest]...)
		delete(q.keys, l.Info.Digest)
	}
	q.mutex.Unlock()
	for _, key := range keys {
		if err := s.bucket.Remove(ctx, key); err != nil {
			s.log.Warn("removing a damaged copy of what is whole again", "key", key, "error", err)
		}
	}
}

// Quarantined are the objects that were found damaged and have not been put again,
// sorted, and the ids of packs that could not be read at all.
func (s *Store) Quarantined() (objects []object.Digest, packs []string) {
	q := &s.quarantine
	q.mutex.Lock()
	defer q.mutex.Unlock()
	for d := range q.keys {
		if _, whole := s.index.get(d); !whole { // another copy counts
			objects = append(objects, d)
		}
	}
	slices.SortFunc(objects, object.Digest.Compare)
	return objects, slices.Clone(q.packs)
}
