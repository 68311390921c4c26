package stage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/installer/stage"
)

// content is n bytes that are packed to about half.
func content(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.IntN(16))
	}
	return b
}

// server is an image server in memory, with faults.
type server struct {
	mu      sync.Mutex
	objects map[object.Digest][]byte // unpacked
	calls   int
	// fault may change a piece, drop it (false), or end the call.
	fault func(call int, p *object.Piece) (send bool, err error)
}

const message = 64 << 10

func (s *server) Fetch(ctx context.Context, digests []object.Digest, f func(object.Piece) error) error {
	s.mu.Lock()
	s.calls++
	call := s.calls
	s.mu.Unlock()
	for _, d := range digests {
		unpacked, ok := s.objects[d]
		if !ok {
			return fmt.Errorf("object %s: %w", d, object.ErrNotFound)
		}
		info := object.Info{Digest: d, Size: uint64(len(unpacked))}
		var encoded []byte
		info.Encoding, encoded = zstd.Encode(nil, unpacked)
		info.StoredSize = uint64(len(encoded))
		for at := 0; at < len(encoded); at += message {
			p := object.Piece{Info: info, Offset: uint64(at), Data: bytes.Clone(encoded[at:min(at+message, len(encoded))])}
			if s.fault != nil {
				s.mu.Lock()
				send, err := s.fault(call, &p)
				s.mu.Unlock()
				if err != nil {
					return err
				}
				if !send {
					continue
				}
			}
			if err := f(p); err != nil {
				return err
			}
			clear(p.Data) // it is valid only until f returns
		}
	}
	return ctx.Err()
}

// world is a server with small and large objects, and what is needed of it.
func world() (*server, []image.Object) {
	s := &server{objects: map[object.Digest][]byte{}}
	var need []image.Object
	for i := range 60 {
		b := content(uint64(i), 100+i*37)
		if i%20 == 7 {
			b = content(uint64(i), 3<<20+i)
		}
		d := object.Of(b)
		s.objects[d] = b
		need = append(need, image.Object{Digest: d, Size: uint64(len(b))})
	}
	return s, need
}

func packFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "pack"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// check reads everything that is needed from objects.
func check(t *testing.T, objects object.Getter, s *server, need []image.Object) {
	t.Helper()
	for _, n := range need {
		r, err := objects.Open(t.Context(), n.Digest)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(got, s.objects[n.Digest]) {
			t.Fatalf("object %s: %d bytes, error %v", n.Digest, len(got), err)
		}
	}
}

type count struct{ Objects, Bytes uint64 }

func counter(counts map[stage.Source]count) func(stage.Source, uint64, uint64) {
	return func(source stage.Source, objects, bytes uint64) {
		c := counts[source]
		counts[source] = count{c.Objects + objects, c.Bytes + bytes}
	}
}

func TestRunTakesFromTreesFirst(t *testing.T) {
	s, need := world()
	file := func(i int) *fstest.MapFile { return &fstest.MapFile{Data: s.objects[need[i].Digest]} }
	booted := fstest.MapFS{
		"usr/lib/small":  file(0),
		"usr/lib/twice":  file(0),
		"run/not/looked": file(1),
	}
	old := fstest.MapFS{
		"vmlinuz":    file(7), // large
		"etc/x":      file(2),
		"etc/small":  file(0), // already there
		"etc/other":  {Data: content(99, int(need[3].Size))},
		"etc/link":   {Data: []byte("/etc/x"), Mode: fs.ModeSymlink},
		"etc/broken": file(27),
	}
	counts := map[stage.Source]count{}
	var log []string
	got, err := stage.Run(t.Context(), []stage.Fetcher{s}, packFile(t), need, stage.Options{
		Trees: []stage.Tree{
			stage.BootedRoot(booted),
			{Name: "/dev/vda2", Source: stage.FromOldOS, FS: rotten{old, "etc/broken"}},
		},
		Report: counter(counts),
		Log:    func(text string) { log = append(log, text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, got, s, need)
	var all uint64
	for _, n := range need {
		all += n.Size
	}
	want := map[stage.Source]count{
		stage.FromBootImage: {1, need[0].Size},
		stage.FromOldOS:     {2, need[2].Size + need[7].Size},
		stage.FromServer:    {57, all - need[0].Size - need[2].Size - need[7].Size},
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Error(diff)
	}
	if text := strings.Join(log, "\n"); !strings.Contains(text, "/dev/vda2: 1 files or directories could not be read") {
		t.Errorf("the log says nothing of the broken file:\n%s", text)
	}
}

// A tree that hangs, or in which nothing is found, is left for the next source.
func TestRunLeavesTreesThatTakeTooLong(t *testing.T) {
	s, need := world()
	size := int(need[3].Size)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	hung := fstest.MapFS{"a": {Data: s.objects[need[0].Digest]}, "b": {Data: content(99, size)}}
	var log []string
	counts := map[stage.Source]count{}
	got, err := stage.Run(t.Context(), []stage.Fetcher{s}, packFile(t), need, stage.Options{
		Trees: []stage.Tree{
			{Name: "hung", Source: stage.FromOldOS, FS: hanging{hung, "b", release}},
			{Name: "next", Source: stage.FromOldOS, FS: fstest.MapFS{"c": {Data: s.objects[need[2].Digest]}}},
		},
		Idle:   200 * time.Millisecond,
		Report: counter(counts),
		Log:    func(text string) { log = append(log, text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, got, s, need)
	if want := (count{2, need[0].Size + need[2].Size}); counts[stage.FromOldOS] != want {
		t.Errorf("from the old system %v, want %v", counts[stage.FromOldOS], want)
	}
	if text := strings.Join(log, "\n"); !strings.Contains(text, "hung: left unfinished") || !strings.Contains(text, "does not answer") {
		t.Errorf("the log says nothing of it:\n%s", text)
	}
}

// hanging is a file-system with one file that nobody can read before release.
type hanging struct {
	fs.FS
	name    string
	release chan struct{}
}

func (h hanging) Open(name string) (fs.File, error) {
	if name == h.name {
		<-h.release
	}
	return h.FS.Open(name)
}

// rotten is a file-system with one file that cannot be read to its end.
type rotten struct {
	fs.FS
	name string
}

func (r rotten) Open(name string) (fs.File, error) {
	f, err := r.FS.Open(name)
	if name == r.name && err == nil {
		return badFile{f}, nil
	}
	return f, err
}

type badFile struct{ fs.File }

func (f badFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p[:min(len(p), 1000)])
	if err != nil {
		return n, err
	}
	return n, errors.New("input/output error")
}

func TestRunAsksAgain(t *testing.T) {
	for name, c := range map[string]func(victim object.Digest) func(int, *object.Piece) (bool, error){
		"flipped bit": func(victim object.Digest) func(int, *object.Piece) (bool, error) {
			return func(call int, p *object.Piece) (bool, error) {
				if p.Digest == victim && call == 1 {
					p.Data[len(p.Data)/2] ^= 1
				}
				return true, nil
			}
		},
		"cut off": func(victim object.Digest) func(int, *object.Piece) (bool, error) {
			return func(call int, p *object.Piece) (bool, error) {
				return p.Digest != victim || call > 1 || !p.Last(), nil
			}
		},
		"piece left out": func(victim object.Digest) func(int, *object.Piece) (bool, error) {
			return func(call int, p *object.Piece) (bool, error) {
				return p.Digest != victim || call > 1 || p.Offset != message, nil
			}
		},
		"wrong size": func(victim object.Digest) func(int, *object.Piece) (bool, error) {
			return func(call int, p *object.Piece) (bool, error) {
				if p.Digest == victim && call == 1 {
					p.Size++
				}
				return true, nil
			}
		},
		"broken connection": func(victim object.Digest) func(int, *object.Piece) (bool, error) {
			return func(call int, p *object.Piece) (bool, error) {
				if call == 1 && p.Digest == victim && p.Offset > 0 {
					return false, errors.New("connection reset by peer")
				}
				return true, nil
			}
		},
		"damaged in the store, noticed by the server": func(victim object.Digest) func(int, *object.Piece) (bool, error) {
			told := 0
			return func(call int, p *object.Piece) (bool, error) {
				if p.Digest == victim && told < 3 { // not more often than the others are asked for without it
					told++
					return false, fmt.Errorf("object %s: %w", victim, object.ErrDamaged)
				}
				return true, nil
			}
		},
		"missing at first, as package client says it": func(victim object.Digest) func(int, *object.Piece) (bool, error) {
			told := 0
			return func(call int, p *object.Piece) (bool, error) {
				if p.Digest == victim && told < 3 {
					told++
					return false, coded{client.CodeNoObject}
				}
				return true, nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, need := world()
			s.fault = c(need[7].Digest)
			counts := map[stage.Source]count{}
			got, err := stage.Run(t.Context(), []stage.Fetcher{s}, packFile(t), need, stage.Options{Report: counter(counts)})
			if err != nil {
				t.Fatal(err)
			}
			check(t, got, s, need)
			if counts[stage.FromServer].Objects != 60 {
				t.Errorf("reported %v", counts)
			}
			if s.calls < 2 {
				t.Error("the fault did not happen")
			}
		})
	}
}

func TestRunGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		code    string
		says    string
		limit   uint64
		spoil   func(s *server, victim object.Digest)
		unnamed bool
	}{
		"missing": {code: stage.CodeMissing, spoil: func(s *server, victim object.Digest) { delete(s.objects, victim) }},
		"damaged each time": {code: stage.CodeDamaged, spoil: func(s *server, victim object.Digest) {
			s.fault = func(_ int, p *object.Piece) (bool, error) {
				if p.Digest == victim {
					p.Data[10] ^= 0x40
				}
				return true, nil
			}
		}},
		"something else in its place": {code: stage.CodeDamaged, spoil: func(s *server, victim object.Digest) {
			s.objects[victim] = content(4711, len(s.objects[victim]))
		}},
		"never sent": {code: stage.CodeMissing, spoil: func(s *server, victim object.Digest) {
			s.fault = func(_ int, p *object.Piece) (bool, error) { return p.Digest != victim, nil }
		}},
		"away": {code: stage.CodeAway, says: "refused", spoil: func(s *server, victim object.Digest) {
			s.fault = func(int, *object.Piece) (bool, error) { return false, errors.New("connection refused") }
		}},
		"damaged in its store, as package client says it": {code: stage.CodeDamaged, spoil: func(s *server, victim object.Digest) {
			s.fault = func(_ int, p *object.Piece) (bool, error) {
				if p.Digest == victim {
					return false, fmt.Errorf("fetching objects: %w", coded{client.CodeDamaged})
				}
				return true, nil
			}
		}, unnamed: true},
		"damaged in its store, then moved aside": {code: stage.CodeDamaged, spoil: func(s *server, victim object.Digest) {
			told := false
			s.fault = func(_ int, p *object.Piece) (bool, error) {
				switch {
				case p.Digest != victim:
					return true, nil
				case told:
					return false, fmt.Errorf("fetching objects: %w", coded{client.CodeNoObject})
				}
				told = true
				return false, fmt.Errorf("object %s: %w", victim, coded{client.CodeDamaged})
			}
		}},
		"always cut off in the same object": {code: stage.CodeAway, spoil: func(s *server, victim object.Digest) {
			s.fault = func(_ int, p *object.Piece) (bool, error) {
				if p.Digest == victim && p.Last() {
					return false, coded{client.CodeLost}
				}
				return true, nil
			}
		}},
		"no room": {code: stage.CodeMemory, limit: 1 << 20, spoil: func(*server, object.Digest) {}},
		"refused": {code: "TRU-004", spoil: func(s *server, victim object.Digest) {
			s.fault = func(int, *object.Piece) (bool, error) { return false, coded{"TRU-004"} }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, i := range []int{5, 7} { // a small one and a large one
				s, need := world()
				c.spoil(s, need[i].Digest)
				begun := time.Now()
				_, err := stage.Run(t.Context(), []stage.Fetcher{s}, packFile(t), need, stage.Options{Limit: c.limit, Patience: 300 * time.Millisecond})
				var e interface{ Code() string }
				if !errors.As(err, &e) || e.Code() != c.code || !strings.Contains(err.Error(), c.says) {
					t.Errorf("error %v", err)
				}
				if c.code == stage.CodeMissing || c.code == stage.CodeDamaged {
					var about *stage.Error
					if !errors.As(err, &about) || about.Object != need[i].Digest || strings.Count(err.Error(), need[i].Digest.String()) != 1 {
						t.Errorf("the error does not name the object, once: %v", err)
					}
				}
				if took := time.Since(begun); took > 20*time.Second {
					t.Errorf("took %s", took)
				}
			}
		})
	}
}

// coded is an error as package client makes them.
type coded struct{ code string }

func (e coded) Error() string { return "refused with " + e.code }
func (e coded) Code() string  { return e.code }

func TestRunGoesOnWhenTheServerIsBack(t *testing.T) {
	s, need := world()
	var back time.Time
	s.fault = func(call int, p *object.Piece) (bool, error) {
		if back.IsZero() {
			if p.Digest != need[30].Digest {
				return true, nil
			}
			back = time.Now().Add(1200 * time.Millisecond)
		}
		if time.Now().Before(back) {
			return false, errors.New("connection refused")
		}
		return true, nil
	}
	var waits []string
	got, err := stage.Run(t.Context(), []stage.Fetcher{s}, packFile(t), need, stage.Options{
		Streams: 1, Patience: time.Minute, Wait: func(reason string, _ time.Time) { waits = append(waits, reason) },
	})
	if err != nil {
		t.Fatal(err)
	}
	check(t, got, s, need)
	if len(waits) < 2 || waits[0] == "" || waits[len(waits)-1] != "" {
		t.Errorf("waits %q", waits)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	s, need := world()
	ctx, cancel := context.WithCancel(t.Context())
	s.fault = func(_ int, p *object.Piece) (bool, error) {
		cancel()
		return false, errors.New("connection reset")
	}
	if _, err := stage.Run(ctx, []stage.Fetcher{s}, packFile(t), need, stage.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// Nothing at all is needed: an image of directories.
func TestRunWithoutObjects(t *testing.T) {
	s, _ := world()
	if _, err := stage.Run(t.Context(), []stage.Fetcher{s}, packFile(t), nil, stage.Options{}); err != nil {
		t.Error(err)
	}
	if s.calls != 0 {
		t.Error("the server was asked for nothing")
	}
}

// What stage itself costs: verifying and keeping what a server sends.
func BenchmarkRun(b *testing.B) {
	s := &server{objects: map[object.Digest][]byte{}}
	var need []image.Object
	var total int64
	encoded := &ready{pieces: map[object.Digest]object.Piece{}}
	for i := range 1500 {
		data := content(uint64(i), 1000+i*40)
		info := object.Info{Digest: object.Of(data), Size: uint64(len(data))}
		p := object.Piece{}
		info.Encoding, p.Data = zstd.Encode(nil, data)
		info.StoredSize = uint64(len(p.Data))
		p.Info = info
		encoded.pieces[info.Digest] = p
		s.objects[info.Digest] = data
		need = append(need, image.Object{Digest: info.Digest, Size: info.Size})
		total += int64(len(data))
	}
	file := packFile(b)
	b.SetBytes(total)
	for b.Loop() {
		if _, err := stage.Run(b.Context(), []stage.Fetcher{encoded}, file, need, stage.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

// ready is a server that has everything encoded already.
type ready struct {
	pieces map[object.Digest]object.Piece
}

func (r *ready) Fetch(_ context.Context, digests []object.Digest, f func(object.Piece) error) error {
	for _, d := range digests {
		if err := f(r.pieces[d]); err != nil {
			return err
		}
	}
	return nil
}
