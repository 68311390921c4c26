// Package bootloader makes the new system's disk bootable with the boot
// loader that its own image brings, run in the new root, so that loader,
// modules and configuration always fit together. It runs last of everything
// that writes to the target. It decides nothing: package boot did.
package bootloader

import (
	"context"
	"errors"

	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/storage/tool"
)

// Target is the system to make bootable.
type Target struct {
	// Root is the directory where the new root is mounted, with everything
	// below it, and with /dev, /proc and /sys of the running system bound
	// in.
	Root string
	// Disk is the boot disk's device: "/dev/vda".
	Disk string
	// RootDevice and RootUUID are device and UUID of the file-system at /.
	RootDevice, RootUUID string
	// Choice is what is to be booted.
	Choice boot.Choice
}

// Install installs the boot loaders of t.Choice with run and writes their
// configuration. Of what fails without harm, such as an entry in the
// firmware's own boot menu, warn is told.
func Install(ctx context.Context, run tool.Runner, t Target, warn func(string)) error {
	return errors.New("bootloader: not written yet")
}
