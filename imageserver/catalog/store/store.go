// Package store keeps the entries of a catalog in a directory: one JSON file an
// image, images/<name>.json, where each "/" of the name is written ",". A file
// is written whole, synced and renamed, and its directory synced, so an image
// is there completely or not at all, also after a power cut. Aliases and streams'
// retentions lie beside it, one file each: aliases/<name>.json and
// retentions/<stream>.json.
//
// It never touches objects or manifests; those lie in an object.Store.
package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/object"
)

// The versions of the files. A newer one is refused. Format 2 has images that
// expire; an image that does not is written in format 1, which older servers
// read too.
const (
	format        = 2
	formatForever = 1
)

const (
	imagesName = "images"
	lockName   = ".lock"
	newPrefix  = ".new-"
	suffix     = ".json"
)

// Error is a directory that cannot be used; docs/errors.md explains its codes.
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
}

// Store is a catalog in a directory. It is safe for concurrent use by one
// process, and locks the directory against others.
type Store struct {
	directory string // of the images
	aliases   string
	retention string
	lock      *os.File
	now       func() time.Time

	mutex   sync.RWMutex
	catalog *catalog.Catalog
}

// Open reads the entries below path, making the directory if it is not there.
// The error is an *Error where another process uses it, or where a file is
// damaged: an image must not vanish silently. Close lets it go.
func Open(path string, now func() time.Time) (*Store, error) {
	s := &Store{
		directory: filepath.Join(path, imagesName),
		aliases:   filepath.Join(path, aliasesName),
		retention: filepath.Join(path, retentionsName),
		now:       now,
	}
	for _, directory := range []string{s.directory, s.aliases, s.retention} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return nil, fmt.Errorf("making the catalog: %w", err)
		}
	}
	if err := syncDirectory(path); err != nil {
		return nil, fmt.Errorf("making the catalog: %w", err)
	}
	var err error
	if s.lock, err = os.OpenFile(filepath.Join(s.directory, lockName), os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return nil, fmt.Errorf("opening the catalog: %w", err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&Error{"SRV-013", path + " is in use by another image server", err}, s.lock.Close())
	}
	if s.catalog, err = s.read(); err != nil {
		return nil, errors.Join(err, s.lock.Close())
	}
	return s, nil
}

// Close unlocks the directory.
func (s *Store) Close() error { return s.lock.Close() }

func (s *Store) read() (*catalog.Catalog, error) {
	names, err := os.ReadDir(s.directory)
	if err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	var entries []catalog.Entry
	for _, name := range names {
		path := filepath.Join(s.directory, name.Name())
		switch {
		case strings.HasPrefix(name.Name(), newPrefix):
			// Left by a process that died before the rename.
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("cleaning up the catalog: %w", err)
			}
		case strings.HasSuffix(name.Name(), suffix) && name.Name()[0] != '.':
			entry, err := readFile(path)
			if err != nil {
				return nil, &Error{"SRV-014", "the catalog's file " + path + " cannot be used", err}
			}
			entries = append(entries, entry)
		}
	}
	c, err := catalog.New(entries)
	if err != nil {
		return nil, err
	}
	return c, s.readNames(c)
}

func readFile(path string) (catalog.Entry, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return catalog.Entry{}, err
	}
	// The version first: a newer file may have fields of any shape.
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return catalog.Entry{}, err
	}
	if version.Format < formatForever || version.Format > format {
		return catalog.Entry{}, fmt.Errorf("it has format %d, this program reads formats %d to %d", version.Format, formatForever, format)
	}
	var f file
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		return catalog.Entry{}, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return catalog.Entry{}, errors.New("something follows the entry")
	}
	if fileName(f.Name) != filepath.Base(path) || f.Manifest.IsZero() {
		return catalog.Entry{}, fmt.Errorf("it describes image %q, which belongs in %s", f.Name, fileName(f.Name))
	}
	return catalog.Entry{
		Name: f.Name, Digest: f.Manifest, Added: f.Added.UTC(), AddedBy: f.AddedBy,
		Bytes: f.Bytes, Objects: f.Objects, Inodes: f.Inodes, Attributes: f.Attributes, Expires: f.Expires.UTC(),
	}, nil
}

func fileName(name string) string { return strings.ReplaceAll(name, "/", ",") + suffix }

// Resolve is catalog.Catalog's.
func (s *Store) Resolve(name string) (catalog.Entry, error) {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.Resolve(name)
}

// List is catalog.Catalog's.
func (s *Store) List(prefix string) []catalog.Entry {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.List(prefix)
}

// Len is the number of images.
func (s *Store) Len() int {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.Len()
}

// Add adds an entry, durably, and returns it with its time; or the one that is
// there, and true, where the same image has the name already. The error is a
// *catalog.Error where the name cannot be used.
func (s *Store) Add(entry catalog.Entry) (catalog.Entry, bool, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	entry, there, err := s.catalog.Prepare(entry, s.now())
	if err != nil || there {
		return entry, there, err
	}
	if err := s.write(entry); err != nil {
		return catalog.Entry{}, false, fmt.Errorf("writing image %s into the catalog: %w", entry.Name, err)
	}
	s.catalog.Put(entry)
	return entry, false, nil
}

// Mirror writes an entry of another server's catalog, durably, as it is there,
// in place of what has its name here.
func (s *Store) Mirror(entry catalog.Entry) error {
	if err := catalog.CheckName(entry.Name); err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if there, err := s.catalog.Get(entry.Name, entry.Digest); err == nil && there.Added.Equal(entry.Added) && there.Expires.Equal(entry.Expires) {
		return nil
	}
	if err := s.write(entry); err != nil {
		return fmt.Errorf("writing image %s into the catalog: %w", entry.Name, err)
	}
	s.catalog.Put(entry)
	return nil
}

// Delete takes an entry out, durably, unless digest is not zero and the entry
// has another, and returns it. The error is a *catalog.Error where there is
// none.
func (s *Store) Delete(name string, digest object.Digest) (catalog.Entry, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	entry, err := s.catalog.Removable(name, digest)
	if err != nil {
		return catalog.Entry{}, err
	}
	if err := removeFile(s.directory, name); err != nil {
		return catalog.Entry{}, fmt.Errorf("deleting image %s: %w", name, err)
	}
	return s.catalog.Remove(entry.Name, digest)
}

func (s *Store) write(entry catalog.Entry) error {
	f := file{
		Format: formatForever, Name: entry.Name, Manifest: entry.Digest, Added: entry.Added, AddedBy: entry.AddedBy,
		Bytes: entry.Bytes, Objects: entry.Objects, Inodes: entry.Inodes, Attributes: entry.Attributes, Expires: entry.Expires,
	}
	if !entry.Expires.IsZero() {
		f.Format = format
	}
	return writeFile(s.directory, entry.Name, f)
}

// removeFile deletes the file of a name, durably. A missing one is no error.
func removeFile(directory, name string) error {
	if err := os.Remove(filepath.Join(directory, fileName(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDirectory(directory)
}

// writeFile writes the file of a name, durably; it has the old content or the
// new, never anything else.
func writeFile(directory, name string, content any) (err error) {
	data, err := json.MarshalIndent(content, "", "\t")
	if err != nil {
		return err
	}
	temporary, err := os.CreateTemp(directory, newPrefix+"*")
	if err != nil {
		return err
	}
	if _, err = temporary.Write(append(data, '\n')); err == nil {
		err = temporary.Chmod(0o644)
	}
	if err == nil {
		err = temporary.Sync()
	}
	err = errors.Join(err, temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), filepath.Join(directory, fileName(name)))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return syncDirectory(directory)
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
