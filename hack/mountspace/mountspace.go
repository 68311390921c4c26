// Package mountspace gives the tests of a package mounts of their own. Whoever
// makes a mount namespace takes a copy of all mounts with it, and a copy keeps a
// file-system, and with it the disk, in use after the mount itself is gone: tests
// of other packages, which run at the same time, would make disks busy that
// nobody uses any more. See mount_namespaces(7).
package mountspace

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// entered tells the program that it runs in the namespace.
const entered = "FIRSTLIGHT_TEST_MOUNTSPACE"

// Run runs main, a test's m.Run, in a mount namespace that this program shares
// with nobody, and returns the program's exit code. For that it starts the program
// again, with the same process id. Without the right to do so (not root) main
// runs where it is: nothing can be mounted then.
func Run(main func() int) int {
	if os.Getenv(entered) != "" || os.Geteuid() != 0 {
		return main()
	}
	fmt.Fprintln(os.Stderr, "a mount namespace for the tests:", enter())
	return 1
}

// enter comes back only with an error.
func enter() error {
	runtime.LockOSThread() // the namespace is this thread's, and so is what it executes
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return os.NewSyscallError("execve", syscall.Exec(self, os.Args, append(os.Environ(), entered+"=1")))
}
