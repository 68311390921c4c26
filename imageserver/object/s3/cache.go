package s3

import (
	"cmp"
	"container/list"
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
	"time"
)

const (
	// worthwhile is the part of a pack (one in so many bytes) that must be wanted
	// before all of it is fetched; less is read piecewise.
	worthwhile = 8
	// maxCached is how many packs are kept at most: each is an open file.
	maxCached = 4096
	// fetchesAtOnce is how many packs are fetched side by side.
	fetchesAtOnce = 4
)

// cache keeps whole packs on the local disk, those read last, up to a size. A pack
// can be read while it is being fetched.
type cache struct {
	store *Store
	path  string
	limit uint64

	mutex sync.Mutex
	packs map[string]*cached
	order *list.List // of *cached, the one used last in front
	used  uint64
	// asked are the bytes that were read piecewise of packs that are not here.
	asked  map[string]uint64
	places chan struct{}
	// fetched counts fetches, for the names of their files.
	fetched uint64
}

// cached is a pack in the cache.
type cached struct {
	id   string
	size uint64
	file *os.File
	at   *list.Element

	// Held by cache.mutex.
	readers int
	gone    bool // no longer in the cache; closed with its last reader

	// grown tells of more bytes; its mutex holds what follows.
	mutex  sync.Mutex
	grown  *sync.Cond
	have   uint64 // bytes from the beginning that are there
	failed error
}

// openCache takes up what an earlier process left.
func openCache(s *Store, path string, limit uint64) (*cache, error) {
	c := &cache{store: s, path: path, limit: limit, packs: make(map[string]*cached), order: list.New(),
		asked: make(map[string]uint64), places: make(chan struct{}, fetchesAtOnce)}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []fs.FileInfo
	for _, name := range names {
		info, err := name.Info()
		if err != nil {
			return nil, err
		}
		files = append(files, info)
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	for _, info := range files {
		name := filepath.Join(path, info.Name())
		id, whole := strings.CutSuffix(info.Name(), packSuffix)
		if !whole || !validID(id) {
			if err := os.RemoveAll(name); err != nil {
				return nil, err
			}
			continue
		}
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		c.mutex.Lock()
		if c.makeRoom(uint64(info.Size())) {
			c.enter(id, uint64(info.Size()), file).have = uint64(info.Size())
		} else {
			err = errors.Join(file.Close(), os.Remove(name))
		}
		c.mutex.Unlock()
		if err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *cache) file(id string) string { return filepath.Join(c.path, id+packSuffix) }

// enter adds a pack for which there is room. mutex is held.
func (c *cache) enter(id string, size uint64, file *os.File) *cached {
	one := &cached{id: id, size: size, file: file}
	one.grown = sync.NewCond(&one.mutex)
	one.at = c.order.PushFront(one)
	c.packs[id] = one
	c.used += size
	delete(c.asked, id)
	return one
}

// makeRoom drops packs that were not used for long, and says whether there is room
// now. mutex is held.
func (c *cache) makeRoom(size uint64) bool {
	if size > c.limit {
		return false
	}
	for e := c.order.Back(); e != nil && (c.used+size > c.limit || len(c.packs) >= maxCached); {
		one, before := e.Value.(*cached), e.Prev()
		if one.readers == 0 {
			c.drop(one)
		}
		e = before
	}
	return c.used+size <= c.limit && len(c.packs) < maxCached
}

// drop takes a pack out of the cache. Who reads it reads on. mutex is held.
func (c *cache) drop(one *cached) {
	if one.gone {
		return
	}
	one.gone = true
	delete(c.packs, one.id)
	c.order.Remove(one.at)
	c.used -= one.size
	// A file that stays is dropped at the next start.
	_ = os.Remove(c.file(one.id))
	if one.readers == 0 {
		_ = one.file.Close() // only read from
	}
}

// forget drops a pack, because it is gone or damaged.
func (c *cache) forget(id string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if one := c.packs[id]; one != nil {
		c.drop(one)
	}
}

func (c *cache) close() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for e := c.order.Front(); e != nil; e = e.Next() {
		one := e.Value.(*cached)
		now := time.Now().Add(-time.Duration(c.order.Len()) * time.Millisecond)
		// The times only tell the next process in which order to drop packs.
		_ = os.Chtimes(c.file(one.id), now, now)
		_ = one.file.Close() // only read from
	}
}

// keep takes a whole pack in that was just written and uploaded: file is open and
// lies at path, from where it is moved or removed.
func (c *cache) keep(p *packed, file *os.File, path string) error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.packs[p.id] == nil && c.makeRoom(p.size) && os.Rename(path, c.file(p.id)) == nil {
		c.enter(p.id, p.size, file).have = p.size
		return nil
	}
	return errors.Join(file.Close(), os.Remove(path))
}

// expect is told that so many bytes of a pack will be read.
func (c *cache) expect(p *packed, bytes uint64) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if c.packs[p.id] == nil && bytes*worthwhile >= p.size {
		c.fetch(p)
	}
}

// open reads an object.
func (c *cache) open(ctx context.Context, at place) (io.ReadCloser, error) {
	p := at.pack
	c.mutex.Lock()
	one := c.packs[p.id]
	c.store.options.Asked(one != nil && one.whole())
	if one == nil {
		c.asked[p.id] += at.Info.StoredSize
		if c.asked[p.id]*worthwhile >= p.size {
			one = c.fetch(p)
		}
	}
	if one != nil {
		one.readers++
		c.order.MoveToFront(one.at)
	}
	c.mutex.Unlock()
	r := &reader{ctx: ctx, cache: c, key: packsBelow + p.id + packSuffix, one: one, at: at.Offset, left: at.Info.StoredSize}
	if one == nil {
		// What is not there is known now, not when it is read.
		return r, r.direct()
	}
	return r, nil
}

// whole says whether all of the pack is there.
func (one *cached) whole() bool {
	one.mutex.Lock()
	defer one.mutex.Unlock()
	return one.have == one.size
}

// fetch begins to fetch a pack; nil where there is no room for it. mutex is held.
func (c *cache) fetch(p *packed) *cached {
	if c.store.ctx.Err() != nil || !c.makeRoom(p.size) {
		return nil
	}
	c.fetched++
	path := filepath.Join(c.store.temp, fmt.Sprintf("%s-%d", p.id, c.fetched))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		c.store.log.Warn("the cache cannot be written; objects come from the bucket", "error", err)
		return nil
	}
	one := c.enter(p.id, p.size, file)
	one.readers++ // until it is here
	c.store.running.Go(func() {
		err := c.fill(one, file)
		c.mutex.Lock()
		if err == nil && !one.gone {
			err = os.Rename(path, c.file(p.id))
		}
		if err != nil || one.gone {
			c.drop(one)
			// What stays is removed by the next process.
			_ = os.Remove(path)
		}
		c.mutex.Unlock()
		if err != nil {
			if c.store.ctx.Err() == nil {
				c.store.log.Warn("fetching a pack into the cache", "pack", p.id, "error", err)
			}
			one.mutex.Lock()
			one.failed = err
			one.grown.Broadcast()
			one.mutex.Unlock()
		}
		c.leave(one)
	})
	return one
}

// fill fetches a pack from its beginning to its end.
func (c *cache) fill(one *cached, file *os.File) error {
	select {
	case c.places <- struct{}{}:
		defer func() { <-c.places }()
	case <-c.store.ctx.Done():
		return c.store.ctx.Err()
	}
	body, _, err := c.store.bucket.open(c.store.ctx, packsBelow+one.id+packSuffix, 0, -1)
	if err != nil {
		return err
	}
	defer body.Close()
	buffer := make([]byte, 256<<10)
	for have := uint64(0); ; {
		n, err := io.ReadFull(body, buffer)
		if n > 0 {
			if have+uint64(n) > one.size {
				return fmt.Errorf("pack %s is longer than its index says", one.id)
			}
			if _, err := file.WriteAt(buffer[:n], int64(have)); err != nil {
				return err
			}
			have += uint64(n)
			one.mutex.Lock()
			one.have = have
			one.grown.Broadcast()
			one.mutex.Unlock()
		}
		switch {
		case (err == io.EOF || err == io.ErrUnexpectedEOF) && have == one.size:
			return nil
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return fmt.Errorf("pack %s ends at %d of %d bytes", one.id, have, one.size)
		case err != nil:
			return err
		}
	}
}

func (c *cache) leave(one *cached) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	one.readers--
	if one.gone && one.readers == 0 {
		_ = one.file.Close() // only read from
	}
}

// reader reads a part of a pack: from the cache as far as it goes, else from the
// bucket.
type reader struct {
	ctx   context.Context
	cache *cache
	key   string
	at    uint64
	left  uint64

	one  *cached       // nil: directly
	body io.ReadCloser // directly
}

func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if uint64(len(p)) > r.left {
		p = p[:r.left]
	}
	var n int
	var err error
	if r.one != nil {
		n, err = r.fromCache(p)
		if err != nil && r.ctx.Err() == nil {
			r.cache.leave(r.one)
			r.one = nil
			err = nil
		}
	}
	if r.one == nil && n == 0 {
		if r.body == nil {
			if err := r.direct(); err != nil {
				return 0, err
			}
		}
		n, err = r.body.Read(p)
	}
	r.at += uint64(n)
	r.left -= uint64(n)
	if err == io.EOF && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// fromCache waits until the bytes are there.
func (r *reader) fromCache(p []byte) (int, error) {
	one := r.one
	stop := context.AfterFunc(r.ctx, func() {
		one.mutex.Lock()
		defer one.mutex.Unlock()
		one.grown.Broadcast()
	})
	defer stop()
	one.mutex.Lock()
	for one.have <= r.at && one.failed == nil && r.ctx.Err() == nil {
		one.grown.Wait()
	}
	have, failed := one.have, one.failed
	one.mutex.Unlock()
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if have <= r.at {
		return 0, failed
	}
	return one.file.ReadAt(p[:min(uint64(len(p)), have-r.at)], int64(r.at))
}

// direct opens the rest in the bucket.
func (r *reader) direct() (err error) {
	r.body, _, err = r.cache.store.bucket.open(r.ctx, r.key, int64(r.at), int64(r.left))
	return err
}

func (r *reader) Close() error {
	if r.one != nil {
		r.cache.leave(r.one)
		r.one = nil
	}
	if r.body != nil {
		return r.body.Close()
	}
	return nil
}
