package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
)

// TestKilledSometimes is a few rounds of TestKilledOften, which is among the long
// tests.
func TestKilledSometimes(t *testing.T) {
	t.Parallel()
	killOften(t, 6)
}

// killOften kills the server again and again while images are added, deleted and
// their garbage is collected. Nothing that was acknowledged is lost, and nothing
// that is there is damaged.
func killOften(t *testing.T, kills int) {
	t.Helper()
	data := t.TempDir()
	args := []string{"--data", data, "--insecure", "--scrub-rate", "1000", "--scrub-interval", "100ms"}
	acknowledged := map[string][]object.Digest{}
	doubtful := map[string]bool{}
	sizes := slices.Repeat([]int{20_000}, 40)
	sizes = append(sizes, 300_000)
	n := 0
	for range kills {
		server := start(t, args...)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Duration(50+rand.IntN(400))*time.Millisecond, func() { server.kill(t); cancel() })
		c, err := client.Dial(ctx, client.Options{Address: server.address})
		for err == nil {
			n++
			name := fmt.Sprintf("a/%d", n)
			doubtful[name] = true
			var digests []object.Digest
			if digests, err = tryAdd(ctx, c, name, uint64(n)*100, sizes...); err != nil {
				break
			}
			delete(doubtful, name)
			acknowledged[name] = digests
			if n%3 != 0 {
				continue
			}
			gone := fmt.Sprintf("a/%d", n-1)
			doubtful[gone] = true
			delete(acknowledged, gone)
			if _, err = c.Delete(ctx, gone, object.Digest{}); err == nil {
				_, err = c.CollectGarbage(ctx, 0, false, nil)
			}
		}
		<-ctx.Done()
		if c != nil {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	server := start(t, args...)
	c := insecure(t, server.address)
	for name, digests := range acknowledged {
		if _, err := c.Manifest(t.Context(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := fetchAll(t.Context(), c, digests); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	images, err := c.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range images {
		if acknowledged[image.Name] == nil && !doubtful[image.Name] {
			t.Errorf("%s is there again", image.Name)
		}
	}
	left, err := filepath.Glob(filepath.Join(data, "tmp", "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if damaged := metric(t, server.address, "imageserver_quarantined_objects", ""); damaged > 0 {
		t.Errorf("%.0f objects are damaged", damaged)
	}
	t.Logf("%d kills; %d images acknowledged of %d", kills, len(acknowledged), n)
}
