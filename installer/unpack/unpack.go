// Package unpack writes an image's inodes into a directory: the mounted
// target, the tools root, or any other. Names, content, owners, modes, times
// to the nanosecond, hard links, devices and extended attributes come out
// exactly as the manifest has them. It never follows a symbolic link, never
// leaves the directory, and trusts no object that it has not verified.
package unpack

import (
	"context"
	"errors"
	"os"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Volume is a file-system that is mounted below the root, perhaps only while
// Run is under way.
type Volume struct {
	// MountPoint is absolute in the new system: "/home". "/" may be given.
	MountPoint string
	// KeepOwner leaves the owner of the volume's top directory as it is.
	KeepOwner bool
}

// Options of Run. The zero value is a plain directory without volumes.
type Options struct {
	Volumes []Volume
	// Wait returns when the volume at mountPoint ("/home") is mounted, or
	// with an error if it never will be. It is called once for each of
	// Volumes, from several goroutines at once. nil: all are mounted.
	Wait func(ctx context.Context, mountPoint string) error
	// Workers write so many files at a time; 0 means 8.
	Workers int
	// Report is told how many of total bytes of file content have been
	// written. It is called by one goroutine at a time.
	Report func(done, total uint64)
}

// Run writes the tree of m below root with the content that objects gives
// out. What is there already is kept if it is a directory where a directory
// is to be, and replaced if it is none; other files are left alone. When Run
// returns nil everything has reached the disks (syncfs(2)).
func Run(ctx context.Context, objects object.Getter, root *os.Root, m *image.Manifest, o Options) error {
	return errors.New("unpack: not written yet")
}
