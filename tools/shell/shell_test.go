package shell_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/installer/progress"
	server "github.com/firstlight/firstlight/installer/shell"
	"github.com/firstlight/firstlight/proto/auth"
	pb "github.com/firstlight/firstlight/proto/installer/v1"
	"github.com/firstlight/firstlight/tools/pki"
	"github.com/firstlight/firstlight/tools/shell"
)

// lab is a site's keys and an installer's service on loopback.
type lab struct {
	dir     string // of the keys
	address string
	service *server.Server
	model   *progress.Model

	mu    sync.Mutex
	calls []string // what the installer was asked to do
}

func (l *lab) called(format string, args ...any) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, fmt.Sprintf(format, args...))
	return nil
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{dir: filepath.Join(t.TempDir(), "secrets"), model: progress.New(time.Now)}
	if _, err := pki.Init(l.dir, time.Now, pki.Options{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	l.issue(t, pki.Request{Name: "installer", Server: true, Addresses: []string{"127.0.0.1"}}, time.Now)
	for _, role := range []auth.Role{auth.Viewer, auth.Operator} {
		l.issue(t, pki.Request{Name: role.String(), Role: role.URI()}, time.Now)
	}
	l.issue(t, pki.Request{Name: "other", Role: auth.Operator.URI()}, time.Now)
	l.service = server.New(server.Options{
		Command: []string{"/bin/sh"}, Model: l.model, Patience: 2 * time.Second,
		Hold: func(before, by string) error {
			if before == "nonsense" {
				return server.Unknown("there is no phase %q", before)
			}
			return l.called("hold %s by %s", before, by)
		},
		Resume:  func(by string) ([]string, error) { return []string{"commit"}, l.called("resume by %s", by) },
		Approve: func(hash, by string) error { return server.NotNow("not waiting for approval") },
		Reboot:  func(by string) error { return l.called("reboot by %s", by) },
		Plan:    func() ([]byte, string) { return []byte(`{"plan":1}`), "sha256:1" },
	})
	config, err := auth.ServerTLS(l.file("installer.pem"), l.file("installer-key.pem"), l.file(pki.CAFile), false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mux := &auth.Mux{TLS: config, RPC: auth.NewServer(server.Policy(), false), Log: slog.New(slog.DiscardHandler)}
	l.service.Register(mux.RPC)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mux.Serve(ctx, listener) }()
	t.Cleanup(func() {
		l.service.Close("the test is over")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l
}

func (l *lab) file(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) issue(t *testing.T, request pki.Request, clock pki.Clock) {
	t.Helper()
	authority, err := pki.Open(l.dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Issue(request); err != nil {
		t.Fatal(err)
	}
}

// options are those of the operator with that certificate; "" has none.
func (l *lab) options(t *testing.T, who string) shell.Options {
	t.Helper()
	cert, key := "", ""
	if who != "" {
		cert, key = l.file(who+".pem"), l.file(who+"-key.pem")
	}
	config, err := auth.ClientTLS(l.file(pki.CAFile), cert, key, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return at(shell.Options{TLS: config, Wait: 5 * time.Second}, l.address)
}

func at(options shell.Options, address string) shell.Options {
	host, port, _ := net.SplitHostPort(address)
	options.Host = host
	fmt.Sscan(port, &options.Port)
	return options
}

func wantCode(t *testing.T, err error, want string) {
	t.Helper()
	if got := progress.Code(err); got != want {
		t.Errorf("got %s (%v), want %s", got, err, want)
	}
}

// everything that is written, to be waited for.
type output struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.data.String()
}

func (o *output) wait(t *testing.T, text string) {
	t.Helper()
	until(t, text, func() bool { return strings.Contains(o.String(), text) }, o.String)
}

func until(t *testing.T, what string, reached func() bool, seen func() string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !reached(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s; there is %q", what, seen())
		}
	}
}

// shellOf runs a session in the background.
type shellOf struct {
	in   *io.PipeWriter
	out  *output
	err  *output
	done chan struct{}

	result shell.Result
	failed error
}

func open(t *testing.T, ctx context.Context, options shell.Options, session shell.Session) *shellOf {
	t.Helper()
	r, w := io.Pipe()
	s := &shellOf{in: w, out: &output{}, err: &output{}, done: make(chan struct{})}
	session.In, session.Out, session.Err = r, s.out, s.err
	go func() {
		defer close(s.done)
		s.result, s.failed = shell.Run(ctx, options, session)
	}()
	t.Cleanup(func() { _ = w.Close() })
	return s
}

func (s *shellOf) typed(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		t.Fatal(err)
	}
}

func (s *shellOf) wait(t *testing.T) (shell.Result, error) {
	t.Helper()
	select {
	case <-s.done:
		return s.result, s.failed
	case <-time.After(15 * time.Second):
		t.Fatalf("the session does not end; output %q", s.out)
		return shell.Result{}, nil
	}
}

func terminal() shell.Session {
	return shell.Session{Term: "xterm", Size: shell.Size{Rows: 33, Cols: 101}}
}

func TestTerminal(t *testing.T) {
	l := newLab(t)
	sizes := make(chan shell.Size)
	session := terminal()
	session.Resized = sizes
	s := open(t, t.Context(), l.options(t, "operator"), session)
	s.typed(t, "stty size; echo $TERM; tty\n")
	s.out.wait(t, "33 101\r\n")
	s.out.wait(t, "xterm\r\n")
	s.out.wait(t, "/dev/pts/")
	sizes <- shell.Size{Rows: 50, Cols: 132}
	s.typed(t, "stty size\n")
	s.out.wait(t, "50 132\r\n")
	s.typed(t, "sleep 100\n")
	time.Sleep(100 * time.Millisecond)
	s.typed(t, "\x03echo $?-interrupted\n")
	s.out.wait(t, "130-interrupted\r\n")
	if sessions := l.model.Snapshot().Sessions; len(sessions) != 1 || sessions[0].Who != "operator" || sessions[0].State != progress.SessionAttached {
		t.Errorf("the page shows %+v", sessions)
	}
	s.typed(t, "exit 7\n")
	if result, err := s.wait(t); err != nil || result.Status != 7 || result.Reason != "" {
		t.Errorf("got %+v, %v", result, err)
	}
	until(t, "no session", func() bool { return len(l.model.Snapshot().Sessions) == 0 }, func() string { return "" })
}

func TestCommand(t *testing.T) {
	l := newLab(t)
	options := l.options(t, "operator")
	big := strings.Repeat("0123456789abcdef", 100_000)
	for name, test := range map[string]struct {
		argv     []string
		in       string
		status   int
		out, err string
	}{
		"status":                                 {argv: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, status: 3, out: "out\n", err: "err\n"},
		"arguments":                              {argv: []string{"printf", "%s|", "a b", "$HOME", ""}, out: "a b|$HOME||"},
		"killed":                                 {argv: []string{"sh", "-c", "kill -9 $$"}, status: 137},
		"a lot both ways":                        {argv: []string{"cat"}, in: big, out: big},
		"shell of a pipe":                        {in: "echo $((6*7))\n", out: "42\n"},
		"input not wanted":                       {argv: []string{"true"}, in: big},
		"nothing of the installer's environment": {argv: []string{"sh", "-c", "echo $SECRET_OF_THE_INSTALLER"}, out: "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			result, err := shell.Run(t.Context(), options, shell.Session{Argv: test.argv, In: strings.NewReader(test.in), Out: &out, Err: &errs})
			if err != nil || result.Status != test.status {
				t.Errorf("got %+v, %v", result, err)
			}
			if out.String() != test.out || errs.String() != test.err {
				t.Errorf("output of %d bytes, wanted %d; errors %q", out.Len(), len(test.out), &errs)
			}
		})
	}
	_, err := shell.Run(t.Context(), options, shell.Session{Argv: []string{"/no/such/programme"}, In: strings.NewReader("")})
	wantCode(t, err, shell.CodeUnknown)
}

// cutter is a relay whose connections can be cut.
type cutter struct {
	address string
	mu      sync.Mutex
	open    []net.Conn
	closed  bool // new connections are refused
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	c := &cutter{address: listener.Addr().String()}
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			c.mu.Lock()
			if err != nil || c.closed {
				_ = near.Close()
				c.mu.Unlock()
				continue
			}
			c.open = append(c.open, near, far)
			c.mu.Unlock()
			go func() { _, _ = io.Copy(near, far) }()
			go func() { _, _ = io.Copy(far, near) }()
		}
	}()
	return c
}

func (c *cutter) cut(forGood bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = forGood
	for _, connection := range c.open {
		_ = connection.Close()
	}
	c.open = nil
}

func TestComesBackToTheSameSession(t *testing.T) {
	l := newLab(t)
	c := newCutter(t, l.address)
	session := terminal()
	lost, back := make(chan struct{}, 9), make(chan struct{}, 9)
	session.Lost, session.Back = func(error) { lost <- struct{}{} }, func() { back <- struct{}{} }
	s := open(t, t.Context(), at(l.options(t, "operator"), c.address), session)
	s.typed(t, "stty -echo; mark=kept\n")
	s.typed(t, "echo ready-$mark\n")
	s.out.wait(t, "ready-kept")
	for n := range 3 {
		c.cut(false)
		<-lost
		s.typed(t, fmt.Sprintf("echo round-%d-$mark\n", n))
		<-back
		s.out.wait(t, fmt.Sprintf("round-%d-kept", n))
	}
	s.typed(t, "exit 5\n")
	if result, err := s.wait(t); err != nil || result.Status != 5 {
		t.Errorf("got %+v, %v", result, err)
	}
	for n := range 3 {
		if count := strings.Count(s.out.String(), fmt.Sprintf("round-%d-kept", n)); count != 1 {
			t.Errorf("round %d stands there %d times: %q", n, count, s.out)
		}
	}
}

// TestNothingIsLostOrDoubled cuts the connection again and again under load.
func TestNothingIsLostOrDoubled(t *testing.T) {
	l := newLab(t)
	c := newCutter(t, l.address)
	var want bytes.Buffer
	for n := range 300_000 {
		fmt.Fprintln(&want, n)
	}
	stop := make(chan struct{})
	var cutting sync.WaitGroup
	cutting.Go(func() {
		for range 4 {
			select {
			case <-time.After(150 * time.Millisecond):
				c.cut(false)
			case <-stop:
				return
			}
		}
	})
	opened := make(chan struct{}, 1)
	var out bytes.Buffer
	result, err := shell.Run(t.Context(), at(l.options(t, "operator"), c.address), shell.Session{Argv: []string{"cat"},
		In: bytes.NewReader(want.Bytes()), Out: &out, Err: io.Discard, Opened: func(uint32, string, bool) { opened <- struct{}{} }})
	close(stop)
	cutting.Wait()
	if err != nil || result.Status != 0 || !bytes.Equal(out.Bytes(), want.Bytes()) {
		t.Errorf("got %+v, %v, %d bytes of %d", result, err, out.Len(), want.Len())
	}
}

func TestSessionEndsWhenNobodyComesBack(t *testing.T) {
	l := newLab(t)
	c := newCutter(t, l.address)
	ctx, cancel := context.WithCancel(t.Context())
	s := open(t, ctx, at(l.options(t, "operator"), c.address), terminal())
	s.typed(t, "echo begun-$((1+1))\n")
	s.out.wait(t, "begun-2")
	c.cut(true)
	until(t, "the session waits", func() bool {
		sessions := l.model.Snapshot().Sessions
		return len(sessions) == 1 && sessions[0].State == progress.SessionLost
	}, func() string { return fmt.Sprint(l.model.Snapshot().Sessions) })
	if busy, _ := l.service.Busy(); len(busy) != 1 {
		t.Errorf("a session that waits for its operator holds nothing up: %+v", busy)
	}
	until(t, "the session is gone", func() bool { return len(l.model.Snapshot().Sessions) == 0 }, func() string { return "" })
	cancel()
	if _, err := s.wait(t); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestDetachAndComeBack(t *testing.T) {
	l := newLab(t)
	options := l.options(t, "operator")
	s := open(t, t.Context(), options, terminal())
	s.typed(t, "mark=kept; echo begun-$mark\n")
	s.out.wait(t, "begun-kept")
	s.typed(t, "\x1c")
	if result, err := s.wait(t); err != nil || !result.Detached {
		t.Fatalf("got %+v, %v", result, err)
	}
	until(t, "nobody is busy", func() bool { busy, _ := l.service.Busy(); return len(busy) == 0 }, func() string { return "" })
	// Another operator gets a shell of their own.
	o := open(t, t.Context(), l.options(t, "other"), terminal())
	o.typed(t, "echo mine-$mark-\n")
	o.out.wait(t, "mine--")
	again := open(t, t.Context(), options, terminal())
	again.typed(t, "echo again-$mark\n")
	again.out.wait(t, "again-kept")
	if !strings.Contains(again.out.String(), "begun-kept") {
		t.Error("what was written before is not shown again")
	}
	again.typed(t, "exit\n")
	o.typed(t, "exit\n")
	for _, one := range []*shellOf{again, o} {
		if result, err := one.wait(t); err != nil || result.Status != 0 {
			t.Errorf("got %+v, %v", result, err)
		}
	}
}

func TestObservers(t *testing.T) {
	l := newLab(t)
	_, err := shell.Run(t.Context(), l.options(t, "viewer"), shell.Session{Observe: true, Out: io.Discard})
	wantCode(t, err, shell.CodeUnknown)
	s := open(t, t.Context(), l.options(t, "operator"), terminal())
	s.typed(t, "echo first-$((1+1))\n")
	s.out.wait(t, "first-2")
	observing := terminal()
	observing.Observe = true
	var watchers []*shellOf
	for range 3 {
		watchers = append(watchers, open(t, t.Context(), l.options(t, "viewer"), observing))
	}
	for _, w := range watchers {
		w.out.wait(t, "first-2")
		w.typed(t, "echo intruder\n")
	}
	s.typed(t, "echo second-$((1+2))\n")
	for _, w := range watchers {
		w.out.wait(t, "second-3")
	}
	if sessions := l.model.Snapshot().Sessions; len(sessions) != 1 || sessions[0].Observers != 3 {
		t.Errorf("the page shows %+v", sessions)
	}
	watchers[0].typed(t, "\x1c")
	if result, err := watchers[0].wait(t); err != nil || !result.Detached {
		t.Errorf("got %+v, %v", result, err)
	}
	s.typed(t, "exit 4\n")
	for _, w := range append(watchers[1:], s) {
		if result, err := w.wait(t); err != nil || result.Status != 4 {
			t.Errorf("got %+v, %v", result, err)
		}
	}
	if strings.Contains(s.out.String(), "intruder") {
		t.Errorf("an observer typed: %q", s.out)
	}
}

func TestTooManySessions(t *testing.T) {
	l := newLab(t)
	options := l.options(t, "operator")
	var all []*shellOf
	for range 16 {
		s := open(t, t.Context(), options, terminal())
		s.typed(t, "echo up-$((1+1))\n")
		all = append(all, s)
	}
	for _, s := range all {
		s.out.wait(t, "up-2")
	}
	_, err := shell.Run(t.Context(), options, shell.Session{Argv: []string{"true"}, Out: io.Discard, Err: io.Discard})
	wantCode(t, err, shell.CodeTooMany)
	l.service.EndAll("enough")
	for _, s := range all {
		if result, err := s.wait(t); err != nil || result.Reason != "enough" {
			t.Errorf("got %+v, %v", result, err)
		}
	}
}

// TestEndReachesBackgroundProcesses: whatever a shell started and left behind
// would keep the new system mounted.
func TestEndReachesBackgroundProcesses(t *testing.T) {
	l := newLab(t)
	s := open(t, t.Context(), l.options(t, "operator"), terminal())
	s.typed(t, "set -m; (trap '' HUP; sleep 1234) & echo pid-$!-\n")
	until(t, "a process", func() bool { return strings.Count(s.out.String(), "pid-") > 1 }, s.out.String)
	time.Sleep(100 * time.Millisecond)
	text := s.out.String()
	text = text[strings.LastIndex(text, "pid-")+4:]
	pid, _, _ := strings.Cut(text, "-")
	l.service.EndAll("enough")
	if data, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(data), ") Z ") {
		t.Errorf("still there: %s", data)
	}
	if _, err := s.wait(t); err != nil {
		t.Error(err)
	}
}

func TestVerbs(t *testing.T) {
	l := newLab(t)
	l.model.Log(progress.Stage, "one line")
	ctx := t.Context()
	client, err := shell.Dial(ctx, l.options(t, "admin"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Hold(ctx, "commit"); err != nil {
		t.Error(err)
	}
	wantCode(t, client.Hold(ctx, "nonsense"), shell.CodeUnknown)
	wantCode(t, client.Approve(ctx, "sha256:1"), shell.CodeNotNow)
	if released, err := client.Resume(ctx); err != nil || !slices.Equal(released, []string{"commit"}) {
		t.Errorf("released %q, %v", released, err)
	}
	if document, hash, err := client.Plan(ctx); err != nil || string(document) != `{"plan":1}` || hash != "sha256:1" {
		t.Errorf("got %s, %s, %v", document, hash, err)
	}
	if err := client.Reboot(ctx); err != nil {
		t.Error(err)
	}
	if want := []string{"hold commit by admin", "resume by admin", "reboot by admin"}; !slices.Equal(l.calls, want) {
		t.Errorf("calls %q, want %q", l.calls, want)
	}
	var lines []string
	if err := client.Logs(ctx, false, func(line string) error { lines = append(lines, line); return nil }); err != nil || len(lines) != 1 || !strings.Contains(lines[0], "stage: one line") {
		t.Errorf("lines %q, %v", lines, err)
	}
	enough := errors.New("enough")
	err = client.Logs(ctx, true, func(line string) error {
		if strings.Contains(line, "two") {
			return enough
		}
		l.model.Log(progress.Stage, "two")
		return nil
	})
	if !errors.Is(err, enough) {
		t.Errorf("got %v", err)
	}
}

func TestLogIsReplayed(t *testing.T) {
	l := newLab(t)
	l.model.Log(progress.Stage, "before")
	var log output
	session := terminal()
	session.ReplayLog, session.FollowLog = true, true
	session.Log = func(line string) { fmt.Fprintln(&log, line) }
	s := open(t, t.Context(), l.options(t, "operator"), session)
	log.wait(t, "stage: before")
	l.model.Log(progress.Stage, "afterwards")
	log.wait(t, "stage: afterwards")
	s.typed(t, "exit\n")
	if _, err := s.wait(t); err != nil {
		t.Error(err)
	}
}

// noBytes is a codec for calls that never get far enough to need one.
type noBytes struct{}

func (noBytes) Marshal(any) ([]byte, error)     { return nil, nil }
func (noBytes) Unmarshal(_ []byte, _ any) error { return nil }
func (noBytes) Name() string                    { return "none" }

// TestEveryRPCAndEveryBadCredential walks the service's descriptor.
func TestEveryRPCAndEveryBadCredential(t *testing.T) {
	l := newLab(t)
	other := filepath.Join(t.TempDir(), "secrets")
	if _, err := pki.Init(other, time.Now, pki.Options{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	past := func() time.Time { return time.Now().AddDate(0, 0, -900) }
	// A CA of the past has signed what has expired; it is valid still.
	old := filepath.Join(t.TempDir(), "secrets")
	if _, err := pki.Init(old, past, pki.Options{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	pool, err := auth.LoadCA(l.file(pki.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	with := func(dir, name string, change func(*tls.Config)) credentials.TransportCredentials {
		config := &tls.Config{RootCAs: pool, ServerName: "127.0.0.1"}
		if name != "" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem"))
			if err != nil {
				t.Fatal(err)
			}
			// Shown whether or not the server asks for its CA.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		if change != nil {
			change(config)
		}
		return credentials.NewTLS(config)
	}
	l.issue(t, pki.Request{Name: "norole", Role: nil, Server: true, Addresses: []string{"host"}}, time.Now)
	credentials := map[string]struct {
		credentials credentials.TransportCredentials
		role        auth.Role // what it may call, and no more
	}{
		"no certificate":               {with("", "", nil), auth.Anyone},
		"another CA":                   {with(other, "admin", nil), auth.Anyone},
		"another CA, expired":          {with(old, "admin", nil), auth.Anyone},
		"a server's, without a role":   {with(l.dir, "norole", nil), auth.Anyone},
		"viewer":                       {with(l.dir, "viewer", nil), auth.Viewer},
		"operator":                     {with(l.dir, "operator", nil), auth.Operator},
		"plaintext":                    {insecure.NewCredentials(), auth.Anyone},
		"TLS 1.2, and an admin's":      {with(l.dir, "admin", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), auth.Anyone},
		"TLS 1.2, without certificate": {with("", "", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), auth.Anyone},
	}
	methods := pb.File_proto_installer_v1_installer_proto.Services().Get(0).Methods()
	for name, test := range credentials {
		t.Run(name, func(t *testing.T) {
			for n := range methods.Len() {
				method := fmt.Sprintf("/%s/%s", methods.Get(n).Parent().FullName(), methods.Get(n).Name())
				if test.role >= server.Policy()[method] {
					continue // not bad
				}
				err := callRaw(t, l.address, test.credentials, method)
				if code := status.Code(err); code != codes.Unauthenticated && code != codes.PermissionDenied && code != codes.Unavailable {
					t.Errorf("%s: %v", method, err)
				}
			}
		})
	}
	if len(l.calls) > 0 {
		t.Errorf("something was done: %q", l.calls)
	}
	// What the policy leaves to Shell itself.
	_, err = shell.Run(t.Context(), l.options(t, "viewer"), shell.Session{Argv: []string{"touch", filepath.Join(l.dir, "touched")}, Out: io.Discard})
	wantCode(t, err, shell.CodeNotAllowed)
	if _, err := os.Stat(l.file("touched")); err == nil {
		t.Error("a viewer ran a programme")
	}
}

// callRaw makes a call, and is its error; a call that is not refused times out.
func callRaw(t *testing.T, address string, credentials credentials.TransportCredentials, method string) error {
	t.Helper()
	connection, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodec(noBytes{}))
	if err != nil {
		return err
	}
	if err := stream.SendMsg(nil); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(nil)
}

func TestExpiredOperator(t *testing.T) {
	l := newLab(t)
	// The site's CA was made in the past, so that it may have signed then.
	past := func() time.Time { return time.Now().AddDate(0, 0, -900) }
	dir := filepath.Join(t.TempDir(), "secrets")
	if _, err := pki.Init(dir, past, pki.Options{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	authority, err := pki.Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := authority.Issue(pki.Request{Name: "installer", Server: true, Addresses: []string{"127.0.0.1"}}); err != nil {
		t.Fatal(err)
	}
	config, err := auth.ServerTLS(filepath.Join(dir, "installer.pem"), filepath.Join(dir, "installer-key.pem"), filepath.Join(dir, pki.CAFile), false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mux := &auth.Mux{TLS: config, RPC: auth.NewServer(server.Policy(), false), Log: slog.New(slog.DiscardHandler)}
	l.service.Register(mux.RPC)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mux.Serve(ctx, listener) }()
	defer func() { cancel(); <-ended }()
	pool, err := auth.LoadCA(filepath.Join(dir, pki.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "admin.pem"), filepath.Join(dir, "admin-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	expired := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: "127.0.0.1", Certificates: []tls.Certificate{pair}}
	options := at(shell.Options{TLS: expired, Wait: 5 * time.Second}, listener.Addr().String())
	methods := pb.File_proto_installer_v1_installer_proto.Services().Get(0).Methods()
	for n := range methods.Len() {
		method := fmt.Sprintf("/%s/%s", methods.Get(n).Parent().FullName(), methods.Get(n).Name())
		if err := callRaw(t, listener.Addr().String(), credentials.NewTLS(expired), method); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", method, err)
		}
	}
	_, err = shell.Run(t.Context(), options, shell.Session{Argv: []string{"true"}, Out: io.Discard})
	wantCode(t, err, shell.CodeNotAllowed)
}

func TestWhichInstallerIsTrusted(t *testing.T) {
	l := newLab(t)
	data, err := os.ReadFile(l.file("installer.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	fingerprint := shell.Fingerprint(block.Bytes)
	call := func(options shell.Options) error {
		client, err := shell.Dial(t.Context(), options)
		if err != nil {
			return err
		}
		defer client.Close()
		_, _, err = client.Plan(t.Context())
		return err
	}
	operator := l.options(t, "operator")
	if err := call(operator); err != nil {
		t.Error(err)
	}
	stranger := operator
	stranger.TLS = operator.TLS.Clone()
	stranger.TLS.RootCAs = x509.NewCertPool()
	err = call(stranger)
	wantCode(t, err, shell.CodeUnknownServer)
	if line := "firstlight installer-shell --fingerprint " + fingerprint + " 127.0.0.1"; err == nil || !strings.Contains(err.Error(), line) {
		t.Errorf("the line to type, %q, is not in: %v", line, err)
	}
	stranger.Fingerprint = fingerprint
	if err := call(stranger); err != nil {
		t.Errorf("with the pin: %v", err)
	}
	stranger.Fingerprint = "sha256:" + strings.ToUpper(strings.TrimPrefix(fingerprint, "SHA256:"))
	if err := call(stranger); err != nil {
		t.Errorf("with the pin in other letters: %v", err)
	}
	for _, options := range []shell.Options{operator, stranger} {
		options.Fingerprint = "SHA256:" + strings.Repeat("0", 64)
		wantCode(t, call(options), shell.CodeFingerprint)
		options.Fingerprint = "SHA256:12"
		wantCode(t, call(options), shell.CodeBadFingerprint)
	}
	name := operator
	name.Host = "localhost" // which the certificate does not name
	wantCode(t, call(name), shell.CodeUnknownServer)
	wantCode(t, call(l.options(t, "")), shell.CodeNotAllowed)
}

func TestWaitsUntilTheInstallerIsUp(t *testing.T) {
	l := newLab(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	options := at(l.options(t, "operator"), address)
	options.Wait = 300 * time.Millisecond
	_, err = shell.Dial(t.Context(), options)
	wantCode(t, err, shell.CodeUnreachable)
	options.Wait = 0
	waiting := make(chan string, 9)
	options.Waiting = func(why string) { waiting <- why }
	done := make(chan error, 1)
	go func() {
		result, err := shell.Run(t.Context(), options, shell.Session{Argv: []string{"true"}, Out: io.Discard, Err: io.Discard})
		done <- errors.Join(err, map[bool]error{true: errors.New("status")}[result.Status != 0])
	}()
	<-waiting
	relay, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	go func() {
		near, err := relay.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", l.address)
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(near, far) }()
		_, _ = io.Copy(far, near)
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRecording(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1_800_000_000, 0)
	r, err := shell.Record(&out, "xterm", shell.Size{Rows: 24, Cols: 80}, func() time.Time { now = now.Add(250 * time.Millisecond); return now })
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{"a\x1b[1m<\xc3", "\xa9>\r\n", "\xe2\x82", "\xac", "\xff!"} {
		if _, err := io.WriteString(r, piece); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Resize(shell.Size{Rows: 50, Cols: 132}); err != nil {
		t.Fatal(err)
	}
	var header struct {
		Version, Width, Height int
		Timestamp              int64
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if err := json.Unmarshal([]byte(lines[0]), &header); err != nil || header.Version != 2 || header.Width != 80 || header.Height != 24 || header.Timestamp != 1_800_000_000 {
		t.Errorf("header %s: %v", lines[0], err)
	}
	var text string
	last := 0.0
	for _, line := range lines[1:] {
		var event []any
		if err := json.Unmarshal([]byte(line), &event); err != nil || len(event) != 3 {
			t.Fatalf("%s: %v", line, err)
		}
		if at := event[0].(float64); at < last {
			t.Errorf("time goes back: %s", line)
		} else {
			last = at
		}
		text += event[1].(string) + ":" + event[2].(string) + "|"
	}
	if want := "o:a\x1b[1m<|o:é>\r\n|o:€|o:\ufffd!|r:132x50|"; text != want {
		t.Errorf("events %q, want %q", text, want)
	}
}
