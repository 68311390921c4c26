package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Products are the files that `make build initramfs` and hack/setup prepare.
type Products struct {
	ImageServer string // the daemon
	Firstlight  string // the operator's command line
	Initramfs   string // of the installer, without modules, keys and configuration
	Kernel      string // that the installer boots with
	KernelDir   string // its directory: vmlinuz and lib/modules/<version>
	Root        string // the root file-system that is installed, a tar
}

// FindProducts looks for them below the top of a checkout. The error names
// each one that is missing, and what makes it.
func FindProducts(checkout string) (Products, error) {
	checkout, err := filepath.Abs(checkout)
	if err != nil {
		return Products{}, fmt.Errorf("finding what was built: %w", err)
	}
	in := func(parts ...string) string { return filepath.Join(append([]string{checkout}, parts...)...) }
	p := Products{
		ImageServer: in("bin", "imageserver"),
		Firstlight:  in("bin", "firstlight"),
		Initramfs:   in("build", "initramfs-amd64.cpio.zst"),
		KernelDir:   in("build", "kernel", "amd64"),
		Kernel:      in("build", "kernel", "amd64", "vmlinuz"),
	}
	var missing []error
	for _, want := range []struct{ path, from string }{
		{p.ImageServer, "make build"}, {p.Firstlight, "make build"},
		{p.Initramfs, "make initramfs"}, {p.Kernel, "hack/setup"},
	} {
		if _, err := os.Stat(want.path); err != nil {
			missing = append(missing, fmt.Errorf("%w (%s makes it)", err, want.from))
		}
	}
	pattern := in("build", "demo", "debian-12.tar*")
	found, err := filepath.Glob(pattern)
	if err != nil {
		return Products{}, fmt.Errorf("finding what was built: %w", err)
	}
	if len(found) == 0 {
		missing = append(missing, fmt.Errorf("there is no %s (make rootfs makes it)", pattern))
	} else {
		p.Root = found[0]
	}
	return p, errors.Join(missing...)
}
