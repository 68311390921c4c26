package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

func insecure(t *testing.T, address string) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Options{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// addImage adds an image of files of these sizes and returns its objects, the
// manifest last.
func addImage(t *testing.T, c *client.Client, name string, seed uint64, sizes ...int) []object.Digest {
	t.Helper()
	digests, err := tryAdd(t.Context(), c, name, seed, sizes...)
	if err != nil {
		t.Fatal(err)
	}
	return digests
}

// tryAdd is addImage that may fail.
func tryAdd(ctx context.Context, c *client.Client, name string, seed uint64, sizes ...int) ([]object.Digest, error) {
	m := &image.Manifest{Entries: []image.Entry{{Path: ".", Type: image.Dir, Mode: 0o755}}}
	var digests []object.Digest
	n := 0
	err := c.Upload(ctx, func(context.Context) (client.Offer, error) {
		if n == len(sizes) {
			return client.Offer{}, io.EOF
		}
		data := objecttest.Noise(seed+uint64(n), sizes[n])
		o := offer(data)
		digests = append(digests, o.Digest)
		m.Entries = append(m.Entries, image.Entry{Path: fmt.Sprintf("f%06d", n), Type: image.File, Mode: 0o644, Size: o.Size, Digest: o.Digest})
		n++
		return o, nil
	})
	if err != nil {
		return nil, err
	}
	raw, err := image.Encode(m)
	if err != nil {
		return nil, err
	}
	_, _, err = c.AddImage(ctx, name, raw)
	return append(digests, object.Of(raw)), err
}

// fetchAll fetches and verifies objects.
func fetchAll(ctx context.Context, c *client.Client, digests []object.Digest) error {
	verifiers := map[object.Digest]*zstd.Verifier{}
	err := c.Fetch(ctx, digests, func(p object.Piece) error {
		v := verifiers[p.Digest]
		if v == nil {
			v = zstd.NewVerifier(p.Info)
			verifiers[p.Digest] = v
		}
		return v.Add(p)
	})
	for _, v := range verifiers {
		if verdict := v.Close(); err == nil {
			err = verdict
		}
	}
	return err
}

// metric is the sum of a metric over its labels that contain what.
func metric(t *testing.T, address, name, what string) float64 {
	t.Helper()
	var sum float64
	for line := range strings.Lines(get(t, address, "/metrics")) {
		if strings.HasPrefix(line, name) && strings.Contains(line, what) {
			var value float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &value); err != nil {
				t.Fatal(line, err)
			}
			sum += value
		}
	}
	return sum
}

func get(t *testing.T, address, path string) string {
	t.Helper()
	answer, err := http.Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// TestUpstream: a cache gives out what upstream has, fetches each object once
// however many ask at once, serves on without upstream, and heals what its disk
// damaged.
func TestUpstream(t *testing.T) {
	t.Parallel()
	above := start(t, "--data", t.TempDir(), "--insecure")
	var sizes []int
	for i := range 700 {
		sizes = append(sizes, 100+i*20)
	}
	// Pieces of large objects come mixed.
	sizes = append(sizes, 3<<20, 400_000, 3<<20+1, 3<<20+2, 3<<20+3)
	digests := addImage(t, insecure(t, above.address), "debian/12/1", 0, sizes...)
	sent := metric(t, above.address, "imageserver_sent_bytes_total", "")

	data := t.TempDir()
	cache := start(t, "--data", data, "--insecure", "--upstream", above.address, "--scrub-interval", "1s", "--scrub-rate", "1000")
	// Nothing is here yet; the sizes are upstream's.
	if found, err := insecure(t, cache.address).Manifest(t.Context(), "debian/12"); err != nil || len(found.Stored) != len(sizes) {
		t.Errorf("%d stored sizes of %d, %v", len(found.Stored), len(sizes), err)
	} else {
		for digest, stored := range found.Stored {
			if stored == 0 {
				t.Errorf("%s has no stored size", digest)
			}
		}
	}
	var stampede sync.WaitGroup
	for range 12 {
		c := insecure(t, cache.address)
		stampede.Go(func() {
			found, err := c.Manifest(t.Context(), "debian/12")
			if err != nil || found.Digest != digests[len(digests)-1] {
				t.Errorf("manifest: %s, %v", found.Digest, err)
				return
			}
			if err := fetchAll(t.Context(), c, digests); err != nil {
				t.Error(err)
			}
		})
	}
	stampede.Wait()
	var total float64
	for _, size := range sizes {
		total += float64(size)
	}
	if got := metric(t, above.address, "imageserver_sent_bytes_total", "") - sent; got > 1.1*total+1<<20 {
		t.Errorf("upstream sent %.0f bytes, the image has %.0f", got, total)
	}
	// The manifest and each object was missed once; the other eleven clients hit.
	misses := metric(t, cache.address, "imageserver_cache_requests_total", `cache="upstream",result="miss"`)
	hits := metric(t, cache.address, "imageserver_cache_requests_total", `cache="upstream",result="hit"`)
	if all := float64(len(digests)); misses < all || misses > 1.1*all || hits < 10*all {
		t.Errorf("%.0f misses and %.0f hits of %.0f objects and 12 clients", misses, hits, all)
	}
	for _, op := range []string{"find", "have", "fetch", "manifest"} {
		if metric(t, cache.address, "imageserver_backend_request_duration_seconds_count", `backend="upstream",op="`+op+`"`) == 0 {
			t.Errorf("upstream was not timed for %s", op)
		}
	}
	for name, what := range map[string]string{
		"imageserver_object_requests_total":                  `code="OK",op="get"`,
		"imageserver_objects":                                "",
		"imageserver_stored_bytes":                           "",
		"imageserver_images":                                 "",
		"imageserver_backend_request_duration_seconds_count": `backend="dir"`,
		"grpc_server_handled_total":                          `grpc_code="OK"`,
	} {
		if metric(t, above.address, name, what) == 0 {
			t.Errorf("no %s{%s} in\n%s", name, what, get(t, above.address, "/metrics"))
		}
	}
	c := insecure(t, cache.address)
	if err := c.Upload(t.Context(), func(context.Context) (client.Offer, error) { return offer([]byte("x")), nil }); err == nil || !strings.Contains(err.Error(), above.address) {
		t.Errorf("upload to a cache: %v", err)
	}
	if _, err := c.Find(t.Context(), "fedora"); err == nil || !strings.Contains(err.Error(), "no image") {
		t.Errorf("%v", err)
	}

	// A file and a pack are damaged: the fetch that meets it goes on.
	large := object.Of(objecttest.Noise(701, 400_000))
	damage(t, filepath.Join(data, "objects", large.Hex()[:2], large.Hex()), 200_000)
	packs, err := filepath.Glob(filepath.Join(data, "packs", "*.pack"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	damage(t, slices.MaxFunc(packs, func(a, b string) int { return cmp.Compare(size(t, a), size(t, b)) }), 100_000)
	if err := fetchAll(t.Context(), c, digests); err != nil {
		t.Error("while healing:", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for metric(t, cache.address, "imageserver_healed_objects_total", "") < 2 {
		if time.Now().After(deadline) {
			t.Fatal(get(t, cache.address, "/readyz?verbose"))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if text := get(t, cache.address, "/readyz?verbose"); !strings.Contains(text, "[+] quarantine: empty") || !strings.Contains(text, "2 found damaged, 2 healed") {
		t.Error(text)
	}

	above.kill(t)
	found, err := c.Manifest(t.Context(), "debian/12")
	if err != nil || found.Name != "debian/12/1" {
		t.Errorf("without upstream: %s, %v", found.Name, err)
	}
	if err := fetchAll(t.Context(), c, digests); err != nil {
		t.Error("without upstream:", err)
	}
	// What is not here is a matter of time, not of the request.
	err = c.Fetch(t.Context(), []object.Digest{object.Of([]byte("elsewhere"))}, func(object.Piece) error { return nil })
	if coded, ok := err.(*client.Error); !ok || coded.Code() != client.CodeLost {
		t.Error(err)
	}
}

func size(t *testing.T, name string) int64 {
	t.Helper()
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func damage(t *testing.T, name string, at int) {
	t.Helper()
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	damaged := bytes.Clone(whole)
	damaged[at] ^= 1
	if err := os.WriteFile(name, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestQuarantine: without upstream, damage is shown, and adding again repairs it.
func TestQuarantine(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	server := start(t, "--data", data, "--insecure", "--scrub-rate", "0")
	c := insecure(t, server.address)
	digests := addImage(t, c, "a/1", 0, 1000, 2000, 3000)
	packs, err := filepath.Glob(filepath.Join(data, "packs", "*.pack"))
	if err != nil || len(packs) != 2 {
		t.Fatal(packs, err)
	}
	damage(t, packs[0], 16+500)
	if err := fetchAll(t.Context(), c, digests); err == nil || !strings.Contains(err.Error(), "what the digest says") {
		t.Error(err)
	}
	have, err := c.Have(t.Context(), digests)
	gone := 0
	for _, h := range have {
		if !h {
			gone++
		}
	}
	if err != nil || gone != 1 {
		t.Errorf("%d objects gone, %v", gone, err)
	}
	for path, want := range map[string]string{
		"/readyz?verbose": "[!] quarantine: 1 damaged objects",
		"/readyz":         "ok\n",
		"/metrics":        "imageserver_quarantined_objects 1\n",
		"/":               "Damaged objects were moved aside",
	} {
		if text := get(t, server.address, path); !strings.Contains(text, want) {
			t.Errorf("%s lacks %q:\n%s", path, want, text)
		}
	}
	addImage(t, c, "a/1", 0, 1000, 2000, 3000)
	if err := fetchAll(t.Context(), c, digests); err != nil {
		t.Error(err)
	}
	if text := get(t, server.address, "/metrics"); !strings.Contains(text, "imageserver_quarantined_objects 0\n") {
		t.Error("still quarantined")
	}
}
