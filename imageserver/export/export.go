// Package export writes an image as a tar or as an OCI image layout, with all
// that its manifest says and nothing else: the same image gives the same bytes,
// and ingest makes the same image of them.
//
// It reads objects through a Source and never touches a disk.
package export

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// Source gives objects; imageserver/client.Client is one.
type Source interface {
	object.Getter
	// Fetch hands the encoded, unverified pieces of objects to f, in any order
	// of objects.
	Fetch(ctx context.Context, digests []object.Digest, f func(object.Piece) error) error
}

// Error is an image that cannot be written in a format.
type Error struct{ text string }

// Error is the text.
func (e *Error) Error() string { return e.text }

// Code is IMG-020.
func (e *Error) Code() string { return "IMG-020" }

// The size of a batch of small objects that is held in memory, in unpacked
// bytes and in objects. Two are held at once.
const (
	batchBytes   = 32 << 20
	batchObjects = 4096
)

// Tar writes an image as a tar (POSIX.1-2001, pax) that GNU tar --xattrs
// --xattrs-include=* and libarchive read with every detail: times in
// nanoseconds, large ids, extended attributes with capabilities, ACLs and
// SELinux labels, hard links and devices. report, which may be nil, hears of
// unpacked bytes.
func Tar(ctx context.Context, w io.Writer, source Source, m *image.Manifest, report func(bytes uint64)) error {
	if err := m.Validate(); err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	group, ctx := errgroup.WithContext(ctx)
	batches := make(chan batch)
	group.Go(func() error {
		defer close(batches)
		return fetchAhead(ctx, source, m, batches)
	})
	group.Go(func() error {
		at := 0
		for b := range batches {
			for ; at < b.end; at++ {
				e := &m.Entries[at]
				if err := writeEntry(ctx, archive, source, e, b.contents); err != nil {
					return fmt.Errorf("%q: %w", e.Path, err)
				}
				if report != nil && e.Size > 0 {
					report(e.Size)
				}
			}
		}
		if at < len(m.Entries) { // fetchAhead has failed and says why
			return nil
		}
		return archive.Close()
	})
	return group.Wait()
}

// batch is a run of entries, up to end, and the contents of its small files.
type batch struct {
	end      int
	contents map[object.Digest][]byte
}

// fetchAhead fetches batches while others are written.
func fetchAhead(ctx context.Context, source Source, m *image.Manifest, batches chan<- batch) error {
	for begin := 0; begin < len(m.Entries); {
		b := batch{end: begin, contents: make(map[object.Digest][]byte)}
		var wanted []object.Digest
		size := uint64(0)
		for ; b.end < len(m.Entries) && size < batchBytes && len(wanted) < batchObjects; b.end++ {
			e := &m.Entries[b.end]
			if _, there := b.contents[e.Digest]; e.Size == 0 || e.Size > zstd.Whole || there {
				continue
			}
			b.contents[e.Digest] = nil
			wanted = append(wanted, e.Digest)
			size += e.Size
		}
		if len(wanted) > 0 {
			if err := fetch(ctx, source, wanted, b.contents); err != nil {
				return err
			}
		}
		select {
		case batches <- b:
		case <-ctx.Done():
			return ctx.Err()
		}
		begin = b.end
	}
	return nil
}

// fetch fills contents with verified, unpacked objects.
func fetch(ctx context.Context, source Source, wanted []object.Digest, contents map[object.Digest][]byte) error {
	partial := make(map[object.Digest][]byte)
	return source.Fetch(ctx, wanted, func(piece object.Piece) error {
		if piece.Size > zstd.Whole || piece.StoredSize > 2*zstd.Whole {
			return fmt.Errorf("object %s: %d bytes, fewer are expected: %w", piece.Digest, piece.Size, object.ErrDamaged)
		}
		encoded := append(partial[piece.Digest], piece.Data...)
		if !piece.Last() {
			partial[piece.Digest] = encoded
			return nil
		}
		delete(partial, piece.Digest)
		unpacked, err := zstd.Decode(nil, piece.Info, encoded)
		if err != nil {
			return err
		}
		contents[piece.Digest] = bytes.Clone(unpacked)
		return nil
	})
}

// writeEntry writes one entry with its content.
func writeEntry(ctx context.Context, archive *tar.Writer, source Source, e *image.Entry, contents map[object.Digest][]byte) (err error) {
	header, err := headerOf(e)
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	if e.Size == 0 {
		return nil
	}
	content, there := contents[e.Digest]
	if there {
		if uint64(len(content)) != e.Size {
			return fmt.Errorf("object %s has %d bytes: %w", e.Digest, len(content), object.ErrDamaged)
		}
		_, err = archive.Write(content)
		return err
	}
	r, err := source.Open(ctx, e.Digest)
	if err != nil {
		return err
	}
	n, err := io.Copy(archive, r)
	if err == nil && uint64(n) != e.Size {
		err = fmt.Errorf("object %s has %d bytes: %w", e.Digest, n, object.ErrDamaged)
	}
	return errors.Join(err, r.Close())
}

// headerOf is the header of an entry.
func headerOf(e *image.Entry) (*tar.Header, error) {
	header := &tar.Header{
		Format: tar.FormatPAX, Name: "./" + e.Path, Mode: int64(e.Mode), Uid: int(e.UID), Gid: int(e.GID),
		ModTime: time.Unix(e.Seconds, int64(e.Nanoseconds)), PAXRecords: make(map[string]string),
	}
	switch e.Type {
	case image.File:
		header.Typeflag, header.Size = tar.TypeReg, int64(e.Size)
	case image.Dir:
		header.Typeflag = tar.TypeDir
		header.Name += "/"
		if e.Path == "." {
			header.Name = "./"
		}
	case image.Symlink:
		header.Typeflag, header.Linkname = tar.TypeSymlink, e.Target
	case image.Hardlink:
		// The rest is that of the entry that it is another name of.
		header.Typeflag, header.Linkname = tar.TypeLink, "./"+e.Target
		header.ModTime = time.Unix(0, 0)
	case image.CharDevice:
		header.Typeflag, header.Devmajor, header.Devminor = tar.TypeChar, int64(e.Major), int64(e.Minor)
	case image.BlockDevice:
		header.Typeflag, header.Devmajor, header.Devminor = tar.TypeBlock, int64(e.Major), int64(e.Minor)
	case image.FIFO:
		header.Typeflag = tar.TypeFifo
	default:
		return nil, &Error{"a socket cannot be in a tar"}
	}
	for _, x := range e.Xattrs {
		if strings.Contains(x.Name, "=") { // which ends the name of a pax record
			header.PAXRecords["LIBARCHIVE.xattr."+strings.ReplaceAll(url.PathEscape(x.Name), "=", "%3D")] = base64.RawStdEncoding.EncodeToString(x.Value)
			continue
		}
		header.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
	}
	return header, nil
}
