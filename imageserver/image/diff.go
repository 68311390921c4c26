package image

import (
	"bytes"
	"slices"
	"strings"
)

// Change is an entry that is in one of two images only, or differs.
type Change struct {
	Path string
	// Old or New is nil where the entry is not in that image.
	Old, New *Entry
	// What differs, in this order: type, content, mode, owner, time, target,
	// device, xattrs. Empty for an entry that was added or removed.
	What []string
}

// Diff lists how b differs from a, sorted by Compare. Hard links are compared as
// the files that they are, and both images must be valid.
func Diff(a, b *Manifest) []Change {
	var changes []Change
	i, j := 0, 0
	for i < len(a.Entries) || j < len(b.Entries) {
		switch {
		case j == len(b.Entries) || i < len(a.Entries) && Compare(a.Entries[i].Path, b.Entries[j].Path) < 0:
			changes = append(changes, Change{Path: a.Entries[i].Path, Old: a.inode(i)})
			i++
		case i == len(a.Entries) || Compare(a.Entries[i].Path, b.Entries[j].Path) > 0:
			changes = append(changes, Change{Path: b.Entries[j].Path, New: b.inode(j)})
			j++
		default:
			before, after := a.inode(i), b.inode(j)
			if what := differences(before, after); len(what) > 0 {
				changes = append(changes, Change{Path: a.Entries[i].Path, Old: before, New: after, What: what})
			}
			i++
			j++
		}
	}
	return changes
}

// inode is an entry, or the one that a hard link is another name of.
func (m *Manifest) inode(i int) *Entry {
	e := &m.Entries[i]
	if e.Type == Hardlink {
		if target, found := m.Lookup(e.Target); found {
			return &target
		}
	}
	return e
}

func differences(a, b *Entry) []string {
	var what []string
	note := func(name string, differs bool) {
		if differs {
			what = append(what, name)
		}
	}
	note("type", a.Type != b.Type)
	note("content", a.Digest != b.Digest)
	note("mode", a.Mode != b.Mode)
	note("owner", a.UID != b.UID || a.GID != b.GID)
	note("time", a.Seconds != b.Seconds || a.Nanoseconds != b.Nanoseconds)
	note("target", a.Target != b.Target)
	note("device", a.Major != b.Major || a.Minor != b.Minor)
	note("xattrs", !slices.EqualFunc(a.Xattrs, b.Xattrs, func(x, y Xattr) bool { return x.Name == y.Name && bytes.Equal(x.Value, y.Value) }))
	return what
}

// Package is a line of an image's package list.
type Package struct {
	Name, Version, Arch string
}

// PackageChange is a package that is in one of two lists only, or has other
// versions.
type PackageChange struct {
	Name, Arch string
	// Old and New are versions; empty where the package is not there, joined
	// by commas where it is there several times.
	Old, New string
}

// ParsePackages reads the list that AttrPackages names. Lines of another shape
// are left out.
func ParsePackages(list []byte) []Package {
	var packages []Package
	for line := range strings.Lines(string(list)) {
		if fields := strings.Split(strings.TrimSuffix(line, "\n"), " "); len(fields) == 3 && fields[0] != "" {
			packages = append(packages, Package{fields[0], fields[1], fields[2]})
		}
	}
	return packages
}

// DiffPackages lists how b differs from a, sorted by name and architecture.
func DiffPackages(a, b []Package) []PackageChange {
	type key struct{ name, arch string }
	versions := func(packages []Package) map[key]string {
		all := make(map[key][]string)
		for _, p := range packages {
			all[key{p.Name, p.Arch}] = append(all[key{p.Name, p.Arch}], p.Version)
		}
		joined := make(map[key]string, len(all))
		for k, v := range all {
			slices.Sort(v)
			joined[k] = strings.Join(v, ",")
		}
		return joined
	}
	before, after := versions(a), versions(b)
	var changes []PackageChange
	for k, v := range before {
		if now, there := after[k]; !there || now != v {
			changes = append(changes, PackageChange{k.name, k.arch, v, now})
		}
	}
	for k, v := range after {
		if _, there := before[k]; !there {
			changes = append(changes, PackageChange{Name: k.name, Arch: k.arch, New: v})
		}
	}
	slices.SortFunc(changes, func(x, y PackageChange) int {
		if c := strings.Compare(x.Name, y.Name); c != 0 {
			return c
		}
		return strings.Compare(x.Arch, y.Arch)
	})
	return changes
}
