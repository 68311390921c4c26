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
	keys := group("keys", "The site's CA and certificates, in DIR/secrets of the site")
	keys.AddCommand(c.keysInit(), c.keysIssue(), c.keysShow())
	return keys
}

func (c *common) keysInit() *cobra.Command {
	var names, addresses []string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make what is missing: the site's CA, the image server's certificate, an admin's certificate",
		Long: `Make what is missing: the site's CA, the image server's certificate and an
admin's certificate. Nothing that exists is ever replaced. The image server's
certificate is valid for localhost, this machine's name and addresses, and
those given.`,
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
			return c.printIssued(issued)
		},
	}
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
			if one.New {
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
