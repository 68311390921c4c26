package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/installer/receipt"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/audit"
)

// verifiedRoot is the result of machine verify.
type verifiedRoot struct {
	Machine   string             `json:"machine"`
	Installed time.Time          `json:"installed"`
	Image     string             `json:"image"`
	Digest    string             `json:"digest"`
	Plan      string             `json:"plan"`
	Vouched   string             `json:"vouched"` // why the receipt is believed
	Disks     []receipt.Disk     `json:"disks"`
	Found     []audit.Difference `json:"differences"`
}

// machineVerify compares an installed root with its receipt.
func (c *common) machineVerify() *cobra.Command {
	v := &rootVerification{common: c}
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Compare an installed root with the receipt of its installation",
		Long: `Compare an installed root with the receipt of its installation: every file of
the image, by its content, mode and owner, and every file that the installer
wrote. Run it on the machine itself, or where its root is mounted (--root). What
differs is listed: missing, changed, mode, extra. The exit status is 10 if
something does.

The receipt is the one that the site server keeps for NAME; without one, that on
the disk. It must be signed by a certificate of the site's CA, or by the one
whose fingerprint stood on the machine's console (--fingerprint). One that the
site server has kept since the installation counts without.`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd.Context(), args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&v.root, "root", "/", "`directory` where the installed root is")
	flags.StringVar(&v.file, "receipt", "", "`file` with the receipt")
	flags.StringVar(&v.fingerprint, "fingerprint", "", "of the installer's certificate, `SHA256:…`")
	flags.StringSliceVar(&v.ignore, "ignore", nil, "`path` below which nothing is compared, beside the usual ones; may be repeated")
	flags.BoolVar(&v.everything, "everything", false, "compare also what a system changes by itself: /var/log, /home, …")
	return cmd
}

type rootVerification struct {
	*common
	root, file, fingerprint string
	ignore                  []string
	everything              bool
}

func (v *rootVerification) run(ctx context.Context, name string) error {
	document, kept, err := v.document(name)
	if err != nil {
		return err
	}
	r, certificate, err := receipt.Open(document)
	if err != nil {
		return err
	}
	vouched, err := v.vouch(r, certificate, kept)
	if err != nil {
		return err
	}
	if own, _, _ := strings.Cut(r.Machine.Hostname, "."); !kept && name != r.Machine.Hostname && name != own {
		return &refusedError{fmt.Sprintf("the receipt is that of %q, and not of %s", r.Machine.Hostname, name)}
	}
	connection, err := v.dial(ctx)
	if err != nil {
		return err
	}
	defer connection.Close() // only read from
	installed, err := manifestOf(ctx, connection, r.Image.Name+"@"+r.Image.Digest.String())
	if err != nil {
		return err
	}
	options := audit.Options{Ignore: v.ignore}
	if !v.everything {
		options.Ignore = append(options.Ignore, audit.UsualIgnore()...)
	}
	found, err := audit.Compare(ctx, v.root, installed.Manifest, r.Files, options)
	if err != nil {
		return err
	}
	result := verifiedRoot{Machine: r.Machine.Hostname, Installed: r.Ended, Image: r.Image.Name, Digest: r.Image.Digest.String(), Plan: r.Plan, Vouched: vouched, Disks: r.Disks, Found: found}
	if result.Found == nil {
		result.Found = []audit.Difference{}
	}
	if err := v.print(result, result.table); err != nil {
		return err
	}
	if len(found) > 0 {
		return &statusError{exitDamaged}
	}
	return nil
}

func (r verifiedRoot) table(w io.Writer) {
	fmt.Fprintf(w, "machine\t%s\n", r.Machine)
	fmt.Fprintf(w, "installed\t%s\n", r.Installed.Format(time.RFC3339))
	fmt.Fprintf(w, "image\t%s@%s\n", r.Image, r.Digest)
	fmt.Fprintf(w, "plan\t%s\n", r.Plan)
	fmt.Fprintf(w, "receipt\t%s\n", r.Vouched)
	for _, d := range r.Disks {
		fmt.Fprintf(w, "disk\t%s, serial %s: %s\n", d.Path, d.Serial, d.Result)
	}
	if len(r.Found) == 0 {
		fmt.Fprintln(w, "root\tas it was installed")
	}
	for _, d := range r.Found {
		fmt.Fprintf(w, "%s\t%s\t%s\n", d.Kind, d.Path, d.What)
	}
}

// document finds the receipt; kept says that the site server has it.
func (v *rootVerification) document(name string) (data []byte, kept bool, err error) {
	if v.file != "" {
		data, err = os.ReadFile(v.file)
		return data, false, err
	}
	if name != filepath.Base(name) {
		return nil, false, &usageError{fmt.Sprintf("%q is not the name of a machine", name)}
	}
	if site, err := v.siteDirectory(); err == nil {
		data, err := os.ReadFile(filepath.Join(site, "state", "machines", name, "receipt.json"))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return data, true, err
		}
	}
	v.note("the site has no receipt of %s: the machine's own is taken", name)
	root, err := os.OpenRoot(v.root)
	if err != nil {
		return nil, false, err
	}
	defer root.Close() // only read from
	data, err = root.ReadFile(strings.TrimPrefix(receipt.File, "/"))
	return data, false, err
}

// vouch says why a receipt is believed.
func (v *rootVerification) vouch(r receipt.Receipt, by *x509.Certificate, kept bool) (string, error) {
	fingerprint := receipt.Fingerprint(by)
	if v.fingerprint != "" {
		if !strings.EqualFold(fingerprint, v.fingerprint) {
			return "", receipt.Untrusted("it is signed by %s, and not by %s", fingerprint, v.fingerprint)
		}
		return "signed by the certificate " + fingerprint, nil
	}
	if ca, _, _, err := v.certificates(); err == nil {
		if pool, err := auth.LoadCA(ca); err == nil {
			_, err := by.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: r.Ended, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			if err == nil {
				return "signed by " + by.Subject.CommonName + " of the site's CA", nil
			}
		}
	}
	if kept {
		return "kept by the site server since the installation", nil
	}
	return "", receipt.Untrusted("it is signed by %s, which nobody vouches for; compare it with the machine's console, and give --fingerprint", fingerprint)
}
