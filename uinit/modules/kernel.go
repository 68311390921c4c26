package modules

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// InsertFrom returns an Insert for the modules directory dir. params gives
// the parameters of a module by name, "" for none (the kernel command line
// does not reach modules by itself). A module that is compressed with zstd
// (RFC 8878) is unpacked first: not every kernel can do that itself.
func InsertFrom(dir string, params func(name string) string) Insert {
	return func(file string) error {
		err := insert(filepath.Join(dir, file), params(Name(file)))
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	}
}

func insert(file, params string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if filepath.Ext(file) != ".zst" {
		if err := unix.FinitModule(int(f.Fd()), params, 0); err != nil {
			return fmt.Errorf("finit_module: %w", err)
		}
		return nil
	}
	unpacked, err := unpack(f)
	if err != nil {
		return err
	}
	if err := unix.InitModule(unpacked, params); err != nil {
		return fmt.Errorf("init_module: %w", err)
	}
	return nil
}

// largestModule is more than any module has, in bytes unpacked.
const largestModule = 64 << 20

// unpack returns what a file that is compressed with zstd holds.
func unpack(f io.Reader) ([]byte, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(largestModule))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	packed, err := io.ReadAll(f)
	if err != nil {
		return nil, err
	}
	unpacked, err := d.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("unpacking a module: %w", err)
	}
	return unpacked, nil
}

// Watch hears the kernel's announcements of devices (uevents, netlink(7),
// NETLINK_KOBJECT_UEVENT). Open it before Coldplug, so that no device falls
// between the two.
type Watch struct {
	fd int
}

// OpenWatch begins to collect announcements.
func OpenWatch() (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("opening the uevent socket: %w", err)
	}
	const kernelGroup = 1 // group 2 is udev's own
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(fmt.Errorf("binding the uevent socket: %w", err), unix.Close(fd))
	}
	// A server with many disks says thousands of things at once.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return nil, errors.Join(fmt.Errorf("enlarging the uevent socket's buffer: %w", err), unix.Close(fd))
	}
	return &Watch{fd: fd}, nil
}

// Close ends the collecting.
func (w *Watch) Close() error { return unix.Close(w.fd) }

// Handle loads modules for the devices that are announced, until none was for
// as long as quiet, or for ever where quiet is 0; or until the context ends,
// which is an error. failed is told of modules that could not be loaded. lost
// is called when the kernel had more to say than there was room for: walk
// through /sys (Coldplug) then.
func (w *Watch) Handle(ctx context.Context, quiet time.Duration, l *Loader, failed func(error), lost func()) error {
	const tick = 100 * time.Millisecond // how soon the end of the context is seen
	buffer := make([]byte, 64<<10)
	last := time.Now()
	for quiet == 0 || time.Since(last) < quiet {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}}, int(tick.Milliseconds()))
		if errors.Is(err, unix.EINTR) || err == nil && n == 0 {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for uevents: %w", err)
		}
		size, _, err := unix.Recvfrom(w.fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOBUFS) {
			lost()
			last = time.Now()
			continue
		}
		if err != nil {
			return fmt.Errorf("reading uevents: %w", err)
		}
		modalias, added := parseUevent(buffer[:size])
		if !added {
			continue
		}
		last = time.Now()
		if err := l.Device(modalias); err != nil {
			failed(fmt.Errorf("%s: %w", modalias, err))
		}
	}
	return nil
}

// parseUevent returns the modalias, if any, of a device that was added. The
// message is `add@/devices/…` and then KEY=value, each ended by a zero byte
// (Documentation/ABI/testing/sysfs-uevent, lib/kobject_uevent.c).
func parseUevent(message []byte) (modalias string, added bool) {
	for i, field := range bytes.Split(message, []byte{0}) {
		if i == 0 {
			if added = bytes.HasPrefix(field, []byte("add@")); !added {
				return "", false
			}
			continue
		}
		if value, ok := bytes.CutPrefix(field, []byte("MODALIAS=")); ok {
			return string(value), true
		}
	}
	return "", added
}
