package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/storage"
)

// Kind is what a source is.
type Kind uint8

// The kinds of sources.
const (
	KindTar Kind = iota
	KindDirectory
	KindOCI
	KindDockerArchive
	KindSquashfs
	KindDisk
)

// Source is where an image comes from.
type Source struct {
	Kind Kind
	Path string // "-" is standard input, of a tar
	Ref  string // of one of several images in a container archive
}

// ParseSource reads "oci:PATH[:REF]", "oci-archive:FILE[:REF]",
// "docker-archive:FILE[:REF]", "-", or a path, and finds out by its first bytes
// what lies there. What is no other kind is taken for a tar.
func ParseSource(text string) (Source, error) {
	for prefix, kind := range map[string]Kind{"oci:": KindOCI, "oci-archive:": KindOCI, "docker-archive:": KindDockerArchive} {
		if rest, is := strings.CutPrefix(text, prefix); is {
			path, ref, err := splitRef(rest)
			return Source{kind, path, ref}, err
		}
	}
	if text == "-" {
		return Source{KindTar, text, ""}, nil
	}
	kind, err := kindOf(text)
	return Source{kind, text, ""}, err
}

// splitRef finds the path in PATH[:REF]: both may have colons.
func splitRef(text string) (path, ref string, err error) {
	if _, err = os.Stat(text); err == nil {
		return text, "", nil
	}
	for i, c := range text {
		if c == ':' && i > 0 {
			if _, statErr := os.Stat(text[:i]); statErr == nil {
				return text[:i], text[i+1:], nil
			}
		}
	}
	return "", "", err
}

func kindOf(path string) (_ Kind, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() // it was only read
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.IsDir() {
		return KindDirectory, nil
	}
	if !info.Mode().IsRegular() {
		return KindTar, nil // a pipe, which can be read once only
	}
	head := make([]byte, blockSize)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, fmt.Errorf("reading %s: %w", path, err)
	}
	switch head = head[:n]; {
	case bytes.HasPrefix(head, []byte(squashfsMagic)):
		return KindSquashfs, nil
	case bytes.HasPrefix(head, []byte(qcow2Magic)):
		return KindDisk, nil
	case n == blockSize && bytes.Equal(head[257:262], []byte("ustar")):
		return KindTar, nil
	}
	found, err := probe(path)
	if err != nil {
		return 0, err
	}
	if slices.ContainsFunc(found, func(c storage.Content) bool {
		return mountable(c) || c.Kind == "gpt" || c.Kind == "mbr" || c.Kind == "dos"
	}) {
		return KindDisk, nil
	}
	return KindTar, nil
}
