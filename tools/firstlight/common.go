package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

// common is what all commands share: the flags of the root and the streams.
type common struct {
	streams
	getenv func(string) string

	imageserver   string
	site          string
	ca, cert, key string
	insecure      bool
	output        string
	json          bool
	quiet         bool
}

// siteDirectory is --site, or ~/.config/firstlight.
func (c *common) siteDirectory() (string, error) {
	if c.site != "" {
		return c.site, nil
	}
	config, err := os.UserConfigDir()
	if err != nil {
		return "", &usageError{"there is no home directory to look for the site in; give --site DIR"}
	}
	return filepath.Join(config, "firstlight"), nil
}

// secrets is the site's directory of keys.
func (c *common) secrets() (string, error) {
	site, err := c.siteDirectory()
	if err != nil {
		return "", err
	}
	return pki.Directory(site), nil
}

// dial connects to the image server with the certificates that the flags, or
// the site, name.
func (c *common) dial(ctx context.Context) (*client.Client, error) {
	options := client.Options{Address: c.imageserver}
	if !c.insecure {
		ca, cert, key, err := c.certificates()
		if err != nil {
			return nil, err
		}
		options.TLS, err = auth.ClientTLS(ca, cert, key, time.Now())
		if c.ca == "" && errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; the site's keys are made by firstlight keys init, and --site DIR says where they are", err)
		}
		if err != nil {
			return nil, err
		}
	} else if c.ca != "" || c.cert != "" || c.key != "" {
		return nil, &usageError{"--insecure means no TLS; leave it out, or leave out --ca, --cert and --key"}
	}
	return client.Dial(ctx, options)
}

// certificates are the files to use. The site's admin certificate is used where
// there is one; reading needs none.
func (c *common) certificates() (ca, cert, key string, err error) {
	ca, cert, key = c.ca, c.cert, c.key
	if (cert == "") != (key == "") {
		return "", "", "", &usageError{"--cert and --key belong together"}
	}
	secrets, err := c.secrets()
	if err != nil {
		if ca != "" {
			return ca, cert, key, nil
		}
		return "", "", "", err
	}
	if ca == "" {
		ca = filepath.Join(secrets, pki.CAFile)
	}
	if cert == "" && c.ca == "" {
		admin := filepath.Join(secrets, pki.AdminFile)
		if _, err := os.Stat(admin); err == nil {
			cert, key = admin, filepath.Join(secrets, pki.AdminKeyFile)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", "", "", err
		}
	}
	return ca, cert, key, nil
}

// print writes a result: v as JSON, or the table.
func (c *common) print(v any, table func(w io.Writer)) error {
	if c.output == "json" {
		encoder := json.NewEncoder(c.out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(v)
	}
	w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// note writes a line for a person to stderr, unless --quiet.
func (c *common) note(format string, args ...any) {
	if !c.quiet {
		fmt.Fprintf(c.err, format+"\n", args...)
	}
}

// terminal says whether a stream is one.
func terminal(stream any) bool {
	file, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// confirm asks before something that cannot be undone. Without a terminal
// --yes is the only answer.
func (c *common) confirm(yes bool, what string) error {
	if yes {
		return nil
	}
	if !terminal(c.in) {
		return &refusedError{"would " + what + "; say --yes to do it"}
	}
	fmt.Fprintf(c.err, "This will %s. Go on? [y/N] ", what)
	var answer string
	// No answer is a no.
	_, _ = fmt.Fscanln(c.in, &answer)
	if a := strings.ToLower(answer); a != "y" && a != "yes" {
		return &refusedError{"nothing was changed"}
	}
	return nil
}

// size is a number of bytes for people: 435 MB.
func size(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for ; value >= 999.5 && unit < 6; unit++ {
		value /= 1000
	}
	return fmt.Sprintf("%.3g %cB", value, "kMGTPE"[unit-1])
}
