package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/signature"
)

// mediumTimeout is how long a device may take to say what is on it: a dying
// disk must not keep the machine from its configuration.
const mediumTimeout = 20 * time.Second

// mountMedium mounts the volume labelled FIRSTLIGHT read-only and returns the
// directory, empty where no disk or CD has such a volume.
func (i *installation) mountMedium(ctx context.Context) (string, error) {
	if !i.env.inMemory {
		return "", nil
	}
	found := i.findMedium(ctx)
	switch len(found) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", refuse("CFG-021", "two volumes are labelled %s: %s and %s", storage.MediumLabel, found[0].Where, found[1].Where)
	}
	directory := filepath.Join(i.runDir, "medium")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return "", err
	}
	var mounts mount.Stack
	device := "/dev/" + found[0].Where
	if err := mounts.Mount(device, directory, found[0].Kind, unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return "", err
	}
	i.opened.push(directory, mounts.Close)
	i.model.Logf(progress.Config, "%s is labelled %s", device, storage.MediumLabel)
	return directory, nil
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
