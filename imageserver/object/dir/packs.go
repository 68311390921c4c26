package dir

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

const (
	packsName  = "packs"
	packSuffix = ".pack"
	deadName   = "dead"
	formatName = "format"

	// formatNow is the layout that this package writes: 2 has packs.
	formatNow = 2

	// small is the number of stored bytes up to which an object goes into a
	// pack.
	small = 256 << 10
	// packSize is the number of bytes at which a pack is full.
	packSize = 4 << 20
	// lonely is the size below which packs are put together once there are
	// manyLonely of them.
	lonely     = 1 << 20
	manyLonely = 64
	// openPacks is how many packs are kept open that nobody reads just now.
	openPacks = 256
	// deadSize is the length of a line of the dead: digest, sequence, sum.
	deadSize = 32 + 8 + 8
	// staleDead is how many lines of the dead may mean nothing any more.
	staleDead = 10_000
	// settled is the age of a directory's time of change from which on it tells
	// of a further change: the clock of file-systems moves in steps.
	settled = 100 * time.Millisecond
)

// Error is an error with a stable code, explained in docs/errors.md.
type Error struct {
	code, text string
}

// Error returns the message without its code.
func (e *Error) Error() string { return e.text }

// Code returns the stable code: IMG-025.
func (e *Error) Code() string { return e.code }

// ErrFormat (IMG-025): the directory has a layout that is newer than this
// program.
var ErrFormat = &Error{"IMG-025", "the object store has a newer format than this program reads"}

// packFile is a pack. What it holds is in packs.at.
type packFile struct {
	name     string
	sequence uint64
	size     uint64

	// Held by packs.mutex.
	live      int    // objects that count
	liveBytes uint64 // their stored bytes
	gone      bool   // removed, or written anew

	// Held by packs.opening.
	file    *os.File // nil when not open
	readers int
	idle    *list.Element // in packs.idle while nobody reads
}

// place is where an object lies, in few bytes: there are many of them.
type place struct {
	pack     *packFile
	size     uint64
	offset   uint32
	stored   uint32
	encoding object.Encoding
}

func (p place) info(d object.Digest) object.Info {
	return object.Info{Digest: d, Encoding: p.encoding, Size: p.size, StoredSize: uint64(p.stored)}
}

// packs are the packs of a store and the index of what counts in them.
type packs struct {
	path string

	mutex   sync.RWMutex
	at      map[object.Digest]place
	files   map[string]*packFile // by name
	last    uint64               // the highest sequence
	dead    map[object.Digest]uint64
	stale   int       // lines of the dead that hit nothing when they were read
	read    int64     // bytes of the dead that were read
	changed time.Time // of the directory when it was read; zero: read again

	opening sync.Mutex
	idle    *list.List // of *packFile, the one used last in front
}

// openPacks reads the packs, moves unreadable ones aside and writes the format.
func (s *Store) openPacks() error {
	p := &packs{
		path: filepath.Join(s.path, packsName),
		at:   make(map[object.Digest]place), files: make(map[string]*packFile), dead: make(map[object.Digest]uint64),
		idle: list.New(),
	}
	if err := os.MkdirAll(p.path, 0o700); err != nil {
		return err
	}
	if err := s.checkFormat(p.path); err != nil {
		return err
	}
	s.packs = p
	broken, err := p.reload()
	if err != nil {
		return err
	}
	if err := s.openQuarantine(); err != nil {
		return err
	}
	for _, name := range broken {
		if err := s.setPackAside(name); err != nil {
			return err
		}
	}
	if p.stale > staleDead {
		return s.rewriteDead()
	}
	return nil
}

// checkFormat refuses a newer layout, and writes down this one.
func (s *Store) checkFormat(packsPath string) error {
	path := filepath.Join(packsPath, formatName)
	data, err := os.ReadFile(path)
	if err == nil {
		format, err := strconv.Atoi(strings.TrimSpace(string(data)))
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		case format > formatNow:
			return fmt.Errorf("%s says %d, this program reads up to %d: %w", path, format, formatNow, ErrFormat)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	temporary := s.temporary(formatName)
	if err := os.WriteFile(temporary, fmt.Appendln(nil, formatNow), 0o600); err != nil {
		return err
	}
	if err := syncFile(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return errors.Join(syncFile(packsPath), syncFile(s.path))
}

// reload reads what changed in the directory since it was last read, and
// returns the names of packs that cannot be read.
func (p *packs) reload() (broken []string, err error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	before := time.Now()
	stat, err := os.Stat(p.path)
	if err != nil {
		return nil, err
	}
	if err := p.readDead(); err != nil {
		return nil, err
	}
	names, err := os.ReadDir(p.path)
	if err != nil {
		return nil, err
	}
	there := make(map[string]bool)
	var added []*finishedPack
	for _, name := range names {
		sequence, ok := parseName(name.Name())
		if !ok {
			continue
		}
		there[name.Name()] = true
		if p.files[name.Name()] == nil {
			added = append(added, &finishedPack{packFile: &packFile{name: name.Name(), sequence: sequence}})
		}
	}
	failures := make([]error, len(added))
	var group errgroup.Group
	group.SetLimit(syncers)
	for i, f := range added {
		group.Go(func() error {
			failures[i] = f.readIndex(filepath.Join(p.path, f.name))
			return nil
		})
	}
	_ = group.Wait() // its functions fail into failures
	slices.SortFunc(added, func(a, b *finishedPack) int {
		return cmp.Or(cmp.Compare(a.sequence, b.sequence), cmp.Compare(a.name, b.name))
	})
	byName := make(map[string]error)
	for i, f := range added {
		byName[f.name] = failures[i]
	}
	broken = p.take(added, byName, there)
	p.changed = time.Time{}
	if before.Sub(stat.ModTime()) > settled {
		p.changed = stat.ModTime()
	}
	return broken, nil
}

// take puts what reload read into the index, and returns the names of what could
// not be read.
func (p *packs) take(added []*finishedPack, failures map[string]error, there map[string]bool) (broken []string) {
	for _, f := range added {
		switch err := failures[f.name]; {
		case err == nil:
			p.addLocked(f.packFile, f.locations, nil)
		case errors.Is(err, fs.ErrNotExist): // written anew just now
		default:
			// Also a version that this program does not know: of a newer layout
			// packs/format would have told.
			broken = append(broken, f.name)
		}
	}
	for name, f := range p.files {
		if !there[name] {
			p.drop(f)
		}
	}
	return broken
}

// drop forgets a pack that is not there any more.
func (p *packs) drop(f *packFile) {
	delete(p.files, f.name)
	f.gone = true
	if f.live > 0 {
		for d, at := range p.at {
			if at.pack == f {
				delete(p.at, d)
			}
		}
	}
	p.closeIdle(f)
}

func (f *finishedPack) readIndex(path string) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	stat, err := file.Stat()
	if err != nil {
		return err
	}
	f.size = uint64(stat.Size())
	f.packFile.size = f.size
	if f.locations, err = pack.ReadIndex(file, stat.Size()); err != nil {
		return err
	}
	if stat.Size() > math.MaxUint32 {
		return fmt.Errorf("%s is too large: %w", path, pack.ErrMalformed)
	}
	return nil
}

// refresh is reload where the directory has changed, and says whether it has:
// another process may have added packs.
func (p *packs) refresh() (bool, error) {
	stat, err := os.Stat(p.path)
	if err != nil {
		return false, err
	}
	p.mutex.RLock()
	same := stat.ModTime().Equal(p.changed)
	p.mutex.RUnlock()
	if same {
		return false, nil
	}
	_, err = p.reload()
	return true, err
}

// name is a name for a new pack.
func (p *packs) name() (string, uint64) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.last++
	var random [4]byte
	rand.Read(random[:]) // never fails, crypto/rand says
	return fmt.Sprintf("%016x-%x%s", p.last, random, packSuffix), p.last
}

func parseName(name string) (sequence uint64, ok bool) {
	bare, isPack := strings.CutSuffix(name, packSuffix)
	digits, _, found := strings.Cut(bare, "-")
	if !isPack || !found || len(digits) != 16 {
		return 0, false
	}
	sequence, err := strconv.ParseUint(digits, 16, 64)
	return sequence, err == nil
}

func (p *packs) get(d object.Digest) (place, bool) {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	at, found := p.at[d]
	return at, found
}

// add puts a new pack into the index. Where from is not nil, only what lies in
// one of these packs moves to the new one.
func (p *packs) add(f *packFile, locations []pack.Location, from map[*packFile]bool) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.addLocked(f, locations, from)
}

func (p *packs) addLocked(f *packFile, locations []pack.Location, from map[*packFile]bool) {
	if p.files[f.name] != nil {
		return // reload was faster
	}
	p.files[f.name] = f
	p.last = max(p.last, f.sequence)
	for _, l := range locations {
		d := l.Info.Digest
		if until, dead := p.dead[d]; dead && until >= f.sequence {
			p.stale--
			continue
		}
		before, found := p.at[d]
		if from != nil && (!found || !from[before.pack]) {
			continue
		}
		if found {
			if before.pack.sequence > f.sequence {
				continue
			}
			before.pack.live--
			before.pack.liveBytes -= uint64(before.stored)
		}
		p.at[d] = place{f, l.Info.Size, uint32(l.Offset), uint32(l.Info.StoredSize), l.Info.Encoding}
		f.live++
		f.liveBytes += l.Info.StoredSize
	}
}

// kill takes objects out of the index, durably. It does not touch the packs.
func (p *packs) kill(digests []object.Digest) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	var lines []byte
	for _, d := range digests {
		if at, found := p.at[d]; found {
			lines = appendDead(lines, d, at.pack.sequence)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	if err := p.writeDead(lines); err != nil {
		return err
	}
	for _, d := range digests {
		at, found := p.at[d]
		if !found {
			continue
		}
		delete(p.at, d)
		at.pack.live--
		at.pack.liveBytes -= uint64(at.stored)
		p.dead[d] = max(p.dead[d], at.pack.sequence)
	}
	return nil
}

func appendDead(lines []byte, d object.Digest, sequence uint64) []byte {
	start := len(lines)
	lines = append(lines, d[:]...)
	lines = binary.LittleEndian.AppendUint64(lines, sequence)
	sum := object.Of(lines[start:])
	return append(lines, sum[:8]...)
}

// writeDead appends lines to the dead. The file always ends with a whole line:
// what a full disk or a dead process cut off is overwritten.
func (p *packs) writeDead(lines []byte) (err error) {
	f, err := os.OpenFile(filepath.Join(p.path, deadName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	end := stat.Size() - stat.Size()%deadSize
	if _, err := f.WriteAt(lines, end); err != nil {
		// Cutting off what was begun may fail too; readers stop there.
		_ = f.Truncate(end)
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if stat.Size() == 0 {
		return syncFile(p.path)
	}
	return nil
}

// readDead reads the lines that came since it was last called.
func (p *packs) readDead() (err error) {
	f, err := os.Open(filepath.Join(p.path, deadName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if stat, err := f.Stat(); err != nil {
		return err
	} else if stat.Size() < p.read {
		p.read = 0 // written anew
	}
	lines, err := io.ReadAll(io.NewSectionReader(f, p.read, math.MaxInt64-p.read))
	if err != nil {
		return err
	}
	for line := range slices.Chunk(lines, deadSize) {
		if len(line) < deadSize {
			break // cut off; whoever wrote it did not say that it is durable
		}
		p.read += deadSize
		sum := object.Of(line[:40])
		if !bytes.Equal(sum[:8], line[40:]) {
			continue // damaged: the object counts again, if it is whole
		}
		d, until := object.Digest(line[:32]), binary.LittleEndian.Uint64(line[32:])
		p.dead[d] = max(p.dead[d], until)
		p.last = max(p.last, until)
		p.stale++
		if at, found := p.at[d]; found && at.pack.sequence <= until {
			delete(p.at, d)
			at.pack.live--
			at.pack.liveBytes -= uint64(at.stored)
		}
	}
	return nil
}

// rewriteDead leaves out of the dead what hits no pack that is there.
func (s *Store) rewriteDead() error {
	p := s.packs
	p.mutex.Lock()
	defer p.mutex.Unlock()
	kept := make(map[object.Digest]uint64)
	var lines []byte
	for _, f := range p.files {
		read := &finishedPack{packFile: &packFile{}}
		if err := read.readIndex(filepath.Join(p.path, f.name)); err != nil {
			return err
		}
		for _, l := range read.locations {
			d := l.Info.Digest
			if until, dead := p.dead[d]; dead && until >= f.sequence && kept[d] == 0 {
				kept[d] = until
				lines = appendDead(lines, d, until)
			}
		}
	}
	temporary := s.temporary(deadName)
	if err := os.WriteFile(temporary, lines, 0o600); err != nil {
		return err
	}
	if err := syncFile(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, filepath.Join(p.path, deadName)); err != nil {
		return err
	}
	p.dead, p.stale, p.read = kept, 0, int64(len(lines))
	return syncFile(p.path)
}

// all are the packs, oldest first.
func (p *packs) all() []*packFile {
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	all := make([]*packFile, 0, len(p.files))
	for _, f := range p.files {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b *packFile) int { return cmp.Compare(a.name, b.name) })
	return all
}

// live are the objects of a pack that count, in the order in which they lie
// there.
func (p *packs) live(f *packFile) ([]pack.Location, error) {
	file, err := p.acquire(f)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // written anew; its objects are in a later pack
	}
	if err != nil {
		return nil, err
	}
	locations, err := pack.ReadIndex(file, int64(f.size))
	if err := errors.Join(err, p.release(f)); err != nil {
		return nil, err
	}
	p.mutex.RLock()
	defer p.mutex.RUnlock()
	locations = slices.DeleteFunc(locations, func(l pack.Location) bool { return p.at[l.Info.Digest].pack != f })
	slices.SortFunc(locations, func(a, b pack.Location) int { return cmp.Compare(a.Offset, b.Offset) })
	return locations, nil
}

// acquire opens a pack, or takes the file that is open already. release gives
// it back.
func (p *packs) acquire(f *packFile) (*os.File, error) {
	p.opening.Lock()
	defer p.opening.Unlock()
	if f.file == nil {
		file, err := os.Open(filepath.Join(p.path, f.name))
		if err != nil {
			return nil, err
		}
		f.file = file
	}
	if f.idle != nil {
		p.idle.Remove(f.idle)
		f.idle = nil
	}
	f.readers++
	return f.file, nil
}

func (p *packs) release(f *packFile) error {
	p.opening.Lock()
	defer p.opening.Unlock()
	f.readers--
	if f.readers > 0 {
		return nil
	}
	f.idle = p.idle.PushFront(f)
	if p.idle.Len() <= openPacks {
		return nil
	}
	oldest := p.idle.Back().Value.(*packFile)
	return p.closeLocked(oldest)
}

func (p *packs) closeLocked(f *packFile) error {
	p.idle.Remove(f.idle)
	f.idle = nil
	err := f.file.Close()
	f.file = nil
	return err
}

// closeIdle closes a pack that is gone. One that is being read stays open until
// it is the oldest of the idle.
func (p *packs) closeIdle(f *packFile) {
	p.opening.Lock()
	defer p.opening.Unlock()
	if f.idle != nil {
		_ = p.closeLocked(f) // only read from
	}
}

func (p *packs) close() {
	p.opening.Lock()
	defer p.opening.Unlock()
	for p.idle.Len() > 0 {
		_ = p.closeLocked(p.idle.Back().Value.(*packFile)) // only read from
	}
}

// reclaim removes packs of which nothing counts, and writes those anew of which
// less than half does. maintaining is held.
func (s *Store) reclaim(ctx context.Context) error {
	p := s.packs
	p.mutex.RLock()
	var wasteful []*packFile
	for _, f := range p.files {
		if f.live == 0 || f.liveBytes < f.size/2 && f.size > lonely/4 {
			wasteful = append(wasteful, f)
		}
	}
	p.mutex.RUnlock()
	if len(wasteful) == 0 {
		return nil
	}
	return s.writeAnew(ctx, wasteful)
}

// mergeSmall puts small packs together once there are many, so that neither
// many small uploads nor many starts make many opens.
func (s *Store) mergeSmall(ctx context.Context) error {
	p := s.packs
	p.mutex.RLock()
	var few []*packFile
	for _, f := range p.files {
		if f.size < lonely {
			few = append(few, f)
		}
	}
	p.mutex.RUnlock()
	if len(few) < manyLonely || !s.maintaining.TryLock() {
		return nil
	}
	defer s.maintaining.Unlock()
	slices.SortFunc(few, func(a, b *packFile) int { return cmp.Compare(a.name, b.name) })
	// The objects are there, whether their packs are few or many. A full or
	// failing disk shows at the next upload.
	_ = s.writeAnew(ctx, few)
	return nil
}

// writeAnew copies what counts of some packs into new ones and removes the old.
// Objects that turn out to be damaged stay behind, for scrubbing to find.
func (s *Store) writeAnew(ctx context.Context, old []*packFile) error {
	p := s.packs
	b := s.Begin()
	defer b.Abort()
	from := make(map[*packFile]bool)
	for _, f := range old {
		from[f] = true
		locations, err := p.live(f)
		if err != nil {
			return err
		}
		for _, l := range locations {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.copyTo(b, f, l); err != nil {
				return err
			}
		}
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	if len(b.packs) > 0 {
		if err := b.commit(from); err != nil {
			return errors.Join(err, b.giveUp())
		}
		if err := b.giveUp(); err != nil {
			return err
		}
	}
	return p.removeDead(old)
}

// copyTo verifies one object of a pack and adds it to a batch.
func (s *Store) copyTo(b *Batch, f *packFile, l pack.Location) error {
	file, err := s.packs.acquire(f)
	if err != nil {
		return err
	}
	encoded := make([]byte, l.Info.StoredSize)
	_, err = file.ReadAt(encoded, int64(l.Offset))
	if releaseErr := s.packs.release(f); releaseErr != nil {
		return errors.Join(err, releaseErr)
	}
	if err != nil || zstd.Verify(l.Info, encoded) != nil {
		return nil
	}
	return b.append(l.Info, encoded)
}

// removeDead removes those packs of which nothing counts.
func (p *packs) removeDead(old []*packFile) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	var all error
	for _, f := range old {
		if f.live > 0 || f.gone {
			continue
		}
		if err := remove(filepath.Join(p.path, f.name)); err != nil {
			all = errors.Join(all, err)
			continue
		}
		p.drop(f)
	}
	// If the removal is not durable, a pack comes back of which nothing counts.
	return errors.Join(all, syncFile(p.path))
}

// shortRandom is for names that must not meet.
func shortRandom() string {
	var random [4]byte
	rand.Read(random[:]) // never fails, crypto/rand says
	return hex.EncodeToString(random[:])
}
