package media

import (
	"errors"
	"os"
	"path/filepath"
)

// writeWhole writes a file so that a reader finds the old one or the new one.
func writeWhole(name string, mode os.FileMode, parts ...[]byte) error {
	return replaceFile(name, mode, func(f *os.File) error {
		for _, part := range parts {
			if _, err := f.Write(part); err != nil {
				return err
			}
		}
		return nil
	})
}

// replaceFile has write fill a new file, and puts it in the place of the one
// called name when that has gone well.
func replaceFile(name string, mode os.FileMode, write func(*os.File) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err2 := os.Open(filepath.Dir(name))
	if err2 != nil {
		return nil // the file is there; that its name is durable was only a wish
	}
	_ = dir.Sync() // some file-systems cannot
	_ = dir.Close()
	return nil
}
