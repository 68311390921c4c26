package apply

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
)

// Wipe erases the disks of a layout side by side, each in the way that it asks
// for, and makes nothing in their place: its disks have no partitions. Of the
// options it uses Commit and Progress. When one disk cannot be erased the others
// are still erased, and the error is about all that were not; whether something
// was written is known from Options.Commit. Errors have STO codes.
func Wipe(ctx context.Context, s Seams, l storage.Layout, o Options) (err error) {
	if o.Progress == nil {
		o.Progress = func(string, string, string) {}
	}
	if len(l.Disks) == 0 {
		return storage.Errorf(storage.CodeNoDisk, "there is no disk to wipe")
	}
	for _, d := range l.Disks {
		if len(d.Partitions) > 0 {
			return storage.Errorf(storage.CodeErase, "%s is to be wiped, and partitions are planned on it", d.Path)
		}
	}
	r := &run{Seams: s, layout: l, options: o, slots: make(chan struct{}, atOnce), held: make(map[string][]holder)}
	r.applied = &Applied{seams: s, layout: l, written: make(map[string]uint64)}
	devices, err := r.open(ctx)
	defer func() {
		for _, d := range devices {
			if d != nil {
				err = errors.Join(err, d.Close())
			}
		}
	}()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("before the first write: %w", context.Cause(ctx))
	}
	if o.Commit != nil {
		if err := o.Commit(); err != nil {
			return err
		}
	}
	if err := r.takeDown(ctx, devices); err != nil {
		return err
	}
	failures := make([]error, len(l.Disks))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, d := range l.Disks {
		g.Go(func() error {
			failures[i] = r.wipe(ctx, d, devices[i])
			return nil
		})
	}
	_ = g.Wait() // the errors are in failures: all disks are reported, not the first
	return errors.Join(failures...)
}

// wipe erases one disk, and has the kernel forget what was on it.
func (r *run) wipe(ctx context.Context, d storage.DiskLayout, dev block.Device) error {
	if err := r.erase(ctx, d, dev, nil); err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	if err := dev.Reread(nil); err != nil {
		return err
	}
	r.options.Progress(d.Name, "", "erased")
	return nil
}
