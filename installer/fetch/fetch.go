// Package fetch gets the configuration files of a machine from where they
// are: a directory, HTTP(S), TFTP, or the operator's own programme.
//
// It tells "the server says there is no such file" (ErrAbsent) from "the
// server did not answer" always, because the first means a default and the
// second never may. It does not parse, verify or choose: see installer/config
// and installer/trust.
package fetch

import (
	"context"
	"errors"
)

// The files of a machine's configuration.
const (
	ConfigJSON        = "config.json"
	StorageLayoutJSON = "storage-layout.json"
	ImageName         = "imagename"
	ImageServer       = "imageserver"
	ToolsImageName    = "tools-imagename"
	RandomSeed        = "random-seed"
	SiteServer        = "siteserver"
)

// Files are the configuration files that are there, by name.
type Files map[string][]byte

// ErrAbsent says that the source answered and has no such file. No failure to
// get an answer ever wraps it.
var ErrAbsent = errors.New("no such file")

// Source is one place that configuration comes from.
type Source interface {
	// Get returns the whole file, at most MaxFileBytes long. The error wraps
	// ErrAbsent when the source says that there is no such file. Get may be
	// called again after an error, and by several goroutines at once.
	Get(ctx context.Context, name string) ([]byte, error)
	// String says where that is, for people: "tftp://10.0.2.2".
	String() string
}
