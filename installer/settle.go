package main

import (
	"context"
	"io/fs"
	"slices"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

// Disks are found by the kernel one after the other, and nothing says when it has
// found them all: SCSI and NVMe controllers are searched in the background. What
// is chosen among disks, and the numbers of their volumes, must not depend on who
// was faster.
const (
	disksQuiet = 2 * time.Second  // no disk has come for so long: these are all
	disksLimit = 60 * time.Second // a disk that comes and goes holds nobody up
	disksAgain = 100 * time.Millisecond
)

// awaitDisks returns when no disk has come or gone for a while.
func (i *installation) awaitDisks(ctx context.Context) error {
	if !i.env.inMemory {
		return nil // it has run for long
	}
	return settled(ctx, i.env.sys, disksQuiet, disksLimit, func() {
		i.model.Wait(progress.Inventory, "disks that the kernel is still finding")
	})
}

func settled(ctx context.Context, sys fs.FS, quiet, limit time.Duration, waiting func()) error {
	begin := time.Now()
	var before []string
	since := begin
	for time.Since(begin) < limit {
		now, err := fs.Glob(sys, "block/*/size")
		if err != nil {
			return err // only a malformed pattern fails
		}
		if !slices.Equal(now, before) {
			if before != nil {
				waiting()
			}
			before, since = now, time.Now()
		}
		if time.Since(since) >= quiet {
			return nil
		}
		select {
		case <-time.After(disksAgain):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
