package ingest

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Limits of a container image's documents; real ones have a few KiB.
const (
	maxDocument = 8 << 20
	maxLayers   = 4096
	// maxIndexes is how many indexes may lie within each other.
	maxIndexes = 4
	// maxLinksInArchive is how many links are followed to a layer of an old
	// docker-archive.
	maxLinksInArchive = 8

	refName = "org.opencontainers.image.ref.name"
)

// descriptor, index, manifest and config are those of the OCI image
// specification, as far as they are needed. Docker's own look the same.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    *platform         `json:"platform"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant"`
}

type ociIndex struct {
	MediaType string       `json:"mediaType"`
	Manifests []descriptor `json:"manifests"`
}

type ociManifest struct {
	MediaType string       `json:"mediaType"`
	Config    descriptor   `json:"config"`
	Layers    []descriptor `json:"layers"`
}

// dockerManifest is one image of manifest.json of docker save.
type dockerManifest struct {
	Config   string   `json:"Config"`
	RepoTags []string `json:"RepoTags"`
	Layers   []string `json:"Layers"`
}

// files are the files of a container image, by names with slashes.
type files interface {
	// open returns an error that wraps os.ErrNotExist for a missing one.
	open(name string) (io.ReadCloser, error)
}

// OCI reads a container image from an OCI image layout, a directory or a tar of
// one. ref chooses among several images: what one's annotation
// org.opencontainers.image.ref.name says, or a manifest's digest. Among several
// platforms Options.Arch chooses. The layers are applied in their order, with
// whiteouts, and every blob is checked against its digest before anything of it
// is used. A layout that is not whole is an error that wraps ErrContainer.
func OCI(ctx context.Context, path, ref string, sink Sink, options Options) (_ *image.Manifest, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the layout: %w", err)
	}
	var source files = directory(path)
	if !info.IsDir() {
		archive, openErr := openArchive(ctx, path, options.TempDir)
		if openErr != nil {
			return nil, openErr
		}
		defer func() { err = errors.Join(err, archive.close()) }()
		source = archive
	}
	return fromLayout(ctx, source, ref, sink, options)
}

// DockerArchive reads a container image from what docker save, podman save or
// skopeo (docker-archive:) wrote, plain or compressed. ref chooses among several
// images by one of its tags. Otherwise it is like OCI.
func DockerArchive(ctx context.Context, path, ref string, sink Sink, options Options) (_ *image.Manifest, err error) {
	archive, err := openArchive(ctx, path, options.TempDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, archive.close()) }()
	return fromDocker(ctx, archive, ref, sink, options)
}

func badContainer(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrContainer)...)
}

// document reads a JSON file of at most maxDocument bytes.
func document(source files, name string, digest object.Digest, into any) error {
	r, err := source.open(name)
	if errors.Is(err, os.ErrNotExist) {
		return badContainer("%s is missing", name)
	}
	if err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	switch {
	case len(data) > maxDocument:
		return badContainer("%s has more than %d bytes", name, maxDocument)
	case !digest.IsZero() && object.Of(data) != digest:
		return badContainer("%s: its bytes hash to %s", name, object.Of(data))
	}
	if err := json.Unmarshal(data, into); err != nil {
		return badContainer("%s: %v", name, err)
	}
	return nil
}

// blob is the file of a descriptor.
func blob(d descriptor) (string, object.Digest, error) {
	digest, err := object.ParseDigest(d.Digest)
	if err != nil {
		return "", digest, badContainer("blob %.100q: only digests of SHA-256 are read", d.Digest)
	}
	return "blobs/sha256/" + digest.Hex(), digest, nil
}

func fromLayout(ctx context.Context, source files, ref string, sink Sink, options Options) (*image.Manifest, error) {
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := document(source, "oci-layout", object.Digest{}, &version); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(version.Version, "1.") {
		return nil, badContainer("oci-layout has version %.40q; 1 is read", version.Version)
	}
	var index ociIndex
	if err := document(source, "index.json", object.Digest{}, &index); err != nil {
		return nil, err
	}
	chosen, err := chooseRef(index.Manifests, ref)
	if err != nil {
		return nil, err
	}
	found, err := choosePlatform(source, chosen, options.Arch, maxIndexes)
	if err != nil {
		return nil, err
	}
	name, digest, err := blob(found)
	if err != nil {
		return nil, err
	}
	var manifest ociManifest
	if err := document(source, name, digest, &manifest); err != nil {
		return nil, err
	}
	if err := checkConfig(source, manifest.Config, options.Arch); err != nil {
		return nil, err
	}
	if len(manifest.Layers) > maxLayers {
		return nil, badContainer("%d layers are more than %d", len(manifest.Layers), maxLayers)
	}
	var all []layer
	for _, one := range manifest.Layers {
		name, digest, err := blob(one)
		if err != nil {
			return nil, err
		}
		switch {
		case strings.Contains(one.MediaType, "encrypted"):
			return nil, badContainer("layer %s is encrypted; decrypt the image first", digest)
		case !strings.Contains(one.MediaType, "layer") && !strings.Contains(one.MediaType, "rootfs"):
			return nil, badContainer("layer %s is of type %.100q, no file-system", digest, one.MediaType)
		}
		all = append(all, layer{digest.String(), digest, func() (io.ReadCloser, error) {
			r, err := source.open(name)
			if errors.Is(err, os.ErrNotExist) {
				err = badContainer("%s is missing", name)
			}
			return r, err
		}})
	}
	if len(all) == 0 {
		return nil, badContainer("the image has no layers")
	}
	return layers(ctx, all, sink, options)
}

// chooseRef finds the one image that ref means.
func chooseRef(all []descriptor, ref string) (descriptor, error) {
	var names []string
	var found []descriptor
	for _, one := range all {
		name := one.Annotations[refName]
		if name == "" {
			name = one.Digest
		}
		names = append(names, fmt.Sprintf("%.100q", name))
		if ref == "" || ref == name || ref == one.Digest {
			found = append(found, one)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(all) == 0:
		return descriptor{}, badContainer("there is no image in it")
	case len(found) == 0:
		return descriptor{}, badContainer("there is no image %.100q in it; there are %s", ref, strings.Join(names, ", "))
	case ref == "":
		return descriptor{}, badContainer("there are several images in it; add one of these behind a colon: %s", strings.Join(names, ", "))
	}
	return descriptor{}, badContainer("%.100q means %d images in it", ref, len(found))
}

// choosePlatform follows indexes to the manifest for arch.
func choosePlatform(source files, d descriptor, arch string, depth int) (descriptor, error) {
	if !strings.Contains(d.MediaType, "index") && !strings.Contains(d.MediaType, "manifest.list") {
		return d, nil
	}
	if depth == 0 {
		return d, badContainer("more than %d indexes within each other", maxIndexes)
	}
	name, digest, err := blob(d)
	if err != nil {
		return d, err
	}
	var index ociIndex
	if err := document(source, name, digest, &index); err != nil {
		return d, err
	}
	var found []descriptor
	var there []string
	for _, one := range index.Manifests {
		if one.Platform != nil && one.Platform.OS == "unknown" {
			continue // attestations of buildkit
		}
		if one.Platform != nil && one.Platform.Architecture != "" {
			there = append(there, fmt.Sprintf("%.40s", one.Platform.Architecture+one.Platform.Variant))
			if arch != "" && one.Platform.Architecture != arch || one.Platform.OS != "" && one.Platform.OS != "linux" {
				continue
			}
		}
		found = append(found, one)
	}
	slices.Sort(there)
	switch {
	case len(found) == 1:
		return choosePlatform(source, found[0], arch, depth-1)
	case len(found) == 0 && arch != "":
		return d, fmt.Errorf("wanted %s, the image is for %s: %w", arch, strings.Join(there, ", "), ErrArch)
	case len(found) == 0:
		return d, badContainer("there is no image for Linux in it")
	}
	return d, badContainer("the image is for several architectures (%s); say --arch", strings.Join(there, ", "))
}

// checkConfig looks at the architecture that the image names itself.
func checkConfig(source files, d descriptor, arch string) error {
	name, digest, err := blob(d)
	if err != nil {
		return err
	}
	var config platform
	if err := document(source, name, digest, &config); err != nil {
		return err
	}
	return sameArch(config, arch)
}

func sameArch(config platform, arch string) error {
	switch {
	case config.OS != "" && config.OS != "linux":
		return badContainer("the image is for %.40q, not for Linux", config.OS)
	case arch != "" && config.Architecture != "" && config.Architecture != arch:
		return fmt.Errorf("wanted %s, the image says that it is for %.40s: %w", arch, config.Architecture, ErrArch)
	}
	return nil
}

func fromDocker(ctx context.Context, source files, ref string, sink Sink, options Options) (*image.Manifest, error) {
	var manifests []dockerManifest
	if err := document(source, "manifest.json", object.Digest{}, &manifests); err != nil {
		return nil, err
	}
	var found []dockerManifest
	var tags []string
	for _, one := range manifests {
		for _, tag := range one.RepoTags {
			tags = append(tags, fmt.Sprintf("%.100q", tag))
		}
		// Some write the registry that was left out, docker.io/library.
		if ref == "" || slices.ContainsFunc(one.RepoTags, func(tag string) bool { return tag == ref || strings.HasSuffix(tag, "/"+ref) }) {
			found = append(found, one)
		}
	}
	switch {
	case len(manifests) == 0:
		return nil, badContainer("there is no image in it")
	case len(found) == 0:
		return nil, badContainer("there is no image %.100q in it; there are %s", ref, strings.Join(tags, ", "))
	case len(found) > 1:
		return nil, badContainer("there are several images in it; add one of these behind a colon: %s", strings.Join(tags, ", "))
	}
	chosen := found[0]
	var config platform
	if err := document(source, chosen.Config, object.Digest{}, &config); err != nil {
		return nil, err
	}
	if err := sameArch(config, options.Arch); err != nil {
		return nil, err
	}
	if len(chosen.Layers) == 0 || len(chosen.Layers) > maxLayers {
		return nil, badContainer("the image has %d layers", len(chosen.Layers))
	}
	var all []layer
	for _, name := range chosen.Layers {
		// Newer ones name a layer by its digest; the archive has it uncompressed
		// all the same, or not, so only those of an OCI layout are checked.
		var digest object.Digest
		if hex, is := strings.CutPrefix(name, "blobs/sha256/"); is {
			digest, _ = object.ParseDigest("sha256:" + hex) // none: not checked
		}
		all = append(all, layer{fmt.Sprintf("%.100q", name), digest, func() (io.ReadCloser, error) {
			r, err := source.open(name)
			if errors.Is(err, os.ErrNotExist) {
				err = badContainer("%.100q is missing", name)
			}
			return r, err
		}})
	}
	return layers(ctx, all, sink, options)
}

// directory is a layout in a directory. Its names are made from digests.
type directory string

func (d directory) open(name string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
}

// archive is a tar of which files are read in any order.
type archive struct {
	file  *os.File
	parts map[string]part
}

// part is a run of the file, or a link to another name.
type part struct {
	offset, size int64
	link         string
}

// openArchive finds where each file of a tar lies. A compressed one is unpacked
// into a file without a name below tempDir first.
func openArchive(ctx context.Context, name, tempDir string) (*archive, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	plain, closePlain, err := decompress(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	defer closePlain()
	if head, isPlain := plain.(interface{ Peek(int) ([]byte, error) }); !isPlain {
		unpacked, err := tempFile(tempDir)
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		n, err := io.Copy(unpacked, io.LimitReader(&contextReader{ctx, plain}, maxFile+1))
		if err == nil && n > maxFile {
			err = badContainer("it unpacks to more than %d bytes", int64(maxFile))
		} else if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", err, ErrSource)
		}
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, errors.Join(err, unpacked.Close())
		}
		file = unpacked
	} else if _, err := head.Peek(1); err == io.EOF {
		return nil, errors.Join(fmt.Errorf("%s is empty: %w", name, ErrSource), file.Close())
	}
	a := &archive{file: file, parts: make(map[string]part)}
	if err := a.index(ctx); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return a, nil
}

// index notes where the files are. archive/tar reads no more than it needs, so
// the position behind a header is where its content begins.
func (a *archive) index(ctx context.Context) error {
	if _, err := a.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	at := &seeking{file: a.file}
	return eachEntry(ctx, at, func(_ *tar.Reader, header *tar.Header) error {
		name := path.Clean(strings.TrimPrefix(header.Name, "/"))
		switch header.Typeflag {
		case tar.TypeReg:
			a.parts[name] = part{offset: at.offset, size: header.Size}
		case tar.TypeLink:
			a.parts[name] = part{link: path.Clean(strings.TrimPrefix(header.Linkname, "/"))}
		case tar.TypeSymlink:
			a.parts[name] = part{link: path.Join(path.Dir(name), header.Linkname)}
		case tar.TypeGNUSparse:
			return refuse(header.Name, "a sparse file in a container archive")
		}
		return nil
	})
}

// seeking counts what is read.
type seeking struct {
	file   *os.File
	offset int64
}

func (s *seeking) Read(p []byte) (int, error) {
	n, err := s.file.Read(p)
	s.offset += int64(n)
	return n, err
}

func (a *archive) open(name string) (io.ReadCloser, error) {
	name = path.Clean(name)
	for range maxLinksInArchive {
		found, ok := a.parts[name]
		if !ok {
			return nil, fmt.Errorf("%.100q: %w", name, os.ErrNotExist)
		}
		if found.link == "" {
			return io.NopCloser(io.NewSectionReader(a.file, found.offset, found.size)), nil
		}
		name = found.link
	}
	return nil, badContainer("%.100q: too many links", name)
}

func (a *archive) close() error { return a.file.Close() }
