package readonly

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// directory is a mounted file system as an [fs.FS]. What lies in it comes from
// strangers: a link leads nowhere, and a FIFO is not waited for.
type directory string

var (
	_ fs.ReadDirFS = directory("")
	_ fs.StatFS    = directory("")
)

func (d directory) path(op, name string) (string, error) {
	if !fs.ValidPath(name) {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return filepath.Join(string(d), name), nil
}

// Open implements [fs.FS].
func (d directory) Open(name string) (fs.File, error) {
	path, err := d.path("open", name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = fmt.Errorf("%s is neither a regular file nor a directory", name)
	}
	if err != nil {
		f.Close() // only opened
		return nil, err
	}
	return f, nil
}

// ReadDir implements [fs.ReadDirFS].
func (d directory) ReadDir(name string) ([]fs.DirEntry, error) {
	path, err := d.path("readdir", name)
	if err != nil {
		return nil, err
	}
	return os.ReadDir(path)
}

// Stat implements [fs.StatFS]; it does not follow a link.
func (d directory) Stat(name string) (fs.FileInfo, error) {
	path, err := d.path("stat", name)
	if err != nil {
		return nil, err
	}
	return os.Lstat(path)
}

// looksLikeRoot says whether an operating system has its files in d, or in a
// directory of it (a subvolume of btrfs).
func looksLikeRoot(d directory) bool {
	for _, pattern := range []string{"etc/os-release", "usr/lib/os-release", "*/etc/os-release", "*/usr/lib/os-release"} {
		if found, err := fs.Glob(d, pattern); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}
