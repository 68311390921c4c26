package forward

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func options() Options {
	return Options{Start: func() time.Time { return noon }, Host: func() string { return "web1" }, Boot: strings.Repeat("ab", 16)}
}

// run sends lines with a forwarder until the test ends.
func run(t *testing.T, server string, o Options) (*Forwarder, func()) {
	t.Helper()
	f, err := New(server, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { f.Run(ctx, func(error) {}) })
	end := sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(end)
	return f, end
}

// rfc5424 is a message as log servers take it apart.
var rfc5424 = regexp.MustCompile(`^<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}Z) (\S{1,255}) (\S{1,48}) - (\S{1,32}) - (.*)$`)

func wantMessage(t *testing.T, message, pri, at, phase, text string) {
	t.Helper()
	m := rfc5424.FindStringSubmatch(message)
	if m == nil || m[1] != pri || m[2] != at || m[3] != "web1" || m[4] != "firstlight-installer" || m[5] != phase || m[6] != text {
		t.Errorf("message %q", message)
	}
}

func TestSyslogByUDP(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	f, _ := run(t, "syslog://"+server.LocalAddr().String(), options())
	f.Line(progress.Line{Seconds: 1.5, Phase: progress.Stage, Text: "gathering 3 objects — ünïcode"})
	f.Line(progress.Line{Seconds: 2, Phase: progress.Plan, Text: "FAILED STO-002: too small; disks untouched"})
	f.Line(progress.Line{Seconds: 3, Phase: progress.Plan, Text: "warning: odd"})
	for _, want := range [][4]string{
		{"134", "2026-11-20T12:00:01.500000Z", "stage", "gathering 3 objects — ünïcode"},
		{"131", "2026-11-20T12:00:02.000000Z", "plan", "FAILED STO-002: too small; disks untouched"},
		{"132", "2026-11-20T12:00:03.000000Z", "plan", "warning: odd"},
	} {
		buffer := make([]byte, 4096)
		if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := server.ReadFrom(buffer)
		if err != nil {
			t.Fatal(err)
		}
		wantMessage(t, string(buffer[:n]), want[0], want[1], want[2], want[3])
	}
}

// readCounted takes messages out of a stream.
func readCounted(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var n int
	if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r, message); err != nil {
		t.Fatal(err)
	}
	return string(message)
}

func TestSyslogByTCPComesBack(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	f, end := run(t, "syslog+tcp://"+listener.Addr().String(), options())
	f.Line(progress.Line{Phase: progress.Clock, Text: "first"})
	connection, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	wantMessage(t, readCounted(t, bufio.NewReader(connection)), "134", "2026-11-20T12:00:00.000000Z", "clock", "first")
	if err := connection.Close(); err != nil { // the server restarts
		t.Fatal(err)
	}
	arrived := make(chan string, 100)
	go func() {
		again, err := listener.Accept()
		if err != nil {
			return
		}
		defer again.Close()
		r := bufio.NewReader(again)
		for {
			var n int
			if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
				close(arrived)
				return
			}
			message := make([]byte, n)
			if _, err := io.ReadFull(r, message); err != nil {
				return
			}
			arrived <- string(message)
		}
	}()
	for n := range 20 { // the first of these may go into the closed connection
		f.Line(progress.Line{Phase: progress.Clock, Text: fmt.Sprint("again ", n)})
		time.Sleep(20 * time.Millisecond)
	}
	f.Line(progress.Line{Phase: progress.Clock, Text: "last"})
	time.Sleep(1500 * time.Millisecond)
	end() // what is left is sent
	seen := ""
	for message := range arrived {
		seen += message + "\n"
	}
	if !strings.Contains(seen, " last\n") || strings.Count(seen, "again ") < 15 {
		t.Errorf("after the restart came\n%s", seen)
	}
}

func TestSyslogByTLSChecksTheServer(t *testing.T) {
	web := httptest.NewTLSServer(http.NotFoundHandler()) // for its certificate
	defer web.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	pool := x509.NewCertPool()
	pool.AddCert(web.Certificate())
	o := options()
	o.TLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	f, _ := run(t, "syslog+tls://"+listener.Addr().String(), o)
	f.Line(progress.Line{Phase: progress.Clock, Text: "sealed"})
	connection, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	wantMessage(t, readCounted(t, bufio.NewReader(connection)), "134", "2026-11-20T12:00:00.000000Z", "clock", "sealed")

	// A server of another CA gets nothing.
	o.TLS = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS13}
	stranger, err := New("syslog+tls://"+listener.Addr().String(), o)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if other, err := listener.Accept(); err == nil {
			_, _ = other.Read(make([]byte, 1)) // the handshake
			_ = other.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := stranger.send(ctx, []progress.Line{{Text: "secret"}}); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("got %v", err)
	}
}

// TestJournalReadsTheExport has systemd itself read what is sent.
func TestJournalReadsTheExport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "installer.journal")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/upload" || r.Header.Get("Content-Type") != "application/vnd.fdo.journal" {
			t.Errorf("%s %s %s", r.Method, r.URL, r.Header)
		}
		remote := exec.Command("/lib/systemd/systemd-journal-remote", "--output="+file, "-")
		remote.Stdin = r.Body
		if out, err := remote.CombinedOutput(); err != nil {
			t.Errorf("systemd-journal-remote: %v\n%s", err, out)
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	f, end := run(t, server.URL, options())
	f.Line(progress.Line{Seconds: 1.5, Phase: progress.Stage, Text: "one=two"})
	f.Line(progress.Line{Seconds: 2, Phase: progress.Plan, Text: "FAILED STO-002: x; disks untouched"})
	time.Sleep(300 * time.Millisecond)
	end()
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("journalctl", "--file="+file, "--output=json", "--no-pager").Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range bytes.Lines(out) {
		var e map[string]any
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%v %v %v %v %v %v", e["__REALTIME_TIMESTAMP"], e["_HOSTNAME"], e["PRIORITY"], e["SYSLOG_IDENTIFIER"], e["FIRSTLIGHT_PHASE"], e["MESSAGE"]))
	}
	want := fmt.Sprintf("[%d web1 6 firstlight-installer stage one=two %d web1 3 firstlight-installer plan FAILED STO-002: x; disks untouched]",
		noon.Add(1500*time.Millisecond).UnixMicro(), noon.Add(2*time.Second).UnixMicro())
	if fmt.Sprint(got) != want {
		t.Errorf("the journal has %q, want %s", got, want)
	}
}

// A log server that is away keeps nobody waiting, and gets the newest.
func TestServerThatIsAway(t *testing.T) {
	f, err := New("syslog+tcp://127.0.0.1:1", options())
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for n := range 3 * maxWaiting {
		f.Line(progress.Line{Text: fmt.Sprint(n)})
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	if len(f.waiting) > maxWaiting || f.waiting[len(f.waiting)-1].Text != fmt.Sprint(3*maxWaiting-1) || f.lost == 0 {
		t.Errorf("%d wait, %d are lost", len(f.waiting), f.lost)
	}
	if lines := f.some(); !strings.Contains(lines[0].Text, "lines were not sent") || len(lines) != maxBatch+1 {
		t.Errorf("%d lines, the first %q", len(lines), lines[0].Text)
	}
	before := len(f.waiting)
	f.sent(maxBatch + 1)
	if len(f.waiting) != before-maxBatch || f.lost != 0 {
		t.Errorf("%d wait, %d are lost", len(f.waiting), f.lost)
	}
	for _, server := range []string{"", "host", "ftp://host", "syslog://", "syslog:///x", "::"} {
		var e *Error
		if _, err := New(server, options()); !errors.As(err, &e) || e.Code() != CodeServer {
			t.Errorf("%q: %v", server, err)
		}
	}
}

// TestWhatIsDroppedWhileOthersAreSent: every line is sent, or counted as lost.
func TestWhatIsDroppedWhileOthersAreSent(t *testing.T) {
	f := &Forwarder{more: make(chan struct{}, 1)}
	for range maxWaiting {
		f.Line(progress.Line{})
	}
	first := f.some()
	f.Line(progress.Line{}) // drops a quarter, those that are being sent among them
	f.sent(len(first))
	rest := maxWaiting + 1 - maxWaiting/4
	if len(first) != maxBatch || f.lost != maxWaiting/4-maxBatch || len(f.waiting) != rest {
		t.Errorf("%d were sent, %d are lost, %d wait; want %d, %d, %d", len(first), f.lost, len(f.waiting), maxBatch, maxWaiting/4-maxBatch, rest)
	}
	again := f.some()
	f.sent(len(again))
	if len(again) != maxBatch+1 || f.lost != 0 || len(f.waiting) != rest-maxBatch {
		t.Errorf("then %d were sent, %d are lost, %d wait", len(again), f.lost, len(f.waiting))
	}
}

// What goes wrong is on the page and in the log, where no password belongs.
func TestRefusalKeepsThePassword(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	f, err := New(strings.Replace(server.URL, "//", "//log:geheim@", 1), options())
	if err != nil {
		t.Fatal(err)
	}
	if err := f.send(t.Context(), []progress.Line{{Text: "a"}}); err == nil || strings.Contains(err.Error(), "geheim") || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v", err)
	}
}
