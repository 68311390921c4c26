package media

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/uinit/modules"
)

// kernel is a kernel with its modules.
type kernel struct {
	image   string // path of vmlinuz
	release string
	dir     string // path of the modules directory
	index   *modules.Index
}

// openKernel finds kernel and modules in a directory. More than one release
// in it is refused: the wrong one would be found out only at boot.
func openKernel(dir string) (kernel, error) {
	if dir == "" {
		return kernel{}, &Error{code: codeUsage, text: "no kernel directory given (it holds vmlinuz and modules)"}
	}
	var found []string
	for _, below := range []string{"lib/modules", "modules", "usr/lib/modules"} {
		matches, err := filepath.Glob(filepath.Join(dir, below, "*", "modules.dep"))
		if err != nil {
			return kernel{}, err
		}
		if len(matches) > 0 {
			found = matches
			break
		}
	}
	switch len(found) {
	case 0:
		return kernel{}, &Error{code: codeKernel, text: fmt.Sprintf("%s has no lib/modules/<release>/modules.dep: unpack a kernel package there and run `depmod -b`", dir)}
	case 1:
	default:
		return kernel{}, &Error{code: codeKernel, text: fmt.Sprintf("%s has modules of %d kernels; one must be left", dir, len(found))}
	}
	k := kernel{dir: filepath.Dir(found[0])}
	k.release = filepath.Base(k.dir)
	for _, name := range []string{"vmlinuz", "boot/vmlinuz-" + k.release, "vmlinuz-" + k.release} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			k.image = filepath.Join(dir, name)
			break
		}
	}
	if k.image == "" {
		return kernel{}, &Error{code: codeKernel, text: fmt.Sprintf("%s has no vmlinuz", dir)}
	}
	index, err := modules.Read(os.DirFS(k.dir))
	if err != nil {
		return kernel{}, &Error{code: codeKernel, text: "the kernel's module index cannot be read", err: err}
	}
	k.index = index
	return k, nil
}

// subset returns the files of a set: the modules, each compressed by itself,
// and depmod's files, cut down. An initramfs is unpacked into memory whole and
// stays there, while a machine loads a few dozen of these modules: packed
// they take a quarter of the memory, and the kernel has less to unpack.
//
// firmware are, for each module, the files that it names.
func (k kernel) subset(ctx context.Context, wanted func(*modules.Index) []string) (files archive, firmware [][]string, err error) {
	steps, err := choose(k.index, wanted)
	if err != nil {
		return nil, nil, err
	}
	firmware = make([][]string, len(steps))
	root := path.Join("lib/modules", k.release)
	packed := make([][]byte, len(steps))
	compressor, err := newCompressor(runtime.GOMAXPROCS(0))
	if err != nil {
		return nil, nil, err
	}
	defer compressor.Close() // it has given out everything
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, step := range steps {
		group.Go(func() error {
			if err := groupContext.Err(); err != nil {
				return err
			}
			data, err := readModule(filepath.Join(k.dir, step.File))
			if err != nil {
				return &Error{code: codeKernel, text: "a module cannot be read", err: err}
			}
			firmware[i] = firmwareOf(data)
			packed[i] = compressor.EncodeAll(data, nil)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, err
	}
	files = archive{}
	kept := map[string]bool{}
	for i, step := range steps {
		files[path.Join(root, packedName(step.File))] = archiveFile{packed[i], 0o644}
		kept[step.Name] = true
	}
	for _, list := range []struct {
		name     string
		optional bool
		filter   func(text string) []byte
	}{
		{"modules.dep", false, func(text string) []byte {
			lines := filterLines(text, func(line string) bool {
				file, _, _ := strings.Cut(line, ":")
				return kept[modules.Name(file)]
			})
			return []byte(packedNames(string(lines)))
		}},
		{"modules.alias", false, func(text string) []byte {
			return filterLines(text, func(line string) bool {
				return kept[modules.Name(line[strings.LastIndexByte(line, ' ')+1:])]
			})
		}},
		{"modules.softdep", true, func(text string) []byte {
			return filterLines(text, func(line string) bool {
				words := strings.Fields(line)
				return len(words) > 1 && kept[modules.Name(words[1])]
			})
		}},
		{"modules.builtin", true, func(text string) []byte { return []byte(text) }},
	} {
		text, err := os.ReadFile(filepath.Join(k.dir, list.name))
		if list.optional && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		files[path.Join(root, list.name)] = archiveFile{list.filter(string(text)), 0o644}
	}
	return files, firmware, nil
}

// packedNames rewrites the file names of modules.dep for the modules of the
// archive.
func packedNames(text string) string {
	plain := strings.NewReplacer(".ko.gz", ".ko", ".ko.xz", ".ko", ".ko.zst", ".ko").Replace(text)
	return strings.ReplaceAll(plain, ".ko", ".ko.zst")
}

// readModule reads a module, unpacked.
func readModule(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch path.Ext(name) {
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".xz":
		r, err = xz.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			r = d
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}
