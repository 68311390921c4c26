// Package shell speaks to an installer at work: shells, holding it, letting it
// go on, its log and plan. It is the operator's side of
// firstlight.installer.v1.Installer; installer/shell is the other.
//
// It never trusts a certificate because it was shown: an installer is known by
// the site's CA and its name, or by the fingerprint on its console.
package shell

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	pb "github.com/firstlight/firstlight/proto/installer/v1"
)

// DefaultPort is the installer's TCP port.
const DefaultPort = 6978

// Error is a failure that a user can meet.
type Error struct {
	code string
	text string
	err  error
}

// Error is the text, with the cause where there is one.
func (e *Error) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}

// Code is the stable code; docs/errors.md explains each.
func (e *Error) Code() string { return e.code }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// The codes of this package.
const (
	CodeUnreachable    = "SRV-020" // no installer answers
	CodeLost           = "SRV-021" // the connection or the session is lost
	CodeTooMany        = "SRV-022" // too many sessions
	CodeNotNow         = "SRV-023" // too early or too late
	CodeUnknown        = "SRV-024" // no such phase, session or programme
	CodeRefused        = "SRV-025" // any other refusal of the installer
	CodeUnknownServer  = "TRU-020" // its certificate is not known
	CodeFingerprint    = "TRU-021" // it has another fingerprint
	CodeNotAllowed     = "TRU-022" // it does not accept who calls
	CodeNoTLS          = "TRU-023" // it speaks no TLS 1.3
	CodeBadFingerprint = "TRU-024" // this is no fingerprint
)

// Options say how to reach an installer.
type Options struct {
	// Host is a name or an address, Port its TCP port.
	Host string
	Port uint16
	// TLS has the site's CA and the operator's certificate (auth.ClientTLS).
	TLS *tls.Config
	// Fingerprint, "SHA256:" and 64 hexadecimal digits, is that of the
	// certificate that alone is accepted; empty means the CA's.
	Fingerprint string
	// Wait is how long to wait for an installer that is not up; 0 is for ever.
	Wait time.Duration
	// Waiting is told why there is nothing yet, once for each reason.
	Waiting func(why string)
}

// Client is a connection to an installer. It is not mended when it breaks.
type Client struct {
	connection *grpc.ClientConn
	rpc        pb.InstallerClient
	alert      *alert
}

// Times of one attempt, and between attempts.
const (
	connectTimeout = 10 * time.Second
	firstPause     = 250 * time.Millisecond
	longestPause   = 3 * time.Second
)

// Dial connects, trying again until the installer is up. The error is an
// *Error, or that of ctx. The caller closes the Client.
func Dial(ctx context.Context, options Options) (*Client, error) {
	if options.Fingerprint != "" {
		if _, err := parseFingerprint(options.Fingerprint); err != nil {
			return nil, err
		}
	}
	var limit <-chan time.Time
	if options.Wait > 0 {
		limit = time.After(options.Wait)
	}
	told := ""
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		client, err := dialOnce(ctx, options)
		if err == nil {
			return client, nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		var failed *Error
		if errors.As(err, &failed) && failed.code != CodeUnreachable {
			return nil, err
		}
		if why := err.Error(); options.Waiting != nil && why != told {
			options.Waiting(why)
			told = why
		}
		select {
		case <-time.After(pause):
		case <-limit:
			return nil, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// dialOnce connects, does the handshake, and only then lets gRPC have the
// connection: so what is wrong with a certificate is known as it is.
func dialOnce(ctx context.Context, options Options) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	address := net.JoinHostPort(options.Host, fmt.Sprint(options.Port))
	plain, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, &Error{CodeUnreachable, "the installer on " + address + " does not answer", err}
	}
	secure := tls.Client(plain, clientTLS(options))
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(handshakeError(options, address, err), closing(plain))
	}
	watched := &alert{Conn: secure}
	once := make(chan net.Conn, 1)
	once <- watched
	connection, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // TLS is inside of watched
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("the connection is lost")
			}
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithNoProxy(),
	)
	if err != nil {
		return nil, errors.Join(err, closing(secure))
	}
	return &Client{connection: connection, rpc: pb.NewInstallerClient(connection), alert: watched}, nil
}

// closing closes a connection that is of no use; how that goes says nothing.
func closing(connection net.Conn) error {
	_ = connection.Close()
	return nil
}

// Close gives the connection up.
func (c *Client) Close() error { return c.connection.Close() }

// alert is a connection that remembers the TLS alert that the other side sent:
// in TLS 1.3 a client certificate is judged after the handshake (RFC 8446,
// 4.4.2.4), and gRPC says only that the connection is gone.
type alert struct {
	net.Conn
	sent atomic.Pointer[net.OpError]
}

func (a *alert) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if sent := alertIn(err); sent != nil {
		a.sent.Store(sent)
	}
	return n, err
}

// Write notes as well what the other side said before it closed: a write may
// fail before anybody has read it.
func (a *alert) Write(b []byte) (int, error) {
	n, err := a.Conn.Write(b)
	if err != nil && a.Conn.SetReadDeadline(time.Now().Add(time.Second)) == nil {
		// Whatever else comes is of a connection that is lost.
		_, _ = a.Read(make([]byte, 1<<10))
	}
	return n, err
}

// alertIn is the alert of the other side in err, nil where there is none:
// crypto/tls marks it by this Op alone.
func alertIn(err error) *net.OpError {
	var sent *net.OpError
	if errors.As(err, &sent) && sent.Op == "remote error" {
		return sent
	}
	return nil
}

// clientTLS is the configuration for this installer: by name, or by pin.
func clientTLS(options Options) *tls.Config {
	config := options.TLS.Clone()
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{"h2"}
	config.ServerName = options.Host
	if options.Fingerprint != "" {
		config.InsecureSkipVerify = true // the pin is what counts
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if shown := Fingerprint(state.PeerCertificates[0].Raw); !strings.EqualFold(shown, options.Fingerprint) {
				return &Error{code: CodeFingerprint, text: fmt.Sprintf("the certificate of %s has the fingerprint %s, not %s", options.Host, shown, options.Fingerprint)}
			}
			return nil
		}
	}
	return config
}

// Fingerprint is the SHA-256 of a certificate's DER as console and page of the
// installer show it.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return "SHA256:" + hex.EncodeToString(sum[:])
}

func parseFingerprint(text string) ([]byte, error) {
	digits, ok := strings.CutPrefix(strings.ToUpper(text), "SHA256:")
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != sha256.Size {
		return nil, &Error{code: CodeBadFingerprint, text: fmt.Sprintf("%q is no fingerprint: SHA256: and %d hexadecimal digits, as the machine's console shows it", text, 2*sha256.Size)}
	}
	return sum, nil
}

// handshakeError says what a failed handshake means.
func handshakeError(options Options, address string, err error) error {
	var own *Error
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &verification):
		text := "the certificate of " + address + " is not accepted"
		// Its name is looked at first, and one that an installer made for
		// itself has none.
		leaf := verification.UnverifiedCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: options.TLS.RootCAs}); errors.As(err, &authority) {
			shown := Fingerprint(leaf.Raw)
			text = fmt.Sprintf("the certificate of %s is not of this site's CA; if the machine's own console shows %s as well, type: firstlight installer-shell --fingerprint %s %s", address, shown, shown, options.Host)
		}
		return &Error{CodeUnknownServer, text, err}
	case errors.As(err, &record), alertIn(err) != nil:
		return &Error{CodeNoTLS, address + " speaks no TLS 1.3 with us", err}
	}
	return &Error{CodeUnreachable, address + " ended the handshake", err}
}

// callError says what a failed call means.
func (c *Client) callError(err error) error {
	if err == nil {
		return nil
	}
	text := status.Convert(err).Message()
	switch status.Code(err) {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Unauthenticated, codes.PermissionDenied:
		return &Error{code: CodeNotAllowed, text: "the installer refuses: " + text}
	case codes.ResourceExhausted:
		return &Error{code: CodeTooMany, text: text}
	case codes.FailedPrecondition:
		return &Error{code: CodeNotNow, text: text}
	case codes.NotFound:
		return &Error{code: CodeUnknown, text: text}
	case codes.Unavailable:
		if sent := c.alert.sent.Load(); sent != nil {
			return &Error{CodeNotAllowed, "the installer does not accept the certificate of this operator", sent}
		}
		return &Error{code: CodeLost, text: "the connection to the installer is lost: " + text}
	}
	return &Error{code: CodeRefused, text: "the installer refuses: " + text}
}

// Hold makes the installer wait before a phase, or before "hand-over".
func (c *Client) Hold(ctx context.Context, before string) error {
	_, err := c.rpc.Hold(ctx, &pb.HoldRequest{Before: before})
	return c.callError(err)
}

// Resume lets go on what is held, and names it.
func (c *Client) Resume(ctx context.Context) (released []string, err error) {
	answer, err := c.rpc.Resume(ctx, &pb.ResumeRequest{})
	return answer.GetReleased(), c.callError(err)
}

// Approve lets the plan of this hash be carried out.
func (c *Client) Approve(ctx context.Context, hash string) error {
	_, err := c.rpc.Approve(ctx, &pb.ApproveRequest{Plan: hash})
	return c.callError(err)
}

// Reboot restarts the machine at once.
func (c *Client) Reboot(ctx context.Context) error {
	_, err := c.rpc.Reboot(ctx, &pb.RebootRequest{})
	return c.callError(err)
}

// Plan is the plan as JSON, and its hash.
func (c *Client) Plan(ctx context.Context) (document []byte, hash string, err error) {
	answer, err := c.rpc.Plan(ctx, &pb.PlanRequest{})
	return answer.GetJson(), answer.GetHash(), c.callError(err)
}

// Logs hands each line of the log to f, and with follow each that is added,
// until the installer or ctx ends. An error of f ends it as well.
func (c *Client) Logs(ctx context.Context, follow bool, f func(line string) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.rpc.Logs(ctx, &pb.LogsRequest{Follow: follow})
	if err != nil {
		return c.callError(err)
	}
	for {
		line, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.callError(err)
		}
		if err := f(logLine(line)); err != nil {
			return err
		}
	}
}

// logLine is a line as the console shows it.
func logLine(line *pb.LogLine) string {
	return fmt.Sprintf("[%8.3f] %s: %s", line.GetSeconds(), line.GetPhase(), line.GetText())
}
