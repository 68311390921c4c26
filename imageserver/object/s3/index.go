package s3

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
)

const (
	indexMagic = "FLINDEX\n"
	// packHead is the length of what a pack begins with.
	packHead  = 16
	indexHead = len(indexMagic) + 8 + packHead
	deadMagic = "FLDEAD1\n"
	// packTail is the length of a pack's trailer, packRecord that of a line of
	// its index.
	packTail   = 56
	packRecord = 64
)

// packed is a pack that counts.
type packed struct {
	id      string
	size    uint64
	written time.Time // of its index, by the bucket's clock
	objects []pack.Location

	// Held by index.mutex.
	dead     map[object.Digest]bool
	deadTag  string
	deadTime time.Time // of the last change of the dead, by the bucket's clock
	changes  int       // of the dead, by this server
}

// place is an object in a pack.
type place struct {
	pack.Location
	pack *packed
}

// index is what the packs hold, as it was known last.
type index struct {
	mutex sync.RWMutex
	packs map[string]*packed
	tags  map[string]string // of the indexes that could not be read
	// at is the place of an object that counts, in the newest pack; others are
	// the further copies.
	at     map[object.Digest]place
	others map[object.Digest][]place

	refreshing sync.Mutex
	began      time.Time
	failed     error
}

// get is the place of an object.
func (x *index) get(d object.Digest) (place, bool) {
	x.mutex.RLock()
	defer x.mutex.RUnlock()
	return x.getLocked(d)
}

func (x *index) getLocked(d object.Digest) (place, bool) {
	if at, found := x.at[d]; found && !at.pack.dead[d] {
		return at, true
	}
	for _, at := range x.others[d] {
		if !at.pack.dead[d] {
			return at, true
		}
	}
	return place{}, false
}

// everywhere are all places of an object, the newest pack first, also those where
// it is dead.
func (x *index) everywhere(d object.Digest) []place {
	x.mutex.RLock()
	defer x.mutex.RUnlock()
	if at, found := x.at[d]; found {
		return append([]place{at}, x.others[d]...)
	}
	return nil
}

func (x *index) stat(digests []object.Digest) (infos []object.Info, missing bool) {
	x.mutex.RLock()
	defer x.mutex.RUnlock()
	infos = make([]object.Info, 0, len(digests))
	for _, d := range digests {
		if at, found := x.getLocked(d); found {
			infos = append(infos, at.Info)
		} else {
			missing = true
		}
	}
	return infos, missing
}

// all are the packs, oldest first.
func (x *index) all() []*packed {
	x.mutex.RLock()
	defer x.mutex.RUnlock()
	return slices.SortedFunc(maps.Values(x.packs), func(a, b *packed) int { return cmp.Compare(a.id, b.id) })
}

// live are the objects for which this pack counts, in the order in which they lie
// there.
func (x *index) live(p *packed) []place {
	x.mutex.RLock()
	defer x.mutex.RUnlock()
	var live []place
	for _, l := range p.objects {
		if at, found := x.getLocked(l.Info.Digest); found && at.pack == p {
			live = append(live, at)
		}
	}
	return live
}

// add takes a pack in.
func (x *index) add(p *packed) {
	x.mutex.Lock()
	defer x.mutex.Unlock()
	x.addLocked(p)
}

func (x *index) addLocked(p *packed) {
	if x.packs == nil {
		x.packs, x.at, x.others = make(map[string]*packed), make(map[object.Digest]place), make(map[object.Digest][]place)
		x.tags = make(map[string]string)
	}
	if x.packs[p.id] != nil {
		return
	}
	x.packs[p.id] = p
	slices.SortFunc(p.objects, func(a, b pack.Location) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, l := range p.objects {
		d, at := l.Info.Digest, place{l, p}
		before, found := x.at[d]
		if !found {
			x.at[d] = at
			continue
		}
		if before.pack.id < p.id {
			x.at[d], at = at, before
		}
		others := append(x.others[d], at)
		slices.SortFunc(others, func(a, b place) int { return cmp.Compare(b.pack.id, a.pack.id) })
		x.others[d] = others
	}
}

// dropLocked forgets a pack.
func (x *index) dropLocked(p *packed) {
	delete(x.packs, p.id)
	for _, l := range p.objects {
		d := l.Info.Digest
		others := slices.DeleteFunc(x.others[d], func(at place) bool { return at.pack == p })
		if x.at[d].pack == p {
			delete(x.at, d)
			if len(others) > 0 {
				x.at[d], others = others[0], others[1:]
			}
		}
		if len(others) == 0 {
			delete(x.others, d)
		} else {
			x.others[d] = others
		}
	}
}

// Refresh learns what is in the bucket now, also by others. Many who ask at once
// share one look, which begins after they asked.
func (s *Store) Refresh(ctx context.Context) error {
	asked := time.Now()
	s.index.refreshing.Lock()
	defer s.index.refreshing.Unlock()
	if s.index.began.After(asked) {
		return s.index.failed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	began := time.Now()
	err := s.refresh(ctx)
	if ctx.Err() != nil {
		return ctx.Err() // says nothing to the others
	}
	s.index.began, s.index.failed = began, err
	return err
}

func (s *Store) refresh(ctx context.Context) error {
	// The dead first: who moves objects writes the new pack before the old one's
	// objects are dead, and nobody may see neither.
	dead, err := s.bucket.List(ctx, deadBelow)
	if err != nil {
		return err
	}
	indexes, err := s.bucket.List(ctx, indexBelow)
	if err != nil {
		return err
	}
	x := &s.index
	var fresh []Entry
	there := make(map[string]bool)
	x.mutex.RLock()
	for _, e := range indexes {
		id := strings.TrimPrefix(e.Key, indexBelow)
		if !validID(id) {
			continue
		}
		there[id] = true
		if x.packs[id] == nil && x.tags[id] != e.Tag {
			fresh = append(fresh, e)
		}
	}
	changes := make(map[string]int)
	changed := slices.DeleteFunc(dead, func(e Entry) bool {
		p := x.packs[strings.TrimPrefix(e.Key, deadBelow)]
		if p != nil {
			changes[p.id] = p.changes
		}
		return p != nil && p.deadTag == e.Tag
	})
	x.mutex.RUnlock()
	packs := make([]*packed, len(fresh))
	if err := each(ctx, len(fresh), func(ctx context.Context, i int) (err error) {
		packs[i], err = s.readIndex(ctx, fresh[i])
		return err
	}); err != nil {
		return err
	}
	sets := make([]map[object.Digest]bool, len(changed))
	if err := each(ctx, len(changed), func(ctx context.Context, i int) (err error) {
		sets[i], err = s.readDead(ctx, changed[i])
		return err
	}); err != nil {
		return err
	}
	x.mutex.Lock()
	defer x.mutex.Unlock()
	for i, p := range packs {
		if p != nil {
			x.addLocked(p)
		} else if x.tags != nil {
			x.tags[strings.TrimPrefix(fresh[i].Key, indexBelow)] = fresh[i].Tag
		}
	}
	for i, e := range changed {
		p := x.packs[strings.TrimPrefix(e.Key, deadBelow)]
		// What this server changed meanwhile is newer than what was listed.
		if p != nil && sets[i] != nil && p.changes == changes[p.id] {
			p.dead, p.deadTag, p.deadTime = sets[i], e.Tag, e.Written
		}
	}
	for id, p := range x.packs {
		if !there[id] && p.written.Before(s.bucket.now().Add(-graceOfListing)) {
			x.dropLocked(p)
			s.cache.forget(id)
		}
	}
	return nil
}

// graceOfListing is how long a pack that this server wrote counts although a
// listing, which began before, does not have it.
const graceOfListing = 2 * time.Minute

// readIndex reads what a pack holds, from the local notes if it was read before. An
// unreadable index is read again from the pack itself; where that fails too, the
// pack is reported and left out.
func (s *Store) readIndex(ctx context.Context, e Entry) (*packed, error) {
	id := strings.TrimPrefix(e.Key, indexBelow)
	data, err := s.ReadNoted(ctx, e)
	switch {
	case errors.Is(err, ErrNoKey): // gone since it was listed
		return nil, nil
	case err != nil:
		return nil, err
	}
	p := &packed{id: id, written: e.Written}
	if p.size, p.objects, err = decodeIndex(data); err == nil {
		return p, nil
	}
	s.log.Error("a pack's index in the bucket is damaged; it is read from the pack itself", "pack", id, "error", err)
	data, err = s.rebuildIndex(ctx, id)
	if err == nil {
		p.size, p.objects, err = decodeIndex(data)
	}
	if errors.Is(err, pack.ErrMalformed) || errors.Is(err, ErrNoKey) {
		s.log.Error("a pack in the bucket cannot be read", "pack", id, "error", err)
		s.quarantine.addPack(id)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// If somebody else mends it too, it becomes the same.
	if _, err := s.bucket.Put(ctx, e.Key, data, Always); err != nil {
		s.log.Warn("writing a pack's index anew", "pack", id, "error", err)
	}
	return p, nil
}

// rebuildIndex makes an index from the pack.
func (s *Store) rebuildIndex(ctx context.Context, id string) ([]byte, error) {
	found, err := s.bucket.List(ctx, packsBelow+id)
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%s: %w", id, ErrNoKey)
	}
	return encodeIndex(&remote{ctx, s.bucket, found[0].Key}, found[0].Size)
}

// remote reads an object of the bucket piecewise.
type remote struct {
	ctx    context.Context
	bucket *Bucket
	key    string
}

// ReadAt is that of io.ReaderAt.
func (r *remote) ReadAt(p []byte, offset int64) (int, error) {
	body, _, err := r.bucket.open(r.ctx, r.key, offset, int64(len(p)))
	if err != nil {
		return 0, err
	}
	defer body.Close()
	return io.ReadFull(body, p)
}

// encodeIndex is what is kept of a finished pack of size bytes beside it: its
// length, its beginning and its end, which carries a check sum.
func encodeIndex(file io.ReaderAt, size int64) ([]byte, error) {
	locations, err := pack.ReadIndex(file, size)
	if err != nil {
		return nil, err
	}
	data := binary.LittleEndian.AppendUint64([]byte(indexMagic), uint64(size))
	data = append(data, make([]byte, packHead+len(locations)*packRecord+packTail)...)
	if _, err := file.ReadAt(data[indexHead-packHead:indexHead], 0); err != nil {
		return nil, err
	}
	tail := data[indexHead:]
	if n, err := file.ReadAt(tail, size-int64(len(tail))); n < len(tail) {
		return nil, err
	}
	return data, nil
}

// decodeIndex reads it. Its error wraps pack.ErrMalformed or pack.ErrFormat.
func decodeIndex(data []byte) (size uint64, locations []pack.Location, err error) {
	if len(data) < indexHead+packTail || string(data[:len(indexMagic)]) != indexMagic {
		return 0, nil, fmt.Errorf("an index of %d bytes: %w", len(data), pack.ErrMalformed)
	}
	size = binary.LittleEndian.Uint64(data[len(indexMagic):])
	if size > 1<<62 || size < uint64(len(data)-indexHead)+packHead {
		return 0, nil, fmt.Errorf("an index of a pack of %d bytes: %w", size, pack.ErrMalformed)
	}
	e := ends{data[indexHead-packHead : indexHead], data[indexHead:], int64(size)}
	locations, err = pack.ReadIndex(e, int64(size))
	if err == nil && len(locations)*packRecord+packTail != len(e.tail) {
		err = fmt.Errorf("an index with something else in it: %w", pack.ErrMalformed)
	}
	return size, locations, err
}

// ends are the beginning and the end of a file.
type ends struct {
	head, tail []byte
	size       int64
}

// ReadAt is that of io.ReaderAt; what is in between cannot be read.
func (e ends) ReadAt(p []byte, offset int64) (int, error) {
	if offset < int64(len(e.head)) {
		return bytes.NewReader(e.head).ReadAt(p, offset)
	}
	at := offset - (e.size - int64(len(e.tail)))
	if at < 0 {
		return 0, fmt.Errorf("offset %d: %w", offset, pack.ErrMalformed)
	}
	return bytes.NewReader(e.tail).ReadAt(p, at)
}

// readDead reads which objects of a pack are dead; nil where that is gone or
// damaged: what it names then counts again.
func (s *Store) readDead(ctx context.Context, e Entry) (map[object.Digest]bool, error) {
	data, err := s.ReadNoted(ctx, e)
	if errors.Is(err, ErrNoKey) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	dead, err := decodeDead(data)
	if err != nil {
		s.log.Error("a list of deleted objects is damaged; they count again", "key", e.Key, "error", err)
		return nil, nil
	}
	return dead, nil
}

func encodeDead(dead map[object.Digest]bool) []byte {
	data := []byte(deadMagic)
	for _, d := range slices.SortedFunc(maps.Keys(dead), object.Digest.Compare) {
		data = append(data, d[:]...)
	}
	sum := object.Of(data)
	return append(data, sum[:]...)
}

func decodeDead(data []byte) (map[object.Digest]bool, error) {
	const length = len(object.Digest{})
	if len(data) < len(deadMagic)+length || string(data[:len(deadMagic)]) != deadMagic || (len(data)-len(deadMagic))%length != 0 {
		return nil, fmt.Errorf("%d bytes: %w", len(data), pack.ErrMalformed)
	}
	end := len(data) - length
	if object.Of(data[:end]) != object.Digest(data[end:]) {
		return nil, fmt.Errorf("its check sum is wrong: %w", pack.ErrMalformed)
	}
	dead := make(map[object.Digest]bool)
	for one := range slices.Chunk(data[len(deadMagic):end], length) {
		dead[object.Digest(one)] = true
	}
	return dead, nil
}
