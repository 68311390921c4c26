package export

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// The media types of the OCI image specification, media-types.md.
const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      object.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type document struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

type config struct {
	Created      string `json:"created"`
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	RootFS       struct {
		Type    string          `json:"type"`
		DiffIDs []object.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// OCI writes an image as a tar of an OCI image layout with one uncompressed
// layer, which podman, skopeo (oci-archive:) and docker load read. tag names the
// image in it. The layer is made in scratch first, because its digest stands
// before it; scratch is empty and is left to the caller.
func OCI(ctx context.Context, w io.Writer, scratch io.ReadWriteSeeker, source Source, m *image.Manifest, tag string, report func(bytes uint64)) error {
	for _, e := range m.Entries {
		if strings.HasPrefix(path.Base(e.Path), ".wh.") {
			return &Error{fmt.Sprintf("%q would remove files: in a layer, a name that begins with .wh. is a whiteout; export it as a tar", e.Path)}
		}
	}
	hash := sha256.New()
	if err := Tar(ctx, io.MultiWriter(scratch, hash), source, m, report); err != nil {
		return err
	}
	size, err := scratch.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := scratch.Seek(0, io.SeekStart); err != nil {
		return err
	}
	layer := descriptor{MediaType: typeLayer, Size: size}
	hash.Sum(layer.Digest[:0])

	archive := tar.NewWriter(w)
	write := func(name string, size int64, r io.Reader) error {
		header := &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.Copy(archive, r)
		return err
	}
	blob := func(mediaType string, content any) (descriptor, error) {
		data, err := json.Marshal(content)
		if err != nil {
			return descriptor{}, err
		}
		d := descriptor{MediaType: mediaType, Digest: object.Of(data), Size: int64(len(data))}
		return d, write("blobs/sha256/"+d.Digest.Hex(), d.Size, bytes.NewReader(data))
	}
	text := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	if err := write("oci-layout", int64(len(text)), bytes.NewReader(text)); err != nil {
		return err
	}
	c := config{Created: "1970-01-01T00:00:00Z", Architecture: m.Attributes[image.AttrArch], OS: "linux"}
	if c.Architecture == "" {
		c.Architecture = "unknown"
	}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []object.Digest{layer.Digest}
	configured, err := blob(typeConfig, c)
	if err != nil {
		return err
	}
	manifest, err := blob(typeManifest, document{SchemaVersion: 2, MediaType: typeManifest, Config: &configured, Layers: []descriptor{layer}})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": tag}
	index, err := json.Marshal(document{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{manifest}})
	if err != nil {
		return err
	}
	if err := write("index.json", int64(len(index)), bytes.NewReader(index)); err != nil {
		return err
	}
	if err := write("blobs/sha256/"+layer.Digest.Hex(), layer.Size, scratch); err != nil {
		return err
	}
	return archive.Close()
}
