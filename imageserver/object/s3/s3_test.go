package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/object/s3"
)

// gateway is a real S3 server in this process, whose buckets are directories. There
// can be one in a process.
var gateway struct {
	directory, address string
	buckets            atomic.Uint64
}

func TestMain(m *testing.M) {
	code, err := serve(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func serve(m *testing.M) (code int, err error) {
	if gateway.directory, err = os.MkdirTemp("", "firstlight-s3-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(gateway.directory)) }()
	os.Setenv("AWS_ACCESS_KEY_ID", "test")
	os.Setenv("AWS_SECRET_ACCESS_KEY", "testtest")
	// This changes the working directory, and relies on that.
	backend, err := posix.New(gateway.directory, meta.XattrMeta{}, posix.PosixOpts{NewDirPerm: 0o755, Concurrency: 64})
	if err != nil {
		return 1, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1, err
	}
	gateway.address = l.Addr().String()
	if err := l.Close(); err != nil {
		return 1, err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
			RootUserAccess: "test", RootUserSecret: "testtest", Ports: []string{gateway.address},
			MaxConnections: 1000, MaxRequests: 500, MultipartMaxParts: 10000, Quiet: true, KeepAlive: true,
		})
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", gateway.address); err == nil {
			c.Close()
			break
		}
		select {
		case err := <-ended:
			stop()
			return 1, fmt.Errorf("the S3 server ended: %w", err)
		default:
		}
		if time.Now().After(deadline) {
			stop()
			return 1, errors.New("the S3 server does not listen")
		}
	}
	// Its end would wait for connections that clients keep; it dies with the process.
	defer stop()
	return m.Run(), nil
}

// newBucket is an empty bucket, by its URL and its directory.
func newBucket(t *testing.T) (location, directory string) {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", gateway.buckets.Add(1))
	directory = filepath.Join(gateway.directory, name)
	if err := os.Mkdir(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	return "s3://" + name + "/site?endpoint=http://" + gateway.address, filepath.Join(directory, "site")
}

// asked counts questions to the cache and to the bucket.
type asked struct {
	hits, misses atomic.Int64
	requests     sync.Map // op → *atomic.Int64
}

func (a *asked) observe(op string, _ time.Duration) {
	n, _ := a.requests.LoadOrStore(op, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
}

func (a *asked) of(op string) int64 {
	n, ok := a.requests.Load(op)
	if !ok {
		return 0
	}
	return n.(*atomic.Int64).Load()
}

func open(t *testing.T, location, cache string, size uint64) (*s3.Store, *asked) {
	t.Helper()
	a := new(asked)
	bucket, err := s3.OpenBucket(location, a.observe)
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3.Open(t.Context(), s3.Options{
		Bucket: bucket, Cache: cache, CacheBytes: size, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Asked: func(hit bool) {
			if hit {
				a.hits.Add(1)
			} else {
				a.misses.Add(1)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, os.ErrClosed) { // a test may have closed it
			t.Error(err)
		}
	})
	return s, a
}

func TestStore(t *testing.T) {
	objecttest.TestStore(t, func(t *testing.T) object.Store {
		location, _ := newBucket(t)
		s, _ := open(t, location, t.TempDir(), 1<<30)
		return s
	})
}

// TestWithoutCache: a cache that holds nothing changes nothing.
func TestWithoutCache(t *testing.T) {
	objecttest.TestStore(t, func(t *testing.T) object.Store {
		location, _ := newBucket(t)
		s, _ := open(t, location, t.TempDir(), 0)
		return s
	})
}

// fill puts n objects of a size and returns their digests.
func fill(t *testing.T, s *s3.Store, seed, n, size int) []object.Digest {
	t.Helper()
	b := s.Begin()
	defer b.Abort()
	var digests []object.Digest
	for i := range n {
		info, encoded := objecttest.Encode(objecttest.Noise(uint64(seed+i), size))
		if err := b.Put(t.Context(), info, bytes.NewReader(encoded)); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, info.Digest)
	}
	if err := b.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return digests
}

// check reads objects to their ends.
func check(s object.Getter, digests []object.Digest) error {
	for _, d := range digests {
		r, err := s.Open(context.Background(), d)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

func nothing(context.Context) (map[object.Digest]bool, error) { return nil, nil }

// TestTwoServers: what one puts or deletes, the other knows, and the room of what
// is deleted is had back.
func TestTwoServers(t *testing.T) {
	location, directory := newBucket(t)
	a, _ := open(t, location, t.TempDir(), 1<<30)
	b, asked := open(t, location, t.TempDir(), 1<<30)
	digests := fill(t, a, 0, 300, 3000)
	digests = append(digests, fill(t, a, 1000, 2, 3<<20)...)
	if err := check(b, digests); err != nil {
		t.Fatal(err)
	}
	// Not one request for each object.
	if n := asked.of("get"); n > 60 {
		t.Errorf("%d requests for %d objects in two packs", n, len(digests))
	}
	if err := check(b, digests); err != nil {
		t.Fatal(err)
	}
	if asked.hits.Load() < int64(len(digests)) {
		t.Errorf("%d hits, %d misses", asked.hits.Load(), asked.misses.Load())
	}
	if err := b.DeleteMany(t.Context(), digests[10:]); err != nil {
		t.Fatal(err)
	}
	if err := a.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	infos, err := a.Stat(t.Context(), digests)
	if err != nil || len(infos) != 10 {
		t.Errorf("%d objects, %v", len(infos), err)
	}
	// Both at once change what is dead of the same pack.
	var both sync.WaitGroup
	for i, s := range []*s3.Store{a, b, a, b} {
		both.Go(func() {
			if err := s.Revive(t.Context(), digests[20+i*10:30+i*10]); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if err := errors.Join(a.Refresh(t.Context()), b.Refresh(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*s3.Store{a, b} {
		if infos, err := s.Stat(t.Context(), digests); err != nil || len(infos) != 50 {
			t.Errorf("%d objects, %v", len(infos), err)
		}
		if err := check(s, digests[20:60]); err != nil {
			t.Error(err)
		}
	}
	before := bucketSize(t, directory)
	if err := a.Free(t.Context(), time.Hour, nothing); err != nil {
		t.Fatal(err)
	}
	// What was copied together leaves its old pack at the next time.
	if err := a.Free(t.Context(), 0, nothing); err != nil {
		t.Fatal(err)
	}
	if after := bucketSize(t, directory); after > before/4 {
		t.Errorf("%d bytes of %d are left", after, before)
	}
	for _, s := range []*s3.Store{a, b} {
		if err := check(s, append(digests[:10:10], digests[20:60]...)); err != nil {
			t.Error(err)
		}
		if err := check(s, digests[70:71]); !errors.Is(err, object.ErrNotFound) {
			t.Error(err)
		}
	}
}

func bucketSize(t *testing.T, directory string) (sum int64) {
	t.Helper()
	err := filepath.WalkDir(directory, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			info, infoErr := e.Info()
			if infoErr != nil {
				return infoErr
			}
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// TestNeededComesBack: what an image that has just come needs is not freed.
func TestNeededComesBack(t *testing.T) {
	location, _ := newBucket(t)
	s, _ := open(t, location, t.TempDir(), 1<<30)
	digests := fill(t, s, 0, 50, 3000)
	if err := s.DeleteMany(t.Context(), digests); err != nil {
		t.Fatal(err)
	}
	needs := 0
	if err := s.Free(t.Context(), 0, func(context.Context) (map[object.Digest]bool, error) {
		needs++
		return map[object.Digest]bool{digests[7]: needs == 2}, nil // between the two looks
	}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Refresh(t.Context()), s.Revive(t.Context(), digests[7:8]), check(s, digests[7:8])); err != nil {
		t.Error(err)
	}
	if err := s.Free(t.Context(), 0, nothing); err != nil {
		t.Fatal(err)
	}
	if err := check(s, digests[7:8]); err != nil {
		t.Error(err)
	}
}

// TestCacheLimit: the cache does not outgrow its limit, and outlives its process.
func TestCacheLimit(t *testing.T) {
	location, _ := newBucket(t)
	writer, _ := open(t, location, t.TempDir(), 0)
	var all [][]object.Digest
	for n := range 6 {
		all = append(all, fill(t, writer, n*100, 100, 10_000))
	}
	cache := t.TempDir()
	const limit = 3_500_000
	s, _ := open(t, location, cache, limit)
	for range 2 {
		for _, digests := range all {
			s.Prefetch(digests)
			if err := check(s, digests); err != nil {
				t.Fatal(err)
			}
			if size := bucketSize(t, filepath.Join(cache, "packs")); size > limit {
				t.Errorf("%d bytes in the cache", size)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, asked := open(t, location, cache, limit)
	before := asked.of("get")
	if err := check(again, all[5]); err != nil {
		t.Fatal(err)
	}
	if n := asked.of("get") - before; n != 0 || asked.misses.Load() != 0 {
		t.Errorf("%d requests, %d misses for what was in the cache", n, asked.misses.Load())
	}
	if _, err := s3.Open(t.Context(), s3.Options{Bucket: bucketAt(t, location), Cache: cache, Log: slog.Default()}); err == nil {
		t.Error("two processes with one cache")
	}
}

func bucketAt(t *testing.T, location string) *s3.Bucket {
	t.Helper()
	b, err := s3.OpenBucket(location, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBadLocations: a wrong --store is told with what is wrong.
func TestBadLocations(t *testing.T) {
	for _, location := range []string{"", "bucket", "s3://", "s3://b", "http://b?endpoint=http://x", "s3://b?endpoint=ftp://x", "s3://b?endpoint=http://x/y", "s3://b?endpoint=http://x&zone=1", "s3://key:secret@b?endpoint=http://x"} {
		_, err := s3.OpenBucket(location, nil)
		var coded *s3.Error
		if !errors.As(err, &coded) || coded.Code() != "SRV-016" {
			t.Errorf("%q: %v", location, err)
		}
	}
	// A bucket that is not there, and a server that is not there.
	for _, location := range []string{"s3://nobody?endpoint=http://" + gateway.address, "s3://b?endpoint=http://127.0.0.1:1"} {
		start := time.Now()
		_, err := s3.Open(t.Context(), s3.Options{Bucket: bucketAt(t, location), Cache: t.TempDir(), Log: slog.Default()})
		var coded *s3.Error
		if !errors.As(err, &coded) || coded.Code() != "SRV-016" || time.Since(start) > 30*time.Second {
			t.Errorf("%s: %v after %s", location, err, time.Since(start))
		}
	}
}

// quiet is a log for what is expected a thousand times.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
