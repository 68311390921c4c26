package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/firstlight/firstlight/installer/bootloader"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/unpack"
)

// buildStorage makes the disks match the plan; ready is told of each volume
// that is mounted at its place.
func (i *installation) buildStorage(ctx context.Context, ready *volumes) error {
	if i.opt.skipStorage {
		return skip{"-skipStorage"}
	}
	return errors.New("wire me")
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
		mounted = append(mounted, unpack.Volume{MountPoint: p.MountPoint, KeepOwner: p.RootUserID != 0 || p.RootGroupID != 0})
	}
	return unpack.Run(ctx, i.objects, i.root, i.image.Manifest, unpack.Options{
		Volumes: mounted,
		Wait:    ready.wait,
		Report:  func(done, total uint64) { i.model.Update(progress.Unpack, done, total) },
	})
}

func (i *installation) openRoot() (err error) {
	if i.root, err = os.OpenRoot(i.opt.mountPoint); err != nil {
		return fmt.Errorf("opening the new root: %w", err)
	}
	return nil
}

func (i *installation) bootLoaderTarget() bootloader.Target {
	root := i.plan.Layout.Mounts()[0]
	return bootloader.Target{
		Root: i.opt.mountPoint, Disk: root.Disk.Path,
		RootDevice: root.Device(), RootUUID: root.Partition.FSUUID,
		Choice: i.plan.Boot,
	}
}

// readerGone turns the broken pipe of a reader that has had enough into
// success.
func readerGone(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

// joinHostPort adds port to a host that names none.
func joinHostPort(host string, port uint) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), strconv.FormatUint(uint64(port), 10))
}

func (i *installation) checkDisks(context.Context) error { return nil }
