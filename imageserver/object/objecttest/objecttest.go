// Package objecttest holds what every object.Store must do, as one test body,
// and a Store in memory for the tests of others. It is for tests only.
package objecttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// Memory is a Store in memory, safe for concurrent use.
type Memory struct {
	mutex   sync.Mutex
	objects map[object.Digest]kept
}

type kept struct {
	info    object.Info
	encoded []byte
}

var _ object.Store = (*Memory)(nil)

// NewMemory returns an empty Memory.
func NewMemory() *Memory { return &Memory{objects: make(map[object.Digest]kept)} }

func (m *Memory) get(d object.Digest) (kept, error) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	k, found := m.objects[d]
	if !found {
		return kept{}, fmt.Errorf("object %s: %w", d, object.ErrNotFound)
	}
	return k, nil
}

// Damage changes the stored bytes of an object, which must be there.
func (m *Memory) Damage(d object.Digest, change func(encoded []byte) []byte) {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	k := m.objects[d]
	k.encoded = change(bytes.Clone(k.encoded))
	m.objects[d] = k
}

// Add packs unpacked, stores it and returns what it is.
func (m *Memory) Add(unpacked []byte) object.Info {
	info, encoded := Encode(unpacked)
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.objects[info.Digest] = kept{info, bytes.Clone(encoded)}
	return info
}

// Open implements object.Getter.
func (m *Memory) Open(ctx context.Context, d object.Digest) (io.ReadCloser, error) {
	k, err := m.get(d)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	return zstd.Open(k.info, bytes.NewReader(k.encoded))
}

// Stat implements object.Store.
func (m *Memory) Stat(ctx context.Context, digests []object.Digest) ([]object.Info, error) {
	var infos []object.Info
	for _, d := range digests {
		if k, err := m.get(d); err == nil {
			infos = append(infos, k.info)
		}
	}
	return infos, ctx.Err()
}

// OpenStored implements object.Store.
func (m *Memory) OpenStored(ctx context.Context, d object.Digest) (*object.Stored, error) {
	k, err := m.get(d)
	if err := errors.Join(err, ctx.Err()); err != nil {
		return nil, err
	}
	return &object.Stored{Info: k.info, ReadCloser: io.NopCloser(bytes.NewReader(k.encoded))}, nil
}

// Put implements object.Store.
func (m *Memory) Put(ctx context.Context, info object.Info, r io.Reader) error {
	if err := errors.Join(info.Validate(), ctx.Err()); err != nil {
		return err
	}
	encoded, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("receiving object %s: %w", info.Digest, err)
	}
	if err := zstd.Verify(info, encoded); err != nil {
		return fmt.Errorf("%w: %w", object.ErrRefused, err)
	}
	m.mutex.Lock()
	defer m.mutex.Unlock()
	m.objects[info.Digest] = kept{info, encoded}
	return nil
}

// List implements object.Store.
func (m *Memory) List(ctx context.Context, f func(object.Info) error) error {
	m.mutex.Lock()
	var infos []object.Info
	for _, k := range m.objects {
		infos = append(infos, k.info)
	}
	m.mutex.Unlock()
	for _, info := range infos {
		if err := errors.Join(ctx.Err(), f(info)); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements object.Store.
func (m *Memory) Delete(ctx context.Context, d object.Digest) error {
	m.mutex.Lock()
	defer m.mutex.Unlock()
	delete(m.objects, d)
	return ctx.Err()
}

// Encode packs unpacked as an uploader would.
func Encode(unpacked []byte) (object.Info, []byte) {
	encoding, encoded := zstd.Encode(nil, unpacked)
	return object.Info{
		Digest:     object.Of(unpacked),
		Encoding:   encoding,
		Size:       uint64(len(unpacked)),
		StoredSize: uint64(len(encoded)),
	}, encoded
}

// Text returns n bytes that pack well, different for each seed.
func Text(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+16)
	for len(b) < n {
		b = fmt.Appendf(b, "line %d of %d\n", r.IntN(1000), seed)
	}
	return b[:n]
}

// Noise returns n bytes that do not pack, different for each seed.
func Noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// TestStore checks that what newStore returns keeps the contract of
// object.Store. newStore is called for each part and returns an empty store.
func TestStore(t *testing.T, newStore func(t *testing.T) object.Store) {
	ctx := context.Background()
	contents := map[string][]byte{
		"one byte":    []byte("x"),
		"empty":       {},
		"short text":  Text(1, 300),
		"text":        Text(2, 100_000),
		"noise":       Noise(3, 100_000),
		"large text":  Text(4, 3*zstd.Whole+17),
		"large noise": Noise(5, 2*zstd.Whole+1),
		"just whole":  Text(6, zstd.Whole),
	}
	t.Run("what is put comes back", func(t *testing.T) {
		s := newStore(t)
		var digests []object.Digest
		wanted := make(map[object.Digest]object.Info)
		for name, content := range contents {
			info, encoded := Encode(content)
			for range 2 { // a second time changes nothing
				if err := s.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			r, err := s.Open(ctx, info.Digest)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: %d bytes came back as %d, error %v", name, len(content), len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Errorf("%s: closing: %v", name, err)
			}
			stored, err := s.OpenStored(ctx, info.Digest)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			raw, err := io.ReadAll(stored)
			if err != nil || uint64(len(raw)) != stored.StoredSize || zstd.Verify(stored.Info, raw) != nil {
				t.Errorf("%s: stored bytes do not verify: %d bytes, %+v, %v", name, len(raw), stored.Info, err)
			}
			if err := stored.Close(); err != nil {
				t.Errorf("%s: closing: %v", name, err)
			}
			digests = append(digests, info.Digest)
			wanted[info.Digest] = info
		}
		infos, err := s.Stat(ctx, digests)
		if err != nil || len(infos) != len(digests) {
			t.Fatalf("stat of %d: %d, %v", len(digests), len(infos), err)
		}
		for i, info := range infos {
			if info.Digest != digests[i] || info.Size != wanted[info.Digest].Size {
				t.Errorf("stat: got %+v, want %+v", info, wanted[digests[i]])
			}
		}
		listed := 0
		if err := s.List(ctx, func(info object.Info) error {
			listed++
			if info.Size != wanted[info.Digest].Size {
				t.Errorf("list: got %+v, want %+v", info, wanted[info.Digest])
			}
			return nil
		}); err != nil || listed != len(contents) {
			t.Errorf("list: %d objects of %d, %v", listed, len(contents), err)
		}
		stop := errors.New("stop")
		if err := s.List(ctx, func(object.Info) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("list does not return the error of its function: %v", err)
		}
	})
	t.Run("what is missing is not found", func(t *testing.T) {
		s := newStore(t)
		d := object.Of([]byte("nobody has this"))
		if _, err := s.Open(ctx, d); !errors.Is(err, object.ErrNotFound) {
			t.Errorf("open: %v", err)
		}
		if _, err := s.OpenStored(ctx, d); !errors.Is(err, object.ErrNotFound) {
			t.Errorf("open stored: %v", err)
		}
		if infos, err := s.Stat(ctx, []object.Digest{d}); err != nil || len(infos) != 0 {
			t.Errorf("stat: %v, %v", infos, err)
		}
		if err := s.Delete(ctx, d); err != nil {
			t.Errorf("delete: %v", err)
		}
	})
	t.Run("what is deleted is gone", func(t *testing.T) {
		s := newStore(t)
		for _, content := range [][]byte{Text(1, 5000), Noise(1, 5000)} {
			info, encoded := Encode(content)
			if err := s.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
				t.Fatal(err)
			}
			if err := s.Delete(ctx, info.Digest); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Open(ctx, info.Digest); !errors.Is(err, object.ErrNotFound) {
				t.Errorf("open: %v", err)
			}
		}
	})
	t.Run("lies are refused and leave nothing", func(t *testing.T) {
		s := newStore(t)
		for name, content := range contents {
			good, encoded := Encode(content)
			for lie, change := range lies(content) {
				info, bad := change(good, bytes.Clone(encoded))
				err := s.Put(ctx, info, bytes.NewReader(bad))
				if !errors.Is(err, object.ErrRefused) {
					t.Errorf("%s, %s: %v", name, lie, err)
				}
			}
		}
		if err := s.List(ctx, func(info object.Info) error {
			t.Errorf("left behind: %+v", info)
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a failing reader is its own error", func(t *testing.T) {
		s := newStore(t)
		info, encoded := Encode(Noise(8, 10_000))
		broken := errors.New("line broken")
		r := io.MultiReader(bytes.NewReader(encoded[:5000]), iotestErr{broken})
		if err := s.Put(ctx, info, r); !errors.Is(err, broken) || errors.Is(err, object.ErrRefused) {
			t.Errorf("put: %v", err)
		}
		if infos, err := s.Stat(ctx, []object.Digest{info.Digest}); err != nil || len(infos) != 0 {
			t.Errorf("left behind: %v, %v", infos, err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		s := newStore(t)
		var wait sync.WaitGroup
		for worker := range 4 {
			wait.Go(func() {
				for i := range 20 {
					// Every object is put by two workers.
					content := Text(uint64(i+100*(worker/2)), 2000+i)
					info, encoded := Encode(content)
					if err := s.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
						t.Error(err)
						return
					}
					r, err := s.Open(ctx, info.Digest)
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
						t.Errorf("%v", err)
					}
					if err := r.Close(); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wait.Wait()
	})
	t.Run("an ended context ends it", func(t *testing.T) {
		s := newStore(t)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		info, encoded := Encode(Text(1, 1000))
		if err := s.Put(ended, info, bytes.NewReader(encoded)); !errors.Is(err, context.Canceled) {
			t.Errorf("put: %v", err)
		}
	})
}

type iotestErr struct{ err error }

func (e iotestErr) Read([]byte) (int, error) { return 0, e.err }

// lies are ways in which what is offered can differ from what is announced.
func lies(content []byte) map[string]func(object.Info, []byte) (object.Info, []byte) {
	all := map[string]func(object.Info, []byte) (object.Info, []byte){
		"another digest": func(i object.Info, b []byte) (object.Info, []byte) {
			i.Digest[7] ^= 1
			return i, b
		},
		"no digest": func(i object.Info, b []byte) (object.Info, []byte) {
			i.Digest = object.Digest{}
			return i, b
		},
		"a byte too many": func(i object.Info, b []byte) (object.Info, []byte) { return i, append(b, 0) },
		"a byte too many, announced": func(i object.Info, b []byte) (object.Info, []byte) {
			i.StoredSize++
			if i.Encoding == object.Raw {
				i.Size++
			}
			return i, append(b, 0)
		},
		"unknown encoding": func(i object.Info, b []byte) (object.Info, []byte) {
			i.Encoding = 7
			return i, b
		},
		"the other encoding": func(i object.Info, b []byte) (object.Info, []byte) {
			i.Encoding = object.Zstd - i.Encoding
			return i, b
		},
		"larger": func(i object.Info, b []byte) (object.Info, []byte) {
			i.Size++
			return i, b
		},
		"a bomb": func(i object.Info, _ []byte) (object.Info, []byte) {
			_, b := zstd.Encode(nil, make([]byte, len(content)+16<<20))
			i.Encoding, i.StoredSize = object.Zstd, uint64(len(b))
			return i, b
		},
		"a huge claim": func(i object.Info, b []byte) (object.Info, []byte) {
			i.Encoding, i.Size = object.Zstd, 1<<60
			return i, b
		},
	}
	if len(content) > 0 {
		all["cut off"] = func(i object.Info, b []byte) (object.Info, []byte) { return i, b[:len(b)-1] }
		all["nothing"] = func(i object.Info, b []byte) (object.Info, []byte) { return i, nil }
		all["smaller"] = func(i object.Info, b []byte) (object.Info, []byte) {
			i.Size--
			return i, b
		}
		all["a flipped bit"] = func(i object.Info, b []byte) (object.Info, []byte) {
			b = slices.Clone(b)
			b[len(b)/2] ^= 4
			return i, b
		}
	}
	return all
}
