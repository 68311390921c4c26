package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/child"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
)

// The credentials of the S3 servers of these tests; TestMain puts them into the
// environment, where image servers look for them.
const bucketKey, bucketSecret = "test", "testtest"

// gateway is versitygw as a process.
type gateway struct {
	address, root string
	binary        string
	process       *child.Child
}

// versitygw builds the program once. It stays among what is built: the go command
// leaves a program as it is that is still right.
var versitygw = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs(filepath.Join("..", "build", "test", "versitygw"))
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", path, "github.com/versity/versitygw/cmd/versitygw").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building versitygw: %w\n%s", err, out)
	}
	return path, nil
})

// newGateway starts an S3 server with an empty bucket.
func newGateway(t *testing.T) (g *gateway, store string) {
	t.Helper()
	binary, err := versitygw()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g = &gateway{address: l.Addr().String(), root: t.TempDir(), binary: binary}
	if err := errors.Join(l.Close(), os.Mkdir(filepath.Join(g.root, "images"), 0o755)); err != nil {
		t.Fatal(err)
	}
	g.start(t)
	t.Cleanup(func() { g.process.Stop(0) })
	return g, "s3://images/site?endpoint=http://" + g.address
}

func (g *gateway) start(t *testing.T) {
	t.Helper()
	cmd := exec.Command(g.binary, "--port", g.address, "--access", bucketKey, "--secret", bucketSecret, "--quiet", "posix", g.root)
	var err error
	if g.process, err = child.Start(cmd, false); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", g.address); err == nil {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("versitygw does not listen")
		}
	}
}

// TestBucket: two servers on one bucket serve the same images without talking to
// each other. One is killed in the middle of an upload, and the other neither loses
// nor invents anything; the S3 server goes away and comes back; what is damaged in
// the bucket or in a cache is never sent, and is repaired.
func TestBucket(t *testing.T) {
	t.Parallel()
	g, store := newGateway(t)
	caches := []string{t.TempDir(), t.TempDir()}
	servers := make([]*process, 2)
	for i, cache := range caches {
		servers[i] = start(t, "--data", cache, "--store", store, "--insecure", "--scrub-rate", "0", "--cache-size", "0.1")
	}
	a, b := insecure(t, servers[0].address), insecure(t, servers[1].address)
	var sizes []int
	for i := range 800 {
		sizes = append(sizes, 100+i*10)
	}
	sizes = append(sizes, 3<<20, 400_000)
	digests := addImage(t, a, "debian/12/1", 0, sizes...)
	found, err := b.Manifest(t.Context(), "debian/12")
	if err != nil || found.Name != "debian/12/1" {
		t.Fatalf("through the other: %s, %v", found.Name, err)
	}
	for digest, stored := range found.Stored {
		if stored == 0 {
			t.Errorf("%s has no stored size", digest)
		}
	}
	for range 2 {
		if err := fetchAll(t.Context(), b, digests); err != nil {
			t.Fatal(err)
		}
	}
	for what, least := range map[string]float64{`cache="s3",result="hit"`: 802, `cache="s3",result="miss"`: 1} {
		if n := metric(t, servers[1].address, "imageserver_cache_requests_total", what); n < least {
			t.Errorf("%.0f of %s", n, what)
		}
	}
	if n := metric(t, servers[1].address, "imageserver_backend_request_duration_seconds_count", `backend="s3",op="get"`); n == 0 || n > 40 {
		t.Errorf("%.0f requests to the bucket", n)
	}
	// Names: the same for both, at once.
	if _, _, err := a.Promote(t.Context(), "debian/12/1", "stable"); err != nil {
		t.Fatal(err)
	}
	if found, err := b.Find(t.Context(), "stable"); err != nil || found.Name != "debian/12/1" {
		t.Errorf("%s, %v", found.Name, err)
	}
	both := make([]error, 2)
	var race sync.WaitGroup
	for i, c := range []*client.Client{a, b} {
		race.Go(func() { _, both[i] = tryAdd(t.Context(), c, "race/1", uint64(5000+i), 1000) })
	}
	race.Wait()
	if (both[0] == nil) == (both[1] == nil) {
		t.Errorf("of two images of one name: %v, %v", both[0], both[1])
	}

	// One dies while it takes an upload.
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, func() { servers[0].kill(t); cancel() })
	var acknowledged [][]object.Digest
	for n := 0; ; n++ {
		one, err := tryAdd(ctx, a, fmt.Sprintf("killed/%d", n), uint64(n)*1000+9000, 20_000, 30_000, 40_000)
		if err != nil {
			break
		}
		acknowledged = append(acknowledged, one)
	}
	images, err := b.List(t.Context(), "killed")
	if err != nil || len(images) < len(acknowledged) || len(images) > len(acknowledged)+1 {
		t.Errorf("%d images of %d acknowledged, %v", len(images), len(acknowledged), err)
	}
	for _, one := range acknowledged {
		if err := fetchAll(t.Context(), b, one); err != nil {
			t.Error(err)
		}
	}

	// The bucket is away: what is in the cache is given out, and what is not is a
	// matter of time.
	g.process.Stop(0)
	if err := fetchAll(t.Context(), b, digests); err != nil {
		t.Error("without the bucket:", err)
	}
	if found, err := b.Find(t.Context(), "debian/12"); err != nil || found.Name != "debian/12/1" {
		t.Errorf("without the bucket: %s, %v", found.Name, err)
	}
	_, err = tryAdd(t.Context(), b, "away/1", 77, 1000)
	var coded *client.Error
	if !errors.As(err, &coded) || coded.Code() != client.CodeLost {
		t.Errorf("adding without the bucket: %v", err)
	}
	if text := get(t, servers[1].address, "/readyz"); !strings.Contains(text, "not ready") {
		t.Error(text)
	}
	g.start(t)
	if _, err := tryAdd(t.Context(), b, "away/1", 77, 1000); err != nil {
		t.Error("with the bucket again:", err)
	}
	healBucket(t, g, servers[1], b, caches[1], digests, sizes)
}

// healBucket damages the cache, then the bucket.
func healBucket(t *testing.T, g *gateway, server *process, c *client.Client, cache string, digests []object.Digest, sizes []int) {
	t.Helper()
	for _, directory := range []string{filepath.Join(cache, "packs"), filepath.Join(g.root, "images", "site", "packs")} {
		packs, err := filepath.Glob(filepath.Join(directory, "*.pack"))
		if err != nil || len(packs) == 0 {
			t.Fatal(packs, err)
		}
		largest := packs[0]
		for _, one := range packs {
			if size(t, one) > size(t, largest) {
				largest = one
			}
		}
		file, err := os.OpenFile(largest, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		flipped := make([]byte, 1)
		if _, err := file.ReadAt(flipped, 1<<20); err != nil {
			t.Fatal(err)
		}
		flipped[0] ^= 4
		if _, err := file.WriteAt(flipped, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The bucket's copy is damaged too, so what is in the cache cannot be mended: it is
	// refused, and gone; added again it is whole.
	if err := fetchAll(t.Context(), c, digests); err == nil || !strings.Contains(err.Error(), "what the digest says") {
		t.Error(err)
	}
	if text := get(t, server.address, "/readyz?verbose"); !strings.Contains(text, "[!] quarantine: 1 damaged objects") {
		t.Error(text)
	}
	addImage(t, c, "debian/12/1", 0, sizes...)
	if err := fetchAll(t.Context(), c, digests); err != nil {
		t.Error(err)
	}
	if text := get(t, server.address, "/readyz?verbose"); !strings.Contains(text, "[+] quarantine: empty") {
		t.Error(text)
	}
}

// TestBucketGarbage: garbage is collected through one server, without any grace,
// while images are added and deleted through the other. No image that was
// acknowledged ever lacks an object, and in the end the room is had back.
func TestBucketGarbage(t *testing.T) {
	t.Parallel()
	g, store := newGateway(t)
	servers := make([]*process, 2)
	for i := range servers {
		servers[i] = start(t, "--data", t.TempDir(), "--store", store, "--insecure", "--scrub-rate", "0")
	}
	stop := make(chan struct{})
	var collecting sync.WaitGroup
	collector := insecure(t, servers[0].address)
	collections := 0
	collecting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := collector.CollectGarbage(t.Context(), 0, false, nil); err != nil {
				t.Error(err)
				return
			}
			collections++
		}
	})
	c := insecure(t, servers[1].address)
	sizes := []int{5000, 6000, 300_000, 7000, 8000}
	for n := range 15 {
		name := fmt.Sprintf("s/%d", n)
		var digests []object.Digest
		for deadline := time.Now().Add(20 * time.Second); ; {
			var err error
			if digests, err = tryAdd(t.Context(), c, name, uint64(n%3), sizes...); err == nil {
				break
			}
			var coded *client.Error
			if !errors.As(err, &coded) || coded.Code() != client.CodeRefused || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		if err := fetchAll(t.Context(), c, digests); err != nil {
			t.Fatalf("image %s is not whole: %v", name, err)
		}
		if n%2 == 1 {
			if _, err := c.Delete(t.Context(), name, object.Digest{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(stop)
	collecting.Wait()
	images, err := c.List(t.Context(), "")
	if err != nil || len(images) != 8 {
		t.Fatalf("%d images, %v", len(images), err)
	}
	for _, one := range images {
		found, err := c.Manifest(t.Context(), one.Name)
		if err != nil {
			t.Fatal(err)
		}
		var digests []object.Digest
		for digest := range found.Stored {
			digests = append(digests, digest)
		}
		if err := fetchAll(t.Context(), c, digests); err != nil {
			t.Errorf("%s: %v", one.Name, err)
		}
	}
	for _, one := range images {
		if _, err := c.Delete(t.Context(), one.Name, object.Digest{}); err != nil {
			t.Fatal(err)
		}
	}
	// The first deletes, the second frees what is deleted.
	for range 2 {
		if _, err := collector.CollectGarbage(t.Context(), 0, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	packs, err := filepath.Glob(filepath.Join(g.root, "images", "site", "packs", "*"))
	if err != nil || len(packs) != 0 {
		t.Errorf("%d packs are left, %v", len(packs), err)
	}
	t.Logf("%d collections", collections)
}
