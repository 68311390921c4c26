// Package modules finds and loads the kernel modules that a machine's devices
// ask for: what udev does elsewhere, without udev. An Index is read from the
// files of depmod(8); Coldplug walks /sys for devices that are there, and
// Watch hears of those that come later. It never unloads anything.
package modules

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Index is what depmod knows about one kernel's modules.
type Index struct {
	files    map[string]string   // name → path below the modules directory
	needs    map[string][]string // name → names it cannot do without
	pre      map[string][]string // name → names that should be tried first (softdep pre:)
	post     map[string][]string // name → names that should be tried after (softdep post:)
	builtin  map[string]bool     // names that are part of the kernel
	exact    map[string][]string // alias without wildcards → names
	patterns map[string][]alias  // bus (the text before the colon) → aliases with wildcards
}

// alias is one line of modules.alias that has wildcards.
type alias struct{ pattern, name string }

// Read reads the index in fsys, the directory /lib/modules/<release>:
// modules.dep and modules.alias must be there, modules.softdep and
// modules.builtin are read when they are. See modules.dep(5), modprobe.d(5).
func Read(fsys fs.FS) (*Index, error) {
	x := &Index{
		files: map[string]string{}, needs: map[string][]string{},
		pre: map[string][]string{}, post: map[string][]string{},
		builtin: map[string]bool{}, exact: map[string][]string{}, patterns: map[string][]alias{},
	}
	for _, file := range []struct {
		name     string
		optional bool
		line     func(string) error
	}{
		{"modules.dep", false, x.dependency},
		{"modules.alias", false, x.alias},
		{"modules.softdep", true, x.softdep},
		{"modules.builtin", true, func(line string) error { x.builtin[Name(line)] = true; return nil }},
	} {
		err := eachLine(fsys, file.name, file.line)
		if file.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return x, nil
}

// eachLine gives every line of a file that is neither empty nor a comment.
func eachLine(fsys fs.FS, name string, line func(string) error) error {
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20) // a module may have a long list of dependencies
	for n := 1; scanner.Scan(); n++ {
		text := strings.TrimSpace(scanner.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		if err := line(text); err != nil {
			return fmt.Errorf("%s line %d: %w", name, n, err)
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// dependency reads `kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko …`.
func (x *Index) dependency(line string) error {
	file, needs, ok := strings.Cut(line, ":")
	if !ok {
		return fmt.Errorf("no colon in %q", line)
	}
	name := Name(file)
	x.files[name] = file
	for need := range strings.FieldsSeq(needs) {
		x.needs[name] = append(x.needs[name], Name(need))
	}
	return nil
}

// alias reads `alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e`.
func (x *Index) alias(line string) error {
	words := strings.Fields(line)
	if len(words) < 3 || words[0] != "alias" {
		return fmt.Errorf("no alias in %q", line)
	}
	// The kernel's own aliases may hold blanks ("dmi:*svnASUSTeK COMPUTER…").
	pattern, name := strings.Join(words[1:len(words)-1], " "), Name(words[len(words)-1])
	if !strings.ContainsAny(pattern, "*?[") {
		pattern = canonical(pattern)
		x.exact[pattern] = append(x.exact[pattern], name)
		return nil
	}
	bus, _, _ := strings.Cut(pattern, ":")
	x.patterns[bus] = append(x.patterns[bus], alias{pattern, name})
	return nil
}

// softdep reads `softdep btrfs pre: crc32c raid6_pq post: …`.
func (x *Index) softdep(line string) error {
	words := strings.Fields(line)
	if len(words) < 3 || words[0] != "softdep" {
		return fmt.Errorf("no softdep in %q", line)
	}
	name := Name(words[1])
	list := x.pre
	for _, word := range words[2:] {
		switch word {
		case "pre:":
			list = x.pre
		case "post:":
			list = x.post
		default:
			list[name] = append(list[name], canonical(word))
		}
	}
	return nil
}

// Name is the kernel's name of the module in a file: kernel/drivers/md/dm-mod.ko.xz
// is dm_mod. A name comes back as it is, with underscores.
func Name(file string) string {
	base := path.Base(file)
	for _, suffix := range []string{".gz", ".xz", ".zst"} {
		base = strings.TrimSuffix(base, suffix)
	}
	return canonical(strings.TrimSuffix(base, ".ko"))
}

// canonical writes hyphens as underscores: modprobe(8) takes both for one.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// File returns the path of a module below the modules directory.
func (x *Index) File(name string) (string, bool) {
	file, ok := x.files[canonical(name)]
	return file, ok
}

// Names returns the names of all modules, sorted.
func (x *Index) Names() []string {
	names := make([]string, 0, len(x.files))
	for name := range x.files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Builtin says whether a module is part of the kernel itself.
func (x *Index) Builtin(name string) bool { return x.builtin[canonical(name)] }

// Match returns the modules that a device with this modalias asks for, or
// that the kernel means when it asks for `fs-ext4` or `crypto-xts`: by their
// aliases, or by their own name. Sorted by no order but depmod's.
func (x *Index) Match(modalias string) []string {
	var names []string
	add := func(name string) {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if _, ok := x.files[canonical(modalias)]; ok {
		add(canonical(modalias))
	}
	for _, name := range x.exact[canonical(modalias)] {
		add(name)
	}
	bus, _, _ := strings.Cut(modalias, ":")
	for _, a := range x.patterns[bus] {
		if glob(a.pattern, modalias) {
			add(a.name)
		}
	}
	return names
}

// Step is one module to load on the way to another.
type Step struct {
	Name     string
	File     string // below the modules directory
	Optional bool   // a softdep: its failure does not matter
}

// Order returns what has to be loaded for a module, in order, itself
// included; without what is part of the kernel.
func (x *Index) Order(name string) ([]Step, error) {
	var steps []Step
	done := map[string]bool{}
	var visit func(name string, optional bool) error
	visit = func(name string, optional bool) error {
		if done[name] || x.builtin[name] {
			return nil
		}
		file, ok := x.files[name]
		if !ok {
			if optional {
				return nil
			}
			return fmt.Errorf("module %s: %w", name, fs.ErrNotExist)
		}
		done[name] = true
		for _, soft := range x.pre[name] {
			for _, found := range x.Match(soft) {
				if err := visit(found, true); err != nil {
					return err
				}
			}
		}
		for _, need := range x.needs[name] {
			if err := visit(need, optional); err != nil {
				return fmt.Errorf("%s needs %w", name, err)
			}
		}
		steps = append(steps, Step{Name: name, File: file, Optional: optional})
		for _, soft := range x.post[name] {
			for _, found := range x.Match(soft) {
				if err := visit(found, true); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := visit(canonical(name), false); err != nil {
		return nil, err
	}
	return steps, nil
}

// glob matches as fnmatch(3) with no flags: `*` and `?` match any character,
// a slash too, and `[…]` one of a set. depmod's aliases use no more.
func glob(pattern, text string) bool {
	for len(pattern) > 0 {
		switch pattern[0] {
		case '*':
			for len(pattern) > 0 && pattern[0] == '*' {
				pattern = pattern[1:]
			}
			if pattern == "" {
				return true
			}
			for i := range len(text) + 1 {
				if glob(pattern, text[i:]) {
					return true
				}
			}
			return false
		case '?':
			if text == "" {
				return false
			}
		case '[':
			end := strings.IndexByte(pattern, ']')
			if end < 0 || text == "" || !inSet(pattern[1:end], text[0]) {
				return false
			}
			pattern = pattern[end:]
		default:
			if text == "" || text[0] != pattern[0] {
				return false
			}
		}
		pattern, text = pattern[1:], text[1:]
	}
	return text == ""
}

// inSet says whether c is in a set such as `0-9a-f` or `!0`.
func inSet(set string, c byte) bool {
	negated := strings.HasPrefix(set, "!") || strings.HasPrefix(set, "^")
	if negated {
		set = set[1:]
	}
	found := false
	for i := 0; i < len(set); i++ {
		low, high := set[i], set[i]
		if i+2 < len(set) && set[i+1] == '-' {
			high = set[i+2]
			i += 2
		}
		found = found || low <= c && c <= high
	}
	return found != negated
}
