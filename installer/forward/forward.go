// Package forward sends the log away while it is written, in the formats that log
// servers know: syslog (RFC 5424) by UDP, TCP or TLS, and the journal's export
// format to systemd-journal-remote. A log server that is away costs lines,
// never an installation: the newest are kept until it is back.
package forward

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

// Error is a log server's address that cannot be used.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

// CodeServer is the code of Error.
const CodeServer = "SRV-033"

// Code is CodeServer.
func (*Error) Code() string { return CodeServer }

const (
	maxWaiting = 4000             // lines
	maxBatch   = 200              // lines of one request
	sendLimit  = 10 * time.Second // for one connection, datagram or request
	firstPause = time.Second      // after a failure; it doubles
	longPause  = 30 * time.Second
)

// Options say who sends.
type Options struct {
	// Start is the wall clock's time at second 0 of the log.
	Start func() time.Time
	// Host is the machine's name or address, as it is known now.
	Host func() string
	// Boot is this boot's id, 32 hexadecimal digits (boot_id of random(4), without
	// hyphens).
	Boot string
	// TLS is how certificates are checked; nil for the system's own CAs.
	TLS *tls.Config
}

// Forwarder is a progress.Sink that sends lines away. Run sends them.
type Forwarder struct {
	options Options
	send    func(context.Context, []progress.Line) error
	close   func()

	mu      sync.Mutex
	waiting []progress.Line
	lost    int // lines that were dropped, and of which nothing was sent
	told    int // of the lost: those of which some has told
	dropped int // lines since some looked: first those that are being sent
	more    chan struct{}
}

// New is a forwarder to server: syslog://HOST[:514] (UDP), syslog+tcp://HOST[:601],
// syslog+tls://HOST[:6514], or the http(s) URL of a systemd-journal-remote
// (HOST:19532). Any other is an *Error.
func New(server string, o Options) (*Forwarder, error) {
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return nil, wrong(server)
	}
	f := &Forwarder{options: o, more: make(chan struct{}, 1), close: func() {}}
	at := func(port string) string {
		if u.Port() != "" {
			port = u.Port()
		}
		return net.JoinHostPort(u.Hostname(), port)
	}
	switch u.Scheme {
	case "syslog", "syslog+udp":
		s := &stream{network: "udp", address: at("514")}
		f.send, f.close = f.syslog(s, func(message []byte) []byte { return message }), s.Close
	case "syslog+tcp":
		s := &stream{network: "tcp", address: at("601")}
		f.send, f.close = f.syslog(s, counted), s.Close
	case "syslog+tls":
		s := &stream{network: "tcp", address: at("6514"), tls: o.TLS, host: u.Hostname(), secure: true}
		f.send, f.close = f.syslog(s, counted), s.Close
	case "http", "https":
		target := *u
		if target.Port() == "" {
			target.Host = at("19532")
		}
		f.send = f.journal(target.JoinPath("upload"))
	default:
		return nil, wrong(server)
	}
	return f, nil
}

func wrong(server string) error {
	return &Error{fmt.Sprintf("%q is no log server: syslog://HOST, syslog+tcp://HOST, syslog+tls://HOST, or http(s)://HOST:19532 of a systemd-journal-remote", server)}
}

// Line implements progress.Sink. It never waits.
func (f *Forwarder) Line(l progress.Line) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.waiting) >= maxWaiting {
		f.waiting = append(f.waiting[:0], f.waiting[maxWaiting/4:]...)
		f.lost += maxWaiting / 4
		f.dropped += maxWaiting / 4
	}
	f.waiting = append(f.waiting, l)
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// Event implements progress.Sink.
func (*Forwarder) Event(progress.Event) {}

// Run sends until ctx ends, and then what is left, once. trouble is told the
// first failure after each success; it must not wait.
func (f *Forwarder) Run(ctx context.Context, trouble func(error)) {
	defer f.close()
	told, pause := false, firstPause
	for {
		lines := f.some()
		if len(lines) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-f.more:
			}
			continue
		}
		ended := ctx.Err() != nil
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), sendLimit)
		err := f.send(limited, lines)
		cancel()
		switch {
		case err == nil:
			f.sent(len(lines))
			told, pause = false, firstPause
			continue
		case ended:
			return
		case !told:
			told = true
			trouble(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, longPause)
	}
}

// some are the oldest lines that wait.
func (f *Forwarder) some() []progress.Line {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []progress.Line
	f.told, f.dropped = 0, 0
	if f.lost > 0 && len(f.waiting) > 0 {
		f.told = f.lost
		lines = append(lines, progress.Line{Seconds: f.waiting[0].Seconds, Phase: f.waiting[0].Phase, Text: fmt.Sprintf("warning: %d lines were not sent", f.lost)})
	}
	return append(lines, f.waiting[:min(len(f.waiting), maxBatch)]...)
}

// sent takes n lines, that about the lost among them, off the list. Of the lines
// that were dropped meanwhile, the oldest are among those that were sent.
func (f *Forwarder) sent(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.told > 0 {
		n--
	}
	gone := min(n, f.dropped)
	f.lost -= f.told + gone
	f.waiting = append(f.waiting[:0], f.waiting[n-gone:]...)
}

// at is when a line was written, by the wall clock.
func (f *Forwarder) at(l progress.Line) time.Time {
	return f.options.Start().Add(time.Duration(l.Seconds * float64(time.Second))).UTC()
}

// severity is that of RFC 5424, table 2.
func severity(l progress.Line) int {
	switch {
	case strings.HasPrefix(l.Text, "FAILED "):
		return 3
	case strings.HasPrefix(l.Text, "warning: "), strings.HasPrefix(l.Text, "warn: "):
		return 4
	}
	return 6
}

// programme is what the lines are from, as log servers sort them.
const programme = "firstlight-installer"

// message is one line in the format of RFC 5424: facility local0.
func (f *Forwarder) message(l progress.Line) []byte {
	return fmt.Appendf(nil, "<%d>1 %s %s %s - %s - %s", 16*8+severity(l), f.at(l).Format("2006-01-02T15:04:05.000000Z07:00"), token(f.options.Host(), 255), programme, token(string(l.Phase), 32), l.Text)
}

// token is text as a field of a header: printable ASCII without spaces.
func token(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, text)
	if text == "" {
		return "-"
	}
	return text[:min(len(text), most)]
}

// counted is a message in a stream: its length before it (RFC 6587, 3.4.1; RFC
// 5425, 4.3).
func counted(message []byte) []byte { return append(fmt.Appendf(nil, "%d ", len(message)), message...) }

func (f *Forwarder) syslog(s *stream, frame func([]byte) []byte) func(context.Context, []progress.Line) error {
	return func(ctx context.Context, lines []progress.Line) error {
		for _, l := range lines {
			if err := s.write(ctx, frame(f.message(l))); err != nil {
				return err
			}
		}
		return nil
	}
}

// stream is a connection that is opened when it is needed.
type stream struct {
	network, address, host string
	tls                    *tls.Config
	secure                 bool
	connection             net.Conn
}

func (s *stream) write(ctx context.Context, data []byte) error {
	if s.connection == nil {
		var err error
		if s.connection, err = s.dial(ctx); err != nil {
			return fmt.Errorf("sending the log to %s: %w", s.address, err)
		}
	}
	deadline, _ := ctx.Deadline()
	err := s.connection.SetWriteDeadline(deadline)
	if err == nil {
		_, err = s.connection.Write(data)
	}
	if err != nil {
		s.Close()
		return fmt.Errorf("sending the log to %s: %w", s.address, err)
	}
	return nil
}

func (s *stream) dial(ctx context.Context) (net.Conn, error) {
	if !s.secure {
		return new(net.Dialer).DialContext(ctx, s.network, s.address)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.tls != nil {
		config = s.tls.Clone()
	}
	config.ServerName, config.NextProtos = s.host, nil
	return (&tls.Dialer{Config: config}).DialContext(ctx, s.network, s.address)
}

// Close gives the connection up; it may be called again.
func (s *stream) Close() {
	if s.connection != nil {
		_ = s.connection.Close() // what was not sent is not known anyway
		s.connection = nil
	}
}

// entry is one line in the journal's export format
// (https://systemd.io/JOURNAL_EXPORT_FORMATS).
func (f *Forwarder) entry(b *bytes.Buffer, l progress.Line) {
	fmt.Fprintf(b, "__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%s\n_HOSTNAME=%s\nPRIORITY=%d\nSYSLOG_IDENTIFIER=%s\nFIRSTLIGHT_PHASE=%s\nMESSAGE=%s\n\n",
		f.at(l).UnixMicro(), int64(l.Seconds*1e6), f.options.Boot, token(f.options.Host(), 255), severity(l), programme, token(string(l.Phase), 32), l.Text)
}

func (f *Forwarder) journal(target *url.URL) func(context.Context, []progress.Line) error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: f.options.TLS}}
	return func(ctx context.Context, lines []progress.Line) error {
		var body bytes.Buffer
		for _, l := range lines {
			f.entry(&body, l)
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), &body)
		if err != nil {
			return err
		}
		request.Header.Set("Content-Type", "application/vnd.fdo.journal")
		answer, err := client.Do(request)
		if err != nil {
			return fmt.Errorf("sending the log: %w", err)
		}
		defer answer.Body.Close() // only read from
		said, _ := io.ReadAll(io.LimitReader(answer.Body, 400))
		if answer.StatusCode/100 != 2 {
			return fmt.Errorf("sending the log to %s: %s: %s", target.Redacted(), answer.Status, bytes.TrimSpace(said))
		}
		return nil
	}
}
