package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
)

// written knows whether a disk has taken everything that was written to a file
// system: what its files hold (syncfs(2) tells those who had it open before), and
// what it keeps for itself, which goes past it to the device. A nil one stands
// for a mount of which that need not be known.
type written struct {
	root   *os.File // nil after leave
	device *block.Watch
}

func watch(device *block.Watch, target string) (*written, error) {
	root, err := os.Open(target)
	if err != nil {
		return &written{device: device}, storage.Errorf(storage.CodeMount, "opening what was mounted at %s: %w", target, err)
	}
	return &written{root, device}, nil
}

// check says whether everything has reached the disk until now.
func (w *written) check() error {
	if w == nil {
		return nil
	}
	return errors.Join(w.files(), w.device.Check())
}

func (w *written) files() error {
	if w.root == nil {
		return nil
	}
	if err := unix.Syncfs(int(w.root.Fd())); err != nil {
		return storage.Errorf(storage.CodeLost, "the disk below %s did not take what was written to it: %w", w.root.Name(), err)
	}
	return nil
}

// leave checks the files and lets go of them, so that the file system can be
// unmounted.
func (w *written) leave() error {
	if w == nil || w.root == nil {
		return nil
	}
	err := w.files()
	if closing := w.root.Close(); closing != nil {
		err = errors.Join(err, fmt.Errorf("closing %s: %w", w.root.Name(), closing))
	}
	w.root = nil
	return err
}

// close checks what the file system wrote when it was unmounted, and lets go of
// the device.
func (w *written) close() error {
	if w == nil {
		return nil
	}
	return errors.Join(w.device.Check(), w.device.Close())
}
