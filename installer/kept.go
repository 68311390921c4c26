package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/readonly"
)

// adoptKept finds the keys of encrypted volumes that are kept: in the key files
// of the old root file system, which will be gone. Each has opened its volume
// once when this returns, with no write reaching a disk.
func (i *installation) adoptKept(ctx context.Context) (err error) {
	wanted := make(map[string]storage.Volume) // by UUID
	var ids []string
	for _, v := range i.plan.Layout.Encrypted() {
		if v.Partition.Kept {
			wanted[v.Partition.LUKS.UUID] = v
			ids = append(ids, v.Partition.LUKS.UUID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	i.model.Log(progress.Commit, "looking for the keys of volumes that are kept")
	attached := readonly.Attach(ctx, i.storageRunner(), i.inventory.Disks, readonly.Options{
		Dir:    filepath.Join(i.runDir, "kept"),
		Keep:   ids,
		Unseal: i.unsealer(),
		Warn:   func(text string) { i.model.Warn(progress.Commit, text) },
	})
	defer func() { err = errors.Join(err, attached.Close()) }()
	var wrong []error
	for _, id := range ids {
		v := wanted[id]
		opened, ok := attached.Opened(id)
		switch {
		case !ok:
			wrong = append(wrong, fmt.Errorf("%s (%s, LUKS %s): no key file on the old disks opens it", v.MountPoint(), v.Disk.Path, id))
			continue
		case len(opened.Contents) != 1 || opened.Contents[0].Kind != v.Partition.FileSystem:
			clear(opened.Key)
			wrong = append(wrong, fmt.Errorf("%s (%s, LUKS %s): the layout wants %s in it, and there is %s", v.MountPoint(), v.Disk.Path, id, v.Partition.FileSystem, kindsOf(opened.Contents)))
			continue
		}
		if err := i.keys.Adopt(v.Partition.LUKS.Mapping, opened.Key); err != nil {
			wrong = append(wrong, err)
		}
	}
	if err := errors.Join(wrong...); err != nil {
		return storage.Errorf(storage.CodeKept, "volumes that shall be kept cannot be opened: %w", err)
	}
	return nil
}

func kindsOf(contents []storage.Content) string {
	if len(contents) == 0 {
		return "nothing that is known"
	}
	return contents[0].Kind
}
