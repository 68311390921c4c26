package ingest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
)

// addKernel takes /boot and the modules of another image into m, which has no
// kernel.
func addKernel(m, from *image.Manifest) (*image.Manifest, error) {
	if k := (&scan{m: m}).kernel(); k.path != "" {
		return nil, fmt.Errorf("there is a kernel already, %s: %w", k.path, ErrKernel)
	}
	source := &scan{m: from}
	if k := source.kernel(); k.path == "" {
		return nil, fmt.Errorf("it has none: %w", ErrKernel)
	}
	entries := slices.Clone(m.Entries)
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		there[e.Path] = true
	}
	for _, tree := range []string{"boot", "usr/lib/modules", "lib/modules"} {
		root, found := from.Resolve(tree)
		if !found || root.Type != image.Dir || strings.HasPrefix(tree, "lib/") && root.Path == "usr/lib/modules" {
			continue
		}
		to, err := destination(m, tree)
		if err != nil {
			return nil, err
		}
		if there[to+"/."] {
			continue // both lib and usr/lib lead there, and one was taken
		}
		there[to+"/."] = true
		for _, e := range below(from, root.Path) {
			if e.Type == image.Hardlink { // its first name may stay behind
				name := e.Path
				if e, found = from.Lookup(e.Target); !found {
					return nil, fmt.Errorf("%q: its inode is not there: %w", name, ErrKernel)
				}
				e.Path = name
			}
			e.Path = to + strings.TrimPrefix(e.Path, root.Path)
			if there[e.Path] {
				if old, _ := m.Lookup(e.Path); old.Type == image.Dir && e.Type == image.Dir {
					continue
				}
				return nil, fmt.Errorf("%q is in both images: %w", e.Path, ErrKernel)
			}
			there[e.Path] = true
			entries = append(entries, e)
		}
	}
	for _, link := range []string{"vmlinuz", "initrd.img"} {
		if e, found := from.Lookup(link); found && e.Type == image.Symlink && !there[link] && strings.HasPrefix(strings.TrimPrefix(e.Target, "/"), "boot/") {
			there[link] = true
			entries = append(entries, e)
		}
	}
	merged := &image.Manifest{Entries: entries}
	// A directory that the container lacks, such as usr/lib.
	for _, e := range entries {
		for parent := image.Parent(e.Path); !there[parent]; parent = image.Parent(parent) {
			there[parent] = true
			merged.Entries = append(merged.Entries, image.Entry{Path: parent, Type: image.Dir, Mode: 0o755})
		}
	}
	slices.SortFunc(merged.Entries, func(a, b image.Entry) int { return image.Compare(a.Path, b.Path) })
	return merged, nil
}

// below are the entries of a directory and all below it.
func below(m *image.Manifest, dir string) []image.Entry {
	var found []image.Entry
	for _, e := range m.Entries {
		if e.Path == dir || strings.HasPrefix(e.Path, dir+"/") {
			found = append(found, e)
		}
	}
	return found
}

// destination is where a tree belongs in m: below what its parent really is.
func destination(m *image.Manifest, tree string) (string, error) {
	if e, found := m.Resolve(tree); found {
		if e.Type != image.Dir {
			return "", fmt.Errorf("%q is no directory: %w", e.Path, ErrKernel)
		}
		return e.Path, nil
	}
	if parent := image.Parent(tree); parent != "." {
		to, err := destination(m, parent)
		return to + strings.TrimPrefix(tree, parent), err
	}
	if _, found := m.Lookup(tree); found {
		return "", fmt.Errorf("%q is a link that leads nowhere: %w", tree, ErrKernel)
	}
	return tree, nil
}
