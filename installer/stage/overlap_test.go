package stage_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/installer/stage"
)

// What no file can be, by its size, is fetched while files are still being
// read; what a file might be waits until that has been read.
func TestRunFetchesWhileItSearches(t *testing.T) {
	s, need := world()
	fetched := make(chan struct{})
	var once sync.Once
	var early []object.Digest
	s.fault = func(_ int, p *object.Piece) (bool, error) {
		if !p.Last() {
			return true, nil
		}
		select {
		case <-fetched:
		default:
			early = append(early, p.Digest)
		}
		if len(early) == len(need)-2 {
			once.Do(func() { close(fetched) })
		}
		return true, nil
	}
	// Nothing of the tree can be read before everything else has come.
	tree := hanging{fstest.MapFS{
		"same": {Data: s.objects[need[0].Digest]},
		"size": {Data: content(99, int(need[1].Size))},
	}, "same", fetched}
	counts := map[stage.Source]count{}
	got, err := stage.Run(t.Context(), []stage.Fetcher{s}, packFile(t), need, stage.Options{
		Trees: []stage.Tree{{Name: "old", Source: stage.FromOldOS, FS: tree}}, Report: counter(counts),
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, got, s, need)
	if slices.Contains(early, need[0].Digest) || slices.Contains(early, need[1].Digest) {
		t.Error("an object was fetched that the tree might have had")
	}
	if want := (count{1, need[0].Size}); counts[stage.FromOldOS] != want {
		t.Errorf("from the tree %v, want %v", counts[stage.FromOldOS], want)
	}
}

// Partly holds all of what must be, of the rest what it finds and has room for,
// and asks no server for that.
func TestPartly(t *testing.T) {
	s, need := world()
	must, may := need[:3], need
	tree := fstest.MapFS{}
	for n, o := range need {
		if n%2 == 0 || n == 7 {
			tree[fmt.Sprint(n)] = &fstest.MapFile{Data: s.objects[o.Digest]}
		}
	}
	held, missing, err := stage.Partly(t.Context(), []stage.Fetcher{s}, packFile(t), must, may, stage.Options{
		Trees: []stage.Tree{{Name: "old", Source: stage.FromOldOS, FS: tree}}, Limit: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	var want []image.Object
	for n, o := range need {
		if n >= 3 && n%2 == 1 { // the seventh does not fit
			want = append(want, o)
		}
	}
	if diff := cmp.Diff(want, missing); diff != "" {
		t.Error(diff)
	}
	if s.calls == 0 || !held.Has(need[1].Digest) {
		t.Error("what must be was not fetched")
	}
	for _, o := range need {
		if held.Has(o.Digest) == slices.Contains(want, o) {
			t.Errorf("object of %d bytes: held %t", o.Size, held.Has(o.Digest))
		}
	}
}

// Where many files find no room, the others are not read.
func TestPartlyStopsWhenFull(t *testing.T) {
	tree := countedFS{fstest.MapFS{}, map[string]int{}}
	var need []image.Object
	var mu sync.Mutex
	for n := range 4000 {
		data := content(uint64(n), 500)
		tree.FS.(fstest.MapFS)[fmt.Sprint(n)] = &fstest.MapFile{Data: data}
		need = append(need, image.Object{Digest: object.Of(data), Size: 500})
	}
	locked := lockedFS{tree, &mu}
	var log []string
	_, missing, err := stage.Partly(t.Context(), nil, packFile(t), nil, need, stage.Options{
		Trees: []stage.Tree{{Name: "old", Source: stage.FromOldOS, FS: locked}}, Limit: 10_000, Log: func(text string) { log = append(log, text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(missing) < 3900 || len(missing) == 4000 || len(tree.opened) > 2000 {
		t.Errorf("%d missing, %d files read", len(missing), len(tree.opened))
	}
	if text := strings.Join(log, "\n"); !strings.Contains(text, "old: left unfinished: there is no room for more") {
		t.Errorf("the log does not say it:\n%s", text)
	}
}

// lockedFS lets one caller at a time open a file.
type lockedFS struct {
	fs.FS
	mu *sync.Mutex
}

func (l lockedFS) Open(name string) (fs.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.FS.Open(name)
}

// keeper is a sink that remembers what it was given, verified.
type keeper struct {
	mu   sync.Mutex
	have map[object.Digest]int
	*pack.Writer
}

func newKeeper(t *testing.T) *keeper {
	w, err := pack.NewWriter(packFile(t), pack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &keeper{have: map[object.Digest]int{}, Writer: w}
}

func (k *keeper) Append(info object.Info, encoded []byte) error {
	if err := zstd.Verify(info, encoded); err != nil {
		return err
	}
	k.mu.Lock()
	k.have[info.Digest]++
	k.mu.Unlock()
	return k.Writer.Append(info, encoded)
}

// Stream takes from what is held what is whole there, and the rest from the
// server.
func TestStreamTakesWhatIsHeld(t *testing.T) {
	s, need := world()
	file := packFile(t)
	held, _, err := stage.Partly(t.Context(), []stage.Fetcher{s}, file, need[:20], nil, stage.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// A bit of the memory flips.
	stored, err := held.OpenStored(t.Context(), need[5].Digest)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, stored.StoredSize)
	if _, err := stored.Read(b); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 64<<20)
	n, _ := file.ReadAt(data, 0) // to its end
	at := strings.Index(string(data[:n]), string(b))
	if _, err := file.WriteAt([]byte{b[0] ^ 1}, int64(at)); err != nil {
		t.Fatal(err)
	}
	var fetched []object.Digest
	s.fault = func(_ int, p *object.Piece) (bool, error) {
		if p.Last() {
			fetched = append(fetched, p.Digest)
		}
		return true, nil
	}
	k, counts := newKeeper(t), map[stage.Source]count{}
	if err := stage.Stream(t.Context(), []stage.Fetcher{s}, k, need, stage.Options{Held: held, Report: counter(counts)}); err != nil {
		t.Fatal(err)
	}
	check(t, k.Reader(), s, need)
	if len(fetched) != 41 || !slices.Contains(fetched, need[5].Digest) || counts[stage.FromServer].Objects != 41 {
		t.Errorf("%d objects were fetched, reported %v", len(fetched), counts)
	}
	for _, o := range need {
		if o.Size < 1<<20 && k.have[o.Digest] > 1 {
			t.Errorf("object %s came %d times", o.Digest, k.have[o.Digest])
		}
	}
}

// dead is a server that cannot be reached.
type dead struct{ calls *int }

func (d dead) Fetch(context.Context, []object.Digest, func(object.Piece) error) error {
	*d.calls++
	return coded{client.CodeUnreachable}
}

// The next server is asked at once where one does not answer, sends something
// wrong, lacks an object or is not to be trusted.
func TestRunGoesToTheNextServer(t *testing.T) {
	for name, spoil := range map[string]func(first *server, need []image.Object){
		"breaks off": func(first *server, need []image.Object) {
			broken := false
			first.fault = func(_ int, p *object.Piece) (bool, error) {
				if broken = broken || p.Digest == need[20].Digest; broken {
					return false, coded{client.CodeLost}
				}
				return true, nil
			}
		},
		"damaged": func(first *server, need []image.Object) {
			first.fault = func(_ int, p *object.Piece) (bool, error) {
				if p.Digest == need[20].Digest {
					p.Data[0] ^= 1
				}
				return true, nil
			}
		},
		"missing": func(first *server, need []image.Object) { delete(first.objects, need[20].Digest) },
		"untrusted": func(first *server, _ []image.Object) {
			first.fault = func(int, *object.Piece) (bool, error) { return false, coded{"TRU-001"} }
		},
	} {
		t.Run(name, func(t *testing.T) {
			first, need := world()
			second, _ := world()
			spoil(first, need)
			none := 0
			counts := map[stage.Source]count{}
			waited := false
			got, err := stage.Run(t.Context(), []stage.Fetcher{first, dead{&none}, second}, packFile(t), need, stage.Options{
				Streams: 1, Report: counter(counts), Wait: func(string, time.Time) { waited = true },
			})
			if err != nil {
				t.Fatal(err)
			}
			check(t, got, second, need)
			if counts[stage.FromServer].Objects != 60 || none == 0 {
				t.Errorf("reported %v; the dead server was asked %d times", counts, none)
			}
			if waited {
				t.Error("it waited although a server was there")
			}
		})
	}
	// All of them away, for too long.
	_, need := world()
	none := 0
	_, err := stage.Run(t.Context(), []stage.Fetcher{dead{&none}, dead{&none}}, packFile(t), need, stage.Options{Streams: 1, Patience: time.Second})
	var e interface{ Code() string }
	if !errors.As(err, &e) || e.Code() != stage.CodeAway || none < 4 {
		t.Errorf("after %d calls: %v", none, err)
	}
}

// countedFS counts the files that are opened and the bytes read.
type countedFS struct {
	fs.FS
	opened map[string]int
}

func (c countedFS) Open(name string) (fs.File, error) {
	f, err := c.FS.Open(name)
	if err == nil {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			c.opened[name]++
		}
	}
	return f, err
}

// A file is opened only if its size is wanted, and once, also if it is large.
func TestRunReadsNoMoreThanItMust(t *testing.T) {
	s, need := world()
	tree := countedFS{fstest.MapFS{
		"small": {Data: s.objects[need[3].Digest]}, "large": {Data: s.objects[need[7].Digest]},
		"other size": {Data: content(1, 99)}, "empty": {},
	}, map[string]int{}}
	_, _, err := stage.Partly(t.Context(), nil, packFile(t), nil, need, stage.Options{
		Trees: []stage.Tree{{Name: "old", Source: stage.FromOldOS, FS: lockedFS{tree, &sync.Mutex{}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int{"small": 1, "large": 1}, tree.opened); diff != "" {
		t.Error(diff)
	}
}
