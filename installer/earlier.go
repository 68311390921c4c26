package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/lastwords"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage"
)

// earlier is what earlier starts left that did not end well.
type earlier struct {
	mu   sync.Mutex
	text strings.Builder
}

func (e *earlier) add(from string, text []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	fmt.Fprintf(&e.text, "---- %s ----\n%s\n", from, strings.TrimRight(lastwords.Printable(text), "\n"))
}

func (e *earlier) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.text.String()
}

const (
	kernelLog   = "/dev/kmsg"
	pstoreMount = "/sys/fs/pstore"
	// devkmsg lets all of our lines into the kernel's log, and not ten in five
	// seconds (admin-guide/sysctl/kernel.rst, printk_devkmsg).
	devkmsg = "/proc/sys/kernel/printk_devkmsg"
)

// rememberLog has the end of the log survive the end of the machine, as far as its
// firmware can. Whoever runs the installer on a system of their own keeps their
// kernel's log to themselves.
func (i *installation) rememberLog() {
	var kernel io.Writer
	if i.env.inMemory && !i.opt.dryRun {
		err := os.WriteFile(devkmsg, []byte("on\n"), 0)
		if err == nil {
			// Of what went before a panic the kernel keeps 10 KiB by default.
			if err := unix.Mount("pstore", pstoreMount, "pstore", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("kmsg_bytes=%d", lastwords.MostBytes)); err != nil {
				i.debugf(progress.Clock, "pstore: %v", err)
			}
			var f *os.File
			if f, err = os.OpenFile(kernelLog, os.O_WRONLY, 0); err == nil {
				kernel = f // as long as the process
			}
		}
		if err != nil {
			i.debugf(progress.Clock, "the log does not go to the kernel's: %v", err)
		}
	}
	i.recorder = lastwords.New(kernel)
	i.model.AddSink(i.recorder)
}

// readEarlier shows what the kernel left when the machine last went down, and
// makes room for the next time.
func (i *installation) readEarlier() {
	if !i.env.inMemory || i.opt.dryRun {
		return
	}
	text, files, err := lastwords.FromFirmware(os.DirFS(pstoreMount))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && len(text) == 0:
		return
	case err != nil:
		i.model.Warn(progress.Clock, err.Error())
		return
	}
	i.tellEarlier("kept by the firmware: the kernel went down", text)
	for _, name := range files {
		if err := os.Remove(filepath.Join(pstoreMount, name)); err != nil {
			i.debugf(progress.Clock, "%v", err)
		}
	}
}

// tellEarlier shows the end of an earlier log on the page, and its last lines here.
func (i *installation) tellEarlier(from string, text []byte) {
	i.earlier.add(from, text)
	i.model.Warn(i.steering.phase(), "an earlier start was cut short ("+from+"); its last lines are on the page, at /log/earlier")
	lines := bytes.Split(bytes.TrimSpace([]byte(lastwords.Printable(text))), []byte("\n"))
	for _, line := range lines[max(0, len(lines)-5):] {
		i.model.Log(i.steering.phase(), "earlier: "+string(line))
	}
}

// keepLastWords writes the end of the log to the disks of the new system while
// these are made; the function that it returns ends that, and may be called again.
func (i *installation) keepLastWords(ctx context.Context, ready *volumes) (stop func()) {
	mountPoint, name := i.lastWordsAt()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if ready.wait(ctx, mountPoint) != nil {
			return
		}
		root, err := os.OpenRoot(i.opt.mountPoint)
		if err == nil {
			defer root.Close() // only what is written through it counts
			err = i.recorder.Keep(ctx, root, name)
		}
		if err != nil {
			i.model.Warn(progress.Storage, err.Error())
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// lastWordsAt is where the end of the log is kept: the volume, and the file as the
// new root sees it.
func (i *installation) lastWordsAt() (mountPoint, name string) {
	for _, v := range i.plan.Layout.Mounts() {
		if v.MountPoint() == storage.ESPMountPoint {
			return v.MountPoint(), path.Join(strings.TrimPrefix(v.MountPoint(), "/"), lastwords.OnESP)
		}
	}
	return "/", lastwords.OnRoot
}

// forgetLastWords takes the file away: the installation is complete.
func (i *installation) forgetLastWords() error {
	i.stopLastWords()
	_, name := i.lastWordsAt()
	err := i.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
