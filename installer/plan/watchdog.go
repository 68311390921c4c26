package plan

import (
	"path"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
)

// decideWatchdog takes the hardware watchdog for the hand-over when the new OS
// is sure to take it over: it has systemd, which loads the modules that it is
// told to, and the driver. Any other would be reset while it is well.
func (d *decision) decideWatchdog() {
	driver := d.machine.Watchdog
	if driver == "" {
		return
	}
	systemd := false
	for _, name := range []string{"usr/lib/systemd/systemd-modules-load", "lib/systemd/systemd-modules-load"} {
		if e, ok := d.image.Manifest.Resolve(name); ok && e.Type == image.File {
			systemd = true
		}
	}
	if systemd && d.hasModule(driver) {
		d.plan.Watchdog = driver
		return
	}
	d.warn("the hardware watchdog (%s) is not armed for the hand-over: the image would not take it over", driver)
}

// hasModule says whether the image's kernel has a module.
func (d *decision) hasModule(name string) bool {
	version := d.image.Manifest.Attributes[image.AttrKernelVersion]
	plain := func(s string) string { return strings.ReplaceAll(s, "-", "_") }
	for i := range d.image.Manifest.Entries {
		e := &d.image.Manifest.Entries[i]
		if file, _, found := strings.Cut(path.Base(e.Path), ".ko"); found && plain(file) == plain(name) && strings.Contains(e.Path, "lib/modules/"+version+"/") {
			return true
		}
	}
	return false
}
