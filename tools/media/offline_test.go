package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/installer/offline"
)

// shelf is an image server in memory with one image.
type shelf struct {
	found   client.Found
	objects map[object.Digest][]byte
}

func newShelf(t *testing.T, arch string) *shelf {
	t.Helper()
	s := &shelf{objects: map[object.Digest][]byte{}}
	m := &image.Manifest{Attributes: map[string]string{image.AttrArch: arch}, Entries: []image.Entry{{Path: ".", Type: image.Dir, Mode: 0o755}}}
	for n := range 20 {
		content := bytes.Repeat([]byte{byte(n + 1)}, 1000*(n+1))
		s.objects[object.Of(content)] = content
		m.Entries = append(m.Entries, image.Entry{Path: fmt.Sprintf("file%02d", n), Type: image.File, Mode: 0o644, Size: uint64(len(content)), Digest: object.Of(content)})
	}
	raw, err := image.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	s.found.Raw, s.found.Digest, s.found.Name = raw, object.Of(raw), "debian/12/1"
	return s
}

func (s *shelf) Manifest(context.Context, string) (client.Found, error) { return s.found, nil }

func (s *shelf) Fetch(_ context.Context, digests []object.Digest, piece func(object.Piece) error) error {
	for _, d := range digests {
		data := s.objects[d]
		info := object.Info{Digest: d, Size: uint64(len(data)), StoredSize: uint64(len(data))}
		if err := piece(object.Piece{Info: info, Data: data}); err != nil {
			return err
		}
	}
	return nil
}

func TestImagesOnTheMedium(t *testing.T) {
	t.Parallel()
	source := newShelf(t, "amd64")
	options := bootOptions(t)
	options.Images, options.Source = []string{"debian/12"}, source
	makeTwice(t, &options, ISO)
	dir := t.TempDir()
	run(t, "xorriso", "-osirrox", "on", "-indev", options.Out, "-extract", "/", dir)
	text, err := os.ReadFile(filepath.Join(dir, offline.ListName))
	if err != nil {
		t.Fatal(err)
	}
	list, err := offline.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	carried, ok := list.Find("debian/12")
	if !ok || carried.Name != "debian/12/1" || len(list.Packs) != 1 {
		t.Fatalf("the medium carries %+v", list)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, carried.Manifest)); err != nil || object.Of(raw) != source.found.Digest {
		t.Errorf("the manifest is another one: %v", err)
	}
	packed, err := os.ReadFile(filepath.Join(dir, list.Packs[0]))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := pack.OpenReader(bytes.NewReader(packed), int64(len(packed)))
	if err != nil {
		t.Fatal(err)
	}
	for d := range source.objects {
		if !reader.Has(d) {
			t.Errorf("object %s is not on the medium", d)
		}
	}
	if label := run(t, "blkid", "-p", "-o", "value", "-s", "LABEL", options.Out); label != "FIRSTLIGHT\n" {
		t.Errorf("the medium is labelled %q", label)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(options.Out), ".*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestImagesThatCannotBeCarried(t *testing.T) {
	t.Parallel()
	damaged := newShelf(t, "amd64")
	for d, content := range damaged.objects {
		damaged.objects[d] = append(bytes.Clone(content[1:]), 0)
		break
	}
	for name, c := range map[string]struct {
		source *shelf
		write  func(context.Context, BootOptions) (Report, error)
		code   string
	}{
		"for another architecture": {newShelf(t, "arm64"), USB, CodeArch},
		"in a UKI":                 {newShelf(t, "amd64"), UKI, codeUsage},
		"damaged":                  {damaged, USB, "IMG-080"},
	} {
		options := bootOptions(t)
		options.Images, options.Source = []string{"debian/12"}, c.source
		_, err := c.write(t.Context(), options)
		var coded interface{ Code() string }
		if !errors.As(err, &coded) || coded.Code() != c.code {
			t.Errorf("%s: got %v, want %s", name, err, c.code)
		}
		if left, err := os.ReadDir(filepath.Dir(options.Out)); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v %v", name, left, err)
		}
	}
}
