// Package readonly makes the file systems that lie on disks readable as file
// trees with no write reaching a disk: not the replay of a journal, not a time
// of last access, not the super block of a RAID. Partitions, LVM volumes, md
// RAIDs and LUKS volumes (where a key file of another tree, or the TPM, opens
// them) are looked into.
//
// It never fails an installation: what cannot be read is logged and left out.
// It never writes, and it asks nobody for a passphrase.
//
// Every device is a loop device that the kernel knows as read-only, over a
// disk that was opened for reading only: whatever a file-system driver tries,
// the loop driver has nothing to write with.
package readonly

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/signature"
	"github.com/firstlight/firstlight/storage/tool"
)

const (
	defaultStep  = 30 * time.Second
	defaultTotal = 3 * time.Minute

	// Whoever fills a disk with signatures does not fill our kernel with
	// devices.
	mostTrees   = 64
	mostDevices = 256
)

// Tree is one file system that can be read.
type Tree struct {
	Name string // for the log: "/dev/vda2 (ext4)"
	// FS does not follow symbolic links and opens nothing but regular files
	// and directories.
	FS fs.FS
}

// Options of [Attach].
type Options struct {
	// Dir is the directory below which mount points are made.
	Dir string
	// Step is how long one mount or program may take; 0 means 30 s.
	Step time.Duration
	// Total is how long everything may take; 0 means 3 minutes.
	Total time.Duration
	// Unseal has the TPM release the key of a LUKS2 token, JSON of the type
	// systemd-tpm2; nil where there is no TPM. The key is wiped after use.
	Unseal func(ctx context.Context, token []byte) ([]byte, error)
	// Keep are the UUIDs of LUKS volumes whose keys Attached.Opened gives out.
	Keep []string
	// Warn is told what could not be read; it may be nil.
	Warn func(text string)
}

// Attached is what [Attach] could make readable.
type Attached struct {
	options Options
	runner  tool.Runner
	number  int // of mappings and mount points

	simple  []place            // ext, xfs, vfat that are not mounted yet
	btrfs   map[string][]place // by UUID
	arrays  map[string][]member
	volumes map[string]place // LVM: physical volumes by UUID
	mapped  map[string]bool  // LVM: logical volumes by UUID, that are dealt with
	luks    []place
	keys    []key
	asked   map[string]bool  // LUKS volumes, by UUID, whose tokens the TPM was asked for
	seen    map[string]bool  // places by identity
	loops   map[string]*loop // by region

	trees  []tree
	inside map[string][]storage.Content // of mappings, by name
	opened map[string]Opened            // by UUID
	undo   []undo
}

// tree is a Tree with what its order depends on.
type tree struct {
	Tree
	system bool // looks like the root of an operating system
}

// undo takes down one thing; all of them are run in reverse.
type undo struct {
	what string
	do   func() error
}

// region is a run of bytes of a block device.
type region struct {
	path         string // of the device
	offset, size uint64 // bytes
}

// place is something recognised on a device.
type place struct {
	region
	name string // for people: /dev/vda2
	kind string
	uuid string
}

// Attach makes the file systems on disks readable, as far as that is possible.
// disks are given with their contents (package signature); unreadable disks,
// and the medium that the installer was booted from, are left out. The caller
// closes what is returned before anyone writes to a disk.
//
// runner runs cryptsetup, dmsetup and mdadm.
func Attach(ctx context.Context, runner tool.Runner, disks []storage.Disk, o Options) *Attached {
	if o.Step <= 0 {
		o.Step = defaultStep
	}
	if o.Total <= 0 {
		o.Total = defaultTotal
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Total, fmt.Errorf("%s have passed", o.Total))
	defer cancel()
	a := &Attached{
		options: o, runner: runner,
		btrfs: map[string][]place{}, arrays: map[string][]member{}, volumes: map[string]place{},
		mapped: map[string]bool{}, seen: map[string]bool{}, asked: map[string]bool{}, loops: map[string]*loop{}, inside: map[string][]storage.Content{}, opened: map[string]Opened{},
	}
	for _, d := range disks {
		unreadable := slices.ContainsFunc(d.Contents, func(c storage.Content) bool { return c.Kind == storage.KindUnreadable })
		if !unreadable && !d.BootMedium && d.Physical() {
			a.add(d.Path, 0, "/dev/", d.Contents)
		}
	}
	// What was attached may hold keys for, or members of, something else.
	// Groups of which members are missing come when nothing else does.
	for a.round(ctx, false) || a.round(ctx, true) {
	}
	if err := ctx.Err(); err != nil {
		a.warn("not everything on the disks was looked at: %v", context.Cause(ctx))
	}
	for _, k := range a.keys {
		clear(k.bytes)
	}
	a.keys = nil
	return a
}

// Trees are the file systems, those that look like the root of an operating
// system first.
func (a *Attached) Trees() []Tree {
	sorted := slices.Clone(a.trees)
	slices.SortStableFunc(sorted, func(x, y tree) int { return cmp.Compare(rank(x), rank(y)) })
	var trees []Tree
	for _, t := range sorted {
		trees = append(trees, t.Tree)
	}
	return trees
}

func rank(t tree) int {
	if t.system {
		return 0
	}
	return 1
}

// Opened is a LUKS volume that a key file of an old tree opened.
type Opened struct {
	// Key is what was in the file. Whoever takes it wipes it.
	Key []byte
	// Contents are what lies in the volume.
	Contents []storage.Content
}

// Opened tells of a volume in Options.Keep; ok is false when no key file opened
// it.
func (a *Attached) Opened(uuid string) (o Opened, ok bool) {
	o, ok = a.opened[strings.ToLower(uuid)]
	return o, ok
}

// Close takes everything down in reverse. Afterwards nothing of it holds a disk,
// unless the error says so. It may be called again.
func (a *Attached) Close() error {
	var all []error
	for _, u := range slices.Backward(a.undo) {
		if err := within(context.Background(), a.options.Step, u.do, func() {}); err != nil {
			all = append(all, fmt.Errorf("taking down %s: %w", u.what, err))
		}
	}
	a.undo, a.trees = nil, nil
	return errors.Join(all...)
}

func (a *Attached) warn(format string, args ...any) {
	if a.options.Warn != nil {
		a.options.Warn(fmt.Sprintf(format, args...))
	}
}

// add notes what was recognised on a device. base is where its bytes begin on
// path; before goes before the names of its parts.
func (a *Attached) add(path string, base uint64, before string, contents []storage.Content) {
	// What lies in a member of a RAID at its beginning is seen through the RAID,
	// and on a member of a stripe it is none of ours.
	within := map[string]bool{}
	for _, c := range contents {
		if container(c.Kind) {
			within[c.Where] = true
		}
	}
	for _, c := range contents {
		_, known := drivers[c.Kind]
		if !container(c.Kind) && (!known || within[c.Where]) {
			continue
		}
		p := place{region{path, base + c.Offset, c.Size}, before + c.Where, c.Kind, c.UUID}
		if id := fmt.Sprint(p.path, p.offset, p.kind); a.seen[id] || len(a.seen) >= mostDevices {
			continue
		} else {
			a.seen[id] = true
		}
		switch c.Kind {
		case "md":
			m, err := readMember(p)
			if err != nil {
				a.warn("%s: its RAID super block: %v", p.name, err)
				continue
			}
			a.arrays[p.uuid] = append(a.arrays[p.uuid], m)
		case "luks":
			a.luks = append(a.luks, p)
		case "lvm":
			if _, twice := a.volumes[p.uuid]; !twice {
				a.volumes[p.uuid] = p
			}
		case storage.Btrfs:
			a.btrfs[p.uuid] = append(a.btrfs[p.uuid], p)
		default:
			a.simple = append(a.simple, p)
		}
	}
}

// container says whether other things lie in what is of that kind.
func container(kind string) bool { return kind == "md" || kind == "luks" || kind == "lvm" }

// look recognises what lies in r, and adds it.
func (a *Attached) look(ctx context.Context, r region, name string) []storage.Content {
	found := make(chan []storage.Content, 1)
	err := within(ctx, a.options.Step, func() error {
		f, err := os.Open(r.path)
		if err != nil {
			return err
		}
		defer f.Close() // only read from
		contents, err := signature.Probe(name, section{f, r.offset, r.size}, r.size, 512)
		found <- contents
		return err
	}, func() {})
	if err != nil {
		a.warn("%s: %s", name, short(err))
		return nil
	}
	contents := <-found
	a.add(r.path, r.offset, "", contents)
	return contents
}

// round attaches what can be attached now and reports whether there was
// anything. With partial, groups of which members are missing are tried too.
func (a *Attached) round(ctx context.Context, partial bool) bool {
	if ctx.Err() != nil || len(a.trees) >= mostTrees {
		return false
	}
	simple := a.simple
	a.simple = nil
	for _, p := range simple {
		a.mountSimple(ctx, p)
	}
	any := len(simple) > 0
	any = a.assembleArrays(ctx, partial) || any
	any = a.mapVolumes(ctx, partial) || any
	any = a.mountBtrfs(ctx, partial) || any
	return a.decrypt(ctx) || any
}

// driver is how the file system of a kind is mounted.
type driver struct {
	fileSystem string
	// options are tried in order: kernels differ in names.
	options []string
}

// drivers: Documentation/filesystems/{ext4,xfs,btrfs,vfat}.rst. Without noload,
// norecovery or nologreplay a journal would be replayed, or the mount refused.
// A super block may ask for a panic on errors: errors=continue refuses that.
var drivers = map[string]driver{
	"ext2":        {storage.Ext4, []string{"noload,errors=continue"}},
	"ext3":        {storage.Ext4, []string{"noload,errors=continue"}},
	storage.Ext4:  {storage.Ext4, []string{"noload,errors=continue"}},
	storage.XFS:   {storage.XFS, []string{"norecovery,nouuid"}},
	storage.VFAT:  {storage.VFAT, []string{"errors=continue"}},
	storage.Btrfs: {storage.Btrfs, []string{"subvolid=5,rescue=nologreplay", "subvolid=5,nologreplay"}},
}

const mountFlags = unix.MS_RDONLY | unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NOATIME

func (a *Attached) mountSimple(ctx context.Context, p place) {
	device, err := a.loop(p.region)
	if err == nil {
		err = a.mount(ctx, p, device, "")
	}
	if err != nil {
		a.warn("%s (%s) cannot be read: %s", p.name, p.kind, short(err))
	}
}

// mount mounts a device and makes it a tree.
func (a *Attached) mount(ctx context.Context, p place, device, more string) error {
	if len(a.trees) >= mostTrees {
		return errors.New("there are too many file systems")
	}
	a.number++
	target := filepath.Join(a.options.Dir, fmt.Sprint(a.number))
	if err := os.MkdirAll(target, 0o700); err != nil {
		return err
	}
	driver := drivers[p.kind]
	mounts := new(mount.Stack)
	err := within(ctx, a.options.Step, func() error {
		var errs []error
		for _, options := range driver.options {
			err := mounts.Mount(device, target, driver.fileSystem, mountFlags, options+more)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}, func() { _ = mounts.Detach() }) // it came too late to be of use
	if err != nil {
		return err
	}
	a.undo = append(a.undo, undo{"the file system of " + p.name, func() error {
		if err := mounts.Close(); err != nil {
			return errors.Join(err, mounts.Detach())
		}
		return os.Remove(target)
	}})
	directory := directory(target)
	a.trees = append(a.trees, tree{
		Tree{Name: fmt.Sprintf("%s (%s)", p.name, p.kind), FS: directory},
		looksLikeRoot(directory),
	})
	keys := make(chan []key, 1)
	err = within(ctx, a.options.Step, func() error {
		found, err := readKeys(target)
		keys <- found
		return err
	}, func() {})
	if err != nil {
		a.warn("%s: reading its crypttab: %s", p.name, short(err))
	}
	select {
	case found := <-keys: // those that could be read, when one could not
		a.keys = append(a.keys, found...)
	default: // it has not ended
	}
	return nil
}

// mountBtrfs mounts each file system once, with all of its devices.
func (a *Attached) mountBtrfs(ctx context.Context, partial bool) (any bool) {
	for _, id := range sorted(a.btrfs) {
		group := a.btrfs[id]
		if wanted, err := btrfsDevices(group[0].region); err == nil && uint64(len(group)) < wanted {
			if !partial {
				continue
			}
			a.warn("%s (btrfs): %d of its %d devices are here", group[0].name, len(group), wanted)
		}
		delete(a.btrfs, id)
		any = true
		var devices []string
		var err error
		for _, p := range group {
			var device string
			if device, err = a.loop(p.region); err != nil {
				break
			}
			devices = append(devices, device)
		}
		if err == nil {
			more := ""
			for _, d := range devices[1:] {
				more += ",device=" + d
			}
			if partial {
				more += ",degraded"
			}
			err = a.mount(ctx, group[0], devices[0], more)
		}
		if err != nil {
			a.warn("%s (btrfs) cannot be read: %s", group[0].name, short(err))
		}
	}
	return any
}

// loop is the node of a read-only loop device for r; each is made once.
func (a *Attached) loop(r region) (string, error) {
	id := fmt.Sprint(r)
	if l := a.loops[id]; l != nil {
		return l.node, nil
	}
	l, err := newLoop(r)
	if err != nil {
		return "", err
	}
	a.loops[id] = l
	a.undo = append(a.undo, undo{fmt.Sprintf("%s over %s", l.node, r.path), l.close})
	return l.node, nil
}

// tool runs a program for no longer than a step.
func (a *Attached) tool(ctx context.Context, c tool.Cmd) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.options.Step, fmt.Errorf("%s have passed", a.options.Step))
	defer cancel()
	_, err := a.runner.Run(ctx, c)
	return err
}

// mapping takes in a block device that a program has made over our loop devices,
// and looks at what lies in it. find tells its node, close is the program's run
// that removes it.
func (a *Attached) mapping(ctx context.Context, find func() (string, error), name string, close tool.Cmd) error {
	a.undo = append(a.undo, undo{name, func() error { return a.tool(context.Background(), close) }})
	node, err := find()
	if err != nil {
		return err
	}
	if err := block.WaitFor(ctx, node, a.options.Step); err != nil {
		return err
	}
	d, err := block.OpenReadOnly(node)
	if err != nil {
		return err
	}
	size := d.Size()
	if err := d.Close(); err != nil {
		return err
	}
	a.inside[name] = a.look(ctx, region{node, 0, size}, name)
	return nil
}

// dmNode is the node of a device-mapper device. The kernel makes it (devtmpfs);
// whether there is one below /dev/mapper depends on udev and on the program.
func dmNode(name string) (string, error) {
	files, err := filepath.Glob("/sys/block/dm-*/dm/name")
	if err != nil {
		return "", err
	}
	for _, file := range files {
		// One that goes away meanwhile is not ours.
		if text, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(text)) == name {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(file)))), nil
		}
	}
	return "", fmt.Errorf("the kernel has no mapping %s", name)
}

// mapName is a new name of a mapping.
func (a *Attached) mapName() string {
	a.number++
	return fmt.Sprintf("firstlight-old-%d", a.number)
}

// within runs do for no longer than limit. A system call on a broken disk can
// hang for minutes and cannot be interrupted: it is then left behind, and late
// is called should it succeed after all.
func within(ctx context.Context, limit time.Duration, do func() error, late func()) error {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var decided atomic.Bool // by whoever is first: the one who acts, or the one who waits
	done := make(chan error, 1)
	go func() {
		err := do()
		if decided.CompareAndSwap(false, true) {
			done <- err
		} else if err == nil {
			late()
		}
	}()
	var gaveUp error
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		gaveUp = context.Cause(ctx)
	case <-timer.C:
		gaveUp = fmt.Errorf("it has not ended within %s", limit)
	}
	if !decided.CompareAndSwap(false, true) {
		return <-done
	}
	return gaveUp
}

// section is a region of an open device from its own byte 0.
type section struct {
	f            *os.File
	offset, size uint64
}

func (s section) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 || uint64(at) > s.size || uint64(len(p)) > s.size-uint64(at) {
		return 0, fmt.Errorf("reading %d bytes at %d of %d", len(p), at, s.size)
	}
	return s.f.ReadAt(p, int64(s.offset)+at)
}

// read reads n bytes at an offset of r.
func (r region) read(at, n uint64) ([]byte, error) {
	f, err := os.Open(r.path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	b := make([]byte, n)
	if _, err := (section{f, r.offset, r.size}).ReadAt(b, int64(at)); err != nil {
		return nil, err
	}
	return b, nil
}

// btrfsDevices is how many devices the file system has (fs/btrfs/ctree.h,
// struct btrfs_super_block, num_devices).
func btrfsDevices(r region) (uint64, error) {
	b, err := r.read(64<<10, 4096)
	if err != nil {
		return 0, err
	}
	return le.Uint64(b[0x88:]), nil
}

func sorted[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// short is text in one line.
func short(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
