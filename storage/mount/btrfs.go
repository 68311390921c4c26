package mount

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
)

// createSubvolume is BTRFS_IOC_SUBVOL_CREATE, _IOW(0x94, 14, struct
// btrfs_ioctl_vol_args) (include/uapi/linux/btrfs.h).
const createSubvolume = 0x5000940e

// subvolumeArguments is struct btrfs_ioctl_vol_args.
type subvolumeArguments struct {
	fd   int64
	name [4088]byte
}

// MakeSubvolumes makes subvolumes at the top of a new btrfs, which it mounts for
// that time in a place of its own. Errors have code STO-012.
func MakeSubvolumes(device string, subvolumes []storage.Subvolume) (err error) {
	place, err := os.MkdirTemp("", "subvolumes-")
	if err != nil {
		return storage.Errorf(storage.CodeMount, "making subvolumes on %s: %w", device, err)
	}
	defer func() { err = errors.Join(err, os.Remove(place)) }()
	var stack Stack
	// Also when Mount fails: it may have come half the way.
	defer func() { err = errors.Join(err, stack.Close()) }()
	if err := stack.Mount(device, place, storage.Btrfs, 0, ""); err != nil {
		return err
	}
	top, err := os.Open(place)
	if err != nil {
		return storage.Errorf(storage.CodeMount, "making subvolumes on %s: %w", device, err)
	}
	defer top.Close() // only used for the call
	for _, s := range subvolumes {
		var arguments subvolumeArguments
		copy(arguments.name[:len(arguments.name)-1], s.Name)
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, top.Fd(), createSubvolume, uintptr(unsafe.Pointer(&arguments))); e != 0 {
			return storage.Errorf(storage.CodeMount, "making the subvolume %s on %s: %w", s.Name, device, e)
		}
	}
	return nil
}
