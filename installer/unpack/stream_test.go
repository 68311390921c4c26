package unpack_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/installer/unpack"
)

// runner is Run, or Stream from a store that delivers.
type runner func(ctx context.Context, store memory, root *os.Root, m *image.Manifest, o unpack.Options) error

// bothWays runs a test with content that is there and with content that comes.
func bothWays(t *testing.T, test func(*testing.T, runner)) {
	t.Run("Run", func(t *testing.T) {
		test(t, func(ctx context.Context, store memory, root *os.Root, m *image.Manifest, o unpack.Options) error {
			return unpack.Run(ctx, store, root, m, o)
		})
	})
	t.Run("Stream", func(t *testing.T) {
		test(t, func(ctx context.Context, store memory, root *os.Root, m *image.Manifest, o unpack.Options) error {
			return unpack.Stream(ctx, store.bring, root, m, o)
		})
	})
}

// bring delivers from several goroutines at once, out of order.
func (m memory) bring(ctx context.Context, objects []image.Object, to *unpack.Writer) error {
	objects = slices.Clone(objects)
	rand.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(5)
	for n, o := range objects {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return m.deliver(o.Digest, to, n%2 == 0)
		})
	}
	return group.Wait()
}

func (m memory) deliver(d object.Digest, to *unpack.Writer, whole bool) error {
	info, encoded := objecttest.Encode(m[d])
	if whole {
		encoded = bytes.Clone(encoded)
		defer clear(encoded) // valid no longer
		return to.Append(info, encoded)
	}
	return to.AppendStored(info, iotest.HalfReader(bytes.NewReader(encoded)))
}

// What a machine could start from comes when all else has come.
func TestStreamWritesTheKernelLast(t *testing.T) {
	needRoot(t)
	store := memory{}
	m := &image.Manifest{Attributes: map[string]string{image.AttrKernel: "boot/vmlinuz", image.AttrInitrd: "usr/initrd"}}
	for _, p := range []string{".", "boot", "boot/config", "boot/efi", "boot/efi/boot.efi", "boot/vmlinuz", "etc", "etc/fstab", "home", "home/file", "usr", "usr/initrd"} {
		e := image.Entry{Path: p, Mode: 0o755, Type: image.Dir}
		if strings.Contains(p, "/") && p != "boot/efi" {
			content := []byte("the content of " + p)
			e.Type, e.Digest, e.Size = image.File, store.add(content), uint64(len(content))
		}
		m.Entries = append(m.Entries, e)
	}
	dir := t.TempDir()
	release := make(chan struct{})
	var came [][]string
	err := unpack.Stream(t.Context(), func(ctx context.Context, objects []image.Object, to *unpack.Writer) error {
		var paths []string
		for _, o := range objects {
			paths = append(paths, strings.TrimPrefix(string(store[o.Digest]), "the content of "))
		}
		if came = append(came, paths); len(came) == 1 {
			close(release)
		}
		return store.bring(ctx, objects, to)
	}, openRoot(t, dir), m, unpack.Options{
		Volumes: []unpack.Volume{{MountPoint: "/home"}},
		Wait: func(context.Context, string) error {
			<-release
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"etc/fstab"}, {"home/file"}, {"boot/config"}, {"boot/efi/boot.efi", "boot/vmlinuz", "usr/initrd"}}
	if diff := cmp.Diff(want, came); diff != "" {
		t.Error(diff)
	}
}

// A wrong object is refused, and written when it comes again; files that share
// a content all have it.
func TestStreamTakesAnObjectAgain(t *testing.T) {
	needRoot(t)
	store, dir := memory{}, t.TempDir()
	m := &image.Manifest{Entries: []image.Entry{{Path: ".", Type: image.Dir, Mode: 0o755}}}
	for n, p := range []string{"large-1", "large-2", "small-1", "small-2"} {
		content := objecttest.Text(uint64(n/2), []int{3 << 20, 5000}[n/2])
		m.Entries = append(m.Entries, image.Entry{Path: p, Type: image.File, Mode: 0o600, Digest: store.add(content), Size: uint64(len(content))})
	}
	err := unpack.Stream(t.Context(), func(_ context.Context, objects []image.Object, to *unpack.Writer) error {
		for _, o := range objects {
			info, encoded := objecttest.Encode(store[o.Digest])
			flipped := bytes.Clone(encoded)
			flipped[len(flipped)*3/4] ^= 4
			broken := errors.New("connection reset")
			if err := to.Append(info, flipped); !errors.Is(err, object.ErrDamaged) {
				t.Errorf("a flipped bit: %v", err)
			}
			if err := to.AppendStored(info, bytes.NewReader(encoded[:len(encoded)/2])); !errors.Is(err, object.ErrDamaged) {
				t.Errorf("half of it: %v", err)
			}
			if err := to.AppendStored(info, io.MultiReader(bytes.NewReader(encoded[:len(encoded)/2]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
				t.Errorf("a broken connection: %v", err)
			}
			if err := to.Append(info, encoded); err != nil {
				return err
			}
		}
		return nil
	}, openRoot(t, dir), m, unpack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range m.Entries[1:] {
		if got, err := os.ReadFile(filepath.Join(dir, e.Path)); err != nil || object.Of(got) != e.Digest {
			t.Errorf("%s: %d bytes, %v", e.Path, len(got), err)
		}
	}
}

// The Writer keeps nothing of what it is given.
func TestStreamInBoundedMemory(t *testing.T) {
	needRoot(t)
	store, dir := memory{}, t.TempDir()
	m := &image.Manifest{Entries: []image.Entry{{Path: ".", Type: image.Dir, Mode: 0o755}}}
	zeros := make([]byte, 64<<20) // packs to some KiB
	m.Entries = append(m.Entries, image.Entry{Path: "zeros", Type: image.File, Digest: store.add(zeros), Size: uint64(len(zeros))})
	info, encoded := objecttest.Encode(zeros)
	var allocated float64
	var once sync.Once
	err := unpack.Stream(t.Context(), func(_ context.Context, _ []image.Object, to *unpack.Writer) (err error) {
		once.Do(func() {
			result := testing.Benchmark(func(b *testing.B) {
				b.ReportAllocs()
				for range b.N {
					err = to.Append(info, encoded)
				}
			})
			allocated = float64(result.AllocedBytesPerOp())
		})
		return err
	}, openRoot(t, dir), m, unpack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if allocated > 16<<20 {
		t.Errorf("%.0f bytes allocated", allocated)
	}
}
