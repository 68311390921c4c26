// Package watchdog arms the machine's hardware watchdog across the hand-over to
// another kernel: one that hangs is reset, and the firmware boots the disk. It
// does not decide whether the new system takes the watchdog over; a system that
// does not would be reset while it is well.
//
// See Documentation/watchdog/watchdog-api.rst of the kernel.
package watchdog

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is the node of the first watchdog. There is rarely another.
const Device = "/dev/watchdog0"

// Patience is how long a new kernel may usually take until its driver has the
// watchdog. Servers with many devices take a minute or two.
const Patience = 5 * time.Minute

// Watchdog is one that counts down. As long as it is open and after the process
// has gone, it resets the machine when nobody speaks to it.
type Watchdog struct {
	file *os.File
	// Seconds until the reset.
	Seconds int
}

// Arm starts the watchdog. It waits for patience, or for the most that it can
// where that is less.
func Arm(device string, patience time.Duration) (*Watchdog, error) {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("arming the hardware watchdog: %w", err)
	}
	w := &Watchdog{file: f}
	for seconds := int32(patience / time.Second); seconds > 0; seconds = seconds * 3 / 4 {
		err = w.setTimeout(&seconds)
		if err == nil {
			w.Seconds = int(seconds)
			break
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("arming the hardware watchdog: %w", err), w.Disarm())
	}
	return w, nil
}

// setTimeout asks for seconds, which becomes what the hardware does.
func (w *Watchdog) setTimeout(seconds *int32) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, w.file.Fd(), unix.WDIOC_SETTIMEOUT, uintptr(unsafe.Pointer(seconds))); e != 0 {
		return e
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, w.file.Fd(), unix.WDIOC_KEEPALIVE, 0); e != 0 {
		return e
	}
	return nil
}

// Disarm stops the watchdog ("magic close"). One that cannot be stopped is kept
// from resetting the machine no longer than its time.
func (w *Watchdog) Disarm() error {
	_, err := w.file.Write([]byte("V"))
	if err = errors.Join(err, w.file.Close()); err != nil {
		return fmt.Errorf("disarming the hardware watchdog: %w", err)
	}
	return nil
}
