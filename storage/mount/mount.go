// Package mount mounts file systems one over the other and takes them down again
// in reverse.
//
// It makes no file systems and asks no program for help: every call is a system
// call.
package mount

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
)

// Stack is a set of mounts in the order in which they were made. The zero value
// is an empty one. Its methods may be called by several goroutines.
type Stack struct {
	mu     sync.Mutex
	mounts []mounted
}

type mounted struct {
	point     string
	recursive bool // brought mounts below it along
	written   *written
}

// Mount mounts a file system; flags are those of mount(2), data the options of
// the file system. Errors have code STO-012.
func (s *Stack) Mount(source, target, fileSystem string, flags uintptr, data string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	mount := func() error {
		if err := unix.Mount(source, target, fileSystem, flags, data); err != nil {
			return storage.Errorf(storage.CodeMount, "mounting %s (%s) at %s: %w", source, fileSystem, target, err)
		}
		s.mounts = append(s.mounts, mounted{point: target, recursive: flags&unix.MS_REC != 0})
		return nil
	}
	if flags&(unix.MS_BIND|unix.MS_RDONLY) != 0 || !strings.HasPrefix(source, "/dev/") {
		return mount()
	}
	device, err := block.NewWatch(source)
	if err != nil {
		return err
	}
	if err := mount(); err != nil {
		return errors.Join(err, device.Close())
	}
	w, err := watch(device, target)
	s.mounts[len(s.mounts)-1].written = w
	return err
}

// Sync has everything written that still is to be, and says whether all that was
// ever written to these file systems has reached their disks. Errors have code
// STO-026.
func (s *Stack) Sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, m := range s.mounts {
		errs = append(errs, m.written.check())
	}
	return errors.Join(errs...)
}

// Bind makes a directory, and all that is mounted below it, visible in another
// place. What happens there never reaches the original: mounts made or undone
// below target are not seen at source.
func (s *Stack) Bind(source, target string) error {
	if err := s.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("", target, "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return storage.Errorf(storage.CodeMount, "making %s private: %w", target, err)
	}
	return nil
}

// System binds directories of the running system into a root, for programs that
// run there: by default /dev, /proc, /sys and, where it exists, /run. Mount
// points that are missing are made.
func (s *Stack) System(root string, directories ...string) error {
	if len(directories) == 0 {
		directories = []string{"/dev", "/proc", "/sys"}
		if _, err := os.Stat("/run"); err == nil {
			directories = append(directories, "/run")
		}
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return storage.Errorf(storage.CodeMount, "mounting the system's directories: %w", err)
	}
	defer r.Close() // only used for names
	for _, d := range directories {
		// Through an os.Root: a symbolic link in an image must not make us mount
		// over the running system.
		name := filepath.Clean(d)[1:]
		if err := r.MkdirAll(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return storage.Errorf(storage.CodeMount, "making the mount point %s in %s: %w", d, root, err)
		}
		if fi, err := r.Lstat(name); err != nil || !fi.IsDir() {
			return storage.Errorf(storage.CodeMount, "%s in %s is no directory", d, root)
		}
		if err := s.Bind(d, filepath.Join(root, name)); err != nil {
			return err
		}
	}
	return nil
}

// Points are the mount points, in the order in which they were mounted.
func (s *Stack) Points() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	points := make([]string, len(s.mounts))
	for i, m := range s.mounts {
		points[i] = m.point
	}
	return points
}

// busyFor is how long an unmount waits for the last program to let go.
const busyFor = 5 * time.Second

// Close unmounts everything in reverse, waiting a little for mounts that are in
// use. It goes on after an error; all errors are joined and have code STO-013, or
// STO-026 where a disk did not take everything.
// What could not be unmounted stays in the stack, so Close may be called again.
func (s *Stack) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	var left []mounted
	for i := len(s.mounts) - 1; i >= 0; i-- {
		errs = append(errs, s.mounts[i].written.leave())
		if err := unmount(s.mounts[i]); err != nil {
			errs = append(errs, err)
			left = append([]mounted{s.mounts[i]}, left...)
			continue
		}
		errs = append(errs, s.mounts[i].written.close())
	}
	s.mounts = left
	return errors.Join(errs...)
}

// Detach is for the end of the road: what Close could not unmount is made
// invisible and goes when its last user does. File systems are synced first.
func (s *Stack) Detach() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	unix.Sync()
	var errs []error
	for i := len(s.mounts) - 1; i >= 0; i-- {
		errs = append(errs, s.mounts[i].written.leave(), s.mounts[i].written.close())
		if err := unix.Unmount(s.mounts[i].point, unix.MNT_DETACH); err != nil {
			errs = append(errs, storage.Errorf(storage.CodeUnmount, "detaching %s: %w", s.mounts[i].point, err))
		}
	}
	s.mounts = nil
	return errors.Join(errs...)
}

func unmount(m mounted) error {
	flags := unix.UMOUNT_NOFOLLOW
	if m.recursive {
		// The mounts that came along go with it; they are private, so that the
		// originals stay.
		flags |= unix.MNT_DETACH
	}
	ctx, cancel := context.WithTimeout(context.Background(), busyFor)
	defer cancel()
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		err := unix.Unmount(m.point, flags)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.EBUSY) {
			select {
			case <-time.After(pause):
				continue
			case <-ctx.Done():
			}
		}
		return storage.Errorf(storage.CodeUnmount, "unmounting %s: %w", m.point, err)
	}
}
