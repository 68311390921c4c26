package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
)

// Directory reads the tree below path. Sockets are left out: they mean nothing
// without the program that made them. A file that changes while it is read is
// an error that wraps ErrChanged; it is best called on a tree that nobody uses.
func Directory(ctx context.Context, path string, sink Sink, options Options) (*image.Manifest, error) {
	// A link given as the root is followed; those below are not.
	root, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("reading the tree: %w", err)
	}
	var stat unix.Stat_t
	if err := unix.Lstat(root, &stat); err != nil {
		return nil, fmt.Errorf("reading the tree %s: %w", root, err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("reading the tree %s: %w", root, unix.ENOTDIR)
	}
	w := &walker{
		root:   root,
		device: stat.Dev,
		cross:  options.CrossFileSystems,
		tree:   newTree(),
		in:     newIntake(ctx, sink, options),
		inodes: make(map[inode]string),
	}
	if err := w.walk("."); err != nil {
		if workerErr := w.in.group.Wait(); workerErr != nil && w.in.ctx.Err() != nil && ctx.Err() == nil {
			return nil, workerErr
		}
		return nil, err
	}
	return w.in.finish(w.tree, options)
}

type inode struct{ device, number uint64 }

type walker struct {
	root   string
	device uint64
	cross  bool
	tree   *tree
	in     *intake
	inodes map[inode]string // first path of inodes with several names
}

func (w *walker) walk(path string) error {
	if err := w.in.ctx.Err(); err != nil {
		return err
	}
	full := filepath.Join(w.root, path)
	var stat unix.Stat_t
	if err := unix.Lstat(full, &stat); err != nil {
		return fmt.Errorf("reading %s: %w", full, err)
	}
	format := stat.Mode & unix.S_IFMT
	if format == unix.S_IFSOCK {
		return nil
	}
	if path != "." {
		if err := image.CheckPath(path); err != nil {
			return refuse(path, "%v", err)
		}
	}
	if format != unix.S_IFDIR && stat.Nlink > 1 {
		key := inode{stat.Dev, stat.Ino}
		if first, found := w.inodes[key]; found {
			w.tree.add(&image.Entry{Path: path, Type: image.Hardlink, Target: first})
			return nil
		}
		w.inodes[key] = path
	}
	e := &image.Entry{
		Path:        path,
		Mode:        stat.Mode & 0o7777,
		UID:         stat.Uid,
		GID:         stat.Gid,
		Seconds:     int64(stat.Mtim.Sec),
		Nanoseconds: uint32(stat.Mtim.Nsec),
	}
	var err error
	if e.Xattrs, err = readXattrs(full); err != nil {
		return err
	}
	switch format {
	case unix.S_IFREG:
		e.Type, e.Size = image.File, uint64(stat.Size)
	case unix.S_IFDIR:
		e.Type = image.Dir
	case unix.S_IFLNK:
		e.Type = image.Symlink
		if e.Target, err = os.Readlink(full); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Type = image.CharDevice
		if format == unix.S_IFBLK {
			e.Type = image.BlockDevice
		}
		e.Major, e.Minor = unix.Major(stat.Rdev), unix.Minor(stat.Rdev)
	case unix.S_IFIFO:
		e.Type = image.FIFO
	default:
		return refuse(path, "unknown type %#o", format)
	}
	w.tree.add(e)
	if e.Size > 0 {
		w.in.take(e, func() (io.ReadCloser, error) {
			return os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		}, func() error { return unchanged(full, stat) })
	}
	if e.Type != image.Dir || stat.Dev != w.device && !w.cross {
		return nil
	}
	names, err := os.ReadDir(full)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.walk(strings.TrimPrefix(path+"/"+name.Name(), "./")); err != nil {
			return err
		}
	}
	return nil
}

// unchanged looks at a file again after it was read.
func unchanged(path string, before unix.Stat_t) error {
	var now unix.Stat_t
	if err := unix.Lstat(path, &now); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	if now.Ino != before.Ino || now.Size != before.Size || now.Mtim != before.Mtim || now.Ctim != before.Ctim {
		return fmt.Errorf("%s: %w", path, ErrChanged)
	}
	return nil
}

// readXattrs reads all extended attributes of a file, a link itself included,
// except those that overlayfs keeps for itself.
func readXattrs(path string) ([]image.Xattr, error) {
	list, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading extended attributes of %s: %w", path, err)
	}
	var xattrs []image.Xattr
	for name := range bytes.SplitSeq(bytes.TrimSuffix(list, []byte{0}), []byte{0}) {
		name := string(name)
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, fmt.Errorf("reading extended attribute %s of %s: %w", name, path, err)
		}
		xattrs = append(xattrs, image.Xattr{Name: name, Value: value})
	}
	sortXattrs(xattrs)
	return xattrs, nil
}

// grow calls f with a larger buffer until its answer fits.
func grow(f func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 2 {
		b := make([]byte, size)
		n, err := f(b)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		return b[:max(n, 0)], err
	}
}
