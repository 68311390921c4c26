package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// mountSpec is one kernel file-system and its place.
type mountSpec struct {
	kind, place string
	flags       uintptr
	options     string
	// optional ones are left out where the kernel or the machine has none;
	// their places are the kernel's to make.
	optional bool
}

// earlyMounts are wanted before anything else happens. u-root's init has made
// some of them already.
func earlyMounts() []mountSpec {
	const common = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mountSpec{
		{kind: "proc", place: "/proc", flags: common},
		{kind: "sysfs", place: "/sys", flags: common},
		{kind: "devtmpfs", place: "/dev", flags: unix.MS_NOSUID, options: "mode=0755"},
		{kind: "devpts", place: "/dev/pts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, options: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{kind: "tmpfs", place: "/run", flags: unix.MS_NOSUID | unix.MS_NODEV, options: "mode=0755"},
		{kind: "tmpfs", place: "/tmp", flags: unix.MS_NOSUID | unix.MS_NODEV, options: "mode=1777"},
	}
}

// lateMounts need a module that coldplug loads.
func lateMounts() []mountSpec {
	const common = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mountSpec{
		{kind: "efivarfs", place: "/sys/firmware/efi/efivars", flags: common, optional: true},
		{kind: "pstore", place: "/sys/fs/pstore", flags: common, optional: true},
	}
}

// mountAll mounts what is not mounted yet, in order, and goes on after a
// failure: a shell on a machine without /run is better than none.
func mountAll(specs []mountSpec) error {
	var failures []error
	for _, spec := range specs {
		if err := mountOne(spec); err != nil {
			failures = append(failures, fmt.Errorf("mounting %s on %s: %w", spec.kind, spec.place, err))
		}
	}
	return errors.Join(failures...)
}

func mountOne(spec mountSpec) error {
	if !spec.optional {
		if err := os.MkdirAll(spec.place, 0o755); err != nil {
			return err
		}
	}
	there, err := isMountPoint(spec.place)
	if spec.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || there {
		return err
	}
	err = unix.Mount(spec.kind, spec.place, spec.kind, spec.flags, spec.options)
	if spec.optional && errors.Is(err, unix.ENODEV) {
		return nil // a kernel without it
	}
	return err
}

// isMountPoint compares device numbers, as mountpoint(1) does; no kernel
// file-system shares its number with the directory above it.
func isMountPoint(place string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Stat(place, &here); err != nil {
		return false, &fs.PathError{Op: "stat", Path: place, Err: err}
	}
	if err := unix.Stat(place+"/..", &above); err != nil {
		return false, &fs.PathError{Op: "stat", Path: place + "/..", Err: err}
	}
	return here.Dev != above.Dev, nil
}
