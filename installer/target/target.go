// Package target writes files of our own into the new root file-system:
// fstab, keys, the network configuration, logs. It never follows a symbolic
// link out of that tree, and it never writes half a file.
package target

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// File is a file to be written. Path is absolute as the new system will see
// it; Mode holds permission bits. It belongs to root.
type File struct {
	Path string
	Mode uint32
	Data []byte
}

// temporarySuffix marks a file that is not whole yet.
const temporarySuffix = ".firstlight-new"

// Write writes files below root, in their order. A missing directory is made
// with mode 0755; what stands in a file's place, a symbolic link too, is
// replaced by the whole new file (rename(2)).
func Write(root *os.Root, files ...File) error {
	for _, file := range files {
		if err := write(root, file); err != nil {
			return fmt.Errorf("writing %s: %w", file.Path, err)
		}
	}
	return nil
}

func write(root *os.Root, file File) error {
	name := Name(file.Path)
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	temporary := name + temporarySuffix
	if err := writeWhole(root, temporary, file); err != nil {
		return errors.Join(err, ignoreMissing(root.Remove(temporary)))
	}
	if err := root.Rename(temporary, name); err != nil {
		return errors.Join(err, root.Remove(temporary))
	}
	return nil
}

func writeWhole(root *os.Root, name string, file File) (err error) {
	mode := fs.FileMode(file.Mode).Perm()
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chmod(mode); err != nil { // the umask took its share at creation
		return err
	}
	if _, err := f.Write(file.Data); err != nil {
		return err
	}
	return f.Sync()
}

// Name is the name below an os.Root of the absolute path p: "." for "/".
func Name(p string) string {
	if name := strings.TrimPrefix(path.Clean("/"+p), "/"); name != "" {
		return name
	}
	return "."
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
