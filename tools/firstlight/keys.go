package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

func (c *common) keysCommand() *cobra.Command {
	keys := group("keys", "The site's CA, certificates and signing keys, in DIR/secrets of the site")
	keys.AddCommand(c.keysInit(), c.keysIssue(), c.keysShow(), c.keysSign(), c.keysVerify())
	return keys
}

func (c *common) keysInit() *cobra.Command {
	var names, addresses, signers []string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make what is missing: CA, certificates, a key to sign bundles with, one for recovery keys",
		Long: `Make what is missing in the site's secrets. CA and keys that exist are never
replaced. A certificate that lacks one of the names or addresses given, or that
ends within a month, is issued again, for the same key.

  CA.pem, ca-key.pem     the site's CA: both ends of every connection are checked
                         by it. The certificate goes into boot media; the key is
                         needed only to issue certificates
  imageserver.pem        the image server's certificate, valid for localhost, this
                         machine's name and addresses, and those given
  admin.pem              what you show to servers: you may do everything
  signers/signer.pub     boot media that have it (media --trust) believe only what
                         signers/signer.key has signed (keys sign)
  escrow.pub             machines encrypt their recovery keys to it (layout field
                         RecoveryRecipients); only escrow.key opens them. Move that
                         file to a place off line`,
		Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			dir, err := c.secrets()
			if err != nil {
				return err
			}
			local, err := pki.LocalAddresses()
			if err != nil {
				return err
			}
			host, err := os.Hostname()
			if err != nil {
				host = "" // the CA's subject is for people only
			}
			issued, err := pki.Init(dir, time.Now, pki.Options{Name: host, Addresses: slices.Concat(names, addresses), Also: local})
			if err != nil {
				return err
			}
			for _, signer := range signers {
				made, err := pki.InitSigner(dir, signer)
				if err != nil {
					return err
				}
				issued = append(issued, pki.Issued{Name: "signer " + signer, Cert: made.Public, Key: made.Key, New: made.New})
			}
			escrow, err := pki.InitEscrow(dir)
			if err != nil {
				return err
			}
			issued = append(issued, pki.Issued{Name: "escrow", Cert: escrow.File, Key: escrow.Key, New: escrow.New})
			return c.printIssued(issued)
		},
	}
	cmd.Flags().StringSliceVar(&signers, "signer", []string{"signer"}, "`name` of a key to sign bundles with; may be repeated")
	cmd.Flags().StringSliceVar(&names, "name", nil, "host `name` of the image server; may be repeated")
	cmd.Flags().StringSliceVar(&addresses, "address", nil, "IP `address` of the image server; may be repeated")
	return cmd
}

func (c *common) keysIssue() *cobra.Command {
	var role string
	var server bool
	var addresses []string
	cmd := &cobra.Command{
		Use:   "issue NAME (--role ROLE | --server --address ADDRESS…)",
		Short: "Issue a certificate: NAME.pem and NAME-key.pem",
		Long: `Issue a certificate, NAME.pem and NAME-key.pem, in the site's secrets: for a
person or a programme with a role (viewer, operator, admin), or for a server,
such as an installer, with its host names and IP addresses.`,
		Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			request := pki.Request{Name: args[0], Server: server, Addresses: addresses}
			if server == (role != "") {
				return &usageError{"give either --role ROLE or --server with --address ADDRESS"}
			}
			if role != "" {
				uri, err := roleURI(role)
				if err != nil {
					return err
				}
				request.Role = uri
			}
			dir, err := c.secrets()
			if err != nil {
				return err
			}
			authority, err := pki.Open(dir, time.Now)
			if err != nil {
				return err
			}
			issued, err := authority.Issue(request)
			if err != nil {
				return err
			}
			return c.printIssued([]pki.Issued{issued})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "`role`: viewer, operator or admin")
	cmd.Flags().BoolVar(&server, "server", false, "a server's certificate")
	cmd.Flags().StringSliceVar(&addresses, "address", nil, "host name or IP `address`; may be repeated")
	return cmd
}

func roleURI(name string) (*url.URL, error) {
	role, err := auth.ParseRole(name)
	if err != nil {
		return nil, &usageError{err.Error()}
	}
	return role.URI(), nil
}

func (c *common) printIssued(issued []pki.Issued) error {
	return c.print(issued, func(w io.Writer) {
		for _, one := range issued {
			state := "was there"
			switch {
			case one.Why != "":
				state = "issued again: " + one.Why
			case one.New:
				state = "made"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", one.Name, state, one.Cert)
		}
	})
}

func (c *common) keysShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the site's certificates", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			dir, err := c.secrets()
			if err != nil {
				return err
			}
			all, err := pki.Show(dir)
			if err != nil {
				return err
			}
			if all == nil {
				all = []pki.Shown{} // "[]", not "null"
				c.note("no certificates in %s; make them: firstlight keys init", dir)
			}
			return c.print(all, func(w io.Writer) {
				fmt.Fprintln(w, "FILE\tSUBJECT\tKIND\tROLE\tUNTIL\tADDRESSES")
				for _, one := range all {
					until := one.NotAfter.Format(time.DateOnly)
					if time.Now().After(one.NotAfter) {
						until += " EXPIRED"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", one.File, one.Subject, one.Kind, one.Role, until, strings.Join(one.Addresses, " "))
				}
			})
		},
	}
}
