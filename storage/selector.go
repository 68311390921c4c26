package storage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// mismatch says why the disk is not one that s describes, or nothing.
func (s Selector) mismatch(d Disk) string {
	differ := func(what, has, wanted string) string {
		if has == "" {
			return fmt.Sprintf("it has no %s, not %q", what, wanted)
		}
		return fmt.Sprintf("its %s is %q, not %q", what, has, wanted)
	}
	switch {
	case s.Serial != "" && !strings.EqualFold(strings.TrimSpace(d.Serial), strings.TrimSpace(s.Serial)):
		return differ("serial number", d.Serial, s.Serial)
	case s.WWN != "" && !SameWWN(d.WWN, s.WWN):
		return differ("WWN", d.WWN, s.WWN)
	case s.Model != "" && !glob(fold(s.Model), fold(d.Model)):
		return differ("model", d.Model, s.Model)
	case s.Transport != "" && !strings.EqualFold(s.Transport, d.Transport):
		return differ("transport", d.Transport, s.Transport)
	case d.Size < s.MinimumBytes:
		return fmt.Sprintf("it has %d bytes, less than %d", d.Size, s.MinimumBytes)
	case s.MaximumBytes != 0 && d.Size > s.MaximumBytes:
		return fmt.Sprintf("it has %d bytes, more than %d", d.Size, s.MaximumBytes)
	case s.Path != "" && !slices.ContainsFunc(d.paths(), func(p string) bool { return glob(s.Path, p) }):
		return fmt.Sprintf("its path is %s, not %s", strings.Join(d.paths(), " or "), s.Path)
	}
	return ""
}

// paths are the names by which a selector can ask for the disk. udev gives a
// virtio disk two names (60-persistent-storage.rules).
func (d Disk) paths() []string {
	paths := []string{d.Path}
	if d.ByPath != "" {
		paths = append(paths, "/dev/disk/by-path/"+d.ByPath)
		if strings.HasPrefix(d.Name, "vd") {
			paths = append(paths, "/dev/disk/by-path/virtio-"+d.ByPath)
		}
	}
	return paths
}

// String is the selector as a person writes it.
func (s Selector) String() string {
	var words []string
	add := func(name, value string) {
		if value != "" {
			words = append(words, name+" "+value)
		}
	}
	add("Serial", s.Serial)
	add("WWN", s.WWN)
	add("Model", s.Model)
	add("Transport", s.Transport)
	if s.MinimumBytes != 0 {
		add("at least", Bytes(s.MinimumBytes))
	}
	if s.MaximumBytes != 0 {
		add("at most", Bytes(s.MaximumBytes))
	}
	add("Path", s.Path)
	if s.Pick != "" {
		words = append(words, "the "+string(s.Pick))
	}
	return strings.Join(words, ", ")
}

// from picks n disks; rest are the others, the next best first. Disks come in
// the order of the bus and stay so among equals.
func (p Pick) from(disks []Disk, n int) (picked, rest []Disk) {
	disks = slices.Clone(disks)
	switch p {
	case Smallest:
		slices.SortStableFunc(disks, func(a, b Disk) int { return cmp.Compare(a.Size, b.Size) })
	case Largest:
		slices.SortStableFunc(disks, func(a, b Disk) int { return cmp.Compare(b.Size, a.Size) })
	}
	n = min(n, len(disks))
	return disks[:n:n], disks[n:]
}

// SameWWN reports whether two world-wide names are one, however they are
// written: naa.5000c500a1b2c3d4, 0x5000c500a1b2c3d4, wwn-0x5000c500a1b2c3d4. Two
// empty ones are not.
func SameWWN(a, b string) bool {
	a, b = bareWWN(a), bareWWN(b)
	return a != "" && a == b
}

func bareWWN(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	for _, prefix := range []string{"/dev/disk/by-id/", "wwn-", "nvme-", "naa.", "eui.", "uuid.", "0x"} {
		s = strings.TrimPrefix(s, prefix)
	}
	return s
}

// multipath finds the disks that are several paths to one device: they have
// one WWN and one size. What is no disk at all does not count.
func multipath(disks []Disk) map[string]string {
	type device struct {
		wwn  string
		size uint64
	}
	groups := make(map[device][]Disk)
	for _, d := range disks {
		if id := bareWWN(d.WWN); id != "" && d.Size > 0 && d.Physical() {
			groups[device{id, d.Size}] = append(groups[device{id, d.Size}], d)
		}
	}
	paths := make(map[string]string)
	for _, group := range groups {
		if len(group) < 2 {
			continue
		}
		for _, d := range group {
			paths[d.Path] = fmt.Sprintf("it is one of %d paths to one device, WWN %s: %s", len(group), d.WWN, join(group))
		}
	}
	return paths
}

// Title names the disk for a person: path, model, size, serial number.
func (d Disk) Title() string {
	var words []string
	if model := strings.Join(strings.Fields(d.Model), " "); model != "" {
		words = append(words, model)
	}
	words = append(words, Bytes(d.Size))
	if d.Serial != "" {
		words = append(words, "serial "+d.Serial)
	}
	return d.Path + " (" + strings.Join(words, ", ") + ")"
}

// fold makes models comparable: vendors pad them with spaces.
func fold(s string) string { return strings.ToLower(strings.Join(strings.Fields(s), " ")) }

// glob reports whether text is what pattern says; * is any run of characters.
func glob(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	first, last := parts[0], parts[len(parts)-1]
	if len(text) < len(first)+len(last) || !strings.HasPrefix(text, first) || !strings.HasSuffix(text, last) {
		return false
	}
	text = text[len(first) : len(text)-len(last)]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text = text[i+len(part):]
	}
	return true
}
