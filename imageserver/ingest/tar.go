package ingest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"slices"
	"strings"

	kzstd "github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/firstlight/firstlight/imageserver/image"
)

const (
	// blockSize of tar(5).
	blockSize = 512
	// maxFile is the largest file in bytes that is taken from a tar: a
	// sparse header of a few bytes can claim any size.
	maxFile = 64 << 30
	// maxEntries and maxBytes bound what one tar may unpack to. A manifest of so
	// many entries would be larger than one may be.
	maxEntries = 2_000_000
	maxBytes   = 1 << 40
	// maxTail is how many bytes may follow a tar's end: padding, of any block size.
	maxTail = 64 << 20
	// maxZstdWindow is what zstd --ultra --long=27 needs, in bytes.
	maxZstdWindow = 128 << 20

	paxXattr     = "SCHILY.xattr."
	paxLibXattr  = "LIBARCHIVE.xattr."
	paxSELinux   = "RHT.security.selinux"
	paxACLAccess = "SCHILY.acl.access"
	paxACLDef    = "SCHILY.acl.default"
)

// Tar reads a tar of a root file-system, plain or compressed with gzip, xz or
// zstd, to its end. A tar that is cut off or damaged is an error that wraps
// ErrSource; an entry that cannot be part of an image one that wraps ErrEntry
// and names it. After an error the sink may have taken some objects.
func Tar(ctx context.Context, r io.Reader, sink Sink, options Options) (*image.Manifest, error) {
	plain, closePlain, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer closePlain()
	in := newIntake(ctx, sink, options)
	t := newTree()
	if err := readTar(plain, t, in, options); err != nil {
		// A worker's error came first and is why reading ended.
		if workerErr := in.group.Wait(); workerErr != nil && in.ctx.Err() != nil && ctx.Err() == nil {
			return nil, workerErr
		}
		return nil, err
	}
	return in.finish(t, options)
}

// decompress finds out by the first bytes how r is compressed.
func decompress(r io.Reader) (io.Reader, func(), error) {
	buffered := bufio.NewReaderSize(r, 256<<10)
	nothing := func() {}
	head, err := buffered.Peek(6)
	if err != nil && err != io.EOF {
		return nil, nil, fmt.Errorf("reading the tar: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w: %w", err, ErrSource)
		}
		return z, nothing, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(buffered)
		if err != nil {
			return nil, nil, fmt.Errorf("xz: %w: %w", err, ErrSource)
		}
		return z, nothing, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		z, err := kzstd.NewReader(buffered, kzstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w: %w", err, ErrSource)
		}
		return z, z.Close, nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return nil, nil, fmt.Errorf("bzip2 is not read; use gzip, xz or zstd: %w", ErrSource)
	}
	return buffered, nothing, nil
}

// countingReader counts what tar.Reader takes.
type countingReader struct {
	ctx context.Context
	r   io.Reader
	n   int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func readTar(plain io.Reader, t *tree, in *intake, options Options) error {
	return eachEntry(in.ctx, plain, func(archive *tar.Reader, header *tar.Header) error {
		e, err := entryOf(header, t)
		if err != nil || e == nil {
			return err
		}
		t.add(e)
		if e.Size == 0 {
			return nil
		}
		return readContent(archive, e, in, options)
	})
}

// eachEntry calls f for each entry of an uncompressed tar, which it reads to its
// end.
func eachEntry(ctx context.Context, plain io.Reader, f func(archive *tar.Reader, header *tar.Header) error) error {
	counted := &countingReader{ctx: ctx, r: plain}
	archive := tar.NewReader(counted)
	last := ""
	var bytes int64
	for n := 0; ; n++ {
		before := counted.n
		header, err := archive.Next()
		if err == io.EOF {
			// archive/tar takes a tar that is cut off between two entries
			// for a whole one. A whole one ends with blocks of zeros;
			// before them comes less than a block of padding.
			if counted.n-before < blockSize {
				return fmt.Errorf("cut off after entry %q: %w", last, ErrSource)
			}
			break
		}
		if err != nil {
			return sourceError(ctx, last, err)
		}
		last = header.Name
		if n == maxEntries {
			return refuse(last, "more than %d entries come before it", maxEntries)
		}
		if bytes += max(header.Size, 0); bytes < 0 || bytes > maxBytes {
			return refuse(last, "with it the files have more than %d bytes", int64(maxBytes))
		}
		if err := f(archive, header); err != nil {
			return err
		}
	}
	// The checksum of the compressed stream stands at its end.
	switch n, err := io.Copy(io.Discard, io.LimitReader(counted, maxTail+1)); {
	case err != nil:
		return sourceError(ctx, last, err)
	case n > maxTail:
		return fmt.Errorf("more than %d bytes follow the tar's end, after entry %q: %w", int64(maxTail), last, ErrSource)
	}
	return nil
}

func sourceError(ctx context.Context, last string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("reading the tar after entry %q: %w: %w", last, err, ErrSource)
}

// entryOf is the entry that a header describes, without its digest; nil for one
// that describes none.
func entryOf(header *tar.Header, t *tree) (*image.Entry, error) {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil // comments of git archive and the like
	}
	path, err := cleanPath(header.Name)
	if err != nil {
		return nil, err
	}
	e := &image.Entry{Path: path}
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.Type = image.File
	case tar.TypeLink:
		// Its other fields repeat those of the target.
		target, err := cleanPath(header.Linkname)
		if err != nil {
			return nil, refuse(header.Name, "hard link to %q, which is out of the tree", header.Linkname)
		}
		if _, found := t.inode(target); !found {
			return nil, refuse(header.Name, "hard link to %q, which does not come before it", header.Linkname)
		}
		e.Type, e.Target = image.Hardlink, target
		return e, nil
	case tar.TypeSymlink:
		e.Type, e.Target = image.Symlink, header.Linkname
	case tar.TypeChar:
		e.Type = image.CharDevice
	case tar.TypeBlock:
		e.Type = image.BlockDevice
	case tar.TypeDir:
		e.Type = image.Dir
	case tar.TypeFifo:
		e.Type = image.FIFO
	default:
		return nil, refuse(header.Name, "entries of type %q are unknown", header.Typeflag)
	}
	if header.Uid < 0 || header.Uid >= math.MaxUint32 || header.Gid < 0 || header.Gid >= math.MaxUint32 {
		return nil, refuse(header.Name, "owner %d:%d is out of range", header.Uid, header.Gid)
	}
	e.UID, e.GID = uint32(header.Uid), uint32(header.Gid)
	e.Mode = uint32(header.Mode & 0o7777)
	e.Seconds, e.Nanoseconds = header.ModTime.Unix(), uint32(header.ModTime.Nanosecond())
	if e.Type == image.CharDevice || e.Type == image.BlockDevice {
		if header.Devmajor < 0 || header.Devmajor >= 1<<12 || header.Devminor < 0 || header.Devminor >= 1<<20 {
			return nil, refuse(header.Name, "device number %d:%d is out of range", header.Devmajor, header.Devminor)
		}
		e.Major, e.Minor = uint32(header.Devmajor), uint32(header.Devminor)
	}
	if e.Xattrs, err = tarXattrs(header); err != nil {
		return nil, err
	}
	if err := t.addACLs(header, e); err != nil {
		return nil, err
	}
	if e.Type == image.File {
		if header.Size < 0 || header.Size > maxFile {
			return nil, refuse(header.Name, "%d bytes are more than a file may have (%d)", header.Size, int64(maxFile))
		}
		e.Size = uint64(header.Size)
	}
	return e, nil
}

// readContent takes a file out of the tar, so that a worker can hash and pack
// it while the next one is read.
func readContent(archive *tar.Reader, e *image.Entry, in *intake, options Options) error {
	if e.Size <= inMemory {
		content := make([]byte, e.Size)
		if _, err := io.ReadFull(archive, content); err != nil {
			return sourceError(in.ctx, e.Path, err)
		}
		in.take(e, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }, func() error { return nil })
		return nil
	}
	f, err := tempFile(options.TempDir)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, archive)
	if err == nil && uint64(n) != e.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return errors.Join(sourceError(in.ctx, e.Path, err), f.Close())
	}
	in.take(e, func() (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(f, 0, n)), nil
	}, f.Close)
	return nil
}

// tarXattrs reads the extended attributes as GNU tar and star (SCHILY.xattr.),
// libarchive (LIBARCHIVE.xattr., base64) and GNU tar --selinux write them.
func tarXattrs(header *tar.Header) ([]image.Xattr, error) {
	found := make(map[string][]byte)
	for key, value := range header.PAXRecords {
		if name, ok := strings.CutPrefix(key, paxLibXattr); ok {
			name, err := url.PathUnescape(name)
			if err != nil {
				return nil, refuse(header.Name, "extended attribute %q: %v", key, err)
			}
			raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
			if err != nil {
				return nil, refuse(header.Name, "extended attribute %q: %v", key, err)
			}
			if _, twice := header.PAXRecords[paxXattr+name]; !twice {
				found[name] = raw
			}
		}
		if name, ok := strings.CutPrefix(key, paxXattr); ok {
			found[name] = []byte(value)
		}
		if key == paxSELinux {
			// The kernel keeps the label with its final NUL.
			found["security.selinux"] = append([]byte(strings.TrimRight(value, "\x00")), 0)
		}
	}
	var xattrs []image.Xattr
	for name, value := range found {
		if !slices.ContainsFunc([]string{"user.", "system.", "security.", "trusted."}, func(p string) bool {
			return len(name) > len(p) && strings.HasPrefix(name, p)
		}) || len(name) > 255 || len(value) > 64<<10 {
			return nil, refuse(header.Name, "extended attribute %.60q of %d bytes is none of Linux", name, len(value))
		}
		xattrs = append(xattrs, image.Xattr{Name: name, Value: value})
	}
	sortXattrs(xattrs)
	return xattrs, nil
}
