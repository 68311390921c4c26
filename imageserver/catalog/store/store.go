// Package store keeps the entries of a catalog in files, in a directory or in a
// bucket: one JSON file an image, images/<name>.json, where each "/" of the name is
// written ",". Aliases and streams' retentions lie beside it, one file each:
// aliases/<name>.json and retentions/<stream>.json.
//
// A file is written whole, and durably, so an image is there completely or not at
// all, also after a power cut. It carries the digest of its content. A directory is
// one process's; a bucket may be several's: each looks what the others did before
// it answers, and writes under the condition that nobody else has.
//
// It never touches objects or manifests; those lie in an object.Store.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/s3"
)

// The versions of the files. A newer one is refused. Format 2 has images that
// expire, format 3 a check.
const (
	format      = 3
	formatFirst = 1
)

const (
	imagesName = "images"
	lockName   = ".lock"
	newPrefix  = ".new-"
	suffix     = ".json"
	// damagedSuffix is put behind the name of a file that was moved aside.
	damagedSuffix = ".damaged"

	// patience is how long a request to a bucket may take.
	patience = time.Minute
	// tries is how often a change is tried that meets others' changes.
	tries = 20
	// readers is how many files are read at once.
	readers = 16
)

// directories are where the files lie.
var directories = [...]string{imagesName, aliasesName, retentionsName}

// Error is a catalog that cannot be used; docs/errors.md explains its codes.
type Error struct {
	code string
	text string
	err  error
}

// Error is the text, with the cause where there is one.
func (e *Error) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}

// Code is the stable code: SRV-013 (in use), SRV-014 (a damaged or newer file).
func (e *Error) Code() string { return e.code }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// file is an entry as it is written down.
type file struct {
	Format     int               `json:"format"`
	Name       string            `json:"name"`
	Manifest   object.Digest     `json:"manifest"`
	Added      time.Time         `json:"added"`
	AddedBy    string            `json:"addedBy,omitempty"`
	Bytes      uint64            `json:"bytes"`
	Objects    uint64            `json:"objects"`
	Inodes     uint64            `json:"inodes"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Expires    time.Time         `json:"expires,omitzero"`
	Check      string            `json:"check,omitempty"`
}

func (f *file) take() (check string) { check, f.Check = f.Check, ""; return check }
func (f *file) put(check string)     { f.Check = check }

// Options say how a catalog is kept.
type Options struct {
	// Now is the time; nil means time.Now.
	Now func() time.Time
	// Log is told what others did wrong.
	Log *slog.Logger
	// Disposable says that the files are copies of what another server has: a
	// damaged one is moved aside instead of being an error.
	Disposable bool
}

// Store is a catalog in files. It is safe for concurrent use.
type Store struct {
	files   files
	options Options
	lock    *os.File // of a directory

	// io is held while files are read or written, mutex while what is known of
	// them is.
	io     sync.Mutex
	looked time.Time // when the files were last listed
	failed error     // of that

	mutex   sync.RWMutex
	catalog *catalog.Catalog
	known   map[string]known // by directory and name
}

// known is a file as it was read last.
type known struct {
	filed
	content any // *file, *aliasFile or *retentionFile
}

// Open reads the entries below path, making the directory if it is not there.
// The error is an *Error where another process uses it, or where a file is
// damaged: an image must not vanish silently. Close lets it go.
func Open(path string, options Options) (*Store, error) {
	for _, directory := range directories {
		if err := os.MkdirAll(filepath.Join(path, directory), 0o755); err != nil {
			return nil, fmt.Errorf("making the catalog: %w", err)
		}
	}
	if err := syncDirectory(path); err != nil {
		return nil, fmt.Errorf("making the catalog: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, imagesName, lockName), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening the catalog: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&Error{"SRV-013", path + " is in use by another image server", err}, lock.Close())
	}
	s := &Store{files: onDisk{path}, options: options, lock: lock}
	if err := s.open(context.Background()); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// OpenBucket reads the entries that lie beside the objects in a bucket. The errors
// are those of Open and of the bucket. Several servers may use them at once.
func OpenBucket(ctx context.Context, objects *s3.Store, options Options) (*Store, error) {
	s := &Store{files: inBucket{objects}, options: options}
	return s, s.open(ctx)
}

func (s *Store) open(ctx context.Context) error {
	if s.options.Now == nil {
		s.options.Now = time.Now
	}
	if s.options.Log == nil {
		s.options.Log = slog.New(slog.DiscardHandler)
	}
	return s.look(ctx)
}

// Close unlocks the directory.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// Refresh learns what other servers did. Many who ask at once share one look, which
// begins after they asked. In a directory there is nothing to learn.
func (s *Store) Refresh(ctx context.Context) error {
	if !s.files.shared() {
		return nil
	}
	asked := time.Now()
	s.io.Lock()
	defer s.io.Unlock()
	if s.looked.After(asked) {
		return s.failed
	}
	began := time.Now()
	err := s.look(ctx)
	if ctx.Err() != nil {
		return ctx.Err() // says nothing to the others
	}
	s.looked, s.failed = began, err
	return err
}

// refresh is Refresh for who can do with what is known.
func (s *Store) refresh() {
	if !s.files.shared() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Refresh(ctx); err != nil {
		s.options.Log.Warn("looking at the catalog; what is known counts", "error", err)
	}
}

// look reads what changed since the last look. io is held, or nobody else knows of
// the Store yet.
func (s *Store) look(ctx context.Context) error {
	listed, err := s.files.list(ctx)
	if err != nil {
		return err
	}
	first := s.catalog == nil
	next := make([]known, len(listed))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	for i, f := range listed {
		if before, found := s.known[f.key()]; found && f.tag != "" && before.tag == f.tag {
			next[i] = before
			continue
		}
		group.Go(func() (err error) {
			next[i], err = s.readFile(groupCtx, f)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			err = &Error{"SRV-014", fmt.Sprintf("the catalog's file %s/%s cannot be used", f.directory, f.name), err}
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case s.options.Disposable:
				return s.setAside(groupCtx, f, err)
			case first:
				return err
			}
			// What it was before goes on counting.
			s.options.Log.Error("reading the catalog", "error", err)
			next[i] = s.known[f.key()]
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	all := make(map[string]known, len(next))
	for _, k := range next {
		if k.content != nil {
			all[k.key()] = k
		}
	}
	c, err := s.assemble(all)
	if err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.catalog, s.known = c, all
	return nil
}

// setAside moves a damaged copy away.
func (s *Store) setAside(ctx context.Context, f filed, err error) error {
	s.options.Log.Error("a file of the catalog is damaged; it is moved aside and asked for again", "error", err)
	if disk, ok := s.files.(onDisk); ok {
		return os.Rename(disk.file(f), disk.file(f)+damagedSuffix)
	}
	return s.files.remove(ctx, f)
}

// readFile reads one file.
func (s *Store) readFile(ctx context.Context, f filed) (known, error) {
	data, err := s.files.read(ctx, f)
	if err != nil {
		return known{}, err
	}
	var content any
	switch f.directory {
	case imagesName:
		content, err = readImage(data, f.name)
	case aliasesName:
		content, err = readAlias(data, f.name)
	case retentionsName:
		content, err = readRetention(data, f.name)
	default:
		return known{}, nil // of nobody here
	}
	if err != nil {
		return known{}, err
	}
	return known{f, content}, nil
}

// assemble is the catalog of files. What names an image that is not there is an
// error in a directory; in a bucket another server has just deleted that.
func (s *Store) assemble(all map[string]known) (*catalog.Catalog, error) {
	var entries []catalog.Entry
	for _, k := range all {
		if f, ok := k.content.(*file); ok {
			entries = append(entries, f.entry())
		}
	}
	c, err := catalog.New(entries)
	if err != nil {
		return nil, err
	}
	return c, s.assembleNames(c, all)
}

// checkVersion says whether this program reads a file. Its format is looked at
// first: a newer file may have fields of any shape.
func checkVersion(data []byte, newest int) error {
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return err
	}
	if version.Format < formatFirst || version.Format > newest {
		return fmt.Errorf("it has format %d, this program reads formats %d to %d", version.Format, formatFirst, newest)
	}
	return nil
}

func readImage(data []byte, name string) (*file, error) {
	if err := checkVersion(data, format); err != nil {
		return nil, err
	}
	var f file
	if err := decode(data, &f, func() int { return f.Format }, format); err != nil {
		return nil, err
	}
	if fileName(f.Name) != name || f.Manifest.IsZero() {
		return nil, fmt.Errorf("it describes image %q, which belongs in %s", f.Name, fileName(f.Name))
	}
	return &f, nil
}

func (f *file) entry() catalog.Entry {
	return catalog.Entry{
		Name: f.Name, Digest: f.Manifest, Added: f.Added.UTC(), AddedBy: f.AddedBy,
		Bytes: f.Bytes, Objects: f.Objects, Inodes: f.Inodes, Attributes: f.Attributes, Expires: f.Expires.UTC(),
	}
}

func fileOf(entry catalog.Entry) *file {
	return &file{
		Format: format, Name: entry.Name, Manifest: entry.Digest, Added: entry.Added, AddedBy: entry.AddedBy,
		Bytes: entry.Bytes, Objects: entry.Objects, Inodes: entry.Inodes, Attributes: entry.Attributes, Expires: entry.Expires,
	}
}

func fileName(name string) string { return strings.ReplaceAll(name, "/", ",") + suffix }

// change makes a change: prepare decides on it from what is known, and returns the
// file to write (nil content: to remove) or none. Where others changed that file
// meanwhile, it is asked again. Files are as prepare wanted them when change
// returns nil.
func (s *Store) change(what string, prepare func() (directory, name string, content summed, err error)) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for try := 0; ; try++ {
		if err := s.Refresh(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		err := s.changeOnce(ctx, prepare)
		if errors.Is(err, errConflict) && try < tries {
			continue
		}
		var refused *catalog.Error
		if err != nil && !errors.As(err, &refused) {
			err = fmt.Errorf("%s: %w", what, err)
		}
		return err
	}
}

func (s *Store) changeOnce(ctx context.Context, prepare func() (directory, name string, content summed, err error)) error {
	s.io.Lock()
	defer s.io.Unlock()
	s.mutex.RLock()
	directory, name, content, err := prepare()
	f := filed{directory: directory, name: fileName(name)}
	f.tag = s.known[f.key()].tag
	s.mutex.RUnlock()
	switch {
	case err != nil || directory == "":
		return err
	case content == nil:
		err = s.files.remove(ctx, f)
	default:
		var data []byte
		if data, err = encode(content); err == nil {
			err = s.files.write(ctx, f, data)
		}
	}
	if err != nil {
		return err
	}
	if s.files.shared() {
		return s.look(ctx)
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.note(f, content)
}

// note takes one change into what is known. mutex is held.
func (s *Store) note(f filed, content summed) error {
	before := s.known[f.key()].content
	if content == nil {
		delete(s.known, f.key())
	} else {
		s.known[f.key()] = known{f, content}
	}
	switch c := content.(type) {
	case *file:
		s.catalog.Put(c.entry())
	case *aliasFile:
		s.catalog.PutAlias(c.alias())
	case *retentionFile:
		s.catalog.PutRetention(c.retention())
	default:
		switch b := before.(type) {
		case *file:
			_, err := s.catalog.Remove(b.Name, object.Digest{})
			return err
		case *aliasFile:
			s.catalog.RemoveAlias(b.Name)
		case *retentionFile:
			s.catalog.PutRetention(catalog.Retention{Stream: b.Name})
		}
	}
	return nil
}

// Resolve is catalog.Catalog's.
func (s *Store) Resolve(name string) (catalog.Entry, error) {
	s.refresh()
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.Resolve(name)
}

// List is catalog.Catalog's.
func (s *Store) List(prefix string) []catalog.Entry {
	s.refresh()
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.List(prefix)
}

// Len is the number of images that are known.
func (s *Store) Len() int {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.Len()
}

// Add adds an entry, durably, and returns it with its time; or the one that is
// there, and true, where the same image has the name already. The error is a
// *catalog.Error where the name cannot be used.
func (s *Store) Add(entry catalog.Entry) (added catalog.Entry, there bool, err error) {
	err = s.change("writing image "+entry.Name+" into the catalog", func() (string, string, summed, error) {
		var err error
		if added, there, err = s.catalog.Prepare(entry, s.options.Now()); err != nil || there {
			return "", "", nil, err
		}
		return imagesName, entry.Name, fileOf(added), nil
	})
	return added, there, err
}

// Mirror writes an entry of another server's catalog, durably, as it is there,
// in place of what has its name here.
func (s *Store) Mirror(entry catalog.Entry) error {
	if err := catalog.CheckName(entry.Name); err != nil {
		return err
	}
	return s.change("writing image "+entry.Name+" into the catalog", func() (string, string, summed, error) {
		there, err := s.catalog.Get(entry.Name, entry.Digest)
		if err == nil && there.Added.Equal(entry.Added) && there.Expires.Equal(entry.Expires) {
			return "", "", nil, nil
		}
		return imagesName, entry.Name, fileOf(entry), nil
	})
}

// Delete takes an entry out, durably, unless digest is not zero and the entry
// has another, and returns it. The error is a *catalog.Error where there is
// none.
func (s *Store) Delete(name string, digest object.Digest) (entry catalog.Entry, err error) {
	err = s.change("deleting image "+name, func() (string, string, summed, error) {
		var err error
		if entry, err = s.catalog.Removable(name, digest); err != nil {
			return "", "", nil, err
		}
		return imagesName, name, nil, nil
	})
	return entry, err
}
