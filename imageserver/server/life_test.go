package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// add uploads an image of files with these contents.
func add(ctx context.Context, connection *client.Client, name string, contents ...string) error {
	m := &image.Manifest{Attributes: map[string]string{}, Entries: []image.Entry{{Path: ".", Type: image.Dir}}}
	var digests []object.Digest
	for i, content := range contents {
		digest := object.Of([]byte(content))
		digests = append(digests, digest)
		m.Entries = append(m.Entries, image.Entry{Path: fmt.Sprintf("f%03d", i), Size: uint64(len(content)), Digest: digest})
	}
	var have []bool
	i := -1
	err := connection.Upload(ctx, func(ctx context.Context) (client.Offer, error) {
		if have == nil { // once the upload has begun, as firstlight asks
			var err error
			if have, err = connection.Have(ctx, digests); err != nil {
				return client.Offer{}, err
			}
		}
		for i++; i < len(contents) && have[i]; i++ {
		}
		if i >= len(contents) {
			return client.Offer{}, io.EOF
		}
		size := uint64(len(contents[i]))
		return client.Offer{Info: object.Info{Digest: digests[i], Size: size, StoredSize: size}, Bytes: io.NopCloser(bytes.NewReader([]byte(contents[i])))}, nil
	})
	if err != nil {
		return err
	}
	raw, err := image.Encode(m)
	if err != nil {
		return err
	}
	_, _, err = connection.AddImage(ctx, name, raw)
	return err
}

// TestGarbageBesideUploads: while images come and go, garbage is collected all
// the time; no upload fails by it, and every image that is there is whole.
func TestGarbageBesideUploads(t *testing.T) {
	address := serve(t, nil, true)
	connection, err := client.Dial(t.Context(), client.Options{Address: address})
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	deadline := time.Now().Add(3 * time.Second)
	group, ctx := errgroup.WithContext(t.Context())
	for worker := range 4 {
		group.Go(func() error {
			connection, err := client.Dial(ctx, client.Options{Address: address})
			if err != nil {
				return err
			}
			defer connection.Close()
			for round := 0; time.Now().Before(deadline); round++ {
				// Some contents are shared with images that are being deleted,
				// so that the server says that it has them.
				name := fmt.Sprintf("w%d/%d", worker, round)
				var contents []string
				for i := range 20 {
					contents = append(contents, fmt.Sprintf("content %d", (round*7+i)%60), fmt.Sprintf("of %s %d", name, i))
				}
				if err := add(ctx, connection, name, contents...); err != nil {
					return fmt.Errorf("adding %s: %w", name, err)
				}
				if round >= 3 {
					if _, err := connection.Delete(ctx, fmt.Sprintf("w%d/%d", worker, round-3), object.Digest{}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	var collected uint64
	group.Go(func() error {
		for time.Now().Before(deadline) {
			garbage, err := connection.CollectGarbage(ctx, 0, false, nil)
			if err != nil {
				return fmt.Errorf("collecting: %w", err)
			}
			collected += garbage.Objects
		}
		return nil
	})
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if collected == 0 {
		t.Error("nothing was ever collected")
	}
	images, err := connection.List(t.Context(), "")
	if err != nil || len(images) == 0 {
		t.Fatal(len(images), err)
	}
	for _, one := range images {
		found, err := connection.Manifest(t.Context(), one.Name)
		if err != nil {
			t.Fatal(err)
		}
		m, err := image.Decode(found.Raw)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range m.Objects() {
			r, err := connection.Open(t.Context(), o.Digest)
			if err != nil {
				t.Fatalf("%s: %v", one.Name, err)
			}
			if n, err := io.Copy(io.Discard, r); err != nil || uint64(n) != o.Size {
				t.Errorf("%s: %d, %v", one.Name, n, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	// With all images gone and no grace, nothing is left.
	for _, one := range images {
		if _, err := connection.Delete(t.Context(), one.Name, one.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := connection.CollectGarbage(t.Context(), 0, false, nil); err != nil {
		t.Fatal(err)
	}
	left, err := connection.CollectGarbage(t.Context(), 0, true, nil)
	if err != nil || left.Checked != 0 {
		t.Errorf("%+v, %v", left, err)
	}
}

// An upload that runs keeps what it sent, however short the grace.
func TestRunningUploadKeepsItsObjects(t *testing.T) {
	connection, err := client.Dial(t.Context(), client.Options{Address: serve(t, nil, true)})
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	if err := add(t.Context(), connection, "old/1", "old"); err != nil {
		t.Fatal(err)
	}
	if _, err := connection.Delete(t.Context(), "old/1", object.Digest{}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	step := 0
	data := bytes.Repeat([]byte("x"), 2<<20) // a message of its own
	err = connection.Upload(t.Context(), func(ctx context.Context) (client.Offer, error) {
		step++
		switch step {
		case 1:
			return client.Offer{Info: object.Info{Digest: object.Of(data), Size: uint64(len(data)), StoredSize: uint64(len(data))}, Bytes: io.NopCloser(bytes.NewReader(data))}, nil
		case 2:
			time.Sleep(100 * time.Millisecond) // until the server has it
			_, err := connection.CollectGarbage(ctx, 0, false, nil)
			if err != nil {
				return client.Offer{}, err
			}
		}
		return client.Offer{}, io.EOF
	})
	if err != nil {
		t.Fatal(err)
	}
	have, err := connection.Have(t.Context(), []object.Digest{object.Of(data), object.Of([]byte("old"))})
	if err != nil || !have[0] || have[1] {
		t.Error(have, err)
	}
}
