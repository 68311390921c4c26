// Package offline is what a medium says of the images that it carries, so that a
// machine can be installed with no network at all: a list of images, each with
// its manifest, and packs with their objects (package pack). All of it lies in
// the root of a volume labelled FIRSTLIGHT.
//
// It reads and writes no file.
package offline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/firstlight/firstlight/imageserver/object"
)

// Format is the version of the list that this package writes. There is none
// before it.
const Format = 1

// ListName is the file with the list.
const ListName = "images.json"

// List is what lies on the volume.
type List struct {
	Format int     `json:"format"`
	Images []Image `json:"images"`
	// Packs are the files with objects.
	Packs []string `json:"packs"`
}

// Image is an image on the volume.
type Image struct {
	Name   string        `json:"name"`            // in full
	Asked  string        `json:"asked,omitempty"` // as it was asked for, when that was a stream or an alias
	Digest object.Digest `json:"digest"`          // of the manifest
	// Manifest is the file with it.
	Manifest string `json:"manifest"`
}

// JSON is the list as it lies on the volume.
func (l List) JSON() ([]byte, error) {
	l.Format = Format
	data, err := json.MarshalIndent(l, "", "  ")
	return append(data, '\n'), err
}

// Parse reads a list. One of another version, or one that names files outside
// the volume's root, is an error.
func Parse(data []byte) (List, error) {
	var l List
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&l); err != nil {
		return List{}, fmt.Errorf("reading %s: %w", ListName, err)
	}
	if l.Format != Format {
		return List{}, fmt.Errorf("%s has format %d, and this installer knows format %d", ListName, l.Format, Format)
	}
	names := append([]string{}, l.Packs...)
	for _, image := range l.Images {
		names = append(names, image.Manifest)
	}
	for _, name := range names {
		if name == "" || name != path.Base(name) || name == ".." || name == "." || name == "/" {
			return List{}, fmt.Errorf("%s names the file %q, which is not in the volume's root", ListName, name)
		}
	}
	return l, nil
}

// Find is the image that a configuration means by name: in full, a stream (the
// part before the version), what it was asked for by when the medium was made,
// each also with the digest of its manifest behind an @.
func (l List) Find(name string) (Image, bool) {
	name, digest, pinned := strings.Cut(name, "@")
	if name == "" {
		return Image{}, false // a wipe and a rescue mean none
	}
	for _, image := range l.Images {
		if pinned && image.Digest.String() != digest {
			continue
		}
		if name == image.Name || name == image.Asked || strings.HasPrefix(image.Name, name+"/") {
			return image, true
		}
	}
	return Image{}, false
}
