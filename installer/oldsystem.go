package main

import (
	"context"
	"path/filepath"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/stage"
	"github.com/firstlight/firstlight/storage/readonly"
)

// oldSystem are the file systems of whatever lies on the disks now, as trees to
// take objects from. Nothing is written to a disk; what cannot be read is
// warned of and left out. leave takes everything down again, before anyone
// wants a disk for himself.
func (i *installation) oldSystem(ctx context.Context) (trees []stage.Tree, leave func()) {
	attached := readonly.Attach(ctx, i.env.runner, i.inventory.Disks, readonly.Options{
		Dir:  filepath.Join(i.runDir, "old"),
		Warn: func(text string) { i.model.Warn(progress.Stage, text) },
	})
	for _, t := range attached.Trees() {
		trees = append(trees, stage.Tree{Name: t.Name, Source: stage.FromOldOS, FS: t.FS})
	}
	return trees, func() {
		if err := attached.Close(); err != nil {
			i.model.Warn(progress.Stage, err.Error())
		}
	}
}
