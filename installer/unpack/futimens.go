package unpack

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// futimens is utimensat(2) with a null path, which acts on fd itself; the
// wrapper of x/sys always passes a path.
func futimens(fd int, times []unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times[0])), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
