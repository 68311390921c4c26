package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Aliases, expiry and retention are there after a restart.
func TestNamesLast(t *testing.T) {
	dir := t.TempDir()
	now := func() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) }
	open := func() *Store {
		t.Helper()
		s, err := Open(dir, Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	for _, name := range []string{"d/1", "d/2", "d/3"} {
		if _, _, err := s.Add(catalog.Entry{Name: name, Digest: object.Of([]byte(name))}); err != nil {
			t.Fatal(err)
		}
	}
	if _, before, err := s.Promote("stable", "d/1", "anna"); err != nil || before != "" {
		t.Fatal(before, err)
	}
	if entry, before, err := s.Promote("stable", "d/2", "anna"); err != nil || before != "d/1" || entry.Name != "d/2" {
		t.Fatal(entry, before, err)
	}
	if _, err := s.Expire("d/3", object.Digest{}, now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if due := s.DueIf(catalog.Retention{Stream: "d", Keep: 1}); len(due) != 1 || due[0].Entry.Name != "d/1" || len(s.Due()) != 0 {
		t.Fatal(due)
	}
	if err := s.Retain("d", 1, "anna"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as it is, and after a restart
		if entry, err := s.Resolve("stable"); err != nil || entry.Name != "d/2" {
			t.Error(entry, err)
		}
		if entry, err := s.Resolve("d/3"); err != nil || !entry.Expires.Equal(now().Add(time.Hour)) {
			t.Error(entry, err)
		}
		if due := s.Due(); len(due) != 1 || due[0].Entry.Name != "d/1" {
			t.Error(due)
		}
		if _, err := s.Delete("d/2", object.Digest{}); err == nil {
			t.Error("what an alias means was deleted")
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open()
	}
	if _, ok, err := s.DeleteAlias("stable"); !ok || err != nil {
		t.Error(ok, err)
	}
	if err := s.Retain("d", 0, ""); err != nil || len(s.Due()) != 0 {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"newer":       `{"format":3,"name":"x","image":"d/1"}`,
		"other name":  `{"format":1,"name":"y","image":"d/1"}`,
		"leads out":   `{"format":1,"name":"x","image":"../../d/1"}`,
		"no image":    `{"format":1,"name":"x","image":"d/9"}`,
		"a stream":    `{"format":1,"name":"x","image":"d"}`,
		"no JSON":     `{`,
		"more of it":  `{"format":1,"name":"x","image":"d/1"}{}`,
		"other field": `{"format":1,"name":"x","image":"d/1","more":1}`,
	} {
		path := filepath.Join(dir, "aliases", "x.json")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{Now: now}); err == nil || !strings.Contains(err.Error(), "alias") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Files of any bytes are refused, or say what their names say.
func FuzzFiles(f *testing.F) {
	for _, one := range []summed{
		fileOf(catalog.Entry{Name: "a/1", Digest: object.Of(nil)}),
		&aliasFile{Format: namesFormat, Name: "a/1", Image: "b"}, &retentionFile{Format: namesFormat, Name: "a/1", Keep: 1},
	} {
		data, err := encode(one)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if one, err := readImage(data, "a,1.json"); err == nil && one.Name != "a/1" {
			t.Error(one)
		}
		if one, err := readAlias(data, "a,1.json"); err == nil && one.Name != "a/1" {
			t.Error(one)
		}
		if one, err := readRetention(data, "a,1.json"); err == nil && (one.Name != "a/1" || one.Keep < 1) {
			t.Error(one)
		}
	})
}
