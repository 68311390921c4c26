package s3_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/s3"
)

// flip flips one bit of the file that the pattern names.
func flip(t *testing.T, pattern string, at int) {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	content, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	content[at] ^= 8
	// In place: the S3 server keeps what it knows of a file beside its inode.
	if err := os.WriteFile(names[0], content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// scrubAll scrubs everything and returns what was damaged.
func scrubAll(t *testing.T, s *s3.Store) (damaged []object.Digest) {
	t.Helper()
	if err := s.List(t.Context(), func(info object.Info) error {
		err := s.Scrub(t.Context(), info.Digest, nil)
		if errors.Is(err, object.ErrDamaged) {
			damaged = append(damaged, info.Digest)
			return nil
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return damaged
}

// TestScrub: what is damaged in the bucket is found, counts no more for any server,
// and is repaired by putting it again. What is damaged only in the cache is read anew.
func TestScrub(t *testing.T) {
	location, directory := newBucket(t)
	cache := t.TempDir()
	s, asked := open(t, location, cache, 1<<30)
	digests := fill(t, s, 0, 200, 20_000)
	if damaged := scrubAll(t, s); len(damaged) > 0 {
		t.Error(damaged)
	}
	if n := asked.of("get"); n > 10 {
		t.Errorf("%d requests to read 4 MB", n)
	}
	flip(t, filepath.Join(cache, "packs", "*.pack"), 1_000_000)
	if damaged := scrubAll(t, s); len(damaged) > 0 {
		t.Error(damaged)
	}
	if err := check(s, digests); err != nil {
		t.Error("damaged in the cache only:", err)
	}

	flip(t, filepath.Join(directory, "packs", "*.pack"), 1_000_000)
	other, _ := open(t, location, t.TempDir(), 0)
	damaged := scrubAll(t, other)
	if len(damaged) != 1 {
		t.Fatal(damaged)
	}
	if objects, _ := other.Quarantined(); len(objects) != 1 || objects[0] != damaged[0] {
		t.Error(objects)
	}
	if err := s.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, one := range []*s3.Store{s, other} {
		if infos, err := one.Stat(t.Context(), digests); err != nil || len(infos) != 199 {
			t.Errorf("%d objects, %v", len(infos), err)
		}
	}
	// It cannot be revived, only put again.
	if err := other.Revive(t.Context(), damaged); err != nil {
		t.Fatal(err)
	}
	if infos, err := other.Stat(t.Context(), damaged); err != nil || len(infos) != 0 {
		t.Error(infos, err)
	}
	for i, d := range digests {
		if d == damaged[0] {
			fill(t, other, i, 1, 20_000)
		}
	}
	if objects, _ := other.Quarantined(); len(objects) != 0 {
		t.Error(objects)
	}
	for _, one := range []*s3.Store{s, other} {
		if err := check(one, digests); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(filepath.Join(directory, "quarantine")); err != nil && !errors.Is(err, os.ErrNotExist) || len(left) != 0 {
		t.Error(left, err)
	}
}

// TestDamagedIndex: an index is read from the pack itself where it is damaged, and
// written anew; where the pack's is damaged too, the pack is reported.
func TestDamagedIndex(t *testing.T) {
	location, directory := newBucket(t)
	first, _ := open(t, location, t.TempDir(), 0)
	digests := fill(t, first, 0, 50, 3000)
	flip(t, filepath.Join(directory, "index", "*"), 200)
	s, _ := open(t, location, t.TempDir(), 0)
	if err := check(s, digests); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(directory, "packs", "*.pack"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	info, err := os.Stat(names[0])
	if err != nil {
		t.Fatal(err)
	}
	flip(t, names[0], int(info.Size())-100)
	again, _ := open(t, location, t.TempDir(), 0) // the index was mended
	if err := check(again, digests); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(directory, "index", "*"), 300)
	last, _ := open(t, location, t.TempDir(), 0)
	if _, packs := last.Quarantined(); len(packs) != 1 {
		t.Error(packs)
	}
	if err := check(last, digests[:1]); !errors.Is(err, object.ErrNotFound) {
		t.Error(err)
	}
	// Put again, all is there again.
	if err := check(last, fill(t, last, 0, 50, 3000)); err != nil {
		t.Error(err)
	}
}

// TestRandomFlips: flips anywhere in the bucket and in the cache; what is given out is
// whole, or it is an error.
func TestRandomFlips(t *testing.T) {
	location, directory := newBucket(t)
	s, _ := open(t, location, t.TempDir(), 1<<30)
	digests := fill(t, s, 0, 100, 2000)
	if err := s.DeleteMany(t.Context(), digests[:10]); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(5, 6))
	var names []string
	for _, below := range []string{"packs", "index", "dead"} {
		found, err := filepath.Glob(filepath.Join(directory, below, "*"))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	noticed := 0
	for range 40 {
		name := names[random.IntN(len(names))]
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		for range 50 {
			flipped[random.IntN(len(flipped))] ^= 1 << random.IntN(8)
		}
		if err := os.WriteFile(name, flipped, 0o644); err != nil {
			t.Fatal(err)
		}
		bucket := bucketAt(t, location)
		one, err := s3.Open(t.Context(), s3.Options{Bucket: bucket, Cache: t.TempDir(), CacheBytes: 1 << 30, Log: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		wrong := 0
		for i, d := range digests {
			err := check(one, digests[i:i+1])
			if (err == nil) != (i >= 10) {
				wrong++
			}
			if err != nil && !errors.Is(err, object.ErrDamaged) && !errors.Is(err, object.ErrNotFound) {
				t.Errorf("%s: %v", d, err)
			}
		}
		if wrong > 0 {
			noticed++
		}
		if err := errors.Join(one.Close(), os.WriteFile(name, whole, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("2000 flips, noticed %d times of 40", noticed)
	if noticed < 15 { // a damaged index is mended from its pack
		t.Error("too seldom")
	}
}
