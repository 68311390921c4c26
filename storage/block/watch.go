package block

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
)

// Watch notices writes that a disk did not take, whoever made them. The kernel
// writes when it likes, and tells of a failure only those who had the disk open
// before (fsync(2)): a file-system that is mounted, or a program that has ended,
// may never hear of it.
type Watch struct{ file *os.File }

// NewWatch begins to watch a disk, a partition, or what is mapped to one. While
// it does, the device cannot be taken away. Errors have code STO-016.
func NewWatch(path string) (*Watch, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, storage.Errorf(storage.CodeUnreadable, "watching what is written to %s: %w", path, err)
	}
	return &Watch{f}, nil
}

// Check has everything written that still is to be, and says whether all since
// the watch began, or the last check, has reached the disk. Errors have code
// STO-026.
func (w *Watch) Check() error {
	if err := w.file.Sync(); err != nil {
		return storage.Errorf(storage.CodeLost, "%s did not take what was written to it: %w", w.file.Name(), errors.Unwrap(err))
	}
	return nil
}

// Close ends the watch.
func (w *Watch) Close() error { return w.file.Close() }
