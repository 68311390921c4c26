package unpack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// Bring delivers the objects to a Writer, each once, in about their order, and
// returns when the Writer has taken all of them.
type Bring func(ctx context.Context, objects []image.Object, to *Writer) error

// Stream is Run for content that is on its way: bring is called, perhaps
// several times and never twice at a time, for the objects whose volumes are
// mounted. Memory does not grow with the image.
//
// What the machine could start from comes last, in this order: all else, what
// lies below /boot, then the kernel, the initrd and the EFI programs. A tree
// that was left unfinished has none to start.
func Stream(ctx context.Context, bring Bring, root *os.Root, m *image.Manifest, o Options) error {
	return (&unpacker{bring: bring}).run(ctx, root, m, o)
}

// Writer takes the objects of a Stream and writes each to the files that it is
// the content of. It is safe for concurrent use.
type Writer struct {
	*unpacker
	places map[object.Digest][]int // entries with that content
	waves  []wave                  // in their order

	mu   sync.Mutex
	idle []*worker
}

// wave is objects that can be brought when their volumes are there.
type wave struct {
	rank    int
	volumes []*volume
	objects []image.Object
}

// newWriter takes the files with content from those that volumes have.
func (u *unpacker) newWriter(m *image.Manifest, volumes []*volume) *Writer {
	w := &Writer{unpacker: u, places: map[object.Digest][]int{}}
	u.made = make(chan *volume, len(volumes))
	on := map[object.Digest][]*volume{}
	ranks := map[object.Digest]int{}
	starts := startFiles(m)
	for _, v := range volumes {
		v.files = slices.DeleteFunc(v.files, func(i int) bool {
			e := u.file(i)
			if e.Type != image.File || e.Size == 0 {
				return false
			}
			w.places[e.Digest] = append(w.places[e.Digest], i)
			if !slices.Contains(on[e.Digest], v) {
				on[e.Digest] = append(on[e.Digest], v)
			}
			ranks[e.Digest] = max(ranks[e.Digest], rank(e.Path, starts))
			return true
		})
	}
	for _, o := range m.Objects() {
		if len(w.places[o.Digest]) == 0 {
			continue
		}
		n := slices.IndexFunc(w.waves, func(v wave) bool {
			return v.rank == ranks[o.Digest] && slices.Equal(v.volumes, on[o.Digest])
		})
		if n < 0 {
			n = len(w.waves)
			w.waves = append(w.waves, wave{rank: ranks[o.Digest], volumes: on[o.Digest]})
		}
		w.waves[n].objects = append(w.waves[n].objects, o)
	}
	slices.SortStableFunc(w.waves, func(a, b wave) int { return a.rank - b.rank })
	return w
}

// startFiles are the paths of kernel and initrd.
func startFiles(m *image.Manifest) []string {
	var paths []string
	for _, attribute := range []string{image.AttrKernel, image.AttrInitrd} {
		if e, ok := m.Resolve(m.Attributes[attribute]); ok {
			paths = append(paths, e.Path)
		}
	}
	return paths
}

// rank says when a file is written: 0 before 1 before 2.
func rank(p string, starts []string) int {
	top, _, _ := strings.Cut(p, "/")
	switch {
	case slices.Contains(starts, p), top == "efi", strings.HasPrefix(p, "boot/efi/"), strings.HasPrefix(p, "boot/EFI/"):
		return 2
	case top == "boot":
		return 1
	}
	return 0
}

// bringAll brings wave after wave, those first whose volumes are there.
func (w *Writer) bringAll(ctx context.Context) error {
	there := map[*volume]bool{}
	for len(w.waves) > 0 {
		if objects := w.ready(there); len(objects) > 0 {
			if err := w.bring(ctx, objects, w); err != nil {
				return err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case v := <-w.made:
			there[v] = true
		}
	}
	return nil
}

// ready takes the objects out of the waves that can be brought now.
func (w *Writer) ready(there map[*volume]bool) []image.Object {
	var objects []image.Object
	rank := w.waves[0].rank
	w.waves = slices.DeleteFunc(w.waves, func(v wave) bool {
		if v.rank > rank || slices.ContainsFunc(v.volumes, func(v *volume) bool { return !there[v] }) {
			return false
		}
		objects = append(objects, v.objects...)
		return true
	})
	return objects
}

// unpacked are buffers of small objects. They hold no state.
var unpacked = sync.Pool{New: func() any { return new([]byte) }}

// Append verifies the encoded bytes of one whole object, which need be valid
// only until it returns, and writes its files. Bytes that are not what info
// says are an error that wraps object.ErrDamaged: nothing is written.
func (w *Writer) Append(info object.Info, encoded []byte) error {
	if info.Size > zstd.Whole {
		return w.AppendStored(info, bytes.NewReader(encoded))
	}
	if err := info.Validate(); err != nil {
		return err
	}
	buffer := unpacked.Get().(*[]byte)
	defer unpacked.Put(buffer)
	all, err := zstd.Decode((*buffer)[:0], info, encoded)
	if err != nil {
		return err
	}
	*buffer = all
	worker := w.take()
	defer w.give(worker)
	for _, i := range w.places[info.Digest] {
		e := w.file(i)
		err := worker.writeFile(e, func(fd int) error {
			out := &content{fd: fd, path: e.Path}
			if err := out.write(all); err != nil {
				return failed("writing", e.Path, err)
			}
			return out.finish(e)
		})
		if err != nil {
			return err
		}
		w.report(e.Size)
	}
	return nil
}

// AppendStored is Append of an object whose encoded bytes r gives, in memory
// that does not grow with it. Bytes that are not what info says are found out
// at the end: what was written of them must be written again, or the tree is
// of no use.
func (w *Writer) AppendStored(info object.Info, r io.Reader) error {
	if err := info.Validate(); err != nil {
		return err
	}
	places := w.places[info.Digest]
	if len(places) == 0 {
		return nil
	}
	opened, err := zstd.Open(info, r)
	if err != nil {
		return err
	}
	defer opened.Close() // only read from
	worker := w.take()
	defer w.give(worker)
	ctx := context.Background() // r ends with that of who gives it
	first := w.file(places[0])
	err = worker.writeFile(first, func(fd int) error { return worker.copyFrom(ctx, fd, first, opened) })
	if err != nil {
		return err
	}
	w.report(first.Size)
	for _, i := range places[1:] {
		e := w.file(i)
		if err := worker.copyFile(ctx, first, e); err != nil {
			return err
		}
		w.report(e.Size)
	}
	return nil
}

// copyFile writes e from a file with the same content, verifying it again: it
// may have been to the disk and back.
func (w *worker) copyFile(ctx context.Context, from, e image.Entry) error {
	dir, name := split(from.Path)
	in, err := w.dirs.open(dir)
	if err != nil {
		return failed("opening the directory of", from.Path, err)
	}
	fd, err := openat(in, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("reading again", from.Path, err)
	}
	source := os.NewFile(uintptr(fd), from.Path)
	defer source.Close() // only read from
	return w.writeFile(e, func(fd int) error {
		err := w.copyFrom(ctx, fd, e, object.VerifyReader(source, e.Digest, e.Size))
		if err != nil {
			return &Error{CodeWrite, fmt.Errorf("reading /%s again: %w", from.Path, err)}
		}
		return nil
	})
}

// take is a worker that nobody uses at present.
func (w *Writer) take() *worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.idle); n > 0 {
		one := w.idle[n-1]
		w.idle = w.idle[:n-1]
		return one
	}
	return w.newWorker()
}

func (w *Writer) give(one *worker) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = append(w.idle, one)
}

func (w *Writer) close() {
	for _, one := range w.idle {
		one.dirs.close()
	}
}
