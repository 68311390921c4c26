package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/firstlight/firstlight/installer/lastwords"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/stage"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/readonly"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// oldSystem are the file systems of whatever lies on the disks now, as trees to
// take objects from. Nothing is written to a disk; what cannot be read is
// warned of and left out. leave takes everything down again, before anyone
// wants a disk for himself.
func (i *installation) oldSystem(ctx context.Context) (trees []stage.Tree, leave func()) {
	attached := readonly.Attach(ctx, i.env.runner, i.inventory.Disks, readonly.Options{
		Dir:    filepath.Join(i.runDir, "old"),
		Unseal: i.unsealer(),
		Warn:   func(text string) { i.model.Warn(progress.Stage, text) },
	})
	for _, t := range attached.Trees() {
		if text := lastwords.FromDisk(t.FS); text != nil {
			i.tellEarlier("on "+t.Name, text)
		}
		trees = append(trees, stage.Tree{Name: t.Name, Source: stage.FromOldOS, FS: t.FS})
	}
	return trees, func() {
		if err := attached.Close(); err != nil {
			i.model.Warn(progress.Stage, err.Error())
		}
	}
}

// unsealer asks the machine's TPM for the keys of old volumes: what is started as
// they were is given them, and it opens the TPM only when there is such a volume.
// It is nil where there is no TPM.
func (i *installation) unsealer() func(context.Context, []byte) ([]byte, error) {
	if i.inventory.TPM == nil || i.inventory.TPM.Version != 2 {
		return nil
	}
	return func(ctx context.Context, token []byte) (key []byte, err error) {
		tpm, err := tpm2.Open(i.env.tpm)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, tpm.Close()) }()
		return keys.Unsealed(ctx, tpm, token)
	}
}
