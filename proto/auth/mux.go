package auth

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// handshakeTimeout bounds the time until a connection has shown what it is.
const handshakeTimeout = 10 * time.Second

// shutdownTimeout bounds the time in which calls may end when a Mux stops.
const shutdownTimeout = 5 * time.Second

// Mux serves one port: gRPC over TLS, pages for looking over TLS and over plain
// HTTP, and single RPCs over HTTP/1.1, guarded as gRPC is. A connection's first
// byte says whether it is TLS (a handshake record begins with 0x16: RFC 8446,
// 5.1); with TLS the application protocol says whether it is gRPC. Plaintext
// that begins as HTTP/2 does goes to RPC, whose policy refuses it unless it was
// made insecure.
type Mux struct {
	// TLS is ServerTLS's; nil means that no TLS is spoken.
	TLS *tls.Config
	// RPC is NewServer's.
	RPC *grpc.Server
	// Pages answers GET and HEAD; other methods never reach it.
	Pages http.Handler
	// Calls are RPCs that are served over HTTP/1.1 too.
	Calls []Call
	// Log takes what goes wrong with single connections, at debug level.
	Log *slog.Logger
}

// Serve takes connections until ctx ends, then lets calls end for a few seconds
// and returns nil. Any other end of the listener is an error. It closes the
// listener.
func (m *Mux) Serve(ctx context.Context, listener net.Listener) error {
	calls := newHandOver(listener.Addr())
	pages := newHandOver(listener.Addr())
	web := &http.Server{
		Handler:           callsOrPages(m.Calls, m.Pages),
		BaseContext:       func(net.Listener) context.Context { return ctx }, // who follows a stream is let go at the end
		ReadHeaderTimeout: handshakeTimeout,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(m.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 3)
	go func() { failed <- m.RPC.Serve(calls) }()
	go func() {
		err := web.Serve(pages)
		if errors.Is(err, http.ErrServerClosed) {
			err = nil
		}
		failed <- err
	}()
	go func() { failed <- m.accept(ctx, listener, calls, pages) }()

	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		if err == nil {
			err = errors.New("the listener ended")
		}
	}
	closeErr := listener.Close()
	if errors.Is(closeErr, net.ErrClosed) {
		closeErr = nil
	}
	return errors.Join(err, closeErr, m.stop(web))
}

// stop ends both servers, by force after shutdownTimeout.
func (m *Mux) stop(web *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		m.RPC.GracefulStop()
		close(ended)
	}()
	err := web.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = web.Close()
	}
	select {
	case <-ended:
	case <-ctx.Done():
		m.RPC.Stop()
		<-ended
	}
	return err
}

// accept sorts connections until the listener is closed.
func (m *Mux) accept(ctx context.Context, listener net.Listener, calls, pages *handOver) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if pause, ok := err.(interface{ Temporary() bool }); ok && pause.Temporary() { // out of file descriptors, or the peer has gone already
				m.Log.Warn("accepting a connection", "error", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			return err
		}
		go func() {
			if err := m.sort(connection, calls, pages); err != nil {
				m.Log.Debug("connection refused", "peer", connection.RemoteAddr(), "error", err)
				// The peer sees the end; how closing goes changes nothing.
				_ = connection.Close()
			}
		}()
	}
}

// sort looks at the first byte, does the handshake, and hands the connection
// over.
func (m *Mux) sort(connection net.Conn, calls, pages *handOver) error {
	if err := connection.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	var first [3]byte
	if _, err := io.ReadFull(connection, first[:1]); err != nil {
		return err
	}
	if first[0] == 0x16 {
		if m.TLS == nil {
			return errors.Join(errors.New("TLS, and this server has no certificate"), answerPlainly(connection))
		}
		secure := tls.Server(&prefixed{Conn: connection, prefix: first[:1]}, m.TLS)
		if err := secure.Handshake(); err != nil {
			return fmt.Errorf("TLS handshake: %w", err)
		}
		if err := connection.SetDeadline(time.Time{}); err != nil {
			return err
		}
		if secure.ConnectionState().NegotiatedProtocol == alpnGRPC {
			return calls.give(secure)
		}
		return pages.give(secure)
	}
	// "PRI * HTTP/2.0" begins HTTP/2 without TLS (RFC 9113, 3.4); no other
	// method begins with PRI.
	if _, err := io.ReadFull(connection, first[1:]); err != nil {
		return err
	}
	if err := connection.SetDeadline(time.Time{}); err != nil {
		return err
	}
	plain := &prefixed{Conn: connection, prefix: first[:]}
	if string(first[:]) == "PRI" {
		return calls.give(plain)
	}
	return pages.give(plain)
}

// answerPlainly tells a TLS client that there is no TLS here: what is no TLS
// record at all it reports as such, a reset it would take for a broken network.
func answerPlainly(connection net.Conn) error {
	if _, err := io.WriteString(connection, "HTTP/1.0 400 Bad Request\r\n\r\nno TLS here\n"); err != nil {
		return err
	}
	half, ok := connection.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	if err := half.CloseWrite(); err != nil {
		return err
	}
	if err := connection.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	// Closing with its hello unread would reset the connection.
	_, err := io.Copy(io.Discard, io.LimitReader(connection, 64<<10))
	return err
}

// readOnly lets GET and HEAD through.
func readOnly(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "pages are for looking only", http.StatusMethodNotAllowed)
			return
		}
		pages.ServeHTTP(w, r)
	})
}

// prefixed is a connection of which some bytes have been read already.
type prefixed struct {
	net.Conn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// handOver is a listener whose connections were accepted elsewhere.
type handOver struct {
	address     net.Addr
	connections chan net.Conn
	closed      chan struct{}
	once        sync.Once
}

func newHandOver(address net.Addr) *handOver {
	return &handOver{address: address, connections: make(chan net.Conn), closed: make(chan struct{})}
}

func (h *handOver) give(connection net.Conn) error {
	select {
	case h.connections <- connection:
		return nil
	case <-h.closed:
		return net.ErrClosed
	}
}

// Accept, Close and Addr are those of net.Listener.
func (h *handOver) Accept() (net.Conn, error) {
	select {
	case connection := <-h.connections:
		return connection, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handOver) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handOver) Addr() net.Addr { return h.address }

// muxCredentials tell gRPC what the Mux has found out: the handshake is done.
type muxCredentials struct{}

// plaintext is the AuthInfo of a connection without TLS.
type plaintext struct{ credentials.CommonAuthInfo }

func (plaintext) AuthType() string { return "plaintext" }

func (muxCredentials) ServerHandshake(connection net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, ok := connection.(*tls.Conn)
	if !ok {
		return connection, plaintext{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
	}
	return connection, credentials.TLSInfo{
		State:          secure.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (muxCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("only for servers")
}

func (muxCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls", SecurityVersion: "1.3"}
}

func (c muxCredentials) Clone() credentials.TransportCredentials { return c }

func (muxCredentials) OverrideServerName(string) error { return errors.New("only for servers") }
