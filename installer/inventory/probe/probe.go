// Package probe takes a machine's inventory: what package inventory reads in
// /sys, and what must be asked of the kernel or read from the devices: memory,
// links, what lies on each disk, the TPM.
//
// Disks are opened read-only and nothing is ever written to them.
package probe

import (
	"context"
	"io/fs"

	"github.com/firstlight/firstlight/installer/inventory"
)

// Seams are where the machine is looked at.
type Seams struct {
	Sys  fs.FS  // os.DirFS("/sys")
	Proc fs.FS  // os.DirFS("/proc")
	Dev  string // the directory of device nodes, "/dev"
}

// Run takes the inventory. What cannot be found out becomes a warning in the
// document; an error means that there is no document.
func Run(ctx context.Context, s Seams, seed inventory.Seed) (inventory.Document, error) {
	d, err := inventory.Read(s.Sys)
	d.Seed = seed
	return d, err
}
