package store

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/object"
)

const (
	aliasesName    = "aliases"
	retentionsName = "retentions"
	// namesFormat is the version of the files of aliases and retentions. Format 2
	// has a check.
	namesFormat = 2
)

// aliasFile and retentionFile are what is written down.
type aliasFile struct {
	Format int       `json:"format"`
	Name   string    `json:"name"`
	Image  string    `json:"image"`
	Set    time.Time `json:"set"`
	SetBy  string    `json:"setBy,omitempty"`
	Check  string    `json:"check,omitempty"`
}

type retentionFile struct {
	Format int       `json:"format"`
	Name   string    `json:"name"` // of the stream
	Keep   int       `json:"keep"`
	Set    time.Time `json:"set"`
	SetBy  string    `json:"setBy,omitempty"`
	Check  string    `json:"check,omitempty"`
}

func (f *aliasFile) take() (check string) { check, f.Check = f.Check, ""; return check }
func (f *aliasFile) put(check string)     { f.Check = check }

func (f *aliasFile) alias() catalog.Alias {
	return catalog.Alias{Name: f.Name, Image: f.Image, Set: f.Set.UTC(), SetBy: f.SetBy}
}

func (f *retentionFile) take() (check string) { check, f.Check = f.Check, ""; return check }
func (f *retentionFile) put(check string)     { f.Check = check }

func (f *retentionFile) retention() catalog.Retention {
	return catalog.Retention{Stream: f.Name, Keep: f.Keep, Set: f.Set.UTC(), SetBy: f.SetBy}
}

// assembleNames puts aliases and retentions into the catalog.
func (s *Store) assembleNames(c *catalog.Catalog, all map[string]known) error {
	for _, key := range slices.Sorted(maps.Keys(all)) {
		switch f := all[key].content.(type) {
		case *aliasFile:
			_, err := c.Get(f.Image, object.Digest{})
			var alias catalog.Alias
			if err == nil {
				alias, _, err = c.PrepareAlias(f.Name, f.Image, f.SetBy, f.Set)
			}
			switch {
			case err == nil:
				c.PutAlias(alias)
			case s.files.shared() || s.options.Disposable:
				s.options.Log.Warn("an alias means nothing", "alias", f.Name, "error", err)
			default:
				return &Error{"SRV-014", fmt.Sprintf("the catalog's alias %s cannot be used", f.Name), err}
			}
		case *retentionFile:
			c.PutRetention(f.retention())
		}
	}
	return nil
}

func readAlias(data []byte, name string) (*aliasFile, error) {
	if err := checkVersion(data, namesFormat); err != nil {
		return nil, fmt.Errorf("an alias: %w", err)
	}
	var f aliasFile
	err := decode(data, &f, func() int { return f.Format }, namesFormat)
	if err == nil && (catalog.CheckName(f.Name) != nil || fileName(f.Name) != name) {
		err = fmt.Errorf("it describes %q", f.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("an alias: %w", err)
	}
	return &f, nil
}

func readRetention(data []byte, name string) (*retentionFile, error) {
	if err := checkVersion(data, namesFormat); err != nil {
		return nil, err
	}
	var f retentionFile
	err := decode(data, &f, func() int { return f.Format }, namesFormat)
	switch {
	case err != nil:
		return nil, err
	case catalog.CheckName(f.Name) != nil || fileName(f.Name) != name:
		return nil, fmt.Errorf("it describes %q", f.Name)
	case f.Keep < 1:
		return nil, fmt.Errorf("the retention of %s keeps %d images", f.Name, f.Keep)
	}
	return &f, nil
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
func (s *Store) Promote(name, target, by string) (entry catalog.Entry, before string, err error) {
	err = s.change("writing alias "+name+" into the catalog", func() (string, string, summed, error) {
		alias, image, err := s.catalog.PrepareAlias(name, target, by, s.options.Now())
		if err != nil {
			return "", "", nil, err
		}
		entry = image
		old, _ := s.catalog.Alias(name)
		if before = old.Image; before == alias.Image {
			return "", "", nil, nil
		}
		return aliasesName, name, &aliasFile{Format: namesFormat, Name: name, Image: alias.Image, Set: alias.Set, SetBy: by}, nil
	})
	if err != nil {
		return catalog.Entry{}, "", err
	}
	// In a bucket, another server may just have deleted the image.
	_, err = s.Resolve(name)
	return entry, before, err
}

// DeleteAlias takes an alias away, durably, and returns it; false where there is
// none of this name.
func (s *Store) DeleteAlias(name string) (alias catalog.Alias, found bool, err error) {
	err = s.change("deleting alias "+name, func() (string, string, summed, error) {
		if alias, found = s.catalog.Alias(name); !found {
			return "", "", nil, nil
		}
		return aliasesName, name, nil, nil
	})
	return alias, found, err
}

// Expire sets when the image of exactly this name may go, durably; the zero time
// means never. The error is a *catalog.Error where there is no such image.
func (s *Store) Expire(name string, digest object.Digest, expires time.Time) (entry catalog.Entry, err error) {
	if !expires.IsZero() {
		expires = expires.UTC()
	}
	err = s.change("writing image "+name+" into the catalog", func() (string, string, summed, error) {
		var err error
		if entry, err = s.catalog.Get(name, digest); err != nil {
			return "", "", nil, err
		}
		entry.Expires = expires
		return imagesName, name, fileOf(entry), nil
	})
	return entry, err
}

// Retain sets how many of the newest images directly below a stream are kept,
// durably; 0 means all. The error is a *catalog.Error where no stream can have
// the name.
func (s *Store) Retain(stream string, keep int, by string) error {
	if err := catalog.CheckName(stream); err != nil {
		return err
	}
	return s.change("writing the retention of "+stream+" into the catalog", func() (string, string, summed, error) {
		if keep == 0 {
			return retentionsName, stream, nil, nil
		}
		return retentionsName, stream, &retentionFile{Format: namesFormat, Name: stream, Keep: keep, Set: s.options.Now().UTC(), SetBy: by}, nil
	})
}

// DueIf is what Due would say if the retention were set.
func (s *Store) DueIf(retention catalog.Retention) []catalog.Due {
	s.refresh()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	before, _ := s.catalog.Retention(retention.Stream)
	before.Stream = retention.Stream
	s.catalog.PutRetention(retention)
	defer s.catalog.PutRetention(before)
	return s.catalog.Due(s.options.Now())
}

// Due is catalog.Catalog's, now.
func (s *Store) Due() []catalog.Due {
	s.refresh()
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	return s.catalog.Due(s.options.Now())
}
