package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// tree is a directory that holds the root of a Debian system, of this or of
// another architecture: symbolic links in it, absolute ones too, are followed
// within it.
type tree struct{ dir string }

// maxLinks is how many symbolic links one path may take, as in the kernel
// (path_resolution(7)).
const maxLinks = 40

// resolve follows name through every symbolic link and returns the path of
// the file itself below the root, without a leading slash.
func (t tree) resolve(name string) (string, error) {
	left := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	var done []string
	for hops := 0; len(left) > 0; {
		next := path.Join(append(slices.Clone(done), left[0])...)
		left = left[1:]
		info, err := os.Lstat(filepath.Join(t.dir, next))
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = strings.Split(next, "/")
			continue
		}
		if hops++; hops > maxLinks {
			return "", fmt.Errorf("%s: too many symbolic links", name)
		}
		target, err := os.Readlink(filepath.Join(t.dir, next))
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(next), target)
		}
		left = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), left...)
		done = nil
	}
	return path.Join(done...), nil
}

// find looks for a program in the usual directories.
func (t tree) find(program string) (string, error) {
	for _, dir := range []string{"usr/sbin", "usr/bin", "sbin", "bin"} {
		if _, err := t.resolve(path.Join(dir, program)); err == nil {
			return path.Join(dir, program), nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("%s is nowhere under %s: install its Debian package (hack/setup does)", program, t.dir)
}

// libraryDirs are where ld.so looks, given the machine's multiarch triplet
// (ld.so(8), "NOTES"; Debian's /etc/ld.so.conf.d).
func libraryDirs(machine elf.Machine) ([]string, error) {
	triplet := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[machine]
	if triplet == "" {
		return nil, fmt.Errorf("machine %s is not supported", machine)
	}
	return []string{"usr/local/lib/" + triplet, "lib/" + triplet, "usr/lib/" + triplet, "lib", "usr/lib", "lib64"}, nil
}

// closure returns every file that the given programs and libraries need to
// run: themselves, their ELF interpreter and the libraries that DT_NEEDED
// names, and so on; each under the path by which it is asked for (no leading
// slash). It reads the files (debug/elf) and runs nothing, so that the tree
// may belong to another architecture.
func (t tree) closure(names []string) ([]string, error) {
	seen := map[string]bool{}
	queue := slices.Clone(names)
	for len(queue) > 0 {
		name := strings.TrimPrefix(path.Clean(queue[0]), "/")
		queue = queue[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		needs, err := t.needs(name)
		if err != nil {
			return nil, fmt.Errorf("finding what %s needs: %w", name, err)
		}
		queue = append(queue, needs...)
	}
	files := make([]string, 0, len(seen))
	for name := range seen {
		files = append(files, name)
	}
	slices.Sort(files)
	return files, nil
}

// needs returns the interpreter and the libraries that one file names itself.
func (t tree) needs(name string) ([]string, error) {
	real, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	f, err := elf.Open(filepath.Join(t.dir, real))
	var notELF *elf.FormatError
	if errors.As(err, &notELF) {
		return nil, nil // a script or a configuration file: it stands alone
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()

	var needs []string
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		text := make([]byte, p.Filesz)
		if _, err := p.ReadAt(text, 0); err != nil {
			return nil, fmt.Errorf("reading the interpreter's name: %w", err)
		}
		needs = append(needs, strings.TrimPrefix(strings.TrimRight(string(text), "\x00"), "/"))
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	dirs, err := libraryDirs(f.Machine)
	if err != nil {
		return nil, err
	}
	for _, run := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		paths, err := f.DynString(run)
		if err != nil {
			return nil, err
		}
		for _, list := range paths {
			for dir := range strings.SplitSeq(list, ":") {
				dir = strings.NewReplacer("${ORIGIN}", "/"+path.Dir(real), "$ORIGIN", "/"+path.Dir(real)).Replace(dir)
				dirs = append([]string{strings.TrimPrefix(path.Clean(dir), "/")}, dirs...)
			}
		}
	}
	for _, library := range libraries {
		found, err := t.library(dirs, library, f.Machine)
		if err != nil {
			return nil, err
		}
		needs = append(needs, found)
	}
	return needs, nil
}

// libraryFor finds a library that a program loads while it runs.
func (t tree) libraryFor(program, library string) (string, error) {
	real, err := t.resolve(program)
	if err != nil {
		return "", err
	}
	f, err := elf.Open(filepath.Join(t.dir, real))
	if err != nil {
		return "", err
	}
	machine := f.Machine
	if err := f.Close(); err != nil {
		return "", err
	}
	dirs, err := libraryDirs(machine)
	if err != nil {
		return "", err
	}
	return t.library(dirs, library, machine)
}

// library finds one library for the machine.
func (t tree) library(dirs []string, library string, machine elf.Machine) (string, error) {
	for _, dir := range dirs {
		real, err := t.resolve(path.Join(dir, library))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		f, err := elf.Open(filepath.Join(t.dir, real))
		if err != nil {
			return "", fmt.Errorf("%s: %w", real, err)
		}
		same := f.Machine == machine
		if err := f.Close(); err != nil {
			return "", err
		}
		if same {
			return path.Join(dir, library), nil
		}
	}
	return "", fmt.Errorf("library %s for %s is nowhere under %s", library, machine, t.dir)
}
