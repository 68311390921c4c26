package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/firstlight/firstlight/storage"
)

// volumes tells the unpacking which mount points of the new root are ready.
type volumes struct {
	once  map[string]*sync.Once
	ready map[string]chan struct{}
}

func newVolumes(layout storage.Layout) *volumes {
	v := &volumes{once: map[string]*sync.Once{}, ready: map[string]chan struct{}{}}
	for _, volume := range layout.Mounts() {
		v.once[volume.MountPoint()] = &sync.Once{}
		v.ready[volume.MountPoint()] = make(chan struct{})
	}
	return v
}

// markReady says that the volume is mounted at its place.
func (v *volumes) markReady(mountPoint string) {
	v.once[mountPoint].Do(func() { close(v.ready[mountPoint]) })
}

// wait returns when the volume of mountPoint is mounted.
func (v *volumes) wait(ctx context.Context, mountPoint string) error {
	select {
	case <-v.ready[mountPoint]:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the volume %s: %w", mountPoint, context.Cause(ctx))
	}
}
