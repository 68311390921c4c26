package media

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/installer/offline"
	"github.com/firstlight/firstlight/installer/stage"
)

// ImageSource is where images for a medium come from: an image server, of which
// package client is the usual one.
type ImageSource interface {
	stage.Fetcher
	// Manifest is the image of that name.
	Manifest(ctx context.Context, name string) (client.Found, error)
}

// packLimit is the most that one file with objects has, in bytes: FAT and the
// file system of CDs end at 4 GiB.
const packLimit = 3 << 30

// carryImages fetches images with all their objects, each object once, into
// files in directory, for a volume labelled FIRSTLIGHT. An image for another
// architecture is refused.
func carryImages(ctx context.Context, source ImageSource, names []string, arch, directory string) ([]volumeFile, error) {
	var list offline.List
	var need []image.Object
	var files []volumeFile
	for n, name := range names {
		found, err := source.Manifest(ctx, name)
		if err != nil {
			return nil, err
		}
		manifest, err := image.Decode(found.Raw)
		if err != nil {
			return nil, fmt.Errorf("reading the manifest of %s: %w", found.Name, err)
		}
		if is := manifest.Attributes[image.AttrArch]; is != arch {
			return nil, &Error{code: CodeArch, text: fmt.Sprintf("the image %s is for %s, and the medium is for %s", found.Name, is, arch)}
		}
		one := offline.Image{Name: found.Name, Digest: found.Digest, Manifest: fmt.Sprintf("image%d.manifest", n)}
		if name != found.Name {
			one.Asked = name
		}
		list.Images = append(list.Images, one)
		files = append(files, volumeFile{path: one.Manifest, data: found.Raw})
		need = append(need, manifest.Objects()...)
	}
	packed, err := packObjects(ctx, source, need, directory)
	if err != nil {
		return nil, err
	}
	for _, one := range packed {
		list.Packs = append(list.Packs, one.path)
	}
	text, err := list.JSON()
	if err != nil {
		return nil, err
	}
	return append(append(files, volumeFile{path: offline.ListName, data: text}), packed...), nil
}

// packObjects fetches objects into packs, in their order, one after the other:
// the same objects shall make the same bytes.
func packObjects(ctx context.Context, source ImageSource, need []image.Object, directory string) (packs []volumeFile, err error) {
	for len(need) > 0 {
		var bytes uint64
		n := 0
		for ; n < len(need) && (n == 0 || bytes+need[n].Size <= packLimit); n++ {
			bytes += need[n].Size
		}
		if bytes > packLimit {
			return nil, &Error{code: codeUsage, text: fmt.Sprintf("a file of the image has %d bytes, more than a medium's file system can hold", bytes)}
		}
		one := volumeFile{path: fmt.Sprintf("objects%d.pack", len(packs))}
		one.from = filepath.Join(directory, one.path)
		if one.size, err = packFile(ctx, source, need[:n], one.from); err != nil {
			return nil, err
		}
		packs, need = append(packs, one), need[n:]
	}
	return packs, nil
}

func packFile(ctx context.Context, source ImageSource, need []image.Object, name string) (size int64, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	writer, err := pack.NewWriter(f, pack.Options{})
	if err != nil {
		return 0, err
	}
	if err := stage.Stream(ctx, []stage.Fetcher{source}, writer, need, stage.Options{Streams: 1, Workers: 1}); err != nil {
		return 0, fmt.Errorf("fetching the image's objects: %w", err)
	}
	return writer.Finish()
}
