// Package stage gathers every object that an installation needs into one
// pack file in memory, before any disk is written: from the booted root,
// from old file-systems, and the rest from the image server. Each object is
// verified, whichever way it came. It never writes anywhere else, and what
// it holds is in the pack, not on the Go heap.
package stage

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
)

// Source is where an object came from, as the metrics name it.
type Source string

// The sources of objects.
const (
	FromServer    Source = "server"
	FromOldOS     Source = "old_os"
	FromBootImage Source = "boot_image"
	FromMedium    Source = "medium"
)

// Tree is a file-system that may hold files which the image has too. Of its
// regular files only those are read whose size is wanted.
type Tree struct {
	Name   string // for the log: "/dev/vda2 (ext4)"
	Source Source
	FS     fs.FS
	// Below are the directories that are searched; nil means all of FS.
	// Symbolic links are never followed.
	Below []string
}

// BootedRoot is the tree that the installer itself was booted from; root is
// the file-system at "/". Of it only the directories that hold programs and
// libraries are searched.
func BootedRoot(root fs.FS) Tree {
	return Tree{Name: "the booted system", Source: FromBootImage, FS: root,
		Below: []string{"bin", "bbin", "sbin", "lib", "lib64", "usr", "etc"}}
}

// Fetcher brings objects from the image server. It calls piece with runs of
// the encoded bytes of each object, in order for one object, unverified; an
// error of piece ends it. It may be called from several goroutines at once.
// A missing object is an error that wraps object.ErrNotFound, or simply left
// out.
type Fetcher interface {
	Fetch(ctx context.Context, digests []object.Digest, piece func(object.Piece) error) error
}

// Options of Run. The zero value of each is a sensible default.
type Options struct {
	// Trees are searched, in order, before the server is asked.
	Trees []Tree
	// Limit is the most bytes that the pack may take; 0 means no limit.
	Limit uint64
	// Streams is the number of Fetch calls at a time; 0 means 2.
	Streams int
	// Patience is how long the server may be away, in one go, before Run
	// gives up; 0 means 10 minutes.
	Patience time.Duration
	// Report is told of each verified object, or several, by source and
	// unpacked bytes. It is called by one goroutine at a time.
	Report func(source Source, objects, bytes uint64)
	// Wait is told why nothing comes at present, and "" when it goes on
	// again. It is called by one goroutine at a time.
	Wait func(reason string)
	// Log is told what a person may want to know. It is called by one
	// goroutine at a time.
	Log func(text string)
}

// Run gathers the objects need in file, which is empty, and returns them.
// The Getter reads from file, which must stay open as long.
func Run(ctx context.Context, server Fetcher, file pack.File, need []image.Object, o Options) (object.Getter, error) {
	return nil, errors.New("stage: not written yet")
}
