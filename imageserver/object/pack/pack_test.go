package pack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "pack"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func newWriter(t testing.TB, f pack.File, limit uint64) *pack.Writer {
	t.Helper()
	w, err := pack.NewWriter(f, pack.Options{Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func contents() [][]byte {
	return [][]byte{
		[]byte("x"), objecttest.Text(1, 300), objecttest.Noise(2, 300), objecttest.Text(3, 100_000),
		objecttest.Text(4, zstd.Whole), objecttest.Text(5, 3*zstd.Whole+1), objecttest.Noise(6, 2*zstd.Whole+1),
	}
}

func read(r object.Getter, d object.Digest) ([]byte, error) {
	in, err := r.Open(context.Background(), d)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(in)
	return content, errors.Join(err, in.Close(), in.Close())
}

func mustHold(t *testing.T, r *pack.Reader, contents [][]byte) {
	t.Helper()
	if r.Len() != len(contents) {
		t.Errorf("%d objects, want %d", r.Len(), len(contents))
	}
	for _, content := range contents {
		if got, err := read(r, object.Of(content)); err != nil || !bytes.Equal(got, content) {
			t.Errorf("object of %d bytes: %d came back, %v", len(content), len(got), err)
		}
		stored, err := r.OpenStored(context.Background(), object.Of(content))
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := io.ReadAll(stored)
		if err != nil || zstd.Verify(stored.Info, encoded) != nil {
			t.Errorf("stored bytes of %+v: %v", stored.Info, err)
		}
	}
}

// Every way of adding gives the same objects, at once and after the pack was
// opened again.
func TestAppend(t *testing.T) {
	for name, add := range map[string]func(w *pack.Writer, content []byte) error{
		"Append": func(w *pack.Writer, content []byte) error {
			info, encoded := objecttest.Encode(content)
			return w.Append(info, encoded)
		},
		"AppendUnpacked": func(w *pack.Writer, content []byte) error {
			info, err := w.AppendUnpacked(object.Of(content), content)
			if err == nil && info.Size != uint64(len(content)) {
				err = fmt.Errorf("info %+v", info)
			}
			return err
		},
		"AppendFrom": func(w *pack.Writer, content []byte) error {
			_, err := w.AppendFrom(object.Of(content), uint64(len(content)), iotest.HalfReader(bytes.NewReader(content)))
			return err
		},
		"AppendStored": func(w *pack.Writer, content []byte) error {
			info, encoded := objecttest.Encode(content)
			return stream(w, info, encoded)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := tempFile(t)
			w := newWriter(t, f, 0)
			var used uint64
			for _, content := range contents() {
				for range 2 {
					if err := add(w, content); err != nil {
						t.Fatal(err)
					}
					if used == w.Used() {
						break // the second time added nothing
					}
					used = w.Used()
				}
			}
			mustHold(t, w.Reader(), contents())
			size, err := w.Finish()
			if err != nil {
				t.Fatal(err)
			}
			if stat, err := f.Stat(); err != nil || stat.Size() != size {
				t.Errorf("file of %d bytes, finished at %d, %v", stat.Size(), size, err)
			}
			again, err := pack.OpenReader(f, size)
			if err != nil {
				t.Fatal(err)
			}
			mustHold(t, again, contents())
			info, encoded := objecttest.Encode([]byte("too late"))
			if err := w.Append(info, encoded); err == nil {
				t.Error("appended after the end")
			}
		})
	}
}

// Objects whose bytes lie are refused, and what they would have taken is free
// again.
func TestLies(t *testing.T) {
	w := newWriter(t, tempFile(t), 0)
	for _, content := range contents() {
		info, encoded := objecttest.Encode(content)
		wrong := bytes.Clone(encoded)
		wrong[len(wrong)/2] ^= 1
		wrongContent := bytes.Clone(content)
		wrongContent[len(content)/2] ^= 1
		cut := encoded[:len(encoded)-1]
		for name, err := range map[string]error{
			"Append, flipped": w.Append(info, wrong),
			"Append, cut":     w.Append(info, cut),
			"AppendUnpacked":  second(w.AppendUnpacked(info.Digest, wrongContent)),
			"AppendFrom":      second(w.AppendFrom(info.Digest, info.Size, bytes.NewReader(wrongContent))),
			"AppendFrom, cut": second(w.AppendFrom(info.Digest, info.Size, bytes.NewReader(content[:len(content)-1]))),
			"AppendFrom, longer": second(w.AppendFrom(info.Digest, info.Size,
				io.MultiReader(bytes.NewReader(content), bytes.NewReader(content)))),
			"Create, flipped": stream(w, info, wrong),
			"Create, cut":     stream(w, info, cut),
			"Create, longer":  stream(w, info, append(bytes.Clone(encoded), 1)),
		} {
			if !errors.Is(err, object.ErrDamaged) {
				t.Errorf("%s of %d bytes: %v", name, len(content), err)
			}
		}
	}
	if w.Used() != 0 || w.Reader().Len() != 0 {
		t.Errorf("%d bytes taken by %d objects", w.Used(), w.Reader().Len())
	}
	broken := errors.New("disk failed")
	if _, err := w.AppendFrom(object.Digest{1}, 2<<20, iotest.ErrReader(broken)); !errors.Is(err, broken) || errors.Is(err, object.ErrDamaged) {
		t.Errorf("a failing disk: %v", err)
	}
}

func second(_ object.Info, err error) error { return err }

func stream(w *pack.Writer, info object.Info, encoded []byte) error {
	return w.AppendStored(info, iotest.HalfReader(bytes.NewReader(encoded)))
}

// Whatever happens to the file, no wrong byte is given out as a whole object.
func TestDamage(t *testing.T) {
	f := tempFile(t)
	w := newWriter(t, f, 0)
	for _, content := range contents() {
		if _, err := w.AppendUnpacked(object.Of(content), content); err != nil {
			t.Fatal(err)
		}
	}
	size, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, size)
	if _, err := f.ReadAt(whole, 0); err != nil {
		t.Fatal(err)
	}
	objectsEnd := int(size) - 56 - 64*len(contents())
	for at := 16; at < objectsEnd; at += objectsEnd/97 + 1 {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x41
		r, err := pack.OpenReader(bytes.NewReader(damaged), size)
		if err != nil {
			t.Fatal(err)
		}
		bad := 0
		for _, content := range contents() {
			got, err := read(r, object.Of(content))
			if err == nil && bytes.Equal(got, content) {
				continue
			}
			if bad++; !errors.Is(err, object.ErrDamaged) {
				t.Errorf("byte %d: object of %d bytes: %v", at, len(content), err)
			}
		}
		if bad != 1 {
			t.Errorf("byte %d: %d objects are bad", at, bad)
		}
	}
	for at := range whole {
		if at >= 16 && at < objectsEnd || at >= 12 && at < 16 {
			continue // objects, and four bytes that mean nothing yet
		}
		damaged := bytes.Clone(whole)
		damaged[at] ^= 0x41
		if _, err := pack.OpenReader(bytes.NewReader(damaged), size); !errors.Is(err, pack.ErrMalformed) && !errors.Is(err, pack.ErrFormat) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
	for _, cut := range []int64{0, 1, 15, 16, 71, 72, 1000, size / 2, size - 1} {
		if _, err := pack.OpenReader(bytes.NewReader(whole[:cut]), cut); !errors.Is(err, pack.ErrMalformed) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	// Cut off while it is in use.
	if err := f.Truncate(int64(objectsEnd / 2)); err != nil {
		t.Fatal(err)
	}
	last := contents()[len(contents())-1]
	if _, err := read(w.Reader(), object.Of(last)); !errors.Is(err, object.ErrDamaged) {
		t.Errorf("truncated: %v", err)
	}
}

func TestLimit(t *testing.T) {
	w := newWriter(t, tempFile(t), 10_000)
	add := func(seed uint64, n int) error {
		info, encoded := objecttest.Encode(objecttest.Noise(seed, n))
		return w.Append(info, encoded)
	}
	if err := errors.Join(add(1, 6000), add(2, 4000)); err != nil {
		t.Fatal(err)
	}
	if err := add(3, 1); !errors.Is(err, pack.ErrFull) {
		t.Errorf("got %v", err)
	}
	if err := w.AppendStored(object.Info{Digest: object.Digest{1}, Encoding: object.Zstd, Size: 1, StoredSize: 1<<64 - 1}, nil); !errors.Is(err, pack.ErrFull) {
		t.Errorf("got %v", err)
	}
}

// A large object that packs well fits although its unpacked bytes would not;
// one that does not fit leaves its room to others.
func TestLimitOfPackedBytes(t *testing.T) {
	w := newWriter(t, tempFile(t), zstd.Whole)
	large := make([]byte, 4*zstd.Whole)
	info, err := w.AppendFrom(object.Of(large), uint64(len(large)), bytes.NewReader(large))
	if err != nil || w.Used() != info.StoredSize {
		t.Fatalf("%d used, %+v, %v", w.Used(), info, err)
	}
	noise := objecttest.Noise(1, 2*zstd.Whole)
	if _, err := w.AppendFrom(object.Of(noise), uint64(len(noise)), bytes.NewReader(noise)); !errors.Is(err, pack.ErrFull) {
		t.Errorf("got %v", err)
	}
	if w.Used() != info.StoredSize {
		t.Errorf("%d used, %d by objects", w.Used(), info.StoredSize)
	}
	if _, err := w.AppendUnpacked(object.Of(noise[:1000]), noise[:1000]); err != nil {
		t.Error(err)
	}
	mustHold(t, w.Reader(), [][]byte{large, noise[:1000]})
}

// Pieces of several objects arrive mixed while small ones are appended.
func TestConcurrent(t *testing.T) {
	f := tempFile(t)
	w := newWriter(t, f, 0)
	var all [][]byte
	for i := range 60 {
		size := 500 + i*31
		if i%10 == 0 {
			size = zstd.Whole + i*100_000
		}
		all = append(all, objecttest.Noise(uint64(i), size))
	}
	var wait sync.WaitGroup
	for worker := range 6 {
		wait.Go(func() {
			for i := worker; i < len(all); i += 6 {
				info, encoded := objecttest.Encode(all[i])
				add := w.Append
				if i%10 == 0 {
					add = func(info object.Info, encoded []byte) error { return stream(w, info, encoded) }
				}
				if err := add(info, encoded); err != nil {
					t.Error(err)
				}
				// Given up in the middle: a hole, no more.
				cut := object.Info{Digest: object.Digest{9, byte(i)}, Size: 1000, StoredSize: 1000}
				if err := w.AppendStored(cut, bytes.NewReader(encoded[:10])); !errors.Is(err, object.ErrDamaged) {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	mustHold(t, w.Reader(), all)
	size, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	r, err := pack.OpenReader(f, size)
	if err != nil {
		t.Fatal(err)
	}
	mustHold(t, r, all)
}

func FuzzOpenReader(f *testing.F) {
	path := filepath.Join(f.TempDir(), "pack")
	file, err := os.Create(path)
	if err != nil {
		f.Fatal(err)
	}
	w := newWriter(f, file, 0)
	if _, err := w.AppendUnpacked(object.Of([]byte("abc")), []byte("abc")); err != nil {
		f.Fatal(err)
	}
	if _, err := w.Finish(); err != nil {
		f.Fatal(err)
	}
	if err := file.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := pack.OpenReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if err := r.List(context.Background(), func(info object.Info) error {
			if content, err := read(r, info.Digest); err == nil && object.Of(content) != info.Digest {
				t.Error("wrong bytes given out as whole")
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// filled makes a pack of n objects and returns it with their digests.
func filled(b *testing.B, n, size int) (*pack.Reader, []object.Digest) {
	w := newWriter(b, tempFile(b), 0)
	digests := make([]object.Digest, n)
	for i := range digests {
		content := objecttest.Text(uint64(i), size)
		digests[i] = object.Of(content)
		if _, err := w.AppendUnpacked(digests[i], content); err != nil {
			b.Fatal(err)
		}
	}
	return w.Reader(), digests
}

// BenchmarkOpen reads objects back: decoding and verifying included. MB/s are
// of unpacked bytes.
func BenchmarkOpen(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			r, digests := filled(b, max(1, min(256, 16<<20/size)), size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				in, err := r.Open(context.Background(), digests[i%len(digests)])
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, in); err != nil {
					b.Fatal(err)
				}
				if err := in.Close(); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// BenchmarkAppend is what the stage does with an object that was received:
// verify and write.
func BenchmarkAppend(b *testing.B) {
	const size = 64 << 10
	file := tempFile(b)
	info, encoded := objecttest.Encode(objecttest.Text(1, size))
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		w := newWriter(b, file, 0)
		if err := w.Append(info, encoded); err != nil {
			b.Fatal(err)
		}
	}
}

// TestFlippedInMemory: what was verified on its way in is judged by a sum on its
// way out, and a flip between the two is found, wherever it is.
func TestFlippedInMemory(t *testing.T) {
	for name, content := range map[string][]byte{
		"small": objecttest.Text(1, 5000), "small, raw": objecttest.Noise(2, 5000),
		"large": objecttest.Text(3, 3*zstd.Whole), "large, raw": objecttest.Noise(4, 2*zstd.Whole),
	} {
		for _, from := range []string{"encoded", "reader", "unpacked"} {
			file, err := os.Create(filepath.Join(t.TempDir(), "pack"))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			w, err := pack.NewWriter(file, pack.Options{})
			if err != nil {
				t.Fatal(err)
			}
			info, encoded := objecttest.Encode(content)
			switch from {
			case "encoded":
				err = w.Append(info, encoded)
			case "reader":
				err = w.AppendStored(info, bytes.NewReader(encoded))
			case "unpacked":
				_, err = w.AppendFrom(info.Digest, info.Size, bytes.NewReader(content))
			}
			if err != nil {
				t.Fatal(err)
			}
			read := func() ([]byte, error) {
				r, err := w.Reader().Open(t.Context(), info.Digest)
				if err != nil {
					return nil, err
				}
				defer r.Close()
				return io.ReadAll(r)
			}
			if got, err := read(); err != nil || !bytes.Equal(got, content) {
				t.Fatalf("%s, from %s: %d bytes, %v", name, from, len(got), err)
			}
			end := w.Used()
			for _, at := range []uint64{0, end / 3, end / 2, end - 1} {
				flip := func() {
					var one [1]byte
					if _, err := file.ReadAt(one[:], int64(16+at)); err != nil {
						t.Fatal(err)
					}
					one[0] ^= 4
					if _, err := file.WriteAt(one[:], int64(16+at)); err != nil {
						t.Fatal(err)
					}
				}
				flip()
				if _, err := read(); !errors.Is(err, object.ErrDamaged) {
					t.Errorf("%s, from %s, flipped at %d of %d: %v", name, from, at, end, err)
				}
				flip()
			}
		}
	}
}
