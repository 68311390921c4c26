package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/tools/media"
	"github.com/firstlight/firstlight/tools/pki"
)

func (c *common) mediaCommand() *cobra.Command {
	boot := group("media", "Boot media for the installer")
	boot.AddCommand(c.mediaInitramfs())
	return boot
}

func (c *common) mediaInitramfs() *cobra.Command {
	var options media.Options
	var modules, arch, cert, key string
	var noCA bool
	var sets []string
	for _, set := range media.Sets() {
		sets = append(sets, string(set))
	}
	cmd := &cobra.Command{
		Use:   "initramfs --out FILE --kernel DIR",
		Short: "Append kernel modules, the site's CA and configuration to the installer's initramfs",
		Args:  arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if options.Out == "" {
				return &usageError{"--out FILE is needed"}
			}
			options.Modules, options.Cert, options.Key = media.Set(modules), cert, key
			if options.Base == "" {
				options.Base = filepath.Join("build", "initramfs-"+arch+".cpio.zst")
			}
			if (cert != "" || key != "") && !options.WithIdentity {
				return &refusedError{"would put a private key into the medium; say --with-identity if whoever reads the medium may pass for the machine"}
			}
			if _, err := os.Stat(options.Base); err != nil {
				return &usageError{fmt.Sprintf("the installer's initramfs is not there (%v); build it with make initramfs, or name it with --base", err)}
			}
			if !noCA {
				ca, err := c.mediaCA()
				if err != nil {
					return err
				}
				options.CA = ca
			}
			report, err := media.Initramfs(cmd.Context(), options)
			if err != nil {
				return err
			}
			return c.print(report, func(w io.Writer) {
				fmt.Fprintf(w, "file\t%s\t%s\n", options.Out, size(uint64(report.Bytes)))
				for _, part := range report.Parts {
					fmt.Fprintf(w, "part\t%s\t%s\n", part.Name, size(uint64(part.Bytes)))
				}
				if report.Kernel != "" {
					fmt.Fprintf(w, "kernel\t%s\t%s, %d modules\n", report.Kernel, report.Release, report.Modules)
				}
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Out, "out", "", "`file` to write")
	flags.StringVar(&options.Base, "base", "", "`file` that make initramfs built (default build/initramfs-<arch>.cpio.zst)")
	flags.StringVar(&arch, "arch", runtime.GOARCH, "`architecture`: amd64 or arm64")
	flags.StringVar(&options.KernelDir, "kernel", "", "`directory` with vmlinuz and lib/modules")
	flags.StringVar(&modules, "modules", string(media.SetCommon), "`set` of kernel modules: "+strings.Join(sets, ", "))
	flags.StringVar(&options.Files, "files", "", "`directory` of configuration files; the installer then asks no server for them")
	flags.BoolVar(&noCA, "no-ca", false, "leave the site's CA out: the installer then speaks plain text")
	flags.StringSliceVar(&options.Trust, "trust", nil, "public `key` of a signer (DIR/secrets/signers/NAME.pub); may be repeated. With any, the installer believes signed bundles only")
	flags.IntVar(&options.Threshold, "threshold", 0, "how `many` of them must have signed (default 1)")
	flags.StringVar(&cert, "installer-cert", "", "PEM `file` of the installer's own certificate")
	flags.StringVar(&key, "installer-key", "", "PEM `file` of its private key")
	flags.BoolVar(&options.WithIdentity, "with-identity", false, "put that private key into the medium: whoever reads the medium can pass for the machine")
	return cmd
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
