// Firstlight is the operator's command: images, keys, boot media. Results go to
// stdout, everything else to stderr. See docs/architecture.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firstlight/firstlight/docs"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/media"
	"github.com/firstlight/firstlight/tools/pki"
	"github.com/firstlight/firstlight/tools/shell"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/redfish"
	"github.com/firstlight/firstlight/tools/site/rules"
	"github.com/firstlight/firstlight/tools/site/takeover"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	streams := streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	err := run(ctx, os.Args[1:], os.Getenv, streams)
	stop()
	report(os.Stderr, err)
	os.Exit(exitCode(err))
}

// streams are what the program reads and writes.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// run is the program.
func run(ctx context.Context, args []string, getenv func(string) string, streams streams) error {
	root := newRoot(&common{streams: streams, getenv: getenv})
	root.SetArgs(args)
	root.SetIn(streams.in)
	root.SetOut(streams.out)
	root.SetErr(streams.err)
	return root.ExecuteContext(ctx)
}

// newRoot is the tree of commands.
func newRoot(c *common) *cobra.Command {
	root := group("firstlight", "Installs operating systems on bare machines: images, plans, keys, boot media")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err.Error()} })
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return c.complete(cmd) }
	flags := root.PersistentFlags()
	flags.StringVar(&c.imageserver, "imageserver", "localhost:6971", "`host:port` of the image server")
	flags.StringVar(&c.site, "site", "", "`directory` of the site (default ~/.config/firstlight)")
	flags.StringVar(&c.ca, "ca", "", "PEM `file` of the site's CA (default: the site's)")
	flags.StringVar(&c.cert, "cert", "", "PEM `file` of your certificate (default: the site's admin)")
	flags.StringVar(&c.key, "key", "", "PEM `file` of its private key")
	flags.BoolVar(&c.insecure, "insecure", false, "no TLS; for a lab only")
	flags.StringVar(&c.output, "output", "table", "`format` of results: table or json")
	flags.BoolVar(&c.json, "json", false, "short for --output json")
	flags.BoolVar(&c.quiet, "quiet", false, "no progress")
	root.AddCommand(c.configCommand(), c.imageCommand(), c.keysCommand(), c.mediaCommand(), c.installerShellCommand(), c.planCommand(), c.serveCommand(), c.versionCommand(), c.manCommand())
	root.AddCommand(c.machineCommand(), c.rulesCommand())
	return root
}

// group is a command that only has others below it. A wrong name is a mistake
// in the command line, with the nearest names.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs, SuggestionsMinimumDistance: 2,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			text := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0])
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				text += "; did you mean " + strings.Join(near, ", ") + "?"
			}
			return &usageError{text}
		},
	}
}

// arguments is a command's check of how many arguments there are.
func arguments(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return &usageError{"usage: " + cmd.UseLine()}
		}
		return nil
	}
}

// environment is the variable that sets a flag: FIRSTLIGHT_IMAGESERVER.
func environment(flag string) string {
	return "FIRSTLIGHT_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// complete takes from the environment what the command line left open.
func (c *common) complete(cmd *cobra.Command) error {
	var failed error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value := c.getenv(environment(f.Name))
		if value == "" || f.Changed || f.Name == "help" {
			return
		}
		if err := cmd.Flags().Set(f.Name, value); err != nil {
			failed = errors.Join(failed, &usageError{fmt.Sprintf("environment variable %s: %v", environment(f.Name), err)})
		}
	})
	if c.json {
		c.output = "json"
	}
	if failed == nil && c.output != "table" && c.output != "json" {
		failed = &usageError{fmt.Sprintf("--output is table or json, not %q", c.output)}
	}
	return failed
}

// usageError is a mistake in the command line.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// refusedError is a step that was not taken for safety.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

// The exit codes, as scripts rely on them.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartly      = 3
	exitNotFound    = 4
	exitInvalid     = 5
	exitRefused     = 6
	exitUnreachable = 7
	exitTrust       = 8
	exitTimeout     = 9
	exitDamaged     = 10
	exitInterrupted = 130
)

// exitCode is the exit status for err.
func exitCode(err error) int {
	var usage *usageError
	var refused *refusedError
	var elsewhere *statusError
	var coded interface{ Code() string }
	var refusals plan.Refusals
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &elsewhere):
		return elsewhere.status
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &refused), errors.As(err, &refusals):
		return exitRefused
	case errors.Is(err, object.ErrDigest):
		return exitUsage
	case errors.Is(err, object.ErrNotFound):
		return exitNotFound
	case errors.Is(err, object.ErrDamaged), errors.Is(err, object.ErrRefused), errors.Is(err, image.ErrMalformed), errors.Is(err, ingest.ErrSource), errors.Is(err, ingest.ErrContainer):
		return exitDamaged
	case errors.As(err, &coded):
		return exitCodeOf(coded.Code())
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	return exitFailed
}

// exitCodeOf is the exit status for an error code of docs/errors.md.
func exitCodeOf(code string) int {
	switch code {
	case client.CodeNoImage, client.CodeNoObject, shell.CodeUnknown:
		return exitNotFound
	case client.CodeUnreachable, client.CodeLost, shell.CodeUnreachable, shell.CodeLost, redfish.CodeUnreachable, takeover.CodeUnreachable:
		return exitUnreachable
	case redfish.CodeLate:
		return exitTimeout
	case client.CodeDamaged, client.CodeWrongAnswer:
		return exitDamaged
	case client.CodeBadName, pki.CodeRequest, shell.CodeBadFingerprint:
		return exitUsage
	case media.CodeTarget, media.CodeArch, media.CodeSecret, storage.CodeBusy, pki.CodeExists, shell.CodeNotNow, rules.CodeRefused, takeover.CodeUnable, site.CodeState, site.CodeTwice:
		return exitRefused
	case site.CodeUnknown:
		return exitNotFound
	case site.CodeMachine, site.CodeSettings, site.CodeNewer, rules.CodeRules:
		return exitInvalid
	}
	switch {
	case strings.HasPrefix(code, "TRU-"):
		return exitTrust
	case strings.HasPrefix(code, "CFG-"), strings.HasPrefix(code, "CNF-"):
		return exitInvalid
	}
	return exitFailed
}

// report tells a person what went wrong and what to do.
func report(w io.Writer, err error) {
	if err == nil || errors.As(err, new(*statusError)) {
		return
	}
	var coded interface{ Code() string }
	if !errors.As(err, &coded) {
		fmt.Fprintln(w, "firstlight:", err)
		return
	}
	fmt.Fprintf(w, "firstlight: %s: %v\n", coded.Code(), err)
	if entry, ok := docs.Lookup(coded.Code()); ok {
		fmt.Fprintf(w, "\nWhat to do: %s\n", entry.Do)
	}
}
