package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/trust"
	"github.com/firstlight/firstlight/tools/pki"
)

// signedBundle is the result of keys sign and keys verify.
type signedBundle struct {
	Bundle   trust.Bundle  `json:"bundle"`
	Signers  []trust.KeyID `json:"signers"`
	Required int           `json:"required"`
	Files    []string      `json:"files"`
}

func (c *common) keysSign() *cobra.Command {
	var signer string
	var valid time.Duration
	var binding trust.Binding
	cmd := &cobra.Command{
		Use:   "sign MACHINE",
		Short: "Sign a machine's configuration: bundle.json and bundle.sig",
		Long: `Sign the configuration in the directory MACHINE, such as machines/node1: its
files, its image with the digest that the image server has for it now, its
image servers. The bundle is bound to the addresses of config.json, and to the
serial number, UUID or TPM that are given. When nothing has changed since the
last signature, this signer's is added to the others'; otherwise the bundle is
made anew, with the next sequence, and the others have to sign again.`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := c.secrets()
			if err != nil {
				return err
			}
			key, err := pki.OpenSigner(dir, signer)
			if err != nil {
				return err
			}
			machine, err := c.machineDirectory(args[0])
			if err != nil {
				return err
			}
			wanted, err := c.newBundle(cmd.Context(), machine, cmd.Flags().Changed("imageserver"), binding, valid)
			if err != nil {
				return err
			}
			return c.signMachine(dir, machine, wanted, key)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&signer, "signer", "signer", "`name` of the signer's key")
	flags.DurationVar(&valid, "valid", 30*24*time.Hour, "how `long` the bundle holds")
	flags.StringVar(&binding.Serial, "serial", "", "the machine's serial `number`")
	flags.StringVar(&binding.UUID, "uuid", "", "the machine's system `UUID`")
	flags.StringVar(&binding.EndorsementKey, "endorsement-key", "", "SHA-256 of its TPM's endorsement public key, as the `inventory` shows it")
	return cmd
}

// machineDirectory is the directory that a person means: one that is there, or
// one of the site.
func (c *common) machineDirectory(name string) (string, error) {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return name, nil
	}
	site, err := c.siteDirectory()
	if err != nil {
		return "", err
	}
	inSite := filepath.Join(site, name)
	if info, err := os.Stat(inSite); err != nil || !info.IsDir() {
		return "", &usageError{fmt.Sprintf("there is no directory %s, nor %s", name, inSite)}
	}
	return inSite, nil
}

// newBundle is what a machine's directory says now. The image server is that
// of the machine, unless one was named.
func (c *common) newBundle(ctx context.Context, machine string, named bool, binding trust.Binding, valid time.Duration) (trust.Bundle, error) {
	read, err := c.readConfig(ctx, machine)
	if err != nil {
		return trust.Bundle{}, err
	}
	for _, e := range read.Network.Entries {
		if mac := e.MAC.String(); !e.MAC.IsZero() {
			binding.MACs = append(binding.MACs, mac)
		}
	}
	if len(read.ImageServers) > 0 && !named {
		c.imageserver = read.ImageServers[0]
	}
	found, err := c.planImage(ctx, read.Image, read.ToolsImage)
	if err != nil {
		return trust.Bundle{}, err
	}
	var tools *trust.Pinned
	if found.Tools != nil {
		tools = &trust.Pinned{Name: found.Tools.Name, Digest: found.Tools.Digest.String()}
	}
	files := make(map[string][]byte)
	for _, name := range []string{config.MachineFile, config.LayoutFile, config.RandomSeedFile} {
		data, err := os.ReadFile(filepath.Join(machine, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return trust.Bundle{}, err
		}
		files[name] = data
	}
	for _, step := range read.Install.Steps {
		files[path.Join(config.StepsDirectory, step.Name)] = step.Program
	}
	now := time.Now().UTC().Truncate(time.Second)
	return trust.Bundle{
		Name: filepath.Base(machine), Binding: binding, Signed: now, Expires: now.Add(valid),
		Image: trust.Pinned{Name: found.Name, Digest: found.Digest.String()}, Tools: tools, ImageServers: read.ImageServers, SiteServer: read.SiteServer, Files: files,
	}, nil
}

// signMachine writes the bundle and the signature of key.
func (c *common) signMachine(dir, machine string, wanted trust.Bundle, key ed25519.PrivateKey) error {
	bundleFile, sigFile := filepath.Join(machine, trust.BundleFile), filepath.Join(machine, trust.SignatureFile)
	policy, err := sitePolicy(dir)
	if err != nil {
		return err
	}
	raw, sig, err := readBundle(machine)
	if err != nil {
		return err
	}
	old, err := trust.Parse(raw)
	switch {
	case err != nil: // none, or none that can be read: the first
		wanted.Sequence, raw, sig = 1, nil, nil
	case old.Says(wanted) && time.Now().Before(old.Expires):
	default:
		wanted.Sequence, raw, sig = old.Sequence+1, nil, nil
	}
	if raw == nil {
		if raw, err = wanted.Encode(); err != nil {
			return err
		}
	}
	if sig, err = trust.Sign(raw, sig, key, policy.Keys); err != nil {
		return err
	}
	// The signature last: a bundle without one is refused, not misread.
	for _, f := range []struct {
		name string
		data []byte
	}{{bundleFile, raw}, {sigFile, sig}} {
		if err := writeOut(nil, f.name, func(w io.Writer) error { _, err := w.Write(f.data); return err }); err != nil {
			return err
		}
	}
	return c.printBundle(dir, machine)
}

// sitePolicy trusts all signers of the site, each alone.
func sitePolicy(dir string) (trust.Policy, error) {
	keys, err := pki.TrustKeys(dir)
	if err != nil {
		return trust.Policy{}, err
	}
	files := make(map[string][]byte)
	for _, key := range keys {
		if files[filepath.Base(key)], err = os.ReadFile(key); err != nil {
			return trust.Policy{}, err
		}
	}
	return trust.NewPolicy(files)
}

// readBundle reads both files; where there are none, both are empty.
func readBundle(machine string) (raw, sig []byte, err error) {
	for name, into := range map[string]*[]byte{trust.BundleFile: &raw, trust.SignatureFile: &sig} {
		data, err := os.ReadFile(filepath.Join(machine, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		*into = data
	}
	return raw, sig, nil
}

func (c *common) keysVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify MACHINE",
		Short: "Say who has signed a machine's bundle, for which machine and for how long",
		Args:  arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, err := c.secrets()
			if err != nil {
				return err
			}
			machine, err := c.machineDirectory(args[0])
			if err != nil {
				return err
			}
			return c.printBundle(dir, machine)
		},
	}
}

// printBundle verifies what lies in a machine's directory by the site's keys.
func (c *common) printBundle(dir, machine string) error {
	policy, err := sitePolicy(dir)
	if err != nil {
		return err
	}
	raw, sig, err := readBundle(machine)
	if err != nil {
		return err
	}
	if raw == nil || sig == nil {
		return &notSignedError{machine}
	}
	signers, err := policy.Verify(raw, sig)
	if err != nil {
		return err
	}
	b, err := trust.Parse(raw)
	if err != nil {
		return err
	}
	result := signedBundle{b, signers, policy.Threshold, []string{filepath.Join(machine, trust.BundleFile), filepath.Join(machine, trust.SignatureFile)}}
	return c.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "machine\t%s\n", b.Name)
		fmt.Fprintf(w, "bound to\t%s\n", b.Binding)
		fmt.Fprintf(w, "image\t%s\n", b.Image)
		fmt.Fprintf(w, "sequence\t%d\n", b.Sequence)
		until := b.Expires.Format(time.RFC3339)
		if !time.Now().Before(b.Expires) {
			until += " EXPIRED"
		}
		fmt.Fprintf(w, "until\t%s\n", until)
		var names []string
		for _, id := range signers {
			names = append(names, id.Short())
		}
		fmt.Fprintf(w, "signed by\t%s\n", strings.Join(names, ", "))
	})
}

// notSignedError is a machine without a bundle.
type notSignedError struct{ machine string }

func (e *notSignedError) Error() string {
	return fmt.Sprintf("%s has no %s with %s; sign it: firstlight keys sign %s", e.machine, trust.BundleFile, trust.SignatureFile, e.machine)
}

// Code is the code of what is not signed.
func (*notSignedError) Code() string { return trust.CodeUnsigned }
