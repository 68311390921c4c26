package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/signature"
)

// open opens every disk for us alone and checks that it is the one, with the
// contents, for which the layout was made. What was opened is returned with an
// error too.
func (r *run) open(ctx context.Context) ([]block.Device, error) {
	devices := make([]block.Device, len(r.layout.Disks))
	errs := make([]error, len(r.layout.Disks))
	var g errgroup.Group
	g.SetLimit(atOnce)
	for i, d := range r.layout.Disks {
		g.Go(func() error {
			r.options.Progress(d.Name, "", "check")
			if devices[i], errs[i] = r.openDisk(d); errs[i] == nil {
				errs[i] = r.check(d, devices[i])
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in errs: all disks are reported, not the first
	return devices, errors.Join(errs...)
}

func (r *run) check(d storage.DiskLayout, dev block.Device) error {
	changed := func(format string, args ...any) error {
		return storage.Errorf(storage.CodeChanged, "%s is not the disk that the plan was made for: %s; nothing was written", d.Path, fmt.Sprintf(format, args...))
	}
	if dev.Size() != d.Size || dev.SectorSize() != d.SectorSize {
		return changed("it has %d bytes in sectors of %d, planned were %d in sectors of %d", dev.Size(), dev.SectorSize(), d.Size, d.SectorSize)
	}
	if r.Identify != nil {
		serial, wwn, err := r.Identify(d)
		if err != nil {
			return changed("its serial number cannot be read: %v", err)
		}
		if serial != d.Serial || wwn != d.WWN {
			return changed("its serial number is %q and its WWN %q, planned were %q and %q", serial, wwn, d.Serial, d.WWN)
		}
	}
	contents, err := signature.Probe(d.Name, dev, dev.Size(), dev.SectorSize())
	if err != nil {
		return err
	}
	if !slices.Equal(contents, d.Contents) {
		return changed("there is something else on it now (%s) than then (%s)", kinds(contents), kinds(d.Contents))
	}
	return nil
}

func kinds(contents []storage.Content) string {
	if len(contents) == 0 {
		return "nothing"
	}
	var names []string
	for _, c := range contents {
		names = append(names, strings.TrimSpace(c.Where+" "+c.Kind+" "+c.Label))
	}
	return strings.Join(names, ", ")
}
