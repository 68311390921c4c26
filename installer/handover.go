package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/kexec"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
)

// tryKexec finds out, before a disk is touched, whether the running kernel takes
// the new one: under Secure Boot it may not. Then the machine will reboot
// through its firmware, unless the layout asks for nothing but kexec.
func (i *installation) tryKexec(ctx context.Context) error {
	if i.by != plan.Kexec || i.opt.skipStorage {
		return nil
	}
	err := i.env.tryNext(ctx, i.content(i.plan.Boot.Kernel), i.content(i.plan.Boot.Initrd), i.plan.Boot.CommandLine)
	var refused *kexec.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, object.ErrNotFound):
		// Not staged: memory is low.
		i.model.Log(progress.Commit, "whether the kernel can be started by kexec is not tried: it is fetched later")
		return nil
	case !errors.As(err, &refused):
		return err
	case i.plan.KexecRequired:
		return fmt.Errorf("%w; the layout has RequireKexec", err)
	}
	i.model.Warn(progress.Commit, fmt.Sprintf("%s: %v; the machine will reboot through its firmware", progress.Code(err), err))
	i.by = plan.Reboot
	return nil
}

// content opens a file of the image among the staged objects.
func (i *installation) content(path string) kexec.Content {
	return func(ctx context.Context) (io.ReadCloser, error) {
		e, ok := i.image.Manifest.Resolve(path)
		if !ok || e.Type != image.File {
			return nil, fmt.Errorf("%s is no file of the image", path) // plan.New has refused such an image
		}
		return i.objects.Open(ctx, e.Digest)
	}
}

// startByKexec jumps into the new kernel, with the hardware watchdog behind it
// where the new system takes that over. It returns only when that failed.
func (i *installation) startByKexec() {
	var disarm func() error
	if i.plan.Watchdog != "" {
		seconds, stop, err := i.env.armWatchdog()
		if err != nil {
			i.model.Warn(progress.Finish, err.Error()) // a machine without one is handed over as well
		} else {
			disarm = stop
			i.model.Logf(progress.Finish, "the hardware watchdog (%s) resets the machine unless the new system is there in %d s", i.plan.Watchdog, seconds)
		}
	}
	err := i.env.startNext()
	i.model.Warn(progress.Finish, fmt.Sprintf("%s: %v; rebooting instead", progress.Code(err), err))
	if disarm != nil {
		// Firmware may take longer than the watchdog waits.
		if err := disarm(); err != nil {
			i.model.Warn(progress.Finish, err.Error())
		}
	}
}
