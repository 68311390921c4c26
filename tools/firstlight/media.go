package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firstlight/firstlight/tools/media"
	"github.com/firstlight/firstlight/tools/pki"
)

func (c *common) mediaCommand() *cobra.Command {
	boot := group("media", "Boot media for the installer")
	boot.AddCommand(c.mediaInitramfs(), c.mediaUKI(), c.mediaISO(), c.mediaUSB())
	return boot
}

func (c *common) mediaInitramfs() *cobra.Command {
	var m mediaFlags
	cmd := &cobra.Command{
		Use:   "initramfs --out FILE",
		Short: "Append kernel modules, the site's CA and configuration to the installer's initramfs",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.makeMedium(cmd.Context(), &m, func(ctx context.Context, options media.BootOptions) (media.Report, error) {
				return media.Initramfs(ctx, options.Options)
			})
		},
	}
	m.register(cmd.Flags())
	return cmd
}

func (c *common) mediaUKI() *cobra.Command {
	var m mediaFlags
	cmd := &cobra.Command{
		Use:   "uki --out FILE",
		Short: "One EFI program with kernel, command line and initramfs: for PXE and HTTP boot by UEFI",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.makeMedium(cmd.Context(), &m, c.withVolume(media.UKI))
		},
	}
	m.register(cmd.Flags())
	m.registerBoot(cmd.Flags())
	return cmd
}

func (c *common) mediaISO() *cobra.Command {
	var m mediaFlags
	cmd := &cobra.Command{
		Use:   "iso --out FILE",
		Short: "An image for CDs, a BMC's virtual media and USB sticks, by BIOS and UEFI",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.makeMedium(cmd.Context(), &m, c.withVolume(media.ISO))
		},
	}
	m.register(cmd.Flags())
	m.registerBoot(cmd.Flags())
	return cmd
}

// withVolume makes a volume beside the medium, where the configuration shall not
// lie inside.
func (c *common) withVolume(write func(context.Context, media.BootOptions) (media.Report, error)) func(context.Context, media.BootOptions) (media.Report, error) {
	return func(ctx context.Context, options media.BootOptions) (media.Report, error) {
		report, err := write(ctx, options)
		if err != nil || !options.Beside {
			return report, err
		}
		volume := options.Out + ".volume"
		if _, err := media.Volume(ctx, options.Files, volume); err != nil {
			return report, err
		}
		c.note("the configuration is on %s: write it to a stick, or insert it beside the medium", volume)
		return report, nil
	}
}

// mediaFlags are the flags of all media.
type mediaFlags struct {
	options media.BootOptions
	modules string
	machine string
	noCA    bool
}

func (m *mediaFlags) register(flags *pflag.FlagSet) {
	var sets []string
	for _, set := range media.Sets() {
		sets = append(sets, string(set))
	}
	o := &m.options.Options
	flags.StringVar(&o.Out, "out", "", "`file` to write")
	flags.StringVar(&o.Base, "base", "", "`file` that make initramfs built (default build/initramfs-<arch>.cpio.zst, or what a package installed)")
	flags.StringVar(&o.Arch, "arch", runtime.GOARCH, "`architecture`: "+strings.Join(media.Architectures(), " or "))
	flags.StringVar(&o.KernelDir, "kernel", "", "`directory` with vmlinuz and lib/modules (default build/kernel/<arch>)")
	flags.StringVar(&m.modules, "modules", string(media.SetCommon), "`set` of kernel modules: "+strings.Join(sets, ", "))
	flags.StringVar(&o.For, "for", "", "`file` with a machine's inventory: the modules that this machine loaded, instead of a set")
	flags.StringVar(&o.Firmware, "firmware", "", "`directory` with firmware, such as /lib/firmware: files that the modules name go in")
	flags.StringVar(&o.Files, "files", "", "`directory` of configuration files; the installer then asks no server for them")
	flags.StringVar(&m.machine, "machine", "", "`name` of a machine of the site: its configuration files go in, as with --files")
	flags.BoolVar(&m.noCA, "no-ca", false, "leave the site's CA out: the installer then speaks plain text")
	flags.StringSliceVar(&o.Trust, "trust", nil, "public `key` of a signer (DIR/secrets/signers/NAME.pub); may be repeated. With any, the installer believes signed bundles only")
	flags.IntVar(&o.Threshold, "threshold", 0, "how `many` of them must have signed (default 1)")
	flags.StringVar(&o.Cert, "installer-cert", "", "PEM `file` of the installer's own certificate")
	flags.StringVar(&o.Key, "installer-key", "", "PEM `file` of its private key")
	flags.BoolVar(&o.WithIdentity, "with-identity", false, "put that private key into the medium: whoever reads the medium can pass for the machine")
}

// registerBoot adds the flags of media that a firmware starts.
func (m *mediaFlags) registerBoot(flags *pflag.FlagSet) {
	flags.StringVar(&m.options.CommandLine, "append", "", "further `options` for the kernel's command line, such as installer.dryRun")
	flags.BoolVar(&m.options.Beside, "beside", false, "put the configuration files onto a volume labelled FIRSTLIGHT instead of into the initramfs: for usb a partition of its own, else a file <out>.volume")
	flags.BoolVar(&m.options.SecureBoot, "secure-boot", false, "start by Debian's signed shim and GRUB (usb); the kernel must be one that Debian has signed")
	flags.StringSliceVar(&m.options.Images, "image", nil, "`name` of an image to carry with all its objects, for an installation with no network (iso and usb); may be repeated")
	flags.StringVar(&m.options.Root, "boot-files", "", "`directory` below which Debian's packages isolinux, syslinux-common and systemd-boot-efi are unpacked (default /, or build/root/<arch> where that is the only one that has them)")
}

// makeMedium completes the options, has the medium made and says what came out.
func (c *common) makeMedium(ctx context.Context, m *mediaFlags, write func(context.Context, media.BootOptions) (media.Report, error)) error {
	options, err := c.mediaOptions(m)
	if err != nil {
		return err
	}
	if options.Out == "" {
		return &usageError{"--out FILE is needed"}
	}
	done, err := c.openSource(ctx, &options)
	if err != nil {
		return err
	}
	defer done()
	report, err := write(ctx, options)
	if err != nil {
		return err
	}
	return c.printMedium(options.Out, report)
}

// mediaOptions are the options of a medium as the flags say and the site has
// them.
func (c *common) mediaOptions(m *mediaFlags) (options media.BootOptions, err error) {
	options = m.options
	options.Modules = media.Set(m.modules)
	if (options.Cert != "" || options.Key != "") && !options.WithIdentity {
		return options, &refusedError{"would put a private key into the medium; say --with-identity if whoever reads the medium may pass for the machine"}
	}
	if m.machine != "" {
		if options.Files != "" {
			return options, &usageError{"--machine and --files both name configuration files; give one"}
		}
		files, err := c.machineFiles(m.machine)
		if err != nil {
			return options, err
		}
		options.Files = files
	}
	if err := c.findMediaParts(&options); err != nil {
		return options, err
	}
	if !m.noCA {
		ca, err := c.mediaCA()
		if err != nil {
			return options, err
		}
		options.CA = ca
	}
	return options, nil
}

// openSource connects to the image server where the medium carries images.
func (c *common) openSource(ctx context.Context, options *media.BootOptions) (done func(), err error) {
	if len(options.Images) == 0 {
		return func() {}, nil
	}
	server, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	options.Source = server
	return func() { _ = server.Close() }, nil // nothing was sent that could be lost
}

// printMedium says what came out, with the size of each part.
func (c *common) printMedium(out string, report media.Report) error {
	return c.print(report, func(w io.Writer) {
		fmt.Fprintf(w, "file\t%s\t%s\n", out, size(uint64(report.Bytes)))
		for _, part := range report.Parts {
			fmt.Fprintf(w, "part\t%s\t%s\n", part.Name, size(uint64(part.Bytes)))
		}
		if report.Kernel != "" {
			fmt.Fprintf(w, "kernel\t%s\t%s, %d modules, %d firmware files\n", report.Kernel, report.Release, report.Modules, report.Firmware)
		}
		if n := len(report.MissingFirmware); n > 0 {
			fmt.Fprintf(w, "not there\t%s\t%d firmware files that modules name\n", report.MissingFirmware[0]+", …", n)
		}
	})
}

// packaged is where our Debian package puts what media are made of.
const packaged = "/usr/share/firstlight"

// findMediaParts looks for what the flags do not name: in the checkout, then
// where the package puts it.
func (c *common) findMediaParts(options *media.BootOptions) error {
	there := func(name string) bool {
		_, err := os.Stat(name)
		return err == nil
	}
	if options.Base == "" {
		name := "initramfs-" + options.Arch + ".cpio.zst"
		options.Base = filepath.Join("build", name)
		if installed := filepath.Join(packaged, name); !there(options.Base) && there(installed) {
			options.Base = installed
		}
	}
	if _, err := os.Stat(options.Base); err != nil {
		return &usageError{fmt.Sprintf("the installer's initramfs is not there (%v); build it with make initramfs, or name it with --base", err)}
	}
	if built := filepath.Join("build", "kernel", options.Arch); options.KernelDir == "" && there(built) {
		options.KernelDir = built
	}
	if unpacked := filepath.Join("build", "root", options.Arch); options.Root == "" && options.Arch != runtime.GOARCH && there(unpacked) {
		options.Root = unpacked
	}
	return nil
}

// machineFiles is the directory of a machine of the site.
func (c *common) machineFiles(name string) (string, error) {
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return "", &usageError{fmt.Sprintf("%q is no name of a machine", name)}
	}
	site, err := c.siteDirectory()
	if err != nil {
		return "", err
	}
	directory := filepath.Join(site, "machines", name)
	if _, err := os.Stat(directory); err != nil {
		return "", fmt.Errorf("the site has no machine %s: %w", name, err)
	}
	return directory, nil
}

// mediaCA is the CA to put into a medium. Leaving it out takes away the
// installer's trust, so that is never done silently.
func (c *common) mediaCA() (string, error) {
	if c.ca != "" {
		return c.ca, nil
	}
	secrets, err := c.secrets()
	if err != nil {
		return "", err
	}
	ca := filepath.Join(secrets, pki.CAFile)
	if _, err := os.Stat(ca); err != nil {
		return "", &usageError{fmt.Sprintf("the site has no CA (%v); make one with firstlight keys init, name one with --ca, or say --no-ca", err)}
	}
	return ca, nil
}
