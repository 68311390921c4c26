package scrub_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/scrub"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// store has ten small objects and a large one; the returned ones are damaged.
func store(t *testing.T) (s *dir.Store, damaged []object.Digest) {
	t.Helper()
	path := t.TempDir()
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	b := s.Begin()
	for i := range 10 {
		put(t, b, objecttest.Noise(uint64(i), 10_000))
	}
	large := put(t, b, objecttest.Noise(10, 400_000))
	if err := b.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	packs, err := filepath.Glob(filepath.Join(path, "packs", "*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatal(packs, err)
	}
	flip(t, packs[0], 16+35_000) // the fourth object
	flip(t, filepath.Join(path, "objects", large.Hex()[:2], large.Hex()), 399_999)
	return s, []object.Digest{object.Of(objecttest.Noise(3, 10_000)), large}
}

func put(t *testing.T, b *dir.Batch, content []byte) object.Digest {
	t.Helper()
	info, encoded := objecttest.Encode(content)
	if err := b.Put(t.Context(), info, bytes.NewReader(encoded)); err != nil {
		t.Fatal(err)
	}
	return info.Digest
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPass(t *testing.T) {
	s, damaged := store(t)
	scrubber := scrub.New(scrub.Options{Store: s, Log: quiet()})
	for range 2 {
		if err := scrubber.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r := scrubber.Report()
	if r.Objects != 11+9 || r.Damaged != 2 || r.Healed != 0 || r.Passes != 2 || r.LastPass.IsZero() {
		t.Errorf("%+v", r)
	}
	if infos, err := s.Stat(t.Context(), damaged); err != nil || len(infos) > 0 {
		t.Errorf("still there: %v, %v", infos, err)
	}
	if objects, packs := s.Quarantined(); len(objects) != 2 || len(packs) != 0 {
		t.Errorf("quarantined: %v, %v", objects, packs)
	}
}

func TestHeal(t *testing.T) {
	s, damaged := store(t)
	heal := func(ctx context.Context, d object.Digest) error {
		content := objecttest.Noise(3, 10_000)
		if object.Of(content) != d {
			return errors.New("upstream does not have it")
		}
		return s.Put(ctx, object.Info{Digest: d, Size: 10_000, StoredSize: 10_000}, bytes.NewReader(content))
	}
	scrubber := scrub.New(scrub.Options{Store: s, Heal: heal, Log: quiet()})
	if err := scrubber.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := scrubber.Report(); r.Damaged != 2 || r.Healed != 1 {
		t.Errorf("%+v", r)
	}
	if infos, err := s.Stat(t.Context(), damaged); err != nil || len(infos) != 1 || infos[0].Digest != damaged[0] {
		t.Errorf("%v, %v", infos, err)
	}
	if objects, _ := s.Quarantined(); len(objects) != 1 || objects[0] != damaged[1] {
		t.Errorf("quarantined: %v", objects)
	}
}

// What is found while it is served is treated alike, and what is whole stays.
func TestDamaged(t *testing.T) {
	s, damaged := store(t)
	scrubber := scrub.New(scrub.Options{Store: s, Log: quiet()})
	scrubber.Damaged(t.Context(), damaged[1])
	scrubber.Damaged(t.Context(), object.Of(objecttest.Noise(1, 10_000)))
	if r := scrubber.Report(); r.Damaged != 1 {
		t.Errorf("%+v", r)
	}
}

func TestRate(t *testing.T) {
	s, _ := store(t)
	scrubber := scrub.New(scrub.Options{Store: s, BytesPerSecond: 1 << 20, Log: quiet()})
	start := time.Now()
	if err := scrubber.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	// 500 kB at 1 MiB/s, the last read needs no wait after it.
	if took := time.Since(start); took < 80*time.Millisecond {
		t.Errorf("took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		scrubber.Run(ctx)
	}()
	cancel()
	<-ended
}
