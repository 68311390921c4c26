package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/bootloader"
	"github.com/firstlight/firstlight/installer/efiboot"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/unpack"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/apply"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/sanitize"
)

// buildStorage makes the disks match the plan; ready is told of each volume
// that is mounted at its place. Its first act is to look at every disk once
// more; then the point of no return is passed.
func (i *installation) buildStorage(ctx context.Context, mounts apply.Mounter, ready *volumes) error {
	if i.opt.skipStorage {
		return skip{"-skipStorage"}
	}
	var committed atomic.Bool
	applied, err := apply.Run(ctx, apply.Seams{
		Runner:         i.storageRunner(),
		OpenDisk:       block.Open,
		WaitFor:        block.WaitFor,
		Mounter:        mounts,
		MakeSubvolumes: mount.MakeSubvolumes,
		Identify:       i.identifyDisk,
		Sys:            i.env.sys,
		Sanitize:       func(ctx context.Context, d storage.DiskLayout) error { return sanitize.Run(ctx, d.Path, d.CryptoErase) },
	}, i.plan.Layout, apply.Options{
		Root: i.opt.mountPoint,
		Keys: i.keys,
		Commit: func() error {
			committed.Store(true)
			i.model.PointOfNoReturn()
			i.model.DisksChanged()
			return nil
		},
		Ready: func(mountPoint string) {
			ready.markReady(mountPoint)
			i.volumeReady(mountPoint)
		},
		Progress: func(disk, partition, step string) {
			name := disk
			if partition != "" {
				name = partition
			}
			i.model.DiskStep(disk, partition, step, progress.Running)
			// On the console nothing stands under storage before the line
			// after which disks change.
			phase := progress.Commit
			if committed.Load() {
				phase = progress.Storage
			}
			i.model.Logf(phase, "%s: %s", name, step)
		},
	})
	i.model.DisksDone(err == nil)
	if err != nil {
		return err
	}
	i.disks = applied
	i.opened.push("the new system's disks", applied.Close)
	return nil
}

// volumeReady shows that nothing more will be done to a volume.
func (i *installation) volumeReady(mountPoint string) {
	for _, v := range i.plan.Layout.Mounts() {
		if v.MountPoint() != mountPoint {
			continue
		}
		name := storage.PartitionName(v.Disk.Name, v.Partition.Number)
		if v.Partition.Number == 0 { // all of an array or a logical volume
			name = v.Disk.Name
		}
		i.model.DiskStep(v.Disk.Name, name, "ready at "+mountPoint, progress.Done)
	}
}

// identifyDisk reads serial number and WWN of a disk as the inventory did.
func (i *installation) identifyDisk(wanted storage.DiskLayout) (serial, wwn string, err error) {
	now, err := inventory.Read(i.env.sys)
	if err != nil {
		return "", "", err
	}
	for _, disk := range now.Disks {
		if disk.Path == wanted.Path {
			return disk.Serial, disk.WWN, nil
		}
	}
	return "", "", fmt.Errorf("%s is gone", wanted.Path)
}

// unpackImage writes the image below the mount point, each entry as soon as
// the volume that it lies on is there.
func (i *installation) unpackImage(ctx context.Context, ready *volumes) error {
	if i.opt.skipStorage {
		return i.openRoot()
	}
	if err := ready.wait(ctx, "/"); err != nil {
		return err
	}
	if err := i.openRoot(); err != nil {
		return err
	}
	var mounted []unpack.Volume
	for _, volume := range i.plan.Layout.Mounts() {
		p := volume.Partition
		mounted = append(mounted, unpack.Volume{MountPoint: p.MountPoint, KeepOwner: p.RootUserID != 0 || p.RootGroupID != 0, Kept: p.Kept})
	}
	options := unpack.Options{
		Volumes: mounted,
		Wait:    ready.wait,
		Report:  func(done, total uint64) { i.model.Update(progress.Unpack, done, total) },
	}
	if !i.plan.LowMemory {
		return unpack.Run(ctx, i.objects, i.root, i.image.Manifest, options)
	}
	if err := unpack.Stream(ctx, i.bringRest, i.root, i.image.Manifest, options); err != nil {
		return err
	}
	i.logSources(progress.Unpack)
	return nil
}

// targetMounts are the mounts of the new system. Before they are taken down,
// whoever works in them leaves.
type targetMounts struct {
	mount.Stack
	leave func() error
}

// Close implements apply.Mounter.
func (t *targetMounts) Close() error { return errors.Join(t.leave(), t.Stack.Close()) }

func (i *installation) openRoot() (err error) {
	if i.root, err = os.OpenRoot(i.opt.mountPoint); err != nil {
		return fmt.Errorf("opening the new root: %w", err)
	}
	return nil
}

// closeRoot may be called again, and without an open root.
func (i *installation) closeRoot() error {
	if i.root == nil {
		return nil
	}
	return i.root.Close()
}

// bootLoaderTarget is the new system as its boot loader's installer sees it.
func (i *installation) bootLoaderTarget() bootloader.Target {
	mounts := i.plan.Layout.Mounts()
	attributes := i.image.Manifest.Attributes
	t := bootloader.Target{
		Root: i.opt.mountPoint, Arch: i.inventory.Arch,
		Name: cmp.Or(i.plan.Image.OS, i.plan.Image.Name), ID: attributes[image.AttrOSID],
		RootDevice: mounts[0].Device(), RootUUID: mounts[0].Partition.FSUUID,
		Choice: i.plan.Boot, Sync: i.disks.Sync,
	}
	for _, v := range mounts {
		if v.MountPoint() == "/boot" {
			t.BootUUID = v.Partition.FSUUID
		}
	}
	for _, d := range i.plan.Layout.BootDisks() {
		t.Disks = append(t.Disks, d.Path)
		if esp, ok := d.ESP(); ok {
			t.ESPs = append(t.ESPs, bootloader.PartitionOf(esp))
		}
	}
	if i.inventory.Firmware == storage.UEFI {
		t.Variables = efiboot.Directory
	}
	return t
}
