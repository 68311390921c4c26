package readonly

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// loop is a read-only loop device (loop(4)).
type loop struct {
	node string
	file *os.File // the device; closing it lets the kernel forget it
}

const (
	loopControl = "/dev/loop-control"
	loopTries   = 16 // somebody else may take the free device first
	loopGone    = 5 * time.Second
)

// newLoop makes a loop device over r. The disk is opened for reading only, so
// that the driver could not write even if it were asked to.
func newLoop(r region) (*loop, error) {
	backing, err := os.OpenFile(r.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close() // the loop device holds its own reference
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("asking for a loop device: %w", err)
	}
	defer control.Close() // only asked
	for range loopTries {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("asking for a loop device: %w", err)
		}
		l := &loop{node: fmt.Sprintf("/dev/loop%d", number)}
		if l.file, err = os.OpenFile(l.node, os.O_RDONLY, 0); err != nil {
			return nil, err
		}
		err = l.configure(backing, r)
		if err == nil {
			return l, nil
		}
		err = errors.Join(err, l.file.Close())
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("making %s: %w", l.node, err)
		}
	}
	return nil, errors.New("every loop device was taken by somebody else")
}

func (l *loop) configure(backing *os.File, r region) error {
	config := unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{
		Offset: r.offset, Sizelimit: r.size,
		// Autoclear: it goes with its last user, also if that is killed.
		Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR,
	}}
	if err := unix.IoctlLoopConfigure(int(l.file.Fd()), &config); err != nil {
		return err
	}
	readOnly, err := unix.IoctlGetInt(int(l.file.Fd()), unix.BLKROGET)
	if err == nil && readOnly == 0 {
		err = errors.New("the kernel would write to it")
	}
	return err
}

// close takes the device down and waits until it has let go of the disk.
func (l *loop) close() error {
	// In use still, it goes with its last user.
	_ = unix.IoctlSetInt(int(l.file.Fd()), unix.LOOP_CLR_FD, 0) // closing does the same, later
	if err := l.file.Close(); err != nil {
		return err
	}
	held := filepath.Join("/sys/block", filepath.Base(l.node), "loop/backing_file")
	for deadline := time.Now().Add(loopGone); ; {
		_, err := os.Stat(held)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s still holds its disk", l.node)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
