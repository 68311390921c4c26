package dir_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

func open(t testing.TB, path string) *dir.Store {
	t.Helper()
	s, err := dir.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestStore(t *testing.T) {
	objecttest.TestStore(t, func(t *testing.T) object.Store {
		path := memory(t)
		s := open(t, path)
		t.Cleanup(func() {
			// Whatever was refused, no unfinished file stays.
			if left := files(t, filepath.Join(path, "tmp")); len(left) != 1 || filepath.Base(left[0]) != "lock" {
				t.Errorf("left behind: %v", left)
			}
		})
		return s
	})
}

// memory is a directory in memory where there is one: what is tested is what is
// written and synced in which order, not how fast the disk is.
func memory(t testing.TB) string {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", "firstlight-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// files returns the regular files below path.
func files(t testing.TB, path string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			found = append(found, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func put(t testing.TB, s *dir.Store, content []byte) object.Info {
	t.Helper()
	info, encoded := objecttest.Encode(content)
	if err := s.Put(context.Background(), info, bytes.NewReader(encoded)); err != nil {
		t.Fatal(err)
	}
	return info
}

// file returns the one file of an object.
func file(t testing.TB, path string, d object.Digest) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(path, "objects", d.Hex()[:2], d.Hex()+"*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("files of %s: %v, %v", d, found, err)
	}
	return found[0]
}

// A person can check an object with zstdcat and sha256sum.
func TestFilesAreOrdinary(t *testing.T) {
	path := memory(t)
	s := open(t, path)
	for _, content := range [][]byte{objecttest.Text(1, 8<<20), objecttest.Noise(1, 400_000)} {
		info := put(t, s, content)
		out, err := exec.Command("sh", "-c", "case $1 in *.zst) zstdcat $1;; *) cat $1;; esac | sha256sum", "-", file(t, path, info.Digest)).Output()
		if err != nil || !strings.HasPrefix(string(out), info.Digest.Hex()+" ") {
			t.Errorf("%s: %s, %v", info.Encoding, out, err)
		}
	}
}

// No damage of a stored file, wherever it is, is given out as a whole object,
// and putting the object again repairs it.
func TestDamageIsFoundAndRepaired(t *testing.T) {
	ctx := context.Background()
	path := memory(t)
	s := open(t, path)
	for _, content := range [][]byte{
		objecttest.Noise(1, 400_000), objecttest.Text(2, 8*zstd.Whole), objecttest.Noise(2, 2*zstd.Whole),
	} {
		info := put(t, s, content)
		name := file(t, path, info.Digest)
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		damages := map[string][]byte{
			"empty": nil, "cut off": whole[:len(whole)-1], "cut in half": whole[:len(whole)/2],
			"longer": append(bytes.Clone(whole), 0), "doubled": append(bytes.Clone(whole), whole...),
		}
		for _, at := range []int{0, 4, 5, 7, len(whole) / 3, len(whole) / 2, len(whole) - 5, len(whole) - 1} {
			flipped := bytes.Clone(whole)
			flipped[at] ^= 0x40 // 0x10 of byte 4 means nothing (RFC 8878, 3.1.1.1.1)
			damages[fmt.Sprintf("bit flipped in byte %d", at)] = flipped
		}
		for what, damaged := range damages {
			if err := os.WriteFile(name, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := s.Open(ctx, info.Digest)
			if err == nil {
				var got []byte
				got, err = io.ReadAll(r)
				if err == nil && !bytes.Equal(got, content) {
					t.Errorf("%s of %d, %s: wrong bytes given out as whole", info.Encoding, info.Size, what)
				}
				if closeErr := r.Close(); closeErr != nil {
					t.Error(closeErr)
				}
			}
			if !errors.Is(err, object.ErrDamaged) {
				t.Errorf("%s of %d, %s: %v", info.Encoding, info.Size, what, err)
			}
		}
		put(t, s, content)
		r, err := s.Open(ctx, info.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
			t.Errorf("not repaired: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

// An object in the other encoding replaces the one that is there, whether they
// lie in files or in packs.
func TestOtherEncodingReplaces(t *testing.T) {
	ctx := context.Background()
	for _, size := range []int{5000, 400_000, 8 << 20} {
		path := memory(t)
		s := open(t, path)
		content := objecttest.Text(1, size)
		raw := object.Info{Digest: object.Of(content), Size: uint64(size), StoredSize: uint64(size)}
		packed, encoded := objecttest.Encode(content)
		for range 2 {
			for _, info := range []object.Info{packed, raw} {
				bytesOf := map[object.Encoding][]byte{object.Raw: content, object.Zstd: encoded}
				if err := s.Put(ctx, info, bytes.NewReader(bytesOf[info.Encoding])); err != nil {
					t.Fatal(err)
				}
				for _, s := range []*dir.Store{s, open(t, path)} {
					if infos, err := s.Stat(ctx, []object.Digest{raw.Digest}); err != nil || len(infos) != 1 || infos[0] != info {
						t.Errorf("%d bytes: %+v, %v", size, infos, err)
					}
					listed := 0
					if err := s.List(ctx, func(object.Info) error { listed++; return nil }); err != nil || listed != 1 {
						t.Errorf("%d bytes: listed %d times, %v", size, listed, err)
					}
				}
			}
		}
	}
}

func TestBatchIsInvisibleBeforeCommit(t *testing.T) {
	ctx := context.Background()
	path := memory(t)
	s := open(t, path)
	b := s.Begin()
	var digests []object.Digest
	for i := range 100 {
		info, encoded := objecttest.Encode(objecttest.Text(uint64(i), 500))
		for range 2 {
			if err := b.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
				t.Fatal(err)
			}
		}
		digests = append(digests, info.Digest)
	}
	if b.Len() != 100 {
		t.Errorf("%d pending", b.Len())
	}
	if infos, err := s.Stat(ctx, digests); err != nil || len(infos) != 0 {
		t.Errorf("visible before commit: %d, %v", len(infos), err)
	}
	if err := b.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if infos, err := s.Stat(ctx, digests); err != nil || len(infos) != 100 {
		t.Errorf("after commit: %d, %v", len(infos), err)
	}
	info, encoded := objecttest.Encode(objecttest.Text(1000, 500))
	if err := b.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
		t.Fatal(err)
	}
	if err := b.Abort(); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if infos, err := s.Stat(ctx, []object.Digest{info.Digest}); err != nil || len(infos) != 0 {
		t.Errorf("aborted, but there: %v, %v", infos, err)
	}
	if left := files(t, filepath.Join(path, "tmp")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

const (
	putterPath = "DIR_TEST_PUTTER"
	workerPath = "DIR_TEST_WORKER"
)

// TestMain lets the test be its own second process, which is killed.
func TestMain(m *testing.M) {
	if path := os.Getenv(putterPath); path != "" {
		if err := putForever(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	if path := os.Getenv(workerPath); path != "" {
		if err := workForever(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// putForever commits batches and says which ones are durable.
func putForever(path string) error {
	ctx := context.Background()
	s, err := dir.Open(path)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		b := s.Begin()
		for i := range 40 {
			info, encoded := objecttest.Encode(objecttest.Text(uint64(n*40+i), 700))
			if err := b.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
				return err
			}
		}
		if err := b.Commit(ctx); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// What was acknowledged is there after kill -9, everything that is there is
// whole, and what was unfinished goes away.
func TestKilled(t *testing.T) {
	path := memory(t)
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), putterPath+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acknowledged := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if acknowledged++; acknowledged == 3 {
				time.Sleep(time.Duration(round) * 7 * time.Millisecond)
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || acknowledged < 3 {
			t.Fatalf("%d batches, %v", acknowledged, err)
		}
		s, err := dir.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range acknowledged * 40 {
			content := objecttest.Text(uint64(i), 700)
			r, err := s.Open(context.Background(), object.Of(content))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Errorf("acknowledged, but %v", err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		if left := files(t, filepath.Join(path, "tmp")); len(left) != 1 {
			t.Errorf("left behind: %v", left)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What was acknowledged is there after kill -9, also while objects are deleted
// and packs are written anew, and what was deleted is not.
func TestKilledWhileDeleting(t *testing.T) {
	path := memory(t)
	there, unknown := make(map[int]bool), make(map[int]bool)
	for round := range 4 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), workerPath+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		clear(unknown)
		count := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var what string
			var i int
			if _, err := fmt.Sscan(lines.Text(), &what, &i); err != nil {
				t.Fatal(err)
			}
			switch what {
			case "+":
				delete(unknown, i)
				there[i] = true
			case "?":
				unknown[i] = true
			case "-":
				delete(unknown, i)
				there[i] = false
			}
			if count++; count == 800 {
				time.Sleep(time.Duration(round) * 9 * time.Millisecond)
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || count < 800 {
			t.Fatalf("%d lines, %v", count, err)
		}
		s, err := dir.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range there {
			infos, err := s.Stat(t.Context(), []object.Digest{worked(i).Digest})
			if err != nil || !unknown[i] && want != (len(infos) == 1) {
				t.Errorf("object %d: there %t, want %t, %v", i, len(infos) == 1, want, err)
			}
		}
		// Whatever is there is whole.
		var all []object.Digest
		if err := s.List(t.Context(), func(info object.Info) error { all = append(all, info.Digest); return nil }); err != nil {
			t.Error(err)
		}
		readAll(t, s, all)
		if objects, packs := s.Quarantined(); len(objects)+len(packs) > 0 {
			t.Errorf("damaged: %v, %v", objects, packs)
		}
		if left := files(t, filepath.Join(path, "tmp")); len(left) != 1 {
			t.Errorf("left behind: %v", left)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A second process does not clean up under the first one's feet.
func TestTwoAtOnce(t *testing.T) {
	ctx := context.Background()
	path := memory(t)
	first := open(t, path)
	b := first.Begin()
	info, encoded := objecttest.Encode(objecttest.Text(1, 1000))
	if err := b.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
		t.Fatal(err)
	}
	second := open(t, path)
	if err := b.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if infos, err := second.Stat(ctx, []object.Digest{info.Digest}); err != nil || len(infos) != 1 {
		t.Errorf("%v, %v", infos, err)
	}
}

// BenchmarkBatch adds 12,000 small objects, the number in a small system.
func BenchmarkBatch(b *testing.B) {
	ctx := context.Background()
	for b.Loop() {
		s := open(b, memory(b))
		batch := s.Begin()
		for i := range 12_000 {
			info, encoded := objecttest.Encode(objecttest.Text(uint64(i), 2000))
			if err := batch.Put(ctx, info, bytes.NewReader(encoded)); err != nil {
				b.Fatal(err)
			}
		}
		if err := batch.Commit(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
