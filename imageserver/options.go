package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// options are the flags. The YAML file has the same names without the dashes.
type options struct {
	Listen            string
	Data              string
	Store             string
	CacheSize         float64
	TLSCert           string
	TLSKey            string
	ClientCA          string
	RequireClientCert bool
	Insecure          bool
	Upstream          string
	UpstreamCA        string
	UpstreamCert      string
	UpstreamKey       string
	MaxTransfers      int
	ScrubRate         float64
	ScrubInterval     time.Duration

	done bool // help or the version was asked for and printed
}

// usageError is a wrong use of the flags or of the environment.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() + " (imageserver --help lists the flags)" }
func (e *usageError) Unwrap() error { return e.err }

// configError is a wrong configuration file.
type configError struct {
	file string
	err  error
}

func (e *configError) Error() string { return fmt.Sprintf("configuration file %s: %v", e.file, e.err) }
func (e *configError) Unwrap() error { return e.err }

// Code is the stable code: SRV-003.
func (e *configError) Code() string { return "SRV-003" }

func flags(o *options) *pflag.FlagSet {
	fs := pflag.NewFlagSet("imageserver", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.StringVar(&o.Listen, "listen", ":6971", "`address` to listen on, host:port")
	fs.StringVar(&o.Data, "data", "", "`directory` of the embedded store: objects and images")
	fs.StringVar(&o.Store, "store", "", "`bucket` where objects and images are kept instead, for many servers: s3://BUCKET[/PREFIX]?endpoint=URL[&region=REGION]; --data is then a cache")
	fs.Float64Var(&o.CacheSize, "cache-size", 20, "`GiB` of the bucket's packs that are kept in --data")
	fs.StringVar(&o.TLSCert, "tls-cert", "", "PEM `file` of the server's certificate")
	fs.StringVar(&o.TLSKey, "tls-key", "", "PEM `file` of its private key")
	fs.StringVar(&o.ClientCA, "client-ca", "", "PEM `file` of the CA that signs client certificates; without it nobody can write")
	fs.BoolVar(&o.RequireClientCert, "require-client-cert", false, "refuse TLS connections without a client certificate, for reading too")
	fs.BoolVar(&o.Insecure, "insecure", false, "no TLS: anyone may read and write; for a lab only")
	fs.StringVar(&o.Upstream, "upstream", "", "`host:port` of an image server whose images this one gives out: what is not here is got from there and kept")
	fs.StringVar(&o.UpstreamCA, "upstream-ca", "", "PEM `file` of the CA of the upstream server's certificate; without it --client-ca")
	fs.StringVar(&o.UpstreamCert, "upstream-cert", "", "PEM `file` of a client certificate to show upstream, where it wants one")
	fs.StringVar(&o.UpstreamKey, "upstream-key", "", "PEM `file` of its private key")
	fs.IntVar(&o.MaxTransfers, "max-transfers", 64, "`number` of uploads and downloads that run at once; 16 times as many wait, more are refused")
	fs.Float64Var(&o.ScrubRate, "scrub-rate", 10, "`MiB` per second at which stored objects are read and verified in the background; 0 turns that off")
	fs.DurationVar(&o.ScrubInterval, "scrub-interval", 24*time.Hour, "`time` from one verification of the whole store to the next")
	return fs
}

// environment is the variable that sets a flag: IMAGESERVER_TLS_CERT.
func environment(flag string) string {
	return "IMAGESERVER_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// parseOptions reads, in rising order of precedence, the defaults, the file of
// --config, the environment, and args.
func parseOptions(args []string, getenv func(string) string, stdout io.Writer) (options, error) {
	var o options
	fs := flags(&o)
	config := fs.String("config", "", "YAML `file` with these settings, named as the flags")
	showVersion := fs.Bool("version", false, "print the version")
	fs.SetOutput(io.Discard)
	err := fs.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		o.done = true
		return o, printHelp(stdout, fs)
	}
	if err != nil {
		return o, &usageError{err}
	}
	if fs.NArg() > 0 {
		return o, &usageError{fmt.Errorf("%q is no flag", fs.Arg(0))}
	}
	if *showVersion {
		o.done = true
		_, err := fmt.Fprintln(stdout, "imageserver", version())
		return o, err
	}
	set := map[string]bool{}
	fs.Visit(func(f *pflag.Flag) { set[f.Name] = true })
	if err := fromEnvironment(fs, set, getenv); err != nil {
		return o, err
	}
	if *config != "" {
		if err := fromFile(fs, set, *config); err != nil {
			return o, &configError{*config, err}
		}
	}
	return o, nil
}

func fromEnvironment(fs *pflag.FlagSet, set map[string]bool, getenv func(string) string) error {
	var failed error
	fs.VisitAll(func(f *pflag.Flag) {
		value := getenv(environment(f.Name))
		if value == "" || set[f.Name] || f.Name == "version" {
			return
		}
		if err := fs.Set(f.Name, value); err != nil {
			failed = errors.Join(failed, &usageError{fmt.Errorf("environment variable %s: %w", environment(f.Name), err)})
			return
		}
		set[f.Name] = true
	})
	return failed
}

// fromFile sets what args and environment left open. Every mistake in the file
// is reported at once, with its line.
func fromFile(fs *pflag.FlagSet, set map[string]bool, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&document); err == io.EOF {
		return nil // empty, or comments only
	} else if err != nil {
		return err
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: settings are written as name: value", root.Line)
	}
	var failed error
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		bad := func(format string, args ...any) {
			failed = errors.Join(failed, fmt.Errorf("line %d: %s: %s", key.Line, key.Value, fmt.Sprintf(format, args...)))
		}
		f := fs.Lookup(key.Value)
		switch {
		case f == nil || f.Name == "config" || f.Name == "version" || f.Name == "help":
			bad("there is no such setting (imageserver --help lists the flags, the names are the same)")
		case seen[key.Value]:
			bad("it stands there twice")
		case value.Kind != yaml.ScalarNode || value.Tag == "!!null":
			bad("one value is wanted")
		case set[f.Name]:
		default:
			if err := fs.Set(f.Name, value.Value); err != nil {
				bad("%v", err)
			}
		}
		seen[key.Value] = true
	}
	return failed
}

func printHelp(w io.Writer, fs *pflag.FlagSet) error {
	_, err := fmt.Fprintf(w, `Usage: imageserver --data DIR --tls-cert FILE --tls-key FILE --client-ca FILE [flags]

Keeps the images of a site and gives them to the installers: gRPC over TLS, and
pages for looking (/, /metrics, /healthz, /readyz), on one port.

%s
Each flag is also an environment variable (--tls-cert is IMAGESERVER_TLS_CERT)
and a line of the --config file (tls-cert: FILE). Arguments win over the
environment, and that wins over the file.
`, fs.FlagUsages())
	return err
}

// check refuses to start without protection that was not given up in so many
// words.
func (o options) check() error {
	if o.Data == "" {
		return &usageError{errors.New("--data DIR is needed: the directory where images are kept, or with --store the cache")}
	}
	if o.CacheSize < 0 || o.CacheSize > 1<<20 {
		return &usageError{fmt.Errorf("--cache-size is 0 to 1048576 GiB, not %g", o.CacheSize)}
	}
	if o.MaxTransfers < 1 || o.MaxTransfers > 4096 {
		return &usageError{fmt.Errorf("--max-transfers is 1 to 4096, not %d", o.MaxTransfers)}
	}
	if o.ScrubRate < 0 || o.ScrubRate > 1<<20 || o.ScrubInterval < 0 {
		return &usageError{errors.New("--scrub-rate is 0 to 1048576 MiB per second, --scrub-interval no negative time")}
	}
	if o.Upstream == "" && (o.UpstreamCA != "" || o.UpstreamCert != "" || o.UpstreamKey != "") {
		return &usageError{errors.New("--upstream-ca, --upstream-cert and --upstream-key say how to reach --upstream HOST:PORT, which is missing")}
	}
	haveTLS := o.TLSCert != "" || o.TLSKey != "" || o.ClientCA != "" || o.RequireClientCert
	switch {
	case o.Insecure && haveTLS:
		return &startError{"SRV-001", "--insecure means no TLS at all; leave it out, or leave out --tls-cert, --tls-key, --client-ca and --require-client-cert", nil}
	case o.Insecure:
		return nil
	case o.TLSCert == "" || o.TLSKey == "":
		return &startError{"SRV-001", `a certificate and its key are needed. Make them with
	firstlight keys init
and start
	imageserver --data ` + o.Data + ` --tls-cert ~/.config/firstlight/secrets/imageserver.pem --tls-key ~/.config/firstlight/secrets/imageserver-key.pem --client-ca ~/.config/firstlight/secrets/CA.pem
or, in a lab where anyone may change the images, give --insecure`, nil}
	case o.Upstream != "" && o.UpstreamCA == "" && o.ClientCA == "":
		return &startError{"SRV-001", "--upstream needs --upstream-ca FILE, the CA that signed that server's certificate (or --client-ca, where it is the same)", nil}
	case o.RequireClientCert && o.ClientCA == "":
		return &startError{"SRV-001", "--require-client-cert needs --client-ca FILE, the CA that signs client certificates", nil}
	}
	return nil
}
