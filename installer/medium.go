package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/installer/offline"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/stage"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/signature"
)

// mediumTimeout is how long a device may take to say what is on it: a dying
// disk must not keep the machine from its configuration.
const mediumTimeout = 20 * time.Second

// medium is a volume labelled FIRSTLIGHT, mounted read-only.
type medium struct {
	device, directory string
	images            offline.List // that it carries
	packs             []*pack.Reader
}

// mediumAgain is how often it is looked for while it is waited for.
const mediumAgain = 300 * time.Millisecond

// carried are the volumes labelled FIRSTLIGHT of all disks and CDs, mounted until
// the installation ends. They are looked for once; where none is there and
// -volumePatience says so, until one is, for a USB stick takes its time.
func (i *installation) carried(ctx context.Context) ([]medium, error) {
	if i.media != nil || !i.env.inMemory {
		return i.media, nil
	}
	found := i.findMedium(ctx)
	if len(found) == 0 && i.opt.volumePatience > 0 {
		i.model.Wait(progress.Config, "a volume labelled "+storage.MediumLabel)
		defer i.model.Wait(progress.Config, "")
		for end := time.Now().Add(i.opt.volumePatience); len(found) == 0 && time.Now().Before(end); {
			select {
			case <-time.After(mediumAgain):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
			found = i.findMedium(ctx)
		}
	}
	media := []medium{} // not nil: looked for
	for n, content := range found {
		one := medium{device: "/dev/" + content.Where, directory: filepath.Join(i.runDir, fmt.Sprintf("medium%d", n))}
		if err := i.mountMedium(&one, content.Kind); err != nil {
			return nil, err
		}
		media = append(media, one)
	}
	i.media = media
	return media, nil
}

// mountMedium mounts a volume and reads what images it carries.
func (i *installation) mountMedium(one *medium, kind string) error {
	if err := os.MkdirAll(one.directory, 0o700); err != nil {
		return err
	}
	var mounts mount.Stack
	if err := mounts.Mount(one.device, one.directory, kind, unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, withoutReplay(kind)); err != nil {
		return err
	}
	i.opened.push(one.directory, mounts.Close)
	i.model.Logf(progress.Config, "%s is labelled %s", one.device, storage.MediumLabel)
	text, err := os.ReadFile(filepath.Join(one.directory, offline.ListName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		one.images, err = offline.Parse(text)
	}
	if err != nil {
		return refuse("IMG-085", "the images on %s cannot be used: %w", one.device, err)
	}
	for _, name := range one.images.Packs {
		if err := i.openPack(one, filepath.Join(one.directory, name)); err != nil {
			return refuse("IMG-085", "the images on %s cannot be used: %w", one.device, err)
		}
	}
	return nil
}

// withoutReplay has a file system leave its journal alone, which it would replay
// onto the disk although it is mounted for reading (Documentation/filesystems,
// ext4.rst, xfs.rst, btrfs.rst).
func withoutReplay(kind string) (options string) {
	switch kind {
	case "ext3", storage.Ext4:
		return "noload"
	case storage.XFS:
		return "norecovery"
	case storage.Btrfs:
		return "rescue=nologreplay"
	}
	return ""
}

func (i *installation) openPack(one *medium, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	i.opened.push(name, file.Close)
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	reader, err := pack.OpenReader(file, size)
	one.packs = append(one.packs, reader)
	return err
}

// configurationOnMedium is the directory of the volume that has a configuration,
// empty where none has.
func (i *installation) configurationOnMedium(ctx context.Context) (string, error) {
	media, err := i.carried(ctx)
	if err != nil {
		return "", err
	}
	var with []medium
	for _, one := range media {
		has, err := i.hasConfiguration(one.directory)
		if err != nil {
			return "", err
		}
		if has {
			with = append(with, one)
		} else if len(one.images.Images) == 0 {
			i.model.Logf(progress.Config, "there is no configuration on %s", one.device)
		}
	}
	switch len(with) {
	case 0:
		return "", nil
	case 1:
		return with[0].directory, nil
	}
	return "", refuse("CFG-021", "two volumes labelled %s have a configuration: %s and %s", storage.MediumLabel, with[0].device, with[1].device)
}

// imageOnMedium is the image of that name, where a medium carries it.
func (i *installation) imageOnMedium(ctx context.Context, name string) (found plan.Image, ok bool, err error) {
	media, err := i.carried(ctx)
	if err != nil {
		return plan.Image{}, false, err
	}
	for _, one := range media {
		listed, ok := one.images.Find(name)
		if !ok {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(one.directory, listed.Manifest))
		if err == nil && object.Of(raw) != listed.Digest {
			err = object.ErrDamaged
		}
		var manifest *image.Manifest
		if err == nil {
			manifest, err = image.Decode(raw)
		}
		if err != nil {
			return plan.Image{}, false, refuse("IMG-085", "the manifest of %s on %s cannot be used: %w", listed.Name, one.device, err)
		}
		i.model.Logf(progress.Manifest, "%s is on %s", listed.Name, one.device)
		return plan.Image{Name: listed.Name, Digest: listed.Digest, Manifest: manifest}, true, nil
	}
	return plan.Image{}, false, nil
}

// carriedObjects are the objects of all media; nil where none has any.
func (i *installation) carriedObjects() stage.Holder {
	var packs packs
	for _, one := range i.media {
		packs = append(packs, one.packs...)
	}
	if len(packs) == 0 {
		return nil
	}
	return packs
}

// packs are several packs as one.
type packs []*pack.Reader

// Has says whether one of them has the object.
func (p packs) Has(d object.Digest) bool {
	return slices.ContainsFunc(p, func(one *pack.Reader) bool { return one.Has(d) })
}

// OpenStored opens an object of the first that has it.
func (p packs) OpenStored(ctx context.Context, d object.Digest) (*object.Stored, error) {
	for _, one := range p {
		if one.Has(d) {
			return one.OpenStored(ctx, d)
		}
	}
	return nil, object.ErrNotFound
}

// findMedium looks at every disk and CD at once.
func (i *installation) findMedium(ctx context.Context) []storage.Content {
	names, err := fs.Glob(i.env.sys, "block/*/device")
	if err != nil {
		return nil // only a malformed pattern fails
	}
	answers := make(chan []storage.Content, len(names)) // room for all: nobody blocks
	for _, name := range names {
		go func() { answers <- labelledVolumes(path.Base(path.Dir(name))) }()
	}
	late := time.After(mediumTimeout)
	var found []storage.Content
	for range names {
		select {
		case volumes := <-answers:
			found = append(found, volumes...)
		case <-late:
			i.model.Warn(progress.Config, fmt.Sprintf("a disk did not answer within %s: a volume labelled %s on it is not seen", mediumTimeout, storage.MediumLabel))
			return found
		case <-ctx.Done():
			return nil
		}
	}
	return found
}

// labelledVolumes are the volumes of one disk that carry our label. A device
// that cannot be read (a CD drive without a CD) has none.
func labelledVolumes(disk string) []storage.Content {
	device, err := block.OpenReadOnly("/dev/" + disk)
	if err != nil {
		return nil
	}
	defer device.Close()
	contents, err := signature.Probe(disk, device, device.Size(), device.SectorSize())
	if err != nil {
		return nil
	}
	var labelled []storage.Content
	for _, content := range contents {
		if content.Label == storage.MediumLabel && content.Kind != storage.KindPartition {
			labelled = append(labelled, content)
		}
	}
	return labelled
}
