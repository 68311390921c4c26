// Package apply makes disks match a layout: it erases, partitions, encrypts,
// formats and mounts. It is the only package that destroys anything.
//
// It decides nothing. Before the first write it looks at every disk once more
// and refuses all of them when one is not what the layout was made for.
package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/luks"
	"github.com/firstlight/firstlight/storage/mkfs"
	"github.com/firstlight/firstlight/storage/tool"
)

// Mounter mounts file systems; Close unmounts them in reverse and may be called
// again after an error. Both Sync and Close say whether the disks have taken
// everything. [mount.Stack] is the real one.
type Mounter interface {
	Mount(source, target, fileSystem string, flags uintptr, data string) error
	Sync() error
	Close() error
}

// Seams are the ways to the system.
type Seams struct {
	Runner tool.Runner
	// OpenDisk opens a disk for us alone; [block.Open] is the real one.
	OpenDisk func(path string) (block.Device, error)
	// WaitFor waits for a device node; [block.WaitFor] is the real one.
	WaitFor func(ctx context.Context, node string, limit time.Duration) error
	Mounter Mounter
	// MakeSubvolumes makes subvolumes on a new btrfs; [mount.MakeSubvolumes] is
	// the real one.
	MakeSubvolumes func(device string, subvolumes []storage.Subvolume) error
	// Sys is sysfs, os.DirFS("/sys"): it tells what the kernel has made of a disk
	// (a RAID, a mapping) that must be taken down first. With nil such a disk is
	// busy.
	Sys fs.FS
	// Sanitize has a disk forget its contents by its own means; package sanitize
	// has the real one.
	Sanitize func(ctx context.Context, disk storage.DiskLayout) error
	// Identify reads the serial number and WWN of a disk as the inventory did;
	// nil leaves that check out.
	Identify func(disk storage.DiskLayout) (serial, wwn string, err error)
}

// Progress is told each step as it begins; partition is empty for steps of the
// whole disk. It is called by several goroutines.
type Progress func(disk, partition, step string)

// Options of [Run].
type Options struct {
	// Root is the directory at which the new root file system is mounted.
	Root string
	// Keys of the encrypted volumes, made for this layout. They are wiped when
	// what Run returns is closed, or when Run fails. They may be nil when nothing
	// is encrypted.
	Keys *keys.Keys
	// Commit is called once, after every check and before the first write. An
	// error of it ends Run with nothing written. It may be nil.
	Commit func() error
	// Ready is called when the volume of a mount point of the layout is mounted
	// at its place below Root, and the mount points in it are made. It is called
	// by several goroutines, for a volume always after the one it lies in. It
	// may be nil.
	Ready func(mountPoint string)
	// Progress may be nil.
	Progress Progress
}

const (
	// nodeLimit is how long a partition's node may take to appear.
	nodeLimit = 30 * time.Second
	// closeLimit is how long cryptsetup may take to close a mapping. Half a minute
	// was not enough on a busy host with an emulated processor.
	closeLimit = 2 * time.Minute
	// atOnce is how many programs run at the same time.
	atOnce = 8
)

// Applied is a layout that was made and is mounted.
type Applied struct {
	seams  Seams
	layout storage.Layout
	keys   *keys.Keys

	mu      sync.Mutex
	watches []*block.Watch // of the disks: not all is written through file systems
	arrays  []storage.Array
	open    []opened // in the order in which they were opened
	written map[string]uint64
	closed  bool
}

// opened is a mapping, an array or a logical volume, and what takes it down.
type opened struct {
	what string
	down tool.Cmd
}

// Run makes the disks match the layout and mounts all volumes. Everything is done
// at once that can be: disks do not wait for each other, and volumes only for the
// one that they are mounted in.
//
// On an error everything that was opened is closed again, and so is the mounter;
// whether something was written is known from Options.Commit. Errors have STO and
// LUK codes.
func Run(ctx context.Context, s Seams, l storage.Layout, o Options) (_ *Applied, err error) {
	if o.Progress == nil {
		o.Progress = func(string, string, string) {}
	}
	if o.Ready == nil {
		o.Ready = func(string) {}
	}
	if len(l.Disks) == 0 {
		return nil, storage.Errorf(storage.CodeNoDisk, "the layout has no disk")
	}
	r := &run{Seams: s, layout: l, options: o, slots: make(chan struct{}, atOnce), made: nodesOf(l), mounted: make(map[string]chan struct{}), held: make(map[string][]holder)}
	for _, v := range l.Mounts() {
		r.mounted[v.MountPoint()] = make(chan struct{})
	}
	r.applied = &Applied{seams: s, layout: l, keys: o.Keys, written: make(map[string]uint64)}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.applied.Close())
		}
	}()
	if err := r.checkKeys(); err != nil {
		return nil, err
	}
	devices, err := r.open(ctx)
	defer func() {
		for _, d := range devices {
			if d != nil {
				err = errors.Join(err, d.Close())
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Root, 0o755); err != nil {
		return nil, storage.Errorf(storage.CodeMount, "making the mount point of the new root: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("before the first write: %w", context.Cause(ctx))
	}
	if o.Commit != nil {
		if err := o.Commit(); err != nil {
			return nil, err
		}
	}
	if err := r.takeDown(ctx, devices); err != nil {
		return nil, err
	}
	if err := r.build(ctx, devices); err != nil {
		return nil, err
	}
	if err := r.applied.watch(); err != nil {
		return nil, err
	}
	return r.applied, nil
}

// run is what the goroutines of one Run share.
type run struct {
	Seams
	layout  storage.Layout
	options Options
	applied *Applied
	slots   chan struct{}            // one for each program that runs
	made    map[string]chan struct{} // by node, closed when the device is there
	mounted map[string]chan struct{} // closed when the mount point is mounted
	held    map[string][]holder      // disks that must be taken down, by path
	heldMu  sync.Mutex
}

// volume encrypts, formats and mounts one volume.
func (r *run) volume(ctx context.Context, v storage.Volume) error {
	d, p := v.Disk, v.Partition
	node := d.Node(p)
	name := storage.PartitionName(d.Name, p.Number)
	if p.Number == 0 { // all of an array or a logical volume
		name = d.Name
	}
	if err := r.await(ctx, node); err != nil {
		return err
	}
	if p.LUKS != nil {
		step, do := "encrypt", r.encrypt
		if p.Kept {
			step, do = "open", r.openKept
		}
		r.options.Progress(d.Name, name, step)
		if err := do(ctx, node, p); err != nil {
			return err
		}
		if err := r.WaitFor(ctx, v.Device(), nodeLimit); err != nil {
			return err
		}
	}
	if p.Kept {
		return r.mountBelow(ctx, name, v)
	}
	r.options.Progress(d.Name, name, "format")
	cmd, err := mkfs.Format(v.Device(), d.SectorSize, p)
	if err != nil {
		return err
	}
	if err := r.tool(ctx, cmd); err != nil {
		var exit *tool.ExitError
		if errors.As(err, &exit) {
			return storage.Errorf(storage.CodeFormat, "making the file system %s for %s: %w", p.FileSystem, p.MountPoint, err)
		}
		return err
	}
	if len(p.Subvolumes) > 0 {
		if err := r.MakeSubvolumes(v.Device(), p.Subvolumes); err != nil {
			return err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, m := range v.Mounts() {
		g.Go(func() error { return r.mountBelow(ctx, name, m) })
	}
	return g.Wait()
}

// mountBelow mounts a volume, or a subvolume of one, as soon as the volume that
// it lies in is mounted.
func (r *run) mountBelow(ctx context.Context, name string, v storage.Volume) error {
	p := v.Partition
	if parent := r.parent(p.MountPoint); parent != "" {
		select {
		case <-r.mounted[parent]:
		case <-ctx.Done():
			return fmt.Errorf("mounting %s: %w", p.MountPoint, context.Cause(ctx))
		}
	}
	r.options.Progress(v.Disk.Name, name, "mount")
	if err := r.mount(v); err != nil {
		return err
	}
	if p.MountPoint == "/" {
		if err := r.applied.rescueKeys(filepath.Join(r.options.Root, p.MountPoint)); err != nil {
			return err
		}
	}
	// In this order: the volumes in it are ready only after it.
	r.options.Ready(p.MountPoint)
	close(r.mounted[p.MountPoint])
	return nil
}

// mount mounts a volume and makes in it the mount points of those that come
// below, before anyone else can put something there.
func (r *run) mount(v storage.Volume) error {
	p := v.Partition
	target := filepath.Join(r.options.Root, p.MountPoint)
	data := ""
	switch p.FileSystem {
	case storage.Ext4:
		// The kernel's own zeroing of inode tables would compete with the
		// unpacking; the new OS does it.
		data = "noinit_itable"
	case storage.VFAT:
		data = "umask=0077" // as in the new OS's fstab; else it depends on ours
	}
	if v.Subvolume != "" {
		data = "subvol=" + v.Subvolume
	}
	if err := r.Mounter.Mount(v.Device(), target, p.FileSystem, unix.MS_NOATIME, data); err != nil {
		return err
	}
	root, err := os.OpenRoot(target)
	if err != nil {
		return storage.Errorf(storage.CodeMount, "opening the new file system at %s: %w", p.MountPoint, err)
	}
	defer root.Close() // only used for names
	if !p.Kept && p.FileSystem != storage.VFAT && (p.RootUserID != 0 || p.RootGroupID != 0) {
		if err := root.Chown(".", int(p.RootUserID), int(p.RootGroupID)); err != nil {
			return storage.Errorf(storage.CodeMount, "owner of %s: %w", p.MountPoint, err)
		}
	}
	for point := range r.mounted {
		if r.parent(point) != p.MountPoint {
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(point, p.MountPoint), "/")
		if err := mkdirs(root, name); err != nil {
			return storage.Errorf(storage.CodeMount, "making the mount point %s: %w", point, err)
		}
	}
	return nil
}

// mkdirs makes a directory and those above it with mode 0755, whatever the umask
// of the process is.
func mkdirs(root *os.Root, name string) error {
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		err := root.Mkdir(name[:i], 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err == nil {
			err = root.Chmod(name[:i], 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parent is the mount point of the volume in which a mount point lies; "" for /.
func (r *run) parent(mountPoint string) string {
	if mountPoint == "/" {
		return ""
	}
	for dir := filepath.Dir(mountPoint); ; dir = filepath.Dir(dir) {
		if _, ok := r.mounted[dir]; ok || dir == "/" {
			return dir
		}
	}
}

// tool runs a program when one of the slots is free.
func (r *run) tool(ctx context.Context, c tool.Cmd) error {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return fmt.Errorf("running %s: %w", c.Name, context.Cause(ctx))
	}
	_, err := r.Runner.Run(ctx, c)
	return err
}

// opened notes a mapping that is open.
func (a *Applied) opened(mapping string) { a.push("the mapping "+mapping, luks.Close(mapping)) }

func (a *Applied) push(what string, down tool.Cmd) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open = append(a.open, opened{what, down})
}

// undo takes down what may have been left half made.
func (a *Applied) undo(down tool.Cmd) {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	// It fails when there is nothing, which is what is wanted.
	_, _ = a.seams.Runner.Run(ctx, down)
}

func (a *Applied) wrote(disk string, n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.written[disk] += n
}

// Layout is what was made.
func (a *Applied) Layout() storage.Layout { return a.layout }

// Written are the bytes that erasing and partitioning wrote, by disk name. What
// file systems write is in the kernel's own counts.
func (a *Applied) Written() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.written)
}

// watch begins to notice what the disks do not take.
func (a *Applied) watch() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, d := range a.layout.Disks {
		w, err := block.NewWatch(d.Path)
		if err != nil {
			return err
		}
		a.watches = append(a.watches, w)
	}
	return nil
}

// Sync has everything written, through the file systems and past them, and says
// whether all of it has reached the disks. Errors have code STO-026.
func (a *Applied) Sync() error {
	err := a.seams.Mounter.Sync()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.watches {
		err = errors.Join(err, w.Check())
	}
	return errors.Join(err, a.whole())
}

// Close unmounts everything, closes mappings and arrays and wipes the keys, in reverse
// of the order in which they came. It goes on after an error and joins them. It
// may be called twice: what is closed stays so, what failed is tried again.
func (a *Applied) Close() error {
	err := a.seams.Mounter.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	// While they are still there: what was unmounted has been written.
	err = errors.Join(err, a.whole())
	a.arrays = nil
	var left []opened
	for _, o := range slices.Backward(a.open) {
		// Without the caller's context: it may be what ended the installation.
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		_, e := a.seams.Runner.Run(ctx, o.down)
		cancel()
		if e != nil {
			err = errors.Join(err, luks.Explain("closing "+o.what, e))
			left = append([]opened{o}, left...)
		}
	}
	for _, w := range a.watches {
		err = errors.Join(err, w.Check(), w.Close())
	}
	a.open, a.watches, a.closed = left, nil, true
	return errors.Join(err, a.keys.Wipe())
}
