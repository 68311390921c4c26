package main

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
)

// TestGarbageBesideUploads collects garbage, without any grace, over and over
// while images are added that share their files with images being deleted: no
// image ever lacks an object, and at the end only what is needed is there.
func TestGarbageBesideUploads(t *testing.T) {
	t.Parallel()
	server := start(t, "--data", t.TempDir(), "--insecure", "--scrub-rate", "0")
	stop := make(chan struct{})
	var collecting sync.WaitGroup
	collector := insecure(t, server.address)
	collecting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := collector.CollectGarbage(t.Context(), 0, false, nil); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	c := insecure(t, server.address)
	sizes := []int{5000, 6000, 300_000, 7000, 8000}
	for n := range 15 {
		name := string(rune('a' + n))
		var digests []object.Digest
		for deadline := time.Now().Add(10 * time.Second); ; {
			var err error
			digests, err = tryAdd(t.Context(), c, "s/"+name, uint64(n%3), sizes...)
			if err == nil {
				break
			}
			// What was collected between the upload and its image is missed
			// before the image has its name; without grace that is to be expected.
			var coded *client.Error
			if !errors.As(err, &coded) || coded.Code() != client.CodeRefused || time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		if err := fetchAll(t.Context(), c, digests); err != nil {
			t.Fatalf("image %s is not whole: %v", name, err)
		}
		if n%2 == 0 {
			continue
		}
		if _, err := c.Delete(t.Context(), "s/"+name, object.Digest{}); err != nil {
			t.Fatal(err)
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
		for digest, stored := range found.Stored {
			if stored == 0 {
				t.Errorf("%s lacks %s", one.Name, digest)
			}
		}
	}
	for name := range 15 {
		if name%2 == 0 {
			if _, err := c.Delete(t.Context(), "s/"+string(rune('a'+name)), object.Digest{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	dry, err := c.CollectGarbage(t.Context(), 0, true, nil)
	if err != nil || dry.Objects == 0 {
		t.Errorf("%+v, %v", dry, err)
	}
	done, err := c.CollectGarbage(t.Context(), 0, false, nil)
	if err != nil || done.Objects != dry.Objects || done.Bytes != dry.Bytes {
		t.Errorf("%+v, %v; the dry run said %+v", done, err, dry)
	}
	if left := metric(t, server.address, "imageserver_objects", ""); left != 0 {
		t.Errorf("%.0f objects are left", left)
	}
}
