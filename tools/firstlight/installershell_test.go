package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	model "github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/shell"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

// newInstaller serves operators of the lab's site on the returned port.
func newInstaller(t *testing.T, l *lab) (port string) {
	t.Helper()
	l.must(t, "keys", "issue", "installer", "--server", "--address", "127.0.0.1")
	l.must(t, "keys", "issue", "looker", "--role", "viewer")
	secrets := pki.Directory(l.site)
	config, err := auth.ServerTLS(filepath.Join(secrets, "installer.pem"), filepath.Join(secrets, "installer-key.pem"), filepath.Join(secrets, pki.CAFile), false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	installation := model.New(time.Now)
	installation.Log(model.Stage, "a line of the log")
	service := shell.New(shell.Options{
		Command: []string{"/bin/sh"}, Model: installation,
		Hold: func(before, _ string) error {
			if before == "clock" {
				return shell.NotNow("clock has begun already")
			}
			return nil
		},
		Resume:  func(string) ([]string, error) { return []string{"commit"}, nil },
		Approve: func(string, string) error { return shell.NotNow("not waiting for approval") },
		Reboot:  func(string) error { return nil },
		Plan:    func() ([]byte, string) { return []byte("{}"), "sha256:1" },
	})
	mux := &auth.Mux{TLS: config, RPC: auth.NewServer(shell.Policy(), false), Log: slog.New(slog.DiscardHandler)}
	service.Register(mux.RPC)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mux.Serve(ctx, listener) }()
	t.Cleanup(func() {
		service.Close("the test is over")
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	_, port, err = net.SplitHostPort(listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestInstallerShell(t *testing.T) {
	l := newLab(t)
	port := newInstaller(t, l)
	secrets := pki.Directory(l.site)
	viewer := []string{"--ca", filepath.Join(secrets, pki.CAFile), "--cert", filepath.Join(secrets, "looker.pem"), "--key", filepath.Join(secrets, "looker-key.pem")}
	cast := filepath.Join(t.TempDir(), "cast")
	wrong := "SHA256:" + strings.Repeat("0", 64)
	for name, test := range map[string]struct {
		args   []string
		code   int
		out    string
		stderr string
	}{
		"command":               {[]string{"127.0.0.1", "--", "sh", "-c", "echo out; exit 42"}, 42, "out\n", ""},
		"command that succeeds": {[]string{"--record", cast, "127.0.0.1", "--", "echo", "recorded"}, 0, "recorded\n", ""},
		"no such programme":     {[]string{"127.0.0.1", "--", "/no/such"}, 4, "", "SRV-024"},
		"hold":                  {[]string{"127.0.0.1", "hold", "commit"}, 0, "", "will wait before commit"},
		"hold too late":         {[]string{"127.0.0.1", "hold", "clock"}, 6, "", "SRV-023"},
		"resume":                {[]string{"127.0.0.1", "resume"}, 0, "commit\n", ""},
		"approve":               {[]string{"127.0.0.1", "approve", "sha256:1"}, 6, "", "not waiting for approval"},
		"reboot":                {[]string{"127.0.0.1", "reboot"}, 0, "", ""},
		"plan":                  {[]string{"127.0.0.1", "plan"}, 0, "{}\n", ""},
		"logs":                  {[]string{"127.0.0.1", "logs"}, 0, "a line of the log", ""},
		"a viewer's plan":       {append(viewer, "127.0.0.1", "plan"), 0, "{}\n", ""},
		"a viewer's hold":       {append(viewer, "127.0.0.1", "hold", "commit"), 8, "", "TRU-022"},
		"a viewer's command":    {append(viewer, "127.0.0.1", "--", "true"), 8, "", "TRU-022"},
		"no certificate":        {[]string{"--ca", filepath.Join(secrets, pki.CAFile), "127.0.0.1", "plan"}, 8, "", "TRU-022"},
		"another name":          {[]string{"localhost", "plan"}, 8, "", "TRU-020"},
		"another fingerprint":   {[]string{"--fingerprint", wrong, "127.0.0.1", "plan"}, 8, "", "TRU-021"},
		"no fingerprint":        {[]string{"--fingerprint", "x", "127.0.0.1", "plan"}, 2, "", "TRU-024"},
		"unreachable":           {[]string{"--port", "1", "--wait", "300ms", "127.0.0.1", "plan"}, 7, "", "SRV-020"},
		"unknown verb":          {[]string{"127.0.0.1", "helloo"}, 2, "", "no verb"},
		"hold without a phase":  {[]string{"127.0.0.1", "hold"}, 2, "", "takes 1 argument"},
		"no host":               {nil, 2, "", "usage"},
		"no host, a command":    {[]string{"--", "true"}, 2, "", "usage"},
		"insecure":              {[]string{"--insecure", "127.0.0.1"}, 2, "", "TLS only"},
		"nobody to observe":     {[]string{"--observe", "127.0.0.1"}, 4, "", "SRV-024"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := l.run(t, append([]string{"installer-shell", "--port", port}, test.args...)...)
			if code != test.code || !strings.Contains(stdout, test.out) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("exit %d, wanted %d; output %q; errors %q", code, test.code, stdout, stderr)
			}
		})
	}
	data, err := os.ReadFile(cast)
	if err != nil {
		t.Fatal(err)
	}
	header, event, _ := strings.Cut(string(data), "\n")
	var fields []any
	if err := json.Unmarshal([]byte(event), &fields); err != nil || len(fields) != 3 || fields[2] != "recorded\n" || !strings.Contains(header, `"version":2`) {
		t.Errorf("the recording is %s: %v", data, err)
	}
}
