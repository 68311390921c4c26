package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/object"
)

const (
	aliasesName    = "aliases"
	retentionsName = "retentions"
	// namesFormat is the version of the files of aliases and retentions.
	namesFormat = 1
)

// aliasFile and retentionFile are what is written down.
type aliasFile struct {
	Format int       `json:"format"`
	Name   string    `json:"name"`
	Image  string    `json:"image"`
	Set    time.Time `json:"set"`
	SetBy  string    `json:"setBy,omitempty"`
}

type retentionFile struct {
	Format int       `json:"format"`
	Name   string    `json:"name"` // of the stream
	Keep   int       `json:"keep"`
	Set    time.Time `json:"set"`
	SetBy  string    `json:"setBy,omitempty"`
}

// readNames reads aliases and retentions into the catalog.
func (s *Store) readNames(c *catalog.Catalog) error {
	aliases, err := readAll(s.aliases, func(f aliasFile) (int, string) { return f.Format, f.Name })
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(aliases)) {
		f := aliases[name]
		if _, err := c.Get(f.Image, object.Digest{}); err != nil {
			return &Error{"SRV-014", fmt.Sprintf("the catalog's alias %s cannot be used", name), err}
		}
		alias, _, err := c.PrepareAlias(f.Name, f.Image, f.SetBy, f.Set)
		if err != nil {
			return &Error{"SRV-014", fmt.Sprintf("the catalog's alias %s cannot be used", name), err}
		}
		c.PutAlias(alias)
	}
	retentions, err := readAll(s.retention, func(f retentionFile) (int, string) { return f.Format, f.Name })
	if err != nil {
		return err
	}
	for _, f := range retentions {
		if f.Keep < 1 {
			return &Error{"SRV-014", fmt.Sprintf("the catalog's retention of %s keeps %d images", f.Name, f.Keep), nil}
		}
		c.PutRetention(catalog.Retention{Stream: f.Name, Keep: f.Keep, Set: f.Set.UTC(), SetBy: f.SetBy})
	}
	return nil
}

// readAll reads the files of a directory, by the names in them.
func readAll[F any](directory string, of func(F) (format int, name string)) (map[string]F, error) {
	names, err := os.ReadDir(directory)
	if err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	found := make(map[string]F)
	for _, name := range names {
		path := filepath.Join(directory, name.Name())
		if strings.HasPrefix(name.Name(), newPrefix) {
			// Left by a process that died before the rename.
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("cleaning up the catalog: %w", err)
			}
			continue
		}
		f, err := readOne[F](path)
		if err == nil {
			switch format, in := of(f); {
			case format != namesFormat:
				err = fmt.Errorf("it has format %d, this program reads format %d", format, namesFormat)
			case catalog.CheckName(in) != nil || fileName(in) != name.Name():
				err = fmt.Errorf("it describes %q", in)
			default:
				found[in] = f
			}
		}
		if err != nil {
			return nil, &Error{"SRV-014", "the catalog's file " + path + " cannot be used", err}
		}
	}
	return found, nil
}

func readOne[F any](path string) (f F, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return f, err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&f); err != nil {
		return f, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return f, errors.New("something follows it")
	}
	return f, nil
}

// AliasesOf is catalog.Catalog's.
func (s *Store) AliasesOf(image string) []string {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.AliasesOf(image)
}

// Promote lets name mean the image that target resolves to, durably and in one
// step. It returns that image and the name of the one that it meant before, ""
// where there was none. The error is a *catalog.Error where a name cannot be
// used.
func (s *Store) Promote(name, target, by string) (catalog.Entry, string, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	alias, entry, err := s.catalog.PrepareAlias(name, target, by, s.now())
	if err != nil {
		return catalog.Entry{}, "", err
	}
	before, _ := s.catalog.Alias(name)
	if before.Image == alias.Image {
		return entry, before.Image, nil
	}
	err = writeFile(s.aliases, name, aliasFile{Format: namesFormat, Name: name, Image: alias.Image, Set: alias.Set, SetBy: by})
	if err != nil {
		return catalog.Entry{}, "", fmt.Errorf("writing alias %s into the catalog: %w", name, err)
	}
	s.catalog.PutAlias(alias)
	return entry, before.Image, nil
}

// DeleteAlias takes an alias away, durably, and returns it; false where there is
// none of this name.
func (s *Store) DeleteAlias(name string) (catalog.Alias, bool, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	alias, ok := s.catalog.Alias(name)
	if !ok {
		return catalog.Alias{}, false, nil
	}
	if err := removeFile(s.aliases, name); err != nil {
		return catalog.Alias{}, false, fmt.Errorf("deleting alias %s: %w", name, err)
	}
	s.catalog.RemoveAlias(name)
	return alias, true, nil
}

// Expire sets when the image of exactly this name may go, durably; the zero time
// means never. The error is a *catalog.Error where there is no such image.
func (s *Store) Expire(name string, digest object.Digest, expires time.Time) (catalog.Entry, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	entry, err := s.catalog.Get(name, digest)
	if err != nil {
		return catalog.Entry{}, err
	}
	if !expires.IsZero() {
		expires = expires.UTC()
	}
	entry.Expires = expires
	if err := s.write(entry); err != nil {
		return catalog.Entry{}, fmt.Errorf("writing image %s into the catalog: %w", name, err)
	}
	s.catalog.Put(entry)
	return entry, nil
}

// Retain sets how many of the newest images directly below a stream are kept,
// durably; 0 means all. The error is a *catalog.Error where no stream can have
// the name.
func (s *Store) Retain(stream string, keep int, by string) error {
	if err := catalog.CheckName(stream); err != nil {
		return err
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	retention := catalog.Retention{Stream: stream, Keep: keep, Set: s.now().UTC(), SetBy: by}
	var err error
	if keep == 0 {
		err = removeFile(s.retention, stream)
	} else {
		err = writeFile(s.retention, stream, retentionFile{Format: namesFormat, Name: stream, Keep: keep, Set: retention.Set, SetBy: by})
	}
	if err != nil {
		return fmt.Errorf("writing the retention of %s into the catalog: %w", stream, err)
	}
	s.catalog.PutRetention(retention)
	return nil
}

// DueIf is what Due would say if the retention were set.
func (s *Store) DueIf(retention catalog.Retention) []catalog.Due {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	before, _ := s.catalog.Retention(retention.Stream)
	before.Stream = retention.Stream
	s.catalog.PutRetention(retention)
	defer s.catalog.PutRetention(before)
	return s.catalog.Due(s.now())
}

// Due is catalog.Catalog's, now.
func (s *Store) Due() []catalog.Due {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.Due(s.now())
}
