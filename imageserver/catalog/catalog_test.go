package catalog_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/object"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "debian/12/2026-11-20", "A_b.c:d+e-f", "...", "a/..b", strings.Repeat("x", 200)} {
		if err := catalog.CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "../../etc/passwd", "a b", "a\x00b", "a,b", "a%2Fb",
		`a\b`, "ä", "a@b", "a\nb", "\xff", strings.Repeat("x", 201)} {
		err := catalog.CheckName(name)
		var named *catalog.Error
		if !errors.As(err, &named) || named.Kind != catalog.BadName || named.Code() != "SRV-010" {
			t.Errorf("%q: error %v, want SRV-010", name, err)
		}
	}
}

func digest(s string) object.Digest { return object.Of([]byte(s)) }

func example(t *testing.T) *catalog.Catalog {
	t.Helper()
	day := func(n int) time.Time { return time.Date(2026, 11, n, 0, 0, 0, 0, time.UTC) }
	c, err := catalog.New([]catalog.Entry{
		{Name: "debian/12/2026-11-01", Digest: digest("1"), Added: day(3)}, // added last
		{Name: "debian/12/2026-11-02", Digest: digest("2"), Added: day(2)},
		{Name: "debian/13/beta", Digest: digest("3"), Added: day(1)},
		{Name: "debian-tools/1", Digest: digest("4"), Added: day(9)},
		{Name: "rescue", Digest: digest("5"), Added: day(5)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestResolve(t *testing.T) {
	c := example(t)
	for name, want := range map[string]string{
		"debian/12/2026-11-02": "debian/12/2026-11-02",
		"debian/12":            "debian/12/2026-11-01", // by time, not by name
		"debian":               "debian/12/2026-11-01", // not debian-tools
		"rescue":               "rescue",
		"debian/12/2026-11-02@" + digest("2").String(): "debian/12/2026-11-02",
		"debian/12@" + digest("2").String():            "debian/12/2026-11-02", // pinned within a stream
	} {
		entry, err := c.Resolve(name)
		if err != nil || entry.Name != want {
			t.Errorf("%s: %q, %v; want %s", name, entry.Name, err, want)
		}
	}
	for name, near := range map[string]string{
		"debian/12/2026-11-03":                     "debian/12/2026-11-01, debian/12/2026-11-02",
		"debain":                                   "debian",
		"rescu":                                    "rescue",
		"rescue/1":                                 "rescue",
		"rescue@" + digest("other").String():       digest("5").String(),
		"debian/12@" + digest("other").String():    "debian/12",
		"debian/13/beta@" + digest("4").String():   digest("3").String(),
		"something/entirely/else/that/is/not/here": "something",
	} {
		_, err := c.Resolve(name)
		var named *catalog.Error
		if !errors.As(err, &named) || named.Kind != catalog.NotFound || !strings.Contains(err.Error(), near) {
			t.Errorf("%s: error %q, want SRV-011 with %q", name, err, near)
		}
	}
	for _, name := range []string{"rescue@", "rescue@sha256:12", "@" + digest("5").String(), "rescue@" + digest("5").String() + "@x"} {
		_, err := c.Resolve(name)
		var named *catalog.Error
		if !errors.As(err, &named) || named.Kind != catalog.BadName {
			t.Errorf("%s: error %v, want SRV-010", name, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	c := example(t)
	now := time.Date(2026, 11, 4, 0, 0, 0, 0, time.UTC) // behind debian-tools: the clock was set back
	entry, there, err := c.Prepare(catalog.Entry{Name: "debian/12/2026-11-03", Digest: digest("6")}, now)
	if err != nil || there {
		t.Fatal(there, err)
	}
	c.Put(entry)
	if newest, err := c.Resolve("debian"); err != nil || newest.Name != entry.Name {
		t.Errorf("newest is %s, %v; want the one added last", newest.Name, err)
	}
	same, there, err := c.Prepare(catalog.Entry{Name: "rescue", Digest: digest("5")}, now)
	if err != nil || !there || same.Added.Day() != 5 {
		t.Errorf("the same again: %+v, %v, %v", same, there, err)
	}
	for _, name := range []string{"rescue", "debian/12", "debian", "rescue/1", "rescue/1/2"} {
		_, _, err := c.Prepare(catalog.Entry{Name: name, Digest: digest("7")}, now)
		var named *catalog.Error
		if !errors.As(err, &named) || named.Kind != catalog.Taken || named.Code() != "SRV-012" {
			t.Errorf("%s: error %v, want SRV-012", name, err)
		}
	}
}

func TestRemove(t *testing.T) {
	c := example(t)
	for _, name := range []string{"debian", "nothing"} {
		if _, err := c.Remove(name, object.Digest{}); err == nil {
			t.Errorf("%s could be removed", name)
		}
	}
	if _, err := c.Remove("rescue", digest("other")); err == nil {
		t.Error("removed in spite of another digest")
	}
	if entry, err := c.Remove("rescue", digest("5")); err != nil || entry.Name != "rescue" || c.Len() != 4 {
		t.Error(entry, err, c.Len())
	}
}

// A name is refused, or is one that is safe as a file's.
func FuzzNames(f *testing.F) {
	f.Add("debian/12/2026-11-20")
	f.Add("a@sha256:0")
	f.Add("../x")
	f.Fuzz(func(t *testing.T, name string) {
		bare, _, err := catalog.SplitPin(name)
		if err != nil {
			return
		}
		for element := range strings.SplitSeq(bare, "/") {
			if element == "" || element == "." || element == ".." || strings.ContainsAny(element, ",\x00") || len(bare) > 200 {
				t.Errorf("%q is taken", name)
			}
		}
		if _, err := new(catalog.Catalog).Resolve(name); err == nil {
			t.Error("an empty catalog has it")
		}
	})
}
