package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// volumeBytes is the size of a file-system that is written to.
const volumeBytes = 3 << 30

// withVolume makes an empty ext4 on a loop device whose file lies in memory,
// mounts it and calls f with its directory. Making and unmounting count for
// nobody.
func (g *ground) withVolume(ctx context.Context, f func(root string) (cost, error)) (took cost, err error) {
	file, root := filepath.Join(g.memory, "volume"), filepath.Join(g.memory, "root")
	if err := g.makeVolume(ctx, file, root); err != nil {
		return took, err
	}
	defer func() {
		err = errors.Join(err, unix.Unmount(root, 0), os.Remove(file))
	}()
	return f(root)
}

func (g *ground) makeVolume(ctx context.Context, file, root string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if err := errors.Join(out.Truncate(volumeBytes), out.Close()); err != nil {
		return err
	}
	// Not lazy: the kernel would go on initialising while we measure.
	if err := command(ctx, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", file); err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := command(ctx, "mount", "-o", "loop", file, root); err != nil {
		return fmt.Errorf("mounting a loop device (its file lies in memory): %w", err)
	}
	return nil
}
