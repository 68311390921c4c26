package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/media"
)

func (c *common) mediaUSB() *cobra.Command {
	var m mediaFlags
	var device, serial string
	cmd := &cobra.Command{
		Use:   "usb (--out FILE | --write /dev/sdX)",
		Short: "The image of a USB stick with a volume for the configuration, by BIOS and UEFI",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case device == "":
				return c.makeMedium(cmd.Context(), &m, media.USB)
			case m.options.Out != "":
				return &usageError{"--out makes a file and --write a stick; give one"}
			}
			return c.writeStick(cmd.Context(), &m, device, serial)
		},
	}
	m.register(cmd.Flags())
	m.registerBoot(cmd.Flags())
	cmd.Flags().StringVar(&device, "write", "", "`disk` to write to, which loses everything: a USB disk, a removable one or a memory card")
	cmd.Flags().StringVar(&serial, "serial", "", "serial `number` of that disk, which is asked for otherwise")
	return cmd
}

// writeStick writes to a disk whose serial number the person has confirmed.
func (c *common) writeStick(ctx context.Context, m *mediaFlags, device, serial string) error {
	options, err := c.mediaOptions(m)
	if err != nil {
		return err
	}
	sys := os.DirFS("/sys")
	stick, err := media.FindStick(sys, device)
	if err != nil {
		return err
	}
	if err := c.confirmStick(stick, serial); err != nil {
		return err
	}
	done, err := c.openSource(ctx, &options)
	if err != nil {
		return err
	}
	defer done()
	last := int64(-1)
	report, err := media.WriteStick(ctx, options, stick.Path, func() error { return media.SameStick(sys, stick) }, func(done, total int64) {
		if percent := done * 100 / total / 10 * 10; percent != last {
			last = percent
			c.note("%d%% of %s", percent, size(uint64(total)))
		}
	})
	if err != nil {
		return err
	}
	return c.printMedium(stick.Path, report)
}

// confirmStick has a person say which disk is meant, by what is printed on it.
// A disk without a serial number is known by its size.
func (c *common) confirmStick(stick storage.Disk, given string) error {
	want, what := stick.Serial, "serial number"
	if want == "" {
		want, what = fmt.Sprint(stick.Size), "size in bytes (it has no serial number)"
	}
	if given == "" {
		if !terminal(c.in) {
			return &refusedError{fmt.Sprintf("would erase %s; say --serial %s to do it", stick.Title(), want)}
		}
		fmt.Fprintf(c.err, "This will erase everything on %s.\nType its %s to go on: ", stick.Title(), what)
		// No answer is a no.
		_, _ = fmt.Fscanln(c.in, &given)
	}
	if given != want {
		return &refusedError{fmt.Sprintf("%q is not the %s of %s; nothing was changed", given, what, stick.Title())}
	}
	return nil
}
