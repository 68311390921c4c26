package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// maxMessage is the largest message that is taken, in bytes: a request or
// answer is about 1 MiB, or 65,536 digests (2 MiB).
const maxMessage = 8 << 20

// window is how many bytes the server may send ahead. gRPC's own estimate
// starts at 64 KiB and needs a while to grow.
const window = 8 << 20

func dial(ctx context.Context, options Options) (*Client, error) {
	address, err := withPort(options.Address)
	if err != nil {
		return nil, err
	}
	setDefault(&options.ConnectTimeout, 15*time.Second)
	setDefault(&options.Stall, 60*time.Second)
	setDefault(&options.KeepaliveTime, 10*time.Second)
	setDefault(&options.KeepaliveTimeout, 20*time.Second)

	c := &Client{options: options, address: address, handshakes: &handshakes{}}
	c.bulk = newBulk(c)
	transport := insecure.NewCredentials()
	if options.TLS != nil {
		transport = credentials.NewTLS(options.TLS)
	}
	// The passthrough resolver hands host and port to the dialer, which asks
	// the system's resolver; gRPC's own would look for TXT records too.
	c.connection, err = grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(&recordingCredentials{transport, c.handshakes}),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			connection, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err != nil {
				c.handshakes.record(err)
			}
			return connection, err
		}),
		grpc.WithNoProxy(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: options.KeepaliveTime, Timeout: options.KeepaliveTimeout, PermitWithoutStream: true,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: options.ConnectTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithReadBufferSize(128<<10), grpc.WithWriteBufferSize(128<<10),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, &Error{CodeUnreachable, "image server " + address, err}
	}
	c.rpc = pb.NewImageServerClient(c.connection)
	if err := c.connect(ctx); err != nil {
		return nil, errors.Join(err, c.connection.Close())
	}
	return c, nil
}

// connect waits for the first connection, or for the first failure.
func (c *Client) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.options.ConnectTimeout)
	defer cancel()
	c.connection.Connect()
	for {
		state := c.connection.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure:
			return c.unreachable(errors.New("no connection"))
		}
		if !c.connection.WaitForStateChange(ctx, state) {
			if errors.Is(ctx.Err(), context.Canceled) {
				return fmt.Errorf("connecting to image server %s: %w", c.address, ctx.Err())
			}
			return c.unreachable(fmt.Errorf("no answer within %s", c.options.ConnectTimeout))
		}
	}
}

// unreachable says why there is no connection, as well as is known.
func (c *Client) unreachable(cause error) error {
	recorded := c.handshakes.last()
	if recorded == nil {
		recorded = cause
	}
	text := "image server " + c.address
	var (
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		host      x509.HostnameError
		record    tls.RecordHeaderError
		network   *net.OpError
	)
	switch {
	case errors.As(recorded, &authority):
		return &Error{CodeUntrusted, text + ": its certificate is not signed by the site's CA", recorded}
	case errors.As(recorded, &invalid) && invalid.Reason == x509.Expired:
		return &Error{CodeExpired, text + ": its certificate does not fit this machine's clock", recorded}
	case errors.As(recorded, &invalid):
		return &Error{CodeUntrusted, text + ": its certificate cannot be trusted", recorded}
	case errors.As(recorded, &host):
		return &Error{CodeOtherHost, text + ": its certificate is for another name", recorded}
	case errors.As(recorded, &record):
		return &Error{CodeTransport, text + " does not speak TLS", recorded}
	case errors.As(recorded, &network) && network.Op == "remote error":
		// A TLS alert: in TLS 1.3 the server judges our certificate after we
		// think that the handshake is done.
		return &Error{CodeOurs, text + " refuses the TLS connection; is the certificate of its site, and valid?", network.Err}
	}
	return &Error{CodeUnreachable, text + " cannot be reached", recorded}
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d == 0 {
		*d = value
	}
}

// withPort completes an address.
func withPort(address string) (string, error) {
	bad := func(why string) error {
		return &Error{CodeUnreachable, fmt.Sprintf("%q is no address of an image server", address), errors.New(why)}
	}
	if address == "" {
		return "", bad("it is empty")
	}
	if strings.Contains(address, "/") {
		return "", bad("write host or host:port, without a scheme or path")
	}
	if ip := net.ParseIP(strings.Trim(address, "[]")); ip != nil {
		return net.JoinHostPort(ip.String(), DefaultPort), nil
	}
	if !strings.Contains(address, ":") {
		return net.JoinHostPort(address, DefaultPort), nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", bad(err.Error())
	}
	if host == "" {
		host = "localhost"
	}
	if port == "" {
		port = DefaultPort
	}
	return net.JoinHostPort(host, port), nil
}

// handshakes remembers why the last connection failed, until the server has
// said something on another: gRPC reports it as text, and may have dialled
// again before anybody asks.
type handshakes struct {
	mutex sync.Mutex
	err   error
}

func (h *handshakes) record(err error) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.err = err
}

// isAlert is true for a TLS alert that the server sent.
func isAlert(err error) bool {
	var network *net.OpError
	return errors.As(err, &network) && network.Op == "remote error"
}

func (h *handshakes) last() error {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	return h.err
}

// recordingCredentials records the failure of a handshake, and a TLS alert
// that comes after it.
type recordingCredentials struct {
	credentials.TransportCredentials
	handshakes *handshakes
}

func (r *recordingCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	connection, info, err := r.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		r.handshakes.record(err)
		return connection, info, err
	}
	return &recordingConn{connection, r.handshakes}, info, nil
}

func (r *recordingCredentials) Clone() credentials.TransportCredentials {
	return &recordingCredentials{r.TransportCredentials.Clone(), r.handshakes}
}

type recordingConn struct {
	net.Conn
	handshakes *handshakes
}

func (r *recordingConn) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	switch {
	case isAlert(err):
		r.handshakes.record(err)
	case n > 0:
		r.handshakes.record(nil)
	}
	return n, err
}

// alertWait is how long an alert may take that came before a connection broke.
const alertWait = time.Second

// Write looks, where it fails, for the alert that says why: the server closes
// right after it, and whoever writes then is told of the broken connection
// only.
func (r *recordingConn) Write(p []byte) (int, error) {
	n, err := r.Conn.Write(p)
	if err != nil && r.Conn.SetReadDeadline(time.Now().Add(alertWait)) == nil {
		// What else it brings is of no use on a connection that is broken.
		_, _ = r.Read(make([]byte, 1))
	}
	return n, err
}

// reasonFull is the reason of RESOURCE_EXHAUSTED where the server's disk is full;
// without it, the server is busy.
const reasonFull = "STORE_FULL"

// failed turns what a call returned into an *Error. doing says what was being
// done. Where ctx was cancelled by the caller, its error is wrapped.
func (c *Client) failed(ctx context.Context, doing string, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		var coded *Error
		if errors.As(cause, &coded) { // the stall limit
			return coded
		}
		if errors.Is(cause, context.DeadlineExceeded) {
			return &Error{CodeLost, doing + ": no end within the time allowed", cause}
		}
		return fmt.Errorf("%s: %w", doing, cause)
	}
	answer, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", doing, err)
	}
	code := map[codes.Code]string{
		codes.NotFound:           CodeNoObject,
		codes.DataLoss:           CodeDamaged,
		codes.InvalidArgument:    CodeRefused,
		codes.AlreadyExists:      CodeRefused,
		codes.FailedPrecondition: CodeRefused,
		codes.Unimplemented:      CodeOtherVersion,
		codes.Unauthenticated:    CodeAnonymous,
		codes.PermissionDenied:   CodeRole,
	}[answer.Code()]
	switch answer.Code() {
	case codes.ResourceExhausted:
		code = CodeBusy
		for _, detail := range answer.Details() {
			if reason, ok := detail.(*errdetails.ErrorInfo); ok && reason.GetReason() == reasonFull {
				code = CodeFull
			}
		}
	case codes.Unavailable:
		if c.connection.GetState() != connectivity.Ready && c.handshakes.last() != nil {
			return c.unreachable(err)
		}
		return &Error{CodeLost, fmt.Sprintf("%s: the connection to image server %s broke: %s", doing, c.address, answer.Message()), nil}
	case codes.Canceled, codes.DeadlineExceeded:
		code = CodeLost
	}
	if code == "" {
		code = CodeServer
	}
	return &Error{code, doing + ": " + answer.Message(), nil}
}

// failedName is failed where the request holds no more than a name: what is not
// found, or malformed, is that.
func (c *Client) failedName(ctx context.Context, doing string, err error) error {
	failure := c.failed(ctx, doing, err)
	var coded *Error
	if errors.As(failure, &coded) {
		switch status.Code(err) {
		case codes.NotFound:
			coded.code = CodeNoImage
		case codes.InvalidArgument:
			coded.code = CodeBadName
		}
	}
	return failure
}
