// Package ingest turns the root file-system of an operating system, in a tar, a
// directory, a container image, a squashfs or a disk image, into a manifest and
// its objects.
//
// It keeps every detail that the source has: owners, modes, times in
// nanoseconds, hard links, devices, extended attributes with capabilities and
// ACLs. What cannot be kept, or tries to reach out of the tree, is refused by
// name, never mended. It also finds out, once, what an installation must know
// of the image (see image.Manifest.Attributes), so that nobody needs to look
// into files again. It stores nothing itself: objects go to a Sink.
package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// Sink takes the objects as they are found, each once.
type Sink interface {
	// Add takes one object of size unpacked bytes. open returns them; it
	// may be called several times, but only until Add returns. Add is
	// called from several goroutines at once.
	Add(ctx context.Context, digest object.Digest, size uint64, open func() (io.ReadCloser, error)) error
}

// Options of Tar, Directory and the others.
type Options struct {
	// Arch is the architecture that the image must have, as Go names it.
	// A contradiction to what its programs say is an error that wraps
	// ErrArch. Empty: what its programs say.
	Arch string
	// Workers is how many objects are hashed and added at once; 0 means as
	// many as there are CPUs.
	Workers int
	// TempDir is where a large file of a tar is kept until its digest is
	// known; empty means os.TempDir.
	TempDir string
	// CrossFileSystems makes Directory enter mount points. Otherwise they
	// are empty directories in the image.
	CrossFileSystems bool
	// Kernel is the manifest of another image, from which /boot and the
	// modules are taken where the source, a container, has no kernel. Its
	// objects must be where the sink puts them already. nil: none.
	Kernel *image.Manifest
}

// Error is an error with a stable code, explained in docs/errors.md.
type Error struct {
	code, text string
}

// Error returns the message without its code.
func (e *Error) Error() string { return e.text }

// Code returns the stable code, for example "IMG-012".
func (e *Error) Code() string { return e.code }

var (
	// ErrEntry (IMG-012): an entry of the source cannot be part of an
	// image.
	ErrEntry = &Error{"IMG-012", "cannot be part of an image"}
	// ErrSource (IMG-013): the source is no tar, or is cut off or damaged.
	ErrSource = &Error{"IMG-013", "not a whole tar (plain, gzip, xz or zstd)"}
	// ErrArch (IMG-014): the image has another architecture than wanted.
	ErrArch = &Error{"IMG-014", "the image has another architecture"}
	// ErrContainer (IMG-016): a container image is not whole, or cannot be
	// the root of a machine.
	ErrContainer = &Error{"IMG-016", "no container image that can be used"}
	// ErrProgram (IMG-017): a program that reads this kind of source is
	// missing, or failed.
	ErrProgram = &Error{"IMG-017", "it cannot be read on this machine"}
	// ErrDisk (IMG-018): a disk image has no root file-system that can be
	// told from the others.
	ErrDisk = &Error{"IMG-018", "no root file-system in the disk image"}
	// ErrKernel (IMG-019): no kernel can be taken from the other image.
	ErrKernel = &Error{"IMG-019", "no kernel can be taken from that image"}
	// ErrChanged (IMG-015): a file changed while it was read.
	ErrChanged = &Error{"IMG-015", "changed while it was read"}
)

// inMemory is the size in bytes up to which a file is read as a whole.
const inMemory = zstd.Whole

// intake hashes contents and passes them to the sink, several at once.
type intake struct {
	sink  Sink
	group *errgroup.Group
	ctx   context.Context // of the group
	outer context.Context // of the call, which lives after the group has ended

	mutex    sync.Mutex
	seen     map[object.Digest]bool
	contents map[object.Digest][]byte // of the files that attributes are computed from
	heads    map[object.Digest][]byte // first bytes of programs
}

func newIntake(ctx context.Context, sink Sink, options Options) *intake {
	in := &intake{
		sink:     sink,
		outer:    ctx,
		seen:     make(map[object.Digest]bool),
		contents: make(map[object.Digest][]byte),
		heads:    make(map[object.Digest][]byte),
	}
	in.group, in.ctx = errgroup.WithContext(ctx)
	workers := options.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	in.group.SetLimit(workers)
	return in
}

// take hashes the content of one file, notes the digest in its entry, and
// passes it on if it is new. done is called at the end. It returns at once
// unless all workers are busy; errors come from the group's Wait.
func (in *intake) take(e *image.Entry, open func() (io.ReadCloser, error), done func() error) {
	in.group.Go(func() error {
		err := in.add(e, open)
		if doneErr := done(); err == nil {
			err = doneErr
		}
		return err
	})
}

func (in *intake) add(e *image.Entry, open func() (io.ReadCloser, error)) error {
	if err := in.ctx.Err(); err != nil {
		return err
	}
	r, err := open()
	if err != nil {
		return fmt.Errorf("%q: %w", e.Path, err)
	}
	look := &looker{path: e.Path}
	var digest object.Digest
	var size uint64
	if e.Size <= inMemory {
		var content []byte
		content, err = io.ReadAll(io.LimitReader(r, int64(e.Size)+1))
		size, digest = uint64(len(content)), object.Of(content)
		open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
		look.Write(content)
	} else {
		digest, size, err = hashAll(in.ctx, r, look)
	}
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("%q: %w", e.Path, err)
	}
	if size != e.Size {
		return fmt.Errorf("%q: size %d, but %d bytes read: %w", e.Path, e.Size, size, ErrChanged)
	}
	in.mutex.Lock()
	look.keep(in, digest)
	isNew := !in.seen[digest]
	in.seen[digest] = true
	in.mutex.Unlock()
	e.Digest = digest
	if !isNew {
		return nil
	}
	if err := in.sink.Add(in.ctx, digest, size, open); err != nil {
		return fmt.Errorf("%q: %w", e.Path, err)
	}
	return nil
}

// finish waits for the workers and makes the manifest.
func (in *intake) finish(t *tree, options Options) (*image.Manifest, error) {
	if err := in.group.Wait(); err != nil {
		return nil, err
	}
	if len(t.entries) == 0 {
		return nil, fmt.Errorf("it holds nothing: %w", ErrSource)
	}
	m, err := t.manifest(in.contents)
	if err != nil {
		return nil, err
	}
	if options.Kernel != nil {
		if m, err = addKernel(m, options.Kernel); err != nil {
			return nil, err
		}
	}
	var packages []byte
	if m.Attributes, packages, err = attributes(m, in.contents, in.heads, options.Arch); err != nil {
		return nil, err
	}
	if want := options.Kernel; want != nil && want.Attributes[image.AttrArch] != "" && m.Attributes[image.AttrArch] != want.Attributes[image.AttrArch] {
		return nil, fmt.Errorf("it is for %s, this image for %q: %w", want.Attributes[image.AttrArch], m.Attributes[image.AttrArch], ErrKernel)
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, in.addPackages(packages)
}

// addPackages keeps the list of packages as an object, which the attribute names.
func (in *intake) addPackages(list []byte) error {
	digest := object.Of(list)
	if len(list) == 0 || in.seen[digest] {
		return nil
	}
	return in.sink.Add(in.outer, digest, uint64(len(list)), func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(list)), nil
	})
}

// Packing returns a Sink that packs each object where that helps and passes
// it to put with its encoded bytes, which put reads to their end. put is
// called from several goroutines at once; the Put methods of object.Store and
// dir.Batch fit.
func Packing(put func(ctx context.Context, info object.Info, encoded io.Reader) error) Sink {
	return &packing{put: put}
}

type packing struct {
	put func(ctx context.Context, info object.Info, encoded io.Reader) error
}

func (p *packing) Add(ctx context.Context, digest object.Digest, size uint64, open func() (io.ReadCloser, error)) (err error) {
	r, err := open()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := r.Close(); err == nil {
			err = closeErr
		}
	}()
	// What is packed is what was hashed, or an error.
	verified := object.VerifyReader(r, digest, size)
	info := object.Info{Digest: digest, Size: size}
	if size <= inMemory {
		content, err := io.ReadAll(verified)
		if err != nil {
			return err
		}
		buffer := buffers.Get().(*[]byte)
		defer buffers.Put(buffer)
		var encoded []byte
		info.Encoding, encoded = zstd.Encode((*buffer)[:0], content)
		info.StoredSize = uint64(len(encoded))
		if info.Encoding == object.Zstd {
			*buffer = encoded
		}
		return p.put(ctx, info, bytes.NewReader(encoded))
	}
	return p.large(ctx, info, verified, open)
}

// large packs into a file, as the stored size must be known beforehand.
func (p *packing) large(ctx context.Context, info object.Info, verified io.Reader, open func() (io.ReadCloser, error)) (err error) {
	f, err := tempFile("")
	if err != nil {
		return err
	}
	defer f.Close() // it has no name and nobody reads it afterwards
	w := zstd.NewWriter(f, info.Size)
	_, err = w.ReadFrom(verified)
	if closeErr := w.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	packed, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if uint64(packed) > info.Size-info.Size/20 {
		again, err := open()
		if err != nil {
			return err
		}
		info.StoredSize = info.Size
		return errors.Join(p.put(ctx, info, object.VerifyReader(again, info.Digest, info.Size)), again.Close())
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	info.Encoding, info.StoredSize = object.Zstd, uint64(packed)
	return p.put(ctx, info, f)
}

// buffers are used again for packed bytes. They hold no state.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// tempFile makes a file without a name, which is gone when it is closed.
func tempFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "firstlight-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// refuse names an entry that cannot be part of an image.
func refuse(path, why string, args ...any) error {
	return fmt.Errorf("entry %q: %s: %w", path, fmt.Sprintf(why, args...), ErrEntry)
}

// sortXattrs brings attributes into the order of a manifest.
func sortXattrs(xattrs []image.Xattr) {
	slices.SortFunc(xattrs, func(a, b image.Xattr) int {
		if a.Name < b.Name {
			return -1
		} else if a.Name > b.Name {
			return 1
		}
		return 0
	})
}
