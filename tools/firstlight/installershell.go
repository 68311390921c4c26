package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/shell"
)

// installerShell are the flags of installer-shell.
type installerShell struct {
	*common
	port        uint16
	fingerprint string
	observe     bool
	record      string
	log         bool
	follow      bool
	wait        time.Duration
}

func (c *common) installerShellCommand() *cobra.Command {
	s := &installerShell{common: c}
	cmd := &cobra.Command{
		Use:   "installer-shell HOST [hold PHASE | resume | reboot | logs | plan | approve HASH | -- CMD…]",
		Short: "Look around in a machine that is being installed, hold it, let it go on",
		Long: `Open a shell in the installer on HOST, or with -- run CMD there and exit with
its exit status. It waits until the installer is up, and comes back to the same
shell when the connection breaks. Ctrl-\ detaches: the same command again comes
back within the same installation.

hold PHASE makes the installer wait before a phase that has not begun, or before
hand-over; resume lets it go on; reboot restarts the machine at once; logs and
plan show log and plan; approve lets the plan of that hash be carried out.

The installer is known by the site's CA and by HOST, or by the fingerprint that
the machine's console shows.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() == 0 {
				return &usageError{"usage: " + cmd.UseLine()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.run(cmd, args)
		},
	}
	flags := cmd.Flags()
	flags.Uint16Var(&s.port, "port", shell.DefaultPort, "TCP `port` of the installer")
	flags.StringVar(&s.fingerprint, "fingerprint", "", "`SHA256:…` of the installer's certificate, as its console shows it")
	flags.BoolVar(&s.observe, "observe", false, "look on at the newest shell of somebody else; change nothing")
	flags.StringVar(&s.record, "record", "", "write what the terminal shows to `FILE` (asciicast v2)")
	flags.BoolVar(&s.log, "log", false, "show new lines of the installer's log above the prompt")
	flags.BoolVar(&s.follow, "follow", false, "logs: go on with new lines")
	flags.DurationVar(&s.wait, "wait", 0, "how `long` to wait for an installer that is not up; 0 is for ever")
	return cmd
}

// statusError is the exit status of a programme that was run elsewhere.
type statusError struct{ status int }

func (e *statusError) Error() string { return fmt.Sprintf("exit status %d", e.status) }

func (s *installerShell) run(cmd *cobra.Command, args []string) error {
	if s.insecure {
		return &usageError{"an installer takes calls over TLS only; leave out --insecure"}
	}
	ca, cert, key, err := s.certificates()
	if err != nil {
		return err
	}
	options := shell.Options{Host: strings.Trim(args[0], "[]"), Port: s.port, Fingerprint: s.fingerprint, Wait: s.wait,
		Waiting: func(why string) { s.note("waiting: %s", why) }}
	options.TLS, err = auth.ClientTLS(ca, cert, key, time.Now())
	if s.ca == "" && errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; the site's keys are made by firstlight keys init, and --site DIR says where they are", err)
	}
	if err != nil {
		return err
	}
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		if dash != 1 || len(args) == 1 {
			return &usageError{"usage: firstlight installer-shell HOST -- CMD…"}
		}
		return s.session(cmd.Context(), options, args[1:])
	}
	if len(args) == 1 {
		return s.session(cmd.Context(), options, nil)
	}
	call, err := s.verb(args[1], args[2:])
	if err != nil {
		return err
	}
	client, err := shell.Dial(cmd.Context(), options)
	if err != nil {
		return err
	}
	return errors.Join(call(cmd.Context(), client), client.Close())
}

// verb is what a word after the host means.
func (s *installerShell) verb(name string, args []string) (func(context.Context, *shell.Client) error, error) {
	takes := map[string]int{"hold": 1, "approve": 1, "resume": 0, "reboot": 0, "logs": 0, "plan": 0}
	n, known := takes[name]
	switch {
	case !known:
		return nil, &usageError{fmt.Sprintf("installer-shell has no verb %q (hold PHASE, resume, reboot, logs, plan, approve HASH); a command stands behind --", name)}
	case len(args) != n:
		return nil, &usageError{fmt.Sprintf("%s takes %d arguments, not %d", name, n, len(args))}
	}
	return map[string]func(context.Context, *shell.Client) error{
		"hold": func(ctx context.Context, client *shell.Client) error {
			err := client.Hold(ctx, args[0])
			if err == nil {
				s.note("the installer will wait before %s", args[0])
			}
			return err
		},
		"approve": func(ctx context.Context, client *shell.Client) error { return client.Approve(ctx, args[0]) },
		"resume": func(ctx context.Context, client *shell.Client) error {
			released, err := client.Resume(ctx)
			if err != nil {
				return err
			}
			return s.print(released, func(w io.Writer) { fmt.Fprintln(w, strings.Join(released, "\n")) })
		},
		"reboot": func(ctx context.Context, client *shell.Client) error { return client.Reboot(ctx) },
		"logs": func(ctx context.Context, client *shell.Client) error {
			return client.Logs(ctx, s.follow, func(line string) error {
				_, err := fmt.Fprintln(s.out, line)
				return err
			})
		},
		"plan": func(ctx context.Context, client *shell.Client) error {
			document, _, err := client.Plan(ctx)
			if err != nil {
				return err
			}
			_, err = s.out.Write(append(bytes.TrimRight(document, "\n"), '\n'))
			return err
		},
	}[name], nil
}

// session runs a shell, or argv.
func (s *installerShell) session(ctx context.Context, options shell.Options, argv []string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	screen := &screen{w: s.out}
	session := shell.Session{Argv: argv, Observe: s.observe, In: s.in, Out: screen, Err: s.streams.err, Log: screen.log,
		FollowLog: s.log, Size: shell.Size{Rows: 24, Cols: 80}}
	if s.observe && argv != nil {
		return &usageError{"--observe looks on and runs nothing"}
	}
	newline := "\n"
	var resized <-chan shell.Size
	in, _ := s.in.(*os.File)
	if out, ok := s.out.(*os.File); ok && in != nil && shell.IsTerminal(in) && shell.IsTerminal(out) {
		if session.Term = s.getenv("TERM"); session.Term == "" {
			session.Term = "vt100"
		}
		session.Size, resized = shell.SizeOf(out), shell.Sizes(ctx, out)
		session.ReplayLog = argv == nil && !s.observe
		screen.terminal = true
	}
	if s.record != "" {
		file, err := os.Create(s.record)
		if err != nil {
			return err
		}
		recording, err := shell.Record(file, session.Term, session.Size, time.Now)
		if err != nil {
			return errors.Join(err, file.Close())
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		screen.w = io.MultiWriter(s.out, recording)
		resized = recordSizes(ctx, resized, recording)
	}
	session.Resized = resized
	restore := func() {}
	defer func() { restore() }()
	say := func(format string, args ...any) {
		if !s.quiet {
			fmt.Fprintf(s.streams.err, format+newline, args...)
		}
	}
	session.Lost = func(why error) { say("\r[%v; trying to come back]", why) }
	session.Back = func() { say("\r[connected again]") }
	var raw error
	session.Opened = func(number uint32, owner string, takenUp bool) {
		if session.Term == "" {
			return
		}
		switch {
		case s.observe:
			say("observing shell %d of %s; Ctrl-\\ leaves", number, owner)
		case takenUp:
			say("back in shell %d on %s; Ctrl-\\ detaches", number, options.Host)
		default:
			say("shell %d on %s; Ctrl-\\ detaches, and the installation waits for its end", number, options.Host)
		}
		if restore, raw = shell.Raw(in); raw != nil {
			restore = func() {}
			cancel()
		}
		newline = "\r\n"
	}
	result, err := shell.Run(ctx, options, session)
	restore()
	newline = "\n"
	switch {
	case raw != nil:
		return raw
	case err != nil:
		return err
	case result.Detached:
		say("\ndetached")
		return nil
	case result.Reason != "":
		say("\nthe installer has ended the shell: %s", result.Reason)
	}
	if result.Status != 0 && !s.observe {
		return &statusError{result.Status}
	}
	return nil
}

// recordSizes passes sizes on and records them. What cannot be recorded shows
// with the next output.
func recordSizes(ctx context.Context, from <-chan shell.Size, recording *shell.Recording) <-chan shell.Size {
	to := make(chan shell.Size)
	go func() {
		for {
			select {
			case size := <-from:
				_ = recording.Resize(size)
				select {
				case to <- size:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// screen is a terminal that shows log lines above the line where the cursor
// is.
type screen struct {
	w        io.Writer
	terminal bool

	mu   sync.Mutex
	line []byte // what was written since the last new line
}

// maxLine is how much of a line is written again, in bytes.
const maxLine = 4 << 10

func (s *screen) Write(data []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := bytes.LastIndexByte(data, '\n'); at >= 0 {
		s.line = s.line[:0]
		s.line = append(s.line, data[at+1:]...)
	} else {
		s.line = append(s.line, data...)
	}
	s.line = s.line[max(0, len(s.line)-maxLine):]
	return s.w.Write(data)
}

// log shows a line of the log.
func (s *screen) log(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		return // what a script reads is the programme's output alone
	}
	// What the terminal does not take, the next output will not either.
	_, _ = fmt.Fprintf(s.w, "\r\x1b[K%s\r\n%s", line, s.line)
}
