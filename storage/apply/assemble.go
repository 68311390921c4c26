package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/lvm"
	"github.com/firstlight/firstlight/storage/md"
	"github.com/firstlight/firstlight/storage/signature"
	"github.com/firstlight/firstlight/storage/tool"
)

// nodesOf are the devices of a layout, each with a channel that is closed when it
// is there: partitions, arrays, logical volumes.
func nodesOf(l storage.Layout) map[string]chan struct{} {
	devices := make(map[string]chan struct{})
	for _, d := range l.Disks {
		for _, p := range d.Partitions {
			devices[d.Node(p)] = make(chan struct{})
		}
	}
	for _, a := range l.Arrays {
		devices[a.Node] = make(chan struct{})
	}
	for _, v := range l.Volumes() {
		if node := v.Disk.Node(v.Partition); devices[node] == nil {
			devices[node] = make(chan struct{})
		}
	}
	return devices
}

// build does everything that the layout says, all at once: each part waits for
// the devices that it lies on, and for nothing else.
func (r *run) build(ctx context.Context, devices []block.Device) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, d := range r.layout.Disks {
		g.Go(func() error {
			if err := r.partition(ctx, d, devices[i]); err != nil {
				return err
			}
			for _, p := range d.Partitions {
				close(r.made[d.Node(p)])
			}
			return nil
		})
	}
	for _, a := range r.layout.Arrays {
		g.Go(func() error { return r.array(ctx, a) })
	}
	for _, group := range r.layout.Groups {
		g.Go(func() error { return r.group(ctx, group) })
	}
	for _, v := range r.layout.Volumes() {
		g.Go(func() error { return r.volume(ctx, v) })
	}
	return g.Wait()
}

// await waits until a device of the layout is made and has its node.
func (r *run) await(ctx context.Context, node string) error {
	select {
	case <-r.made[node]:
		return r.WaitFor(ctx, node, nodeLimit)
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s: %w", node, context.Cause(ctx))
	}
}

// array makes an array of its members.
func (r *run) array(ctx context.Context, a storage.Array) error {
	for _, member := range a.Members {
		if err := r.await(ctx, member); err != nil {
			return err
		}
	}
	r.options.Progress(a.Node, "", fmt.Sprintf("RAID %d of %d: %s", a.Level, len(a.Members), a.Name))
	if err := r.tool(ctx, md.Create(a)); err != nil {
		r.applied.undo(md.Stop(a.Node)) // it may have come half the way
		return assembling(err, "making the array %s of %v", a.Name, a.Members)
	}
	r.applied.push("the array "+a.Name, md.Stop(a.Node))
	r.applied.assembled(a)
	block.HoldResync(a.Node)
	if err := r.WaitFor(ctx, a.Node, nodeLimit); err != nil {
		return err
	}
	// Behind the arrays' own descriptions old contents may begin that the disk's
	// partitions did not show.
	if err := r.clear(a.Node); err != nil {
		return err
	}
	close(r.made[a.Node])
	return nil
}

// assembled notes an array that runs.
func (a *Applied) assembled(array storage.Array) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.arrays = append(a.arrays, array)
}

// whole says whether every array still has all of its members, each with all that
// was written. One that does not take a write is thrown out by the kernel, or its
// sector noted as bad, and whoever writes to the array never hears of it (md(4)):
// the system would lose something with the next disk. a.mu is held. Errors have
// code STO-026.
func (a *Applied) whole() error {
	if a.seams.Sys == nil {
		return nil
	}
	var wrong []error
	for _, array := range a.arrays {
		if array.Level == 0 {
			continue // it has nothing to spare, and fails with its member
		}
		if err := a.complete(array); err != nil {
			wrong = append(wrong, storage.Errorf(storage.CodeLost, "the array %s of %s: %w", array.Name, strings.Join(array.Members, ", "), err))
		}
	}
	return errors.Join(wrong...)
}

// complete asks what Documentation/admin-guide/md.rst describes.
func (a *Applied) complete(array storage.Array) error {
	dir := path.Join("block", path.Base(array.Node), "md")
	missing, err := fs.ReadFile(a.seams.Sys, dir+"/degraded")
	if err != nil {
		return fmt.Errorf("whether it is whole cannot be read: %w", err)
	}
	if n := strings.TrimSpace(string(missing)); n != "0" {
		return fmt.Errorf("it has lost %s of its %d members, which did not take what was written", n, len(array.Members))
	}
	states, err := fs.Glob(a.seams.Sys, dir+"/dev-*/state")
	if err != nil {
		return err
	}
	for _, name := range states {
		state, err := fs.ReadFile(a.seams.Sys, name)
		if err != nil {
			return fmt.Errorf("whether a member is whole cannot be read: %w", err)
		}
		for word := range strings.FieldsFuncSeq(string(state), func(c rune) bool { return c == ',' || c == '\n' }) {
			if word == "faulty" || word == "write_error" {
				return fmt.Errorf("%s did not take what was written to it (%s)", strings.TrimPrefix(path.Base(path.Dir(name)), "dev-"), word)
			}
		}
	}
	return nil
}

// group writes a volume group to its device and makes the devices of its
// volumes.
func (r *run) group(ctx context.Context, g storage.Group) error {
	if err := r.await(ctx, g.Device); err != nil {
		return err
	}
	r.options.Progress(g.Device, "", "volume group "+g.Name)
	if err := r.describe(g); err != nil {
		return err
	}
	for _, v := range g.Volumes {
		if err := r.tool(ctx, lvm.Activate(g, v)); err != nil {
			r.applied.undo(lvm.Deactivate(g, v)) // it may have come half the way
			return assembling(err, "making the logical volume %s", v.Name)
		}
		r.applied.push("the logical volume "+v.Name, lvm.Deactivate(g, v))
		node := "/dev/mapper/" + g.Mapping(v)
		if err := r.WaitFor(ctx, node, nodeLimit); err != nil {
			return err
		}
		if err := r.clear(node); err != nil {
			return err
		}
		close(r.made[node])
	}
	return nil
}

// describe writes the metadata of a group.
func (r *run) describe(g storage.Group) (err error) {
	dev, err := r.OpenDisk(g.Device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	for _, region := range lvm.Describe(g) {
		n, err := dev.WriteAt(region.Data, int64(region.Offset))
		r.applied.wrote(g.Name, uint64(n))
		if err != nil {
			return storage.Errorf(storage.CodeIO, "writing the volume group %s to %s: %w", g.Name, g.Device, err)
		}
		if err := dev.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// clear makes an array or a logical volume one on which nothing is recognised.
func (r *run) clear(node string) (err error) {
	dev, err := r.OpenDisk(node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	places, err := signature.Places(dev, dev.Size(), dev.SectorSize())
	if err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	written, err := signature.Erase(dev, signature.Merge(places))
	r.applied.wrote(node, written)
	if err != nil {
		return fmt.Errorf("%s: %w", node, err)
	}
	return dev.Sync()
}

// assembling gives a program's failure the code of volumes that could not be
// made.
func assembling(err error, format string, args ...any) error {
	var exit *tool.ExitError
	if errors.As(err, &exit) {
		return storage.Errorf(storage.CodeAssemble, format+": %w", append(slices.Clone(args), err)...)
	}
	return err
}
