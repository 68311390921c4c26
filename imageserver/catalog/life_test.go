package catalog

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

func lifeOf(t *testing.T, names ...string) (*Catalog, time.Time) {
	t.Helper()
	start := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	var entries []Entry
	for i, name := range names {
		entries = append(entries, Entry{Name: name, Digest: object.Of([]byte(name)), Added: start.Add(time.Duration(i) * time.Hour)})
	}
	c, err := New(entries)
	if err != nil {
		t.Fatal(err)
	}
	return c, start
}

func TestAliases(t *testing.T) {
	c, now := lifeOf(t, "d/12/1", "d/12/2", "e/1")
	promote := func(name, target string) error {
		alias, _, err := c.PrepareAlias(name, target, "anna", now)
		if err == nil {
			c.PutAlias(alias)
		}
		return err
	}
	for _, step := range []struct {
		name, target string
		kind         Kind
		fails        bool
		means        string
	}{
		{"stable", "d/12", 0, false, "d/12/2"},
		{"stable", "d/12/1", 0, false, "d/12/1"},
		{"d/12/stable", "stable", 0, false, "d/12/1"}, // an alias of what an alias means now
		{"e/1", "d/12/1", Taken, true, ""},
		{"d", "d/12/1", Taken, true, ""},
		{"e/1/x", "d/12/1", Taken, true, ""},
		{"stable/x", "d/12/1", Taken, true, ""},
		{"new", "nothing", NotFound, true, ""},
		{"../x", "d/12/1", BadName, true, ""},
	} {
		err := promote(step.name, step.target)
		var coded *Error
		if step.fails != (err != nil) || err != nil && (!errors.As(err, &coded) || coded.Kind != step.kind) {
			t.Errorf("%s → %s: %v", step.name, step.target, err)
		}
		if step.fails {
			continue
		}
		if entry, err := c.Resolve(step.name); err != nil || entry.Name != step.means {
			t.Errorf("%s means %s, %v", step.name, entry.Name, err)
		}
	}
	if entry, err := c.Resolve("d/12"); err != nil || entry.Name != "d/12/2" {
		t.Errorf("an alias changed what a stream means: %s, %v", entry.Name, err)
	}
	if entry, err := c.Resolve("stable@" + object.Of([]byte("d/12/1")).String()); err != nil || entry.Name != "d/12/1" {
		t.Error(entry, err)
	}
	if _, err := c.Resolve("stabel"); err == nil || !strings.Contains(err.Error(), "stable") {
		t.Error(err)
	}
	if _, _, err := c.Prepare(Entry{Name: "stable"}, now); err == nil {
		t.Error("an image took an alias's name")
	}
	if _, err := c.Remove("d/12/1", object.Digest{}); err == nil || !strings.Contains(err.Error(), "d/12/stable and stable") {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"d/12/stable", "stable"}, c.AliasesOf("d/12/1")); diff != "" {
		t.Error(diff)
	}
}

func TestDue(t *testing.T) {
	c, start := lifeOf(t, "d/1", "d/2", "d/3", "d/4", "d/deep/1", "e/1")
	now := start.Add(100 * time.Hour)
	due := func() (names []string) {
		for _, one := range c.Due(now) {
			names = append(names, one.Entry.Name)
		}
		return names
	}
	expect := func(why string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, due()); diff != "" {
			t.Errorf("%s: %s", why, diff)
		}
	}
	expect("nothing was said")
	c.PutRetention(Retention{Stream: "d", Keep: 2})
	expect("two are kept, of those directly below", "d/1", "d/2")
	c.PutAlias(Alias{Name: "stable", Image: "d/1"})
	expect("an alias keeps", "d/2")
	for _, name := range []string{"d/4", "e/1", "d/1"} {
		entry, _ := c.exact(name)
		entry.Expires = now
		c.Put(entry)
	}
	expect("expired ones do not count among the kept", "d/4", "e/1")
	c.PutRetention(Retention{Stream: "d", Keep: 1})
	expect("one is kept", "d/2", "d/4", "e/1")
	c.PutRetention(Retention{Stream: "d"})
	expect("all are kept again", "d/4", "e/1")
}

func TestReferences(t *testing.T) {
	file, list := object.Of([]byte("file")), object.Of([]byte("list"))
	m := &image.Manifest{Attributes: map[string]string{image.AttrPackages: list.String()}, Entries: []image.Entry{
		{Path: ".", Type: image.Dir}, {Path: "a", Size: 4, Digest: file}, {Path: "b", Size: 4, Digest: file}}}
	manifest := object.Of([]byte("manifest"))
	if diff := cmp.Diff([]object.Digest{manifest, file, list}, References(manifest, m)); diff != "" {
		t.Error(diff)
	}
	m.Attributes[image.AttrPackages] = "garbage"
	if len(References(manifest, m)) != 2 {
		t.Error("an attribute that is no digest")
	}
}
