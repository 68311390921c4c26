// Package unpack writes an image's inodes into a directory: the mounted
// target, the tools root, or any other. Names, content, owners, modes, times
// to the nanosecond, hard links, devices and extended attributes come out
// exactly as the manifest has them. It never follows a symbolic link, never
// leaves the directory, and trusts no object that it has not verified.
package unpack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

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
	// Kept leaves everything on the volume as it is: nothing of the image is
	// written there.
	Kept bool
}

// Options of Run. The zero value is a plain directory without volumes.
type Options struct {
	Volumes []Volume
	// Wait returns when the volume at mountPoint ("/home") is mounted, or
	// with an error if it never will be. It is called once for each of
	// Volumes but "/", from several goroutines at once. nil: all are mounted.
	Wait func(ctx context.Context, mountPoint string) error
	// Workers write so many files at a time; 0 means 8.
	Workers int
	// Report is told how many of total bytes of file content have been
	// written. It is called by one goroutine at a time.
	Report func(done, total uint64)
}

// Codes of Error.
const (
	CodeNoRoom  = "IMG-090" // the file-system is full, of bytes or of inodes
	CodeWrite   = "IMG-091" // the target refused something else
	CodeContent = "IMG-092" // manifest and objects contradict each other
)

// Error is an inode that could not be written.
type Error struct {
	code string
	err  error
}

// Error names the path and what was being done.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap is the cause, often a unix.Errno.
func (e *Error) Unwrap() error { return e.err }

// Code is one of the constants of this package.
func (e *Error) Code() string { return e.code }

const (
	defaultWorkers = 8
	chunkEntries   = 16 // neighbours in path order that one worker writes
)

// Run writes the tree of m below root with the content that objects gives
// out. What is there already is kept if it is a directory where a directory
// is to be, and replaced if it is none; other files are left alone. When Run
// returns nil everything has reached the disks (syncfs(2)).
//
// The file-system of "/" must be mounted when root is opened.
func Run(ctx context.Context, objects object.Getter, root *os.Root, m *image.Manifest, o Options) error {
	return (&unpacker{objects: objects}).run(ctx, root, m, o)
}

func (u *unpacker) run(ctx context.Context, root *os.Root, m *image.Manifest, o Options) error {
	top, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("opening the directory to unpack into: %w", err)
	}
	defer top.Close() // a directory: nothing is lost
	u.top, u.entries, u.options = int(top.Fd()), m.Entries, o
	volumes, err := u.divide()
	if err != nil {
		return err
	}
	if o.Workers <= 0 {
		u.options.Workers = defaultWorkers
	}
	for _, e := range m.Entries {
		if e.Type == image.File && !u.kept(e.Path) {
			u.total += e.Size
		}
	}
	for _, target := range u.content {
		u.total += u.entries[target].Size
	}
	u.behind = newWriteBehind(u.sync)
	u.report(0)

	// Directories and files, volume by volume as they are mounted.
	group, working := errgroup.WithContext(ctx)
	if u.bring != nil {
		w := u.newWriter(m, volumes)
		defer w.close()
		group.Go(func() error { return w.bringAll(working) })
	}
	chunks := make(chan []int)
	var feeders sync.WaitGroup
	for _, v := range volumes {
		feeders.Add(1)
		group.Go(func() error {
			defer feeders.Done()
			return u.feed(working, v, chunks)
		})
	}
	go func() { feeders.Wait(); close(chunks) }()
	for range u.options.Workers {
		group.Go(func() error { return u.work(working, chunks) })
	}
	err = group.Wait()
	if syncErr := u.behind.end(); err == nil {
		err = syncErr
	}
	if err != nil {
		return err
	}

	// What needs the files: further names, then the directories' own
	// attributes, whose times every new name has changed.
	dirs := newDirs(u.top)
	defer dirs.close()
	for _, i := range u.links {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := u.link(dirs, i); err != nil {
			return err
		}
	}
	if err := u.finishDirectories(ctx); err != nil {
		return err
	}
	for _, v := range volumes {
		if err := u.sync(v.mountPoint); err != nil {
			return err
		}
	}
	return nil
}

// finishDirectories sets the attributes of all directories, beside each other:
// those of one change nothing in another.
func (u *unpacker) finishDirectories(ctx context.Context) error {
	var all []int
	for i, e := range u.entries {
		if e.Type == image.Dir && !u.kept(e.Path) {
			all = append(all, i)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(u.options.Workers)
	for chunk := range slices.Chunk(all, 8*chunkEntries) {
		group.Go(func() error {
			dirs := newDirs(u.top)
			defer dirs.close()
			for _, i := range chunk {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				if err := u.finishDirectory(dirs, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// volume is what of the image lies on one file-system.
type volume struct {
	Volume
	mountPoint  string // relative: ".", "var/log"
	directories []int  // indices of entries, in path order
	files       []int  // everything else but further names
}

type unpacker struct {
	objects object.Getter // Run: all content is there
	bring   Bring         // Stream: it is on its way
	made    chan *volume  // Stream: whose directories are there
	top     int           // directory descriptor
	entries []image.Entry
	options Options

	links     []int          // entries that are further names on their volume
	first     map[int]string // what such an entry is a further name of
	content   map[int]int    // whose content a Hardlink entry has that is the first on its volume
	keepOwner map[string]bool
	behind    *writeBehind

	mu          sync.Mutex
	done, total uint64
}

// divide sorts the entries by volume. The volume "." comes first.
func (u *unpacker) divide() ([]*volume, error) {
	root := &volume{mountPoint: ".", Volume: Volume{MountPoint: "/"}}
	volumes := []*volume{root}
	u.keepOwner = map[string]bool{}
	for _, v := range u.options.Volumes {
		rel := strings.Trim(path.Clean("/"+v.MountPoint), "/")
		if rel == "" {
			root.Volume = v
			rel = "."
		} else {
			volumes = append(volumes, &volume{Volume: v, mountPoint: rel})
		}
		u.keepOwner[rel] = v.KeepOwner
	}
	find := func(p string) *volume {
		best := root
		for _, v := range volumes[1:] {
			if (p == v.mountPoint || strings.HasPrefix(p, v.mountPoint+"/")) && (best == root || len(v.mountPoint) > len(best.mountPoint)) {
				best = v
			}
		}
		return best
	}
	type name struct {
		index  int
		volume *volume
	}
	index := map[string]int{}    // of first entries with further names
	firstOn := map[name]string{} // the first name of an inode on a volume
	u.first, u.content = map[int]string{}, map[int]int{}
	for i, e := range u.entries {
		v := find(e.Path)
		if v.Kept {
			continue
		}
		switch e.Type {
		case image.Dir:
			v.directories = append(v.directories, i)
		case image.Hardlink:
			// The inode may have no name on this volume yet: then this
			// one becomes a file of its own, as a link cannot cross.
			target, ok := index[e.Target]
			if !ok {
				target, ok = slices.BinarySearchFunc(u.entries[:i], e.Target, func(e image.Entry, p string) int { return comparePaths(e.Path, p) })
				if !ok {
					return nil, &Error{CodeContent, fmt.Errorf("the manifest has /%s as another name of /%s, which is not there", e.Path, e.Target)}
				}
				index[e.Target] = target
				firstOn[name{target, find(e.Target)}] = e.Target
			}
			if existing, ok := firstOn[name{target, v}]; ok {
				u.links = append(u.links, i)
				u.first[i] = existing
				continue
			}
			firstOn[name{target, v}] = e.Path
			u.content[i] = target
			v.files = append(v.files, i)
		default:
			v.files = append(v.files, i)
		}
	}
	return volumes, nil
}

// kept says whether p lies on a volume that is left as it is.
func (u *unpacker) kept(p string) bool {
	longest, kept := 0, false
	for _, v := range u.options.Volumes {
		point := strings.Trim(path.Clean("/"+v.MountPoint), "/")
		if (p == point || strings.HasPrefix(p, point+"/")) && len(point) > longest {
			longest, kept = len(point), v.Kept
		}
	}
	return kept
}

// comparePaths orders as the manifest does: the root first.
func comparePaths(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == ".":
		return -1
	case b == ".":
		return 1
	}
	return strings.Compare(a, b)
}

// feed waits for the volume, makes its directories, and hands its files out, each
// after its directory.
func (u *unpacker) feed(ctx context.Context, v *volume, chunks chan<- []int) error {
	if u.options.Wait != nil && v.mountPoint != "." {
		if err := u.options.Wait(ctx, v.Volume.MountPoint); err != nil {
			return fmt.Errorf("waiting for the volume %s: %w", v.Volume.MountPoint, err)
		}
	}
	dirs := newDirs(u.top)
	defer dirs.close()
	made := 0
	// makeTo makes the directories before the path p, all where it is empty.
	makeTo := func(p string) error {
		for ; made < len(v.directories); made++ {
			directory := u.entries[v.directories[made]].Path
			if p != "" && comparePaths(directory, p) > 0 {
				return nil
			}
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if err := u.makeDirectory(dirs, directory); err != nil {
				return err
			}
		}
		return nil
	}
	u.behind.mounted(v.mountPoint)
	if u.made != nil { // content comes in an order of its own
		if err := makeTo(""); err != nil {
			return err
		}
		u.made <- v // there is room for each
	}
	for chunk := range slices.Chunk(v.files, chunkEntries) {
		// Others write files while the directories of the next ones are made.
		if err := makeTo(u.entries[chunk[len(chunk)-1]].Path); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case chunks <- chunk:
		}
	}
	return makeTo("")
}

func (u *unpacker) work(ctx context.Context, chunks <-chan []int) error {
	w := u.newWorker()
	defer w.dirs.close()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case chunk, ok := <-chunks:
			if !ok {
				return nil
			}
			var written uint64
			for _, i := range chunk {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				n, err := w.write(ctx, i)
				if err != nil {
					return err
				}
				written += n
			}
			u.report(written)
		}
	}
}

func (u *unpacker) report(written uint64) {
	u.behind.wrote(written)
	if u.options.Report == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.done += written
	u.options.Report(u.done, u.total)
}

// failed is the error of having done what to the entry at p.
func failed(what, p string, err error) error {
	code := CodeWrite
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		code = CodeNoRoom
	}
	return &Error{code, fmt.Errorf("%s /%s: %w", what, strings.TrimPrefix(p, "./"), err)}
}
