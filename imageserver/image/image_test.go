package image_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

func fileEntry(path, content string) image.Entry {
	e := image.Entry{Path: path, Type: image.File, Mode: 0o644, Size: uint64(len(content))}
	if content != "" {
		e.Digest = object.Of([]byte(content))
	}
	return e
}

func dirEntry(path string) image.Entry { return image.Entry{Path: path, Type: image.Dir, Mode: 0o755} }

func link(path, target string) image.Entry {
	return image.Entry{Path: path, Type: image.Symlink, Mode: 0o777, Target: target}
}

// everything has one of each kind, at the limits.
func everything() *image.Manifest {
	special := fileEntry("bin/ping", "ping")
	special.Mode, special.UID, special.GID = 0o4755, 1<<32-2, 3_000_000_000
	special.Seconds, special.Nanoseconds = -1, 999_999_999
	special.Xattrs = []image.Xattr{
		{Name: "security.capability", Value: []byte{1, 0, 0, 2, 0, 0x20}},
		{Name: "user.empty", Value: []byte{}},
	}
	m := &image.Manifest{
		Attributes: map[string]string{image.AttrArch: "amd64", image.AttrKernel: "boot/vmlinuz"},
		Entries: []image.Entry{
			dirEntry("."), dirEntry("bin"), special,
			{Path: "bin/ping4", Type: image.Hardlink, Target: "bin/ping"},
			link("bin/sh", "dash"), fileEntry("bin-x", ""), dirEntry("dev"),
			{Path: "dev/null", Type: image.CharDevice, Mode: 0o666, Major: 1, Minor: 3},
			{Path: "dev/sda", Type: image.BlockDevice, Mode: 0o660, Major: 4095, Minor: 1<<20 - 1},
			{Path: "fifo", Type: image.FIFO, Mode: 0o600, Seconds: 1 << 40},
			fileEntry("raw \xff\n name", "ping"), {Path: "sock", Type: image.Socket},
		},
	}
	slices.SortFunc(m.Entries, func(a, b image.Entry) int { return image.Compare(a.Path, b.Path) })
	return m
}

func TestRoundTrip(t *testing.T) {
	for name, m := range map[string]*image.Manifest{
		"everything": everything(),
		"root only":  {Entries: []image.Entry{dirEntry(".")}},
	} {
		b, err := image.Encode(m)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		back, err := image.Decode(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(m, back); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		again, err := image.Encode(back)
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("%s: encoded differently the second time, %v", name, err)
		}
		if d, err := m.Digest(); err != nil || d != object.Of(b) {
			t.Errorf("%s: digest %s, %v", name, d, err)
		}
	}
}

// The encoding names images: it must never change unnoticed.
func TestEncodingIsStable(t *testing.T) {
	d, err := everything().Digest()
	if err != nil {
		t.Fatal(err)
	}
	const want = "sha256:5471097977dab9f40c844e3fba669f0b599dc4122fa84a461d216f2c7fdf96ac"
	if d.String() != want {
		t.Errorf("the encoding of format 1 has changed: %s", d)
	}
}

func TestDecodeRefusesEveryCutAndEveryTail(t *testing.T) {
	b, err := image.Encode(everything())
	if err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if _, err := image.Decode(b[:n]); !errors.Is(err, image.ErrMalformed) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := image.Decode(append(b, 0)); !errors.Is(err, image.ErrMalformed) {
		t.Errorf("a byte more: %v", err)
	}
	newer := bytes.Clone(b)
	newer[8] = 2
	if _, err := image.Decode(newer); !errors.Is(err, image.ErrFormat) {
		t.Errorf("format 2: %v", err)
	}
	newer[8] = 0
	if _, err := image.Decode(newer); !errors.Is(err, image.ErrMalformed) {
		t.Errorf("format 0: %v", err)
	}
}

// A few bytes that announce much must not make Decode allocate much.
func TestDecodeBoundsCounts(t *testing.T) {
	huge := binary.AppendUvarint([]byte("FLIMAGE\n\x01\x00"), 1<<40)
	for _, b := range [][]byte{huge, append([]byte("FLIMAGE\n\x01"), huge[10:]...)} {
		if _, err := image.Decode(b); !errors.Is(err, image.ErrMalformed) {
			t.Errorf("%x: %v", b, err)
		}
	}
}

// A manifest that breaks a rule is neither written nor read.
func TestRules(t *testing.T) {
	for name, change := range map[string]func(m *image.Manifest){
		"no entries":         func(m *image.Manifest) { m.Entries = nil },
		"no root":            func(m *image.Manifest) { m.Entries = m.Entries[1:] },
		"root is a file":     func(m *image.Manifest) { m.Entries[0] = fileEntry(".", "x") },
		"dot dot":            add(fileEntry("../x", "x")),
		"dot dot inside":     add(fileEntry("bin/../x", "x")),
		"dot inside":         add(fileEntry("bin/./x", "x")),
		"absolute":           add(fileEntry("/x", "x")),
		"trailing slash":     add(dirEntry("x/")),
		"double slash":       add(fileEntry("bin//x", "x")),
		"empty path":         add(fileEntry("", "x")),
		"NUL":                add(fileEntry("a\x00b", "x")),
		"long name":          add(fileEntry(strings.Repeat("n", 256), "x")),
		"missing parent":     add(fileEntry("nowhere/x", "x")),
		"parent is a file":   add(fileEntry("bin-x/x", "x")),
		"parent is a link":   add(fileEntry("bin/sh/x", "x")),
		"twice":              add(fileEntry("fifo", "x")),
		"out of order":       func(m *image.Manifest) { m.Entries[1], m.Entries[5] = m.Entries[5], m.Entries[1] },
		"unknown type":       add(image.Entry{Path: "x", Type: image.Socket + 1}),
		"mode":               add(image.Entry{Path: "x", Mode: 0o10000}),
		"nanoseconds":        add(image.Entry{Path: "x", Nanoseconds: 1e9}),
		"size of a dir":      add(image.Entry{Path: "x", Type: image.Dir, Size: 1, Digest: object.Digest{1}}),
		"no digest":          add(image.Entry{Path: "x", Size: 1}),
		"digest of nothing":  add(image.Entry{Path: "x", Digest: object.Digest{1}}),
		"two sizes":          add(image.Entry{Path: "x", Size: 99, Digest: object.Of([]byte("ping"))}),
		"empty target":       add(link("x", "")),
		"NUL in target":      add(link("x", "a\x00b")),
		"target of a file":   add(image.Entry{Path: "x", Target: "y"}),
		"device numbers":     add(image.Entry{Path: "x", Major: 1}),
		"device too large":   add(image.Entry{Path: "x", Type: image.CharDevice, Major: 4096}),
		"link to a dir":      add(image.Entry{Path: "x", Type: image.Hardlink, Target: "bin"}),
		"link to a link":     add(image.Entry{Path: "x", Type: image.Hardlink, Target: "bin/ping4"}),
		"link to itself":     add(image.Entry{Path: "x", Type: image.Hardlink, Target: "x"}),
		"link to later":      add(image.Entry{Path: "a", Type: image.Hardlink, Target: "fifo"}),
		"link out of tree":   add(image.Entry{Path: "x", Type: image.Hardlink, Target: "../etc/passwd"}),
		"link with metadata": add(image.Entry{Path: "x", Type: image.Hardlink, Target: "fifo", Mode: 0o644}),
		"xattr order":        add(image.Entry{Path: "x", Xattrs: []image.Xattr{{Name: "b"}, {Name: "a"}}}),
		"xattr twice":        add(image.Entry{Path: "x", Xattrs: []image.Xattr{{Name: "a"}, {Name: "a"}}}),
		"xattr name":         add(image.Entry{Path: "x", Xattrs: []image.Xattr{{}}}),
		"xattr size":         add(image.Entry{Path: "x", Xattrs: []image.Xattr{{Name: "a", Value: make([]byte, 65537)}}}),
		"attribute":          func(m *image.Manifest) { m.Attributes[""] = "x" },
	} {
		m := everything()
		change(m)
		if b, err := image.Encode(m); !errors.Is(err, image.ErrMalformed) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func add(e image.Entry) func(*image.Manifest) {
	return func(m *image.Manifest) {
		m.Entries = append(m.Entries, e)
		slices.SortStableFunc(m.Entries, func(a, b image.Entry) int { return image.Compare(a.Path, b.Path) })
	}
}

// Another encoding of the same manifest would be another name of it.
func TestDecodeRefusesOtherEncodings(t *testing.T) {
	for name, b := range map[string]string{
		"longer varint":     "FLIMAGE\n\x01\x00\x81\x00" + "\x00\x01.\x01\x00\x00\x00\x00\x00\x00",
		"unsorted keys":     "FLIMAGE\n\x01\x02\x01b\x00\x01a\x00\x01" + "\x00\x01.\x01\x00\x00\x00\x00\x00\x00",
		"double key":        "FLIMAGE\n\x01\x02\x01a\x00\x01a\x00\x01" + "\x00\x01.\x01\x00\x00\x00\x00\x00\x00",
		"prefix not shared": "FLIMAGE\n\x01\x00\x03" + "\x00\x01.\x01\x00\x00\x00\x00\x00\x00" + "\x00\x01a\x01\x00\x00\x00\x00\x00\x00" + "\x00\x02ab\x01\x00\x00\x00\x00\x00\x00",
	} {
		if _, err := image.Decode([]byte(b)); !errors.Is(err, image.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := image.Decode([]byte("FLIMAGE\n\x01\x00\x01" + "\x00\x01.\x01\x00\x00\x00\x00\x00\x00")); err != nil {
		t.Errorf("the right one: %v", err)
	}
}

func TestQuestions(t *testing.T) {
	m := everything()
	objects := m.Objects()
	want := []image.Object{{Digest: object.Of([]byte("ping")), Size: 4}}
	if !slices.Equal(objects, want) || m.Bytes() != 4 || m.Inodes() != 11 {
		t.Errorf("objects %v, %d bytes, %d inodes", objects, m.Bytes(), m.Inodes())
	}
	for _, path := range []string{"bin/ping", "/bin/ping"} {
		if e, found := m.Lookup(path); !found || e.Path != "bin/ping" {
			t.Errorf("%s: %+v", path, e)
		}
	}
	for _, path := range []string{"", "/", "."} {
		if e, found := m.Lookup(path); !found || e.Path != "." {
			t.Errorf("%q: %+v", path, e)
		}
	}
	if _, found := m.Lookup("bin/nothing"); found {
		t.Error("found what is not there")
	}
}

func TestResolve(t *testing.T) {
	m := &image.Manifest{Entries: []image.Entry{
		dirEntry("."), link("bin", "usr/bin"), dirEntry("etc"), dirEntry("etc/alternatives"),
		link("etc/alternatives/sh", "/bin/dash"), link("etc/escape", "../../../../etc/file"), fileEntry("etc/file", "x"),
		link("loop", "loop2"), link("loop2", "loop"), dirEntry("usr"), dirEntry("usr/bin"), fileEntry("usr/bin/dash", "dash"),
		{Path: "usr/bin/dash2", Type: image.Hardlink, Target: "usr/bin/dash"},
		link("usr/bin/sh", "/etc/alternatives/sh"), link("usr/bin/up", ".."), link("vmlinuz", "boot/vmlinuz-missing"),
	}}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"bin/sh": "usr/bin/dash", "/bin//sh": "usr/bin/dash", "bin/dash2": "usr/bin/dash", "etc/escape": "etc/file",
		"bin/up/bin/up": "usr", "..": ".", "/": ".", "": ".", "bin/": "usr/bin", "usr/bin/../../etc": "etc",
		"loop": "", "vmlinuz": "", "etc/file/x": "", "etc/file/..": "", "nothing": "",
	} {
		e, found := m.Resolve(path)
		if found != (want != "") || e.Path != want {
			t.Errorf("%q: %q, %v; want %q", path, e.Path, found, want)
		}
	}
}

// large is the size of a system: 25,000 entries.
func large() *image.Manifest {
	m := &image.Manifest{Entries: []image.Entry{dirEntry(".")}}
	for i := range 250 {
		d := fmt.Sprintf("usr-share-doc-%04d", i)
		m.Entries = append(m.Entries, dirEntry(d))
		for j := range 99 {
			e := fileEntry(fmt.Sprintf("%s/file-with-a-name-%04d", d, j), fmt.Sprint(i, j))
			e.Seconds, e.Nanoseconds = 1_700_000_000+int64(i), uint32(j)
			m.Entries = append(m.Entries, e)
		}
	}
	return m
}

func BenchmarkEncode(b *testing.B) {
	m := large()
	for b.Loop() {
		if _, err := image.Encode(m); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	encoded, err := image.Encode(large())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(len(encoded)), "bytes")
	for b.Loop() {
		if _, err := image.Decode(encoded); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzDecode: whatever Decode takes is valid, and is the one encoding of what
// it gives back.
func FuzzDecode(f *testing.F) {
	whole, err := image.Encode(everything())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte("FLIMAGE\n\x01\x00\x01\x00\x01.\x01\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("FLIMAGE\n\x02"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := image.Decode(b)
		if err != nil {
			var coded interface{ Code() string }
			if !errors.As(err, &coded) || m != nil {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := image.Encode(m)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("not the one encoding: %v", err)
		}
		back, err := image.Decode(again)
		if err != nil || !reflect.DeepEqual(m, back) {
			t.Errorf("decoded differently: %v", err)
		}
		for _, e := range m.Entries {
			if _, found := m.Lookup(e.Path); !found {
				t.Errorf("%q is not found", e.Path)
			}
			m.Resolve(e.Path)
		}
	})
}
