package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/object"
)

func clock() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 5, time.UTC) }

func open(t *testing.T, path string) *store.Store {
	t.Helper()
	s, err := store.Open(path, store.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeStore(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func code(err error) string {
	var coded interface{ Code() string }
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}

func entry() catalog.Entry {
	return catalog.Entry{
		Name: "debian/12/2026-11-20", Digest: object.Of([]byte("x")), Bytes: 435e6, Objects: 12049, Inodes: 15000,
		Attributes: map[string]string{"arch": "amd64"}, AddedBy: "admin",
	}
}

func TestReopened(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	added, existed, err := s.Add(entry())
	if err != nil || existed {
		t.Fatal(existed, err)
	}
	if _, existed, err := s.Add(entry()); err != nil || !existed {
		t.Fatal("the same again:", existed, err)
	}
	closeStore(t, s)
	// What a process that died in the middle leaves is no image.
	if err := os.WriteFile(filepath.Join(dir, "images", ".new-123"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer closeStore(t, s)
	want := entry()
	want.Added = clock()
	if diff := cmp.Diff([]catalog.Entry{want}, s.List("")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, added); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(filepath.Join(dir, "images", ".new-123")); !errors.Is(err, os.ErrNotExist) {
		t.Error("what was left over is still there:", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "images", "debian,12,2026-11-20.json")); err != nil {
		t.Error(err)
	}
}

func TestDelete(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, _, err := s.Add(entry()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Delete(entry().Name, object.Of([]byte("y"))); code(err) != "SRV-011" {
		t.Error("deleted in spite of another digest:", err)
	}
	if _, err := s.Delete(entry().Name, entry().Digest); err != nil {
		t.Error(err)
	}
	if _, err := s.Delete("../images/x", object.Digest{}); code(err) != "SRV-010" {
		t.Error(err)
	}
	closeStore(t, s)
	s = open(t, dir)
	defer closeStore(t, s)
	if s.Len() != 0 {
		t.Error(s.List(""))
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer closeStore(t, s)
	if _, err := store.Open(dir, store.Options{Now: clock}); code(err) != "SRV-013" {
		t.Error(err)
	}
}

// TestDamaged: an image whose file cannot be read must not vanish silently.
func TestDamaged(t *testing.T) {
	good := `{"format":1,"name":"a/1","manifest":"` + object.Of([]byte("x")).String() + `","added":"2026-11-20T00:00:00Z","bytes":1,"objects":1,"inodes":2}`
	tests := map[string]struct{ data, text string }{
		"cut off":     {good[:40], "JSON"},
		"newer":       {strings.Replace(good, `"format":1`, `"format":4,"new":[1]`, 1), "format 4"},
		"no format":   {strings.Replace(good, `"format":1,`, "", 1), "format 0"},
		"extra field": {strings.Replace(good, `"bytes"`, `"extra":1,"bytes"`, 1), "extra"},
		"other name":  {strings.Replace(good, "a/1", "b/1", 1), "b,1.json"},
		"bad digest":  {strings.Replace(good, "sha256:", "sha1:", 1), "digest"},
		"two":         {good + good, "invalid character"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			closeStore(t, open(t, dir))
			if err := os.WriteFile(filepath.Join(dir, "images", "a,1.json"), []byte(test.data), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := store.Open(dir, store.Options{Now: clock})
			if code(err) != "SRV-014" || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error %v, want SRV-014 with %q", err, test.text)
			}
		})
	}
}

// TestFlippedBits: a bit that flipped in a file of the catalog is noticed, or changes
// nothing of what the file says.
func TestFlippedBits(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "firstlight-test-") // each start syncs
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s := open(t, dir)
	if _, _, err := s.Add(entry()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Promote("stable", entry().Name, "anna"); err != nil {
		t.Fatal(err)
	}
	if err := s.Retain("debian", 3, "anna"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Expire(entry().Name, object.Digest{}, clock().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	want, due := s.List(""), s.DueIf(catalog.Retention{Stream: "none", Keep: 1})
	closeStore(t, s)
	names, err := filepath.Glob(filepath.Join(dir, "*", "*.json"))
	if err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
	flips, noticed := 0, 0
	for _, name := range names {
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for bit := range 8 * len(whole) {
			flipped := slices.Clone(whole)
			flipped[bit/8] ^= 1 << (bit % 8)
			if err := os.WriteFile(name, flipped, 0o600); err != nil {
				t.Fatal(err)
			}
			flips++
			s, err := store.Open(dir, store.Options{Now: clock})
			if err != nil {
				noticed++
				if code(err) != "SRV-014" {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			if diff := cmp.Diff(want, s.List("")); diff != "" {
				t.Errorf("%s, bit %d: %s", name, bit, diff)
			}
			if diff := cmp.Diff(due, s.Due()); diff != "" {
				t.Error(diff)
			}
			if aliases := s.AliasesOf(entry().Name); len(aliases) != 1 || aliases[0] != "stable" {
				t.Error(aliases)
			}
			closeStore(t, s)
		}
		if err := os.WriteFile(name, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// White space and the case of keys are all that may change unnoticed.
	if noticed < flips*8/10 {
		t.Errorf("%d of %d flips were noticed", noticed, flips)
	}
}
