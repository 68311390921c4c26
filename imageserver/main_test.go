package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

// asServer makes the test binary be the image server.
const asServer = "TEST_AS_IMAGESERVER"

func TestMain(m *testing.M) {
	if os.Getenv(asServer) != "" {
		main()
		return
	}
	os.Setenv("AWS_ACCESS_KEY_ID", bucketKey)
	os.Setenv("AWS_SECRET_ACCESS_KEY", bucketSecret)
	os.Exit(m.Run())
}

// process is an image server in a process of its own.
type process struct {
	cmd     *exec.Cmd
	address string
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p, log := tryStart(t, args...)
	if p == nil {
		t.Fatalf("the server does not serve:\n%s", log)
	}
	return p
}

// tryStart is start of a server that may refuse; then it returns what that said.
func tryStart(t *testing.T, args ...string) (*process, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: exec.Command(self, append([]string{"--listen", "127.0.0.1:0"}, args...)...)}
	p.cmd.Env = append(os.Environ(), asServer+"=1")
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.kill(t)
		}
	})
	lines := bufio.NewScanner(stderr)
	serving := regexp.MustCompile(`msg=serving address=(\S+)`)
	var log strings.Builder
	for lines.Scan() {
		fmt.Fprintln(&log, lines.Text())
		if found := serving.FindStringSubmatch(lines.Text()); found != nil {
			p.address = found[1]
			go io.Copy(io.Discard, stderr)
			return p, log.String()
		}
	}
	_ = p.cmd.Wait() // it has ended; the log says why
	return nil, log.String()
}

// kill is kill -9.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = p.cmd.Wait() // "signal: killed"
}

type site struct{ data, secrets string }

func newSite(t *testing.T) site {
	t.Helper()
	s := site{t.TempDir(), filepath.Join(t.TempDir(), "secrets")}
	if _, err := pki.Init(s.secrets, time.Now, pki.Options{}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s site) args() []string {
	return []string{"--data", s.data, "--tls-cert", filepath.Join(s.secrets, pki.ImageserverFile),
		"--tls-key", filepath.Join(s.secrets, pki.ImageserverKeyFile), "--client-ca", filepath.Join(s.secrets, pki.CAFile)}
}

func (s site) dial(t *testing.T, address string, stall time.Duration) *client.Client {
	t.Helper()
	config, err := auth.ClientTLS(filepath.Join(s.secrets, pki.CAFile), filepath.Join(s.secrets, pki.AdminFile), filepath.Join(s.secrets, pki.AdminKeyFile), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(t.Context(), client.Options{Address: address, TLS: config, Stall: stall})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func offer(data []byte) client.Offer {
	info := object.Info{Digest: object.Of(data), Size: uint64(len(data))}
	encoding, encoded := zstd.Encode(nil, data)
	info.Encoding, info.StoredSize = encoding, uint64(len(encoded))
	return client.Offer{Info: info, Bytes: io.NopCloser(bytes.NewReader(encoded))}
}

// TestKilled kills the server with SIGKILL in the middle of uploads. After it has
// started again everything that was acknowledged is there, whole, everything
// that is there is whole, and nothing half is left behind.
func TestKilled(t *testing.T) {
	s := newSite(t)
	server := start(t, s.args()...)
	c := s.dial(t, server.address, 0)
	var acknowledged []object.Digest
	var uploads atomic.Int64
	ended := make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			var digests []object.Digest
			i := 0
			err := c.Upload(context.Background(), func(context.Context) (client.Offer, error) {
				if i == 50 {
					return client.Offer{}, io.EOF
				}
				i++
				o := offer(bytes.Repeat(fmt.Appendf(nil, "%d/%d ", n, i), 1+i*200))
				digests = append(digests, o.Digest)
				return o, nil
			})
			if err != nil {
				ended <- err
				return
			}
			acknowledged = append(acknowledged, digests...)
			uploads.Add(1)
		}
	}()
	for uploads.Load() < 3 {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	server.kill(t)
	err := <-ended
	var lost *client.Error
	if !errors.As(err, &lost) || lost.Code() != client.CodeLost && lost.Code() != client.CodeUnreachable {
		t.Errorf("the upload ended with %v", err)
	}

	c = s.dial(t, start(t, s.args()...).address, 0)
	whole := 0
	err = c.Fetch(t.Context(), acknowledged, func(p object.Piece) error {
		whole++
		return zstd.Verify(p.Info, p.Data)
	})
	if err != nil || whole != len(acknowledged) {
		t.Errorf("%d of %d acknowledged objects are there: %v", whole, len(acknowledged), err)
	}
	files, err := filepath.Glob(filepath.Join(s.data, "tmp", "*", "*"))
	if err != nil || len(files) > 0 {
		t.Errorf("left over: %v, %v", files, err)
	}
}

// TestStopped stops the server with SIGSTOP: the client says so.
func TestStopped(t *testing.T) {
	s := newSite(t)
	server := start(t, s.args()...)
	c := s.dial(t, server.address, time.Second)
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := server.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stat := ""; !strings.Contains(stat, ") T "); { // proc_pid_stat(5): stopped on a signal
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", server.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		stat = string(data)
	}
	_, err := c.List(t.Context(), "")
	var lost *client.Error
	if !errors.As(err, &lost) || lost.Code() != client.CodeLost {
		t.Errorf("error %v, want %s", err, client.CodeLost)
	}
	if err := server.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Error("after it went on:", err)
	}
	// SIGTERM ends it in good order.
	if err := server.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := server.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestTwoServers: a second server on the same data does not start.
func TestTwoServers(t *testing.T) {
	s := newSite(t)
	start(t, s.args()...)
	err := run(t.Context(), append(s.args(), "--listen", "127.0.0.1:0"), func(string) string { return "" }, io.Discard, io.Discard)
	if !strings.HasPrefix(describe(err), "SRV-013: ") {
		t.Error(err)
	}
}

// TestRefusesToStart: nothing falls open.
func TestRefusesToStart(t *testing.T) {
	s := newSite(t)
	other := newSite(t)
	cert, key := filepath.Join(s.secrets, pki.ImageserverFile), filepath.Join(s.secrets, pki.ImageserverKeyFile)
	ca := filepath.Join(s.secrets, pki.CAFile)
	noCA := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(noCA, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old, err := pki.Open(s.secrets, func() time.Time { return time.Now().AddDate(-4, 0, 0) })
	if err != nil {
		t.Fatal(err)
	}
	expired, err := old.Issue(pki.Request{Name: "old", Server: true, Addresses: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args string
		want string
		exit int
	}{
		"no data":                {"--insecure", "--data DIR is needed", 2},
		"nothing":                {"--data @", "SRV-001: a certificate and its key are needed", 1},
		"no key":                 {"--data @ --tls-cert " + cert, "SRV-001: ", 1},
		"no certificate":         {"--data @ --tls-key " + key, "SRV-001: ", 1},
		"only a client CA":       {"--data @ --client-ca " + ca, "SRV-001: ", 1},
		"insecure and TLS":       {"--data @ --insecure --tls-cert " + cert + " --tls-key " + key, "SRV-001: --insecure", 1},
		"insecure and client CA": {"--data @ --insecure --client-ca " + ca, "SRV-001: --insecure", 1},
		"required without CA":    {"--data @ --require-client-cert --tls-cert " + cert + " --tls-key " + key, "SRV-001: --require-client-cert", 1},
		"missing file":           {"--data @ --tls-cert /nonexistent --tls-key " + key, "TRU-008: ", 8},
		"another's key":          {"--data @ --tls-cert " + cert + " --tls-key " + filepath.Join(other.secrets, pki.ImageserverKeyFile), "TRU-008: ", 8},
		"empty client CA":        {"--data @ --tls-cert " + cert + " --tls-key " + key + " --client-ca " + noCA, "TRU-008: ", 8},
		"expired":                {"--data @ --tls-cert " + expired.Cert + " --tls-key " + expired.Key, "TRU-009: ", 8},
		"unknown flag":           {"--data @ --stor s3://bucket", "unknown flag: --stor", 2},
		"no endpoint":            {"--data @ --insecure --store s3://bucket", "SRV-016: ", 1},
		"no transfers":           {"--data @ --insecure --max-transfers 0", "--max-transfers", 2},
		"stray word":             {"--data @ serve", `"serve" is no flag`, 2},
		"port in use":            {"--data @ --insecure --listen 256.0.0.1:1", "SRV-002: ", 1},
	} {
		t.Run(name, func(t *testing.T) {
			args := strings.Fields(strings.ReplaceAll(test.args, "@", t.TempDir()))
			if !strings.Contains(test.args, "--listen") {
				args = append(args, "--listen", "127.0.0.1:0")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			err := run(ctx, args, func(string) string { return "" }, io.Discard, io.Discard)
			if err == nil {
				t.Fatal("it has served")
			}
			if text := describe(err); !strings.Contains(text, test.want) || exitCode(err) != test.exit {
				t.Errorf("exit %d: %s; want exit %d: %s", exitCode(err), text, test.exit, test.want)
			}
		})
	}
}

// TestPrecedence: arguments win over the environment, that over the file, that
// over the defaults.
func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# a comment\nlisten: file:1\ndata: /file\ntls-cert: file\nrequire-client-cert: true\n")
	getenv := func(name string) string {
		return map[string]string{"IMAGESERVER_CONFIG": file, "IMAGESERVER_DATA": "/env", "IMAGESERVER_TLS_CERT": "env", "IMAGESERVER_INSECURE": "true"}[name]
	}
	got, err := parseOptions([]string{"--tls-cert=arg"}, getenv, io.Discard)
	want := options{Listen: "file:1", Data: "/env", TLSCert: "arg", RequireClientCert: true, Insecure: true, MaxTransfers: 64, CacheSize: 20, ScrubRate: 10, ScrubInterval: 24 * time.Hour}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for text, lines := range map[string][]string{
		"lisen: x\nstor: y\ndata: [a]\ninsecure: perhaps\n": {"line 1: lisen", "line 2: stor", "line 3: data", "line 4: insecure"},
		"data: a\ndata: b\n": {"already defined"},
		"- a\n":              {"line 1"},
		"data: *x\n":         {"unknown anchor"},
		"config: other\n":    {"line 1: config"},
	} {
		write(text)
		_, err := parseOptions([]string{"--config", file}, func(string) string { return "" }, io.Discard)
		if exitCode(err) != 5 {
			t.Errorf("%q: %v", text, err)
			continue
		}
		for _, line := range lines {
			if !strings.Contains(err.Error(), line) && !(line == "already defined" && strings.Contains(err.Error(), "twice")) {
				t.Errorf("%q: %v; want %q", text, err, line)
			}
		}
	}
	_, err = parseOptions(nil, func(name string) string {
		return map[string]string{"IMAGESERVER_INSECURE": "perhaps"}[name]
	}, io.Discard)
	if exitCode(err) != 2 || !strings.Contains(err.Error(), "IMAGESERVER_INSECURE") {
		t.Error(err)
	}
}

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--help"}, func(string) string { return "" }, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--listen", "--data", "--tls-cert", "--tls-key", "--client-ca", "--require-client-cert", "--insecure", "--config", "--max-transfers", "--scrub-rate", "--scrub-interval"} {
		if !strings.Contains(out.String(), flag) {
			t.Errorf("the help lacks %s", flag)
		}
	}
}
