package s3

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

const (
	// conflicts is how often a change is tried that others changed too.
	conflicts = 20
	// orphaned is the age of a pack without an index from which on nobody can be
	// about to write that.
	orphaned = 24 * time.Hour
	// lonely is the size below which packs are put together once there are
	// manyLonely of them.
	lonely     = 16 << 20
	manyLonely = 16
)

// DeleteMany lets objects count no more, durably and for every server. Their bytes
// stay until Free. Missing ones are no error. When it fails, some may be gone.
func (s *Store) DeleteMany(ctx context.Context, digests []object.Digest) error {
	in := make(map[*packed][]object.Digest)
	for _, d := range digests {
		for _, at := range s.index.everywhere(d) {
			in[at.pack] = append(in[at.pack], d)
		}
	}
	return s.changeDead(ctx, in, true)
}

// Revive makes objects count again that were deleted and whose bytes are still
// there. What counts already stays as it is, and what is gone is no error.
func (s *Store) Revive(ctx context.Context, digests []object.Digest) error {
	in := make(map[*packed][]object.Digest)
	for _, d := range digests {
		if _, found := s.index.get(d); found {
			continue
		}
		if all := s.index.everywhere(d); len(all) > 0 && !s.quarantine.has(d) {
			in[all[0].pack] = append(in[all[0].pack], d)
		}
	}
	return s.changeDead(ctx, in, false)
}

// changeDead lets objects of packs be dead, or not any more.
func (s *Store) changeDead(ctx context.Context, in map[*packed][]object.Digest, dead bool) error {
	packs := slices.Collect(maps.Keys(in))
	return each(ctx, len(packs), func(ctx context.Context, i int) error {
		return s.changeDeadOf(ctx, packs[i], in[packs[i]], dead)
	})
}

func (s *Store) changeDeadOf(ctx context.Context, p *packed, digests []object.Digest, dead bool) error {
	key := deadBelow + p.id
	for try := 0; ; try++ {
		s.index.mutex.RLock()
		set, tag := maps.Clone(p.dead), p.deadTag
		s.index.mutex.RUnlock()
		if set == nil {
			set = make(map[object.Digest]bool)
		}
		changed := false
		for _, d := range digests {
			changed = changed || set[d] != dead
			if dead {
				set[d] = true
			} else {
				delete(set, d)
			}
		}
		if !changed {
			return nil
		}
		condition := tag
		if tag == "" {
			condition = IfNew
		}
		now, err := s.bucket.Put(ctx, key, encodeDead(set), condition)
		if err == nil {
			s.index.mutex.Lock()
			p.dead, p.deadTag, p.deadTime = set, now, s.bucket.now()
			p.changes++
			s.index.mutex.Unlock()
			return nil
		}
		// Somebody else changed it, or removed it together with its pack.
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrNoKey) || try == conflicts {
			return err
		}
		if err := s.readDeadAgain(ctx, p); err != nil {
			return err
		}
	}
}

// readDeadAgain learns what others changed of one pack's dead.
func (s *Store) readDeadAgain(ctx context.Context, p *packed) error {
	data, found, err := s.bucket.Read(ctx, deadBelow+p.id)
	var set map[object.Digest]bool
	switch {
	case errors.Is(err, ErrNoKey):
		found = Entry{}
	case err != nil:
		return err
	default:
		// What is damaged names nothing.
		set, _ = decodeDead(data)
	}
	s.index.mutex.Lock()
	defer s.index.mutex.Unlock()
	p.dead, p.deadTag, p.deadTime = set, found.Tag, found.Written
	p.changes++
	return nil
}

// Free gives back the room of what was deleted longer than grace ago. Packs of
// which little counts, and small ones once there are many, are put together first.
// needed says what images need at that moment; it is asked after a pack has gone
// from the index and before its bytes go, and what it names comes back.
func (s *Store) Free(ctx context.Context, grace time.Duration, needed func(ctx context.Context) (map[object.Digest]bool, error)) error {
	if err := s.Refresh(ctx); err != nil {
		return err
	}
	if err := s.putTogether(ctx); err != nil {
		return err
	}
	var doomed []*packed
	var suspects []object.Digest
	now := s.bucket.now()
	for _, p := range s.index.all() {
		if dead, since := s.index.allDead(p); dead && !now.Before(since.Add(grace)) {
			doomed = append(doomed, p)
			for _, l := range p.objects {
				suspects = append(suspects, l.Info.Digest)
			}
		}
	}
	if len(doomed) > 0 {
		if err := s.removePacks(ctx, doomed, suspects, needed); err != nil {
			return err
		}
	}
	return s.removeOrphans(ctx, now)
}

// allDead says whether nothing of a pack counts, and since when.
func (x *index) allDead(p *packed) (bool, time.Time) {
	x.mutex.RLock()
	defer x.mutex.RUnlock()
	for _, l := range p.objects {
		if !p.dead[l.Info.Digest] {
			return false, time.Time{}
		}
	}
	return true, p.deadTime
}

func (s *Store) removePacks(ctx context.Context, doomed []*packed, suspects []object.Digest, needed func(context.Context) (map[object.Digest]bool, error)) error {
	before, err := needed(ctx)
	if err != nil {
		return err
	}
	wanted := slices.DeleteFunc(suspects, func(d object.Digest) bool { return !before[d] })
	if err := s.Revive(ctx, wanted); err != nil {
		return err
	}
	doomed = slices.DeleteFunc(doomed, func(p *packed) bool { dead, _ := s.index.allDead(p); return !dead })
	indexes := make([][]byte, len(doomed))
	if err := each(ctx, len(doomed), func(ctx context.Context, i int) error {
		data, _, err := s.bucket.Read(ctx, indexBelow+doomed[i].id)
		if errors.Is(err, ErrNoKey) {
			return nil // somebody else was faster
		}
		if err != nil {
			return err
		}
		indexes[i] = data
		return s.bucket.Remove(ctx, indexBelow+doomed[i].id)
	}); err != nil {
		return err
	}
	after, err := needed(ctx)
	if err != nil {
		// Nobody can say what is needed: everything comes back.
		return errors.Join(err, s.putBack(context.WithoutCancel(ctx), doomed, indexes))
	}
	return each(ctx, len(doomed), func(ctx context.Context, i int) error {
		p := doomed[i]
		for _, l := range p.objects {
			if _, found := s.index.get(l.Info.Digest); after[l.Info.Digest] && !found {
				return s.putBack(ctx, doomed[i:i+1], indexes[i:i+1])
			}
		}
		s.index.mutex.Lock()
		s.index.dropLocked(p)
		s.index.mutex.Unlock()
		s.cache.forget(p.id)
		if err := s.bucket.Remove(ctx, packsBelow+p.id+packSuffix); err != nil {
			return err
		}
		return s.bucket.Remove(ctx, deadBelow+p.id)
	})
}

func (s *Store) putBack(ctx context.Context, packs []*packed, indexes [][]byte) error {
	return each(ctx, len(packs), func(ctx context.Context, i int) error {
		if indexes[i] == nil {
			return nil
		}
		_, err := s.bucket.Put(ctx, indexBelow+packs[i].id, indexes[i], Always)
		return err
	})
}

// putTogether copies what counts of wasteful packs into new ones; what was copied
// is then dead where it was.
func (s *Store) putTogether(ctx context.Context) error {
	var wasteful, few []*packed
	for _, p := range s.index.all() {
		var live uint64
		for _, at := range s.index.live(p) {
			live += at.Info.StoredSize
		}
		switch {
		case live == 0:
		case live < p.size/2:
			wasteful = append(wasteful, p)
		case p.size < lonely:
			few = append(few, p)
		}
	}
	if len(few) >= manyLonely {
		wasteful = append(wasteful, few...)
	}
	if len(wasteful) == 0 {
		return nil
	}
	b := s.Begin()
	defer b.Abort()
	moved := make(map[*packed][]object.Digest)
	for _, p := range wasteful {
		for _, at := range s.index.live(p) {
			err := s.copyTo(ctx, b, at)
			if errors.Is(err, object.ErrDamaged) || errors.Is(err, object.ErrRefused) {
				continue // it stays behind, for scrubbing to find
			}
			if err != nil {
				return err
			}
			moved[p] = append(moved[p], at.Info.Digest)
		}
	}
	if err := b.Commit(ctx); err != nil {
		return err
	}
	return s.changeDead(ctx, moved, true)
}

func (s *Store) copyTo(ctx context.Context, b *Batch, at place) error {
	if at.Info.StoredSize > inMemory {
		r, err := s.cache.open(ctx, at)
		if err != nil {
			return err
		}
		return errors.Join(b.Put(ctx, at.Info, r), r.Close())
	}
	encoded, err := s.window.read(ctx, s.bucket, at)
	if err != nil {
		return err
	}
	if err := zstd.Verify(at.Info, encoded); err != nil {
		return err
	}
	return b.append(at.Info, encoded)
}

// removeOrphans removes packs that a dead server left without an index, and lists
// of the dead without a pack.
func (s *Store) removeOrphans(ctx context.Context, now time.Time) error {
	packs, err := s.bucket.List(ctx, packsBelow)
	if err != nil {
		return err
	}
	dead, err := s.bucket.List(ctx, deadBelow)
	if err != nil {
		return err
	}
	// The indexes last: whatever has come meanwhile is known.
	indexes, err := s.bucket.List(ctx, indexBelow)
	if err != nil {
		return err
	}
	indexed := make(map[string]bool)
	for _, e := range indexes {
		indexed[strings.TrimPrefix(e.Key, indexBelow)] = true
	}
	orphans := slices.DeleteFunc(append(packs, dead...), func(e Entry) bool {
		id := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(e.Key, packsBelow), deadBelow), packSuffix)
		return indexed[id] || !validID(id) || now.Sub(e.Written) < orphaned
	})
	return each(ctx, len(orphans), func(ctx context.Context, i int) error { return s.bucket.Remove(ctx, orphans[i].Key) })
}

// Since is when an object was last written, by any server; the zero time where
// there is none.
func (s *Store) Since(d object.Digest) time.Time {
	at, _ := s.index.get(d)
	if at.pack == nil {
		return time.Time{}
	}
	// By the clock of this machine.
	return at.pack.written.Add(-time.Duration(s.bucket.ahead.Load()))
}
