package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/pin/tftp/v3"

	"github.com/firstlight/firstlight/netconfig"
)

// TFTPSource asks a TFTP server, see TFTP.
type TFTPSource struct {
	// Patience is how long the server is asked for one file, all tries
	// together; 0 means a minute. It may be set before the first Get.
	Patience time.Duration

	server   string
	dirs     []string // each ends with a slash or is empty
	patience patience
	answer   time.Duration // how long to wait for a packet
	block    int           // of RFC 2348, bytes; a server may choose a smaller one
}

const (
	// blockSize of RFC 2348: with all headers it stays below every usual MTU,
	// VLAN tags and tunnels included.
	blockSize = 1428
	tftpPort  = "69"

	errorNotFound = 1 // error codes of RFC 1350, appendix
)

// TFTP is a source of files on a TFTP server (host or host:port, RFC 1350). A
// file is looked for in <mac-with-dashes>/, then <serial>/, then the root, each
// file for itself: what all machines share may lie in the root while a
// machine's own directory has only what is its own.
//
// Only "file not found" means that there is none. No answer is a failure, after
// tries that take a minute at most for one file, for a server that is silent
// about one directory may well have a layout there that protects a disk.
func TFTP(server string, mac netconfig.MAC, serial string) *TFTPSource {
	var dirs []string
	if !mac.IsZero() {
		dirs = append(dirs, strings.ReplaceAll(mac.String(), ":", "-")+"/")
	}
	if usableAsDirectory(serial) {
		dirs = append(dirs, serial+"/")
	}
	return &TFTPSource{server: server, dirs: append(dirs, ""), patience: defaultPatience(), answer: time.Second, block: blockSize}
}

// usableAsDirectory is false for serial numbers that would name something else
// than one directory, or end a TFTP string early.
func usableAsDirectory(serial string) bool {
	return serial != "" && serial != "." && serial != ".." && !strings.ContainsAny(serial, "/\\\x00\n\r")
}

// String is the server as a URL.
func (s *TFTPSource) String() string { return "tftp://" + s.server + "/" }

// Get implements Source.
func (s *TFTPSource) Get(ctx context.Context, name string) ([]byte, error) {
	for _, dir := range s.dirs {
		data, err := s.patience.orAtMost(s.Patience).try(ctx, s.String()+dir+name, func(ctx context.Context) ([]byte, error) {
			return s.once(ctx, dir+name)
		})
		if !errors.Is(err, ErrAbsent) {
			return data, err
		}
	}
	return nil, fmt.Errorf("%s%s (looked in %s): %w", s, name, s.places(), ErrAbsent)
}

func (s *TFTPSource) places() string {
	if len(s.dirs) == 1 {
		return "the root"
	}
	return strings.Join(s.dirs[:len(s.dirs)-1], ", ") + " and the root"
}

// once is one try: with a large block size, and where the server answers that
// with an error, without options (RFC 2347 allows a server to refuse them, and
// servers older than it do not know them).
func (s *TFTPSource) once(ctx context.Context, path string) ([]byte, error) {
	address, err := s.resolve(ctx)
	if err != nil {
		return nil, err
	}
	data, err := s.receive(ctx, address, path, s.block)
	var answered *serverError
	if errors.As(err, &answered) && answered.code != errorNotFound {
		data, err = s.receive(ctx, address, path, 0)
	}
	if !errors.As(err, &answered) {
		return data, err
	}
	if answered.code == errorNotFound {
		return nil, finalError{fmt.Errorf("%s%s: %w", s, path, ErrAbsent)}
	}
	return nil, finalError{fail(codeRefused, "fetching %s%s: %w", s, path, answered)}
}

// resolve looks the server up at each try: it may come up after us, as may the
// name server.
func (s *TFTPSource) resolve(ctx context.Context) (string, error) {
	host, port, err := net.SplitHostPort(s.server)
	if err != nil {
		host, port = strings.Trim(s.server, "[]"), tftpPort
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || host == "" || strings.ContainsAny(host, "/ ") {
		return "", finalError{fail(codeAddress, "%q is not a TFTP server: a host name or address, with or without :port", s.server)}
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return net.JoinHostPort(addr.String(), port), nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", fmt.Errorf("looking up the TFTP server: %w", err)
	}
	return net.JoinHostPort(addrs[0].Unmap().String(), port), nil
}

// receive transfers one file. The library knows no context, so the transfer
// runs beside; when ctx ends first, it is cut off at its next packet or
// time-out, some seconds later.
func (s *TFTPSource) receive(ctx context.Context, address, path string, block int) ([]byte, error) {
	client, err := tftp.NewClient(address)
	if err != nil {
		return nil, finalError{fail(codeAddress, "%q is not a TFTP server: %w", s.server, err)}
	}
	const retries = 3 // of one packet; patience does the rest
	client.SetTimeout(s.answer)
	client.SetRetries(retries)
	client.SetBackoff(func(attempt int) time.Duration { return s.answer / 4 << min(attempt, 4) })
	if block != 0 {
		client.SetBlockSize(block)
	}
	type result struct {
		data []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var b capped
		b.ctx = ctx
		transfer, err := client.Receive(path, "octet")
		if err == nil {
			_, err = transfer.WriteTo(&b)
		}
		done <- result{b.Bytes(), err}
	}()
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-done:
		if errors.Is(r.err, errCapped) {
			return nil, finalError{tooLarge(s.String() + path)}
		}
		if r.err != nil {
			return nil, asServerError(r.err)
		}
		return r.data, nil
	}
}

// serverError is an ERROR packet of RFC 1350.
type serverError struct {
	code    int
	message string
}

func (e *serverError) Error() string {
	return fmt.Sprintf("the server answers error %d: %s", e.code, e.message)
}

// asServerError recognises an ERROR packet. The library has no type for it,
// only the text "code: 1, message: …", in front of which it may put its own.
func asServerError(err error) error {
	_, text, ok := strings.Cut(err.Error(), "code: ")
	if !ok {
		return err
	}
	number, message, ok := strings.Cut(text, ", message: ")
	if !ok {
		return err
	}
	code, convErr := strconv.Atoi(number)
	if convErr != nil {
		return err
	}
	return &serverError{code: code, message: message}
}

var errCapped = errors.New("larger than any configuration file")

// capped is a buffer of at most MaxFileBytes that ends with its context.
type capped struct {
	bytes.Buffer
	ctx context.Context
}

func (c *capped) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	if c.Len()+len(p) > MaxFileBytes {
		return 0, errCapped
	}
	return c.Buffer.Write(p)
}
