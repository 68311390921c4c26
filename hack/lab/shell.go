package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Shell is the root shell that the systems of hack/network/roots give on a
// machine's second serial port.
type Shell struct {
	conn  net.Conn
	r     *bufio.Reader
	calls int
}

// OpenShell connects to the socket of the port (qemu.ShellSocket) and waits
// until the shell answers. Close ends it.
func OpenShell(ctx context.Context, socket string) (*Shell, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("opening the machine's shell: %w", err)
	}
	s := &Shell{conn: conn, r: bufio.NewReader(conn)}
	for try := 0; ; try++ {
		// What is written before the shell is there is lost, or echoed: the
		// answer is a sum that the echo does not have.
		fmt.Fprintf(conn, "echo here-$((%d + 1000))\n", try)
		if err := s.readTo(ctx, fmt.Sprintf("here-%d", try+1000), 2*time.Second); err == nil {
			// systemd's programs see a terminal, and would colour it.
			_, err := s.Run(ctx, "export TERM=dumb SYSTEMD_COLORS=0 SYSTEMD_PAGER=")
			return s, err
		}
		if ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("the machine's shell does not answer: %w", context.Cause(ctx)), conn.Close())
		}
	}
}

// readTo reads lines up to one that is text.
func (s *Shell) readTo(ctx context.Context, text string, limit time.Duration) error {
	_, err := s.collect(ctx, limit, func(line string) bool { return strings.HasSuffix(line, text) })
	return err
}

// collect reads lines until last is true of one, and returns those before it.
func (s *Shell) collect(ctx context.Context, limit time.Duration, last func(line string) bool) (string, error) {
	end := time.Now().Add(limit)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := s.conn.SetReadDeadline(end); err != nil {
		return "", err
	}
	var all strings.Builder
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return all.String() + line, err
		}
		line = strings.TrimRight(line, "\r\n")
		if last(line) {
			return all.String(), nil
		}
		all.WriteString(line + "\n")
	}
}

// Run runs a command line and returns what it wrote, and an error when its
// exit status is not 0, or when there is no end of it within 30 s.
func (s *Shell) Run(ctx context.Context, command string) (string, error) {
	s.calls++
	mark := fmt.Sprintf("end-of-%d:", s.calls)
	if _, err := fmt.Fprintf(s.conn, "{ %s\n} 2>&1 </dev/null; echo; echo %s$?\n", command, mark); err != nil {
		return "", fmt.Errorf("in the machine: %s: %w", command, err)
	}
	status := ""
	out, err := s.collect(ctx, 30*time.Second, func(line string) (last bool) {
		status, last = strings.CutPrefix(line, mark)
		return last
	})
	if err == nil && status != "0" {
		err = fmt.Errorf("exit status %s", status)
	}
	if err != nil {
		return out, fmt.Errorf("in the machine: %s: %w: %s", command, err, strings.TrimSpace(out))
	}
	return strings.TrimSuffix(out, "\n"), nil
}

// Close lets go of the port.
func (s *Shell) Close() error { return s.conn.Close() }
