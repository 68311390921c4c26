package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/firstlight/firstlight/netconfig"
)

// RootDisk is a disk that is one file-system, without partitions: a root that
// a kernel is started on directly, for tests of what a system does with files
// that an installation would have written.
type RootDisk struct {
	Path           string
	Kernel, Initrd string // those of the root
}

// MakeRootDisk makes one in dir, on the file-system of root: everything below
// root, and files in place of those that are there.
func MakeRootDisk(ctx context.Context, root string, files []netconfig.File, dir string) (RootDisk, error) {
	tree, err := os.MkdirTemp(dir, "root-")
	if err != nil {
		return RootDisk{}, fmt.Errorf("making a root disk: %w", err)
	}
	defer os.RemoveAll(tree)
	disk := RootDisk{Path: filepath.Join(dir, "root.ext4")}
	if err := run(ctx, "cp", "-al", root+"/.", tree); err != nil {
		return RootDisk{}, err
	}
	for _, file := range files {
		path := filepath.Join(tree, file.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return RootDisk{}, fmt.Errorf("making a root disk: %w", err)
		}
		// A hard link of root's: never written to, always replaced.
		if err := os.RemoveAll(path); err != nil {
			return RootDisk{}, fmt.Errorf("making a root disk: %w", err)
		}
		if err := os.WriteFile(path, file.Data, os.FileMode(file.Mode)); err != nil {
			return RootDisk{}, fmt.Errorf("making a root disk: %w", err)
		}
	}
	for pattern, into := range map[string]*string{"vmlinuz-*": &disk.Kernel, "initrd.img-*": &disk.Initrd} {
		found, err := filepath.Glob(filepath.Join(root, "boot", pattern))
		if err != nil || len(found) != 1 {
			return RootDisk{}, fmt.Errorf("making a root disk: one %s in the root's /boot, found %d (%w)", pattern, len(found), err)
		}
		*into = found[0]
	}
	return disk, run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree, disk.Path, "1G")
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return nil
}
