package mount

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
)

// Freezing and thawing a file system, of linux/fs.h: _IOWR('X', 119 and 120, int).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// Settle has the file system that is mounted at target write everything to its
// final place, its journal included: whoever reads the disk later without
// replaying a journal, as the search of old disks does, finds it there. fsync(2)
// promises no more than that the journal has it. For a moment nobody can write to
// the file system. Errors have code STO-008.
func Settle(target string) error {
	f, err := os.Open(target)
	if err != nil {
		return storage.Errorf(storage.CodeIO, "settling a file system: %w", err)
	}
	defer f.Close() // only used for its number
	fd := int(f.Fd())
	err = unix.IoctlSetInt(fd, fiFreeze, 0)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP): // one that keeps no journal
		err = unix.Syncfs(fd)
	case err == nil:
		err = unix.IoctlSetInt(fd, fiThaw, 0)
	}
	if err != nil {
		return storage.Errorf(storage.CodeIO, "settling the file system at %s: %w", target, err)
	}
	return nil
}
