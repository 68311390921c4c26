package dir_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// fill commits count small objects in one batch and returns their digests.
func fill(t testing.TB, s *dir.Store, first, count, size int) []object.Digest {
	t.Helper()
	b := s.Begin()
	digests := make([]object.Digest, count)
	for i := range digests {
		content := objecttest.Noise(uint64(first+i), size)
		digests[i] = object.Of(content)
		info := object.Info{Digest: digests[i], Size: uint64(size), StoredSize: uint64(size)}
		if err := b.Put(context.Background(), info, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	return digests
}

// readAll opens each object and reads it to its verified end.
func readAll(t testing.TB, s *dir.Store, digests []object.Digest) {
	t.Helper()
	for _, d := range digests {
		r, err := s.Open(context.Background(), d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func packFiles(t testing.TB, path string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(path, "packs", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A store of 100,000 objects, the images of years, is open within 2 seconds, and
// there are few files to open for serving them.
func TestOpensQuickly(t *testing.T) {
	path := memory(t)
	s := open(t, path)
	var digests []object.Digest
	for n := range 10 {
		digests = append(digests, fill(t, s, n*10_000, 10_000, 300)...)
	}
	start := time.Now()
	again, err := dir.Open(path)
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	infos, err := again.Stat(t.Context(), digests)
	if err != nil || len(infos) != 100_000 {
		t.Errorf("%d objects, %v", len(infos), err)
	}
	if took > 2*time.Second {
		t.Errorf("opening took %s", took)
	}
	if packs := packFiles(t, path); len(packs) > 100_000*300/(1<<20) {
		t.Errorf("%d packs", len(packs))
	}
	t.Logf("%d packs opened in %s", len(packFiles(t, path)), took)
}

// Packs have 4 MiB, and the object that filled them.
func TestPackSize(t *testing.T) {
	path := memory(t)
	s := open(t, path)
	digests := fill(t, s, 0, 90, 200_000)
	packs := packFiles(t, path)
	if len(packs) != 5 {
		t.Errorf("%d packs of 18 MB", len(packs))
	}
	for _, p := range packs {
		if stat, err := os.Stat(p); err != nil || stat.Size() > 4<<20+256<<10+10_000 {
			t.Errorf("%d bytes, %v", stat.Size(), err)
		}
	}
	readAll(t, s, digests)
}

// A store of the time before packs is used as it is.
func TestFilesOfFormatOne(t *testing.T) {
	path := memory(t)
	content := objecttest.Text(1, 5000)
	info, encoded := objecttest.Encode(content)
	name := filepath.Join(path, "objects", info.Digest.Hex()[:2], info.Digest.Hex()+".zst")
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, path)
	readAll(t, s, []object.Digest{info.Digest})
	if infos, err := s.Stat(t.Context(), []object.Digest{info.Digest}); err != nil || len(infos) != 1 || infos[0] != info {
		t.Errorf("%v, %v", infos, err)
	}
	// Put again, it moves into a pack.
	put(t, s, content)
	if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	readAll(t, s, []object.Digest{info.Digest})
	if format, err := os.ReadFile(filepath.Join(path, "packs", "format")); err != nil || string(format) != "2\n" {
		t.Errorf("format %q, %v", format, err)
	}
}

func TestNewerFormatIsRefused(t *testing.T) {
	path := memory(t)
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "packs", "format"), []byte("3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = dir.Open(path)
	var coded interface{ Code() string }
	if !errors.Is(err, dir.ErrFormat) || !errors.As(err, &coded) || coded.Code() != "IMG-025" {
		t.Errorf("%v", err)
	}
}

// What is deleted stays deleted, and its room comes back while others read.
func TestDeletedFromPacks(t *testing.T) {
	ctx := context.Background()
	path := memory(t)
	s := open(t, path)
	digests := fill(t, s, 0, 2000, 5000)
	kept, gone := digests[:700], digests[700:]
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				readAll(t, s, kept[:50])
			}
		}
	})
	for len(gone) > 0 {
		n := min(100, len(gone))
		if err := s.DeleteMany(ctx, gone[:n]); err != nil {
			t.Fatal(err)
		}
		gone = gone[n:]
	}
	close(stop)
	reading.Wait()
	gone = digests[700:]
	var size int64
	for _, p := range packFiles(t, path) {
		stat, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		size += stat.Size()
	}
	if size > 2*700*5000+4<<20 {
		t.Errorf("%d bytes for 700 objects of 5000", size)
	}
	for what, s := range map[string]*dir.Store{"now": s, "opened again": open(t, path)} {
		if infos, err := s.Stat(ctx, gone); err != nil || len(infos) > 0 {
			t.Errorf("%s: %d deleted objects are there, %v", what, len(infos), err)
		}
		readAll(t, s, kept)
	}
	// What was deleted can be put again.
	fill(t, s, 700, 100, 5000)
	for what, s := range map[string]*dir.Store{"now": s, "opened again": open(t, path)} {
		if infos, err := s.Stat(ctx, gone[:100]); err != nil || len(infos) != 100 {
			t.Errorf("%s: %d of 100 objects put again are there, %v", what, len(infos), err)
		}
	}
}

// Many small uploads do not make many packs.
func TestSmallPacksAreMerged(t *testing.T) {
	path := memory(t)
	s := open(t, path)
	var digests []object.Digest
	for i := range 200 {
		digests = append(digests, fill(t, s, i, 1, 700)...)
	}
	if packs := packFiles(t, path); len(packs) > 80 {
		t.Errorf("%d packs", len(packs))
	}
	readAll(t, s, digests)
	readAll(t, open(t, path), digests)
}

// No damage of a pack, wherever it is, is given out as a whole object: scrubbing
// moves aside what is damaged, nothing else, and putting it again repairs it.
func TestDamagedPack(t *testing.T) {
	ctx := context.Background()
	for _, fraction := range []float64{0.1, 0.5, 0.9} {
		path := memory(t)
		s := open(t, path)
		digests := fill(t, s, 0, 50, 3000)
		name := packFiles(t, path)[0]
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		whole[int(fraction*150_000)] ^= 0x10
		if err := os.WriteFile(name, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		var damaged []object.Digest
		for _, d := range digests {
			err := s.Scrub(ctx, d, nil)
			if errors.Is(err, object.ErrDamaged) {
				damaged = append(damaged, d)
			} else if err != nil {
				t.Error(err)
			}
		}
		if len(damaged) != 1 {
			t.Fatalf("%d damaged objects", len(damaged))
		}
		for what, s := range map[string]*dir.Store{"now": s, "opened again": open(t, path)} {
			if infos, err := s.Stat(ctx, digests); err != nil || len(infos) != 49 {
				t.Errorf("%s: %d objects, %v", what, len(infos), err)
			}
			if _, err := s.Open(ctx, damaged[0]); !errors.Is(err, object.ErrNotFound) {
				t.Errorf("%s: %v", what, err)
			}
			if objects, packs := s.Quarantined(); len(objects) != 1 || objects[0] != damaged[0] || len(packs) != 0 {
				t.Errorf("%s: quarantined %v, %v", what, objects, packs)
			}
		}
		fill(t, s, 0, 50, 3000)
		readAll(t, s, digests)
		readAll(t, open(t, path), digests)
		if objects, _ := s.Quarantined(); len(objects) != 0 {
			t.Errorf("still quarantined: %v", objects)
		}
		if left := files(t, filepath.Join(path, "quarantine")); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// A pack whose index is damaged is moved aside; everything else is served.
func TestUnreadablePack(t *testing.T) {
	for what, damage := range map[string]func([]byte) []byte{
		"index":   func(b []byte) []byte { b[len(b)-100] ^= 1; return b },
		"trailer": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"header":  func(b []byte) []byte { b[0] ^= 1; return b },
		"cut off": func(b []byte) []byte { return b[:len(b)-1000] },
		"empty":   func([]byte) []byte { return nil },
	} {
		path := memory(t)
		s, err := dir.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		lost := fill(t, s, 0, 50, 3000)
		name := packFiles(t, path)[0]
		kept := fill(t, s, 100, 50, 3000)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, damage(whole), 0o600); err != nil {
			t.Fatal(err)
		}
		s = open(t, path)
		readAll(t, s, kept)
		if infos, err := s.Stat(t.Context(), lost); err != nil || len(infos) != 0 {
			t.Errorf("%s: %d objects, %v", what, len(infos), err)
		}
		if _, packs := s.Quarantined(); len(packs) != 1 || packs[0] != filepath.Base(name) {
			t.Errorf("%s: quarantined %v", what, packs)
		}
		fill(t, s, 0, 50, 3000)
		readAll(t, s, lost)
	}
}

// Damaged files are moved aside too, whatever the damage.
func TestScrubFiles(t *testing.T) {
	ctx := context.Background()
	path := memory(t)
	s := open(t, path)
	for _, content := range [][]byte{objecttest.Noise(1, 400_000), objecttest.Text(2, 8*zstd.Whole)} {
		info := put(t, s, content)
		if err := s.Scrub(ctx, info.Digest, nil); err != nil {
			t.Error(err)
		}
		name := file(t, path, info.Digest)
		for what, change := range map[string]func([]byte) []byte{
			"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"head":    func(b []byte) []byte { b[0] ^= 1; return b },
			"cut off": func(b []byte) []byte { return b[:len(b)-1] },
			"empty":   func([]byte) []byte { return nil },
		} {
			whole, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, change(whole), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := s.Scrub(ctx, info.Digest, nil); !errors.Is(err, object.ErrDamaged) {
				t.Errorf("%s, %s: %v", info.Encoding, what, err)
			}
			if infos, err := s.Stat(ctx, []object.Digest{info.Digest}); err != nil || len(infos) != 0 {
				t.Errorf("%s, %s: still there: %v, %v", info.Encoding, what, infos, err)
			}
			if objects, _ := s.Quarantined(); len(objects) != 1 {
				t.Errorf("%s, %s: quarantined %v", info.Encoding, what, objects)
			}
			put(t, s, content)
			readAll(t, s, []object.Digest{info.Digest})
		}
	}
	if err := s.Scrub(ctx, object.Of([]byte("nobody has this")), nil); !errors.Is(err, object.ErrNotFound) {
		t.Error(err)
	}
}

// A line of the dead that a killed process cut off does not count, and the next
// one is not lost behind it.
func TestDeadCutOff(t *testing.T) {
	path := memory(t)
	s := open(t, path)
	digests := fill(t, s, 0, 30, 3000)
	if err := s.Delete(t.Context(), digests[0]); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(path, "packs", "dead"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(strings.Repeat("x", 20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, path)
	readAll(t, s, digests[1:])
	if err := s.Delete(t.Context(), digests[1]); err != nil {
		t.Fatal(err)
	}
	if infos, err := open(t, path).Stat(t.Context(), digests); err != nil || len(infos) != 28 {
		t.Errorf("%d objects, %v", len(infos), err)
	}
}

// workForever puts small and large objects, puts some again and deletes some,
// and says what is durable: "+" and "-" with a number.
func workForever(path string) error {
	ctx := context.Background()
	s, err := dir.Open(path)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		b := s.Begin()
		for i := range 40 {
			fmt.Println("?", n*40+i)
			if err := b.Put(ctx, worked(n*40+i), bytes.NewReader(content(n*40+i))); err != nil {
				return err
			}
		}
		if err := b.Commit(ctx); err != nil {
			return err
		}
		for i := range 40 {
			fmt.Println("+", n*40+i)
		}
		// All but every eighth go again, so that packs are written anew.
		var gone []object.Digest
		for i := range 40 {
			if i%8 != 0 {
				fmt.Println("?", n*40+i)
				gone = append(gone, worked(n*40+i).Digest)
			}
		}
		if err := s.DeleteMany(ctx, gone); err != nil {
			return err
		}
		for i := range 40 {
			if i%8 != 0 {
				fmt.Println("-", n*40+i)
			}
		}
	}
}

func content(i int) []byte {
	if i%40 == 8 {
		return objecttest.Noise(uint64(i), 300_000) // a file of its own
	}
	return objecttest.Noise(uint64(i), 20_000)
}

func worked(i int) object.Info {
	c := content(i)
	return object.Info{Digest: object.Of(c), Size: uint64(len(c)), StoredSize: uint64(len(c))}
}

// Thousands of random flips anywhere in the store, also in its indexes and in
// the list of the dead: what is given out is whole, or it is an error.
func TestRandomFlips(t *testing.T) {
	ctx := context.Background()
	path := memory(t)
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	digests := fill(t, s, 0, 200, 500)
	digests = append(digests, fill(t, s, 1000, 1, 300_000)...)
	if err := s.DeleteMany(ctx, digests[:20]); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, below := range []string{"packs", "objects"} {
		for _, name := range files(t, filepath.Join(path, below)) {
			if filepath.Base(name) != "format" {
				names = append(names, name)
			}
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	found := 0
	const rounds = 60
	for range rounds {
		name := names[random.IntN(len(names))]
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		for range 50 {
			flipped[random.IntN(len(flipped))] ^= 1 << random.IntN(8)
		}
		if err := os.WriteFile(name, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := dir.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		noticed := false
		for i, d := range digests {
			r, err := s.Open(ctx, d)
			if err == nil {
				var got []byte
				got, err = io.ReadAll(r)
				if err == nil && object.Of(got) != d {
					t.Error("wrong bytes were given out as whole")
				}
				err = errors.Join(err, r.Close())
			}
			noticed = noticed || (err == nil) != (i >= 20)
			if err != nil && !errors.Is(err, object.ErrDamaged) && !errors.Is(err, object.ErrNotFound) {
				t.Error(err)
			}
		}
		if noticed {
			found++
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		// As it was, also if it was moved aside.
		if err := os.RemoveAll(filepath.Join(path, "quarantine")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Flips may fall into what does not count, such as deleted objects.
	if found < rounds*9/10 {
		t.Errorf("only %d of %d times was anything noticed", found, rounds)
	}
}
