package main

import (
	"context"
	"errors"
	"testing"

	"github.com/firstlight/firstlight/storage"
)

func TestWaitingForAVolumeEndsWhenItIsReadyOrNeverWillBe(t *testing.T) {
	layout := storage.Layout{Disks: []storage.DiskLayout{{Partitions: []storage.Partition{
		{Number: 1, MountPoint: "/home", FileSystem: storage.Ext4}, {Number: 2, MountPoint: "/", FileSystem: storage.Ext4}, {Number: 3},
	}}}}
	v := newVolumes(layout)
	v.markReady("/")
	v.markReady("/")
	if err := v.wait(t.Context(), "/"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	failed := errors.New("mkfs failed")
	cancel(failed)
	if err := v.wait(ctx, "/home"); !errors.Is(err, failed) {
		t.Errorf("waiting for a volume that is never made: got %v, want %v", err, failed)
	}
}
