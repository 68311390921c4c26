package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/proto/imageserver/bulk"
)

// stillWaits is how many times the stall limit a server may only say that it is
// about to send something: it may have to wait for its turn, for a disk or for a
// server of its own, and perhaps in vain.
const stillWaits = 10

// idleConnections is how many connections are kept for the next request.
const idleConnections = 8

// bulkTransport gets objects over HTTP/1.1, on connections of their own, at a
// fraction of what gRPC costs.
type bulkTransport struct {
	http *http.Client
	url  string

	mutex sync.Mutex
	// without is set when the server turned out to be older than this way.
	without bool
	// got are the objects that came. Who asks for one again found it damaged,
	// and the server shall look closely.
	got map[object.Digest]struct{}
}

// newBulk is the transport for c, which connects by itself. A server that sends
// nothing for a while, not even that it is waiting, is taken for dead.
func newBulk(c *Client) *bulkTransport {
	silence := c.options.KeepaliveTime + c.options.KeepaliveTimeout
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, c.options.ConnectTimeout)
		defer cancel()
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", c.address)
		if err != nil {
			c.handshakes.record(err)
			return nil, err
		}
		connection = &impatient{Conn: connection, silence: silence}
		if c.options.TLS == nil {
			return connection, nil
		}
		config := c.options.TLS.Clone()
		config.NextProtos = []string{"http/1.1"}
		if config.ServerName == "" {
			host, _, err := net.SplitHostPort(c.address)
			if err != nil {
				return nil, errors.Join(err, connection.Close())
			}
			config.ServerName = host
		}
		secure := tls.Client(connection, config)
		if err := secure.HandshakeContext(ctx); err != nil {
			c.handshakes.record(err)
			return nil, errors.Join(err, connection.Close())
		}
		return secure, nil
	}
	scheme := "http://"
	if c.options.TLS != nil {
		scheme = "https://"
	}
	return &bulkTransport{
		url: scheme + c.address + bulk.Path,
		got: make(map[object.Digest]struct{}),
		http: &http.Client{
			Transport: &http.Transport{
				DialContext: dial, DialTLSContext: dial,
				DisableCompression: true, MaxIdleConnsPerHost: idleConnections, IdleConnTimeout: time.Minute,
				MaxResponseHeaderBytes: 64 << 10, WriteBufferSize: 64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func (b *bulkTransport) close() { b.http.CloseIdleConnections() }

// usable says whether the server is believed to have this way.
func (b *bulkTransport) usable() bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return !b.without
}

// again says whether one of the objects came before, and forgets that.
func (b *bulkTransport) again(digests []object.Digest) bool {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	again := false
	for _, digest := range digests {
		if _, came := b.got[digest]; came {
			again = true
			delete(b.got, digest)
		}
	}
	return again
}

func (b *bulkTransport) note(digests []object.Digest) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	for _, digest := range digests {
		b.got[digest] = struct{}{}
	}
}

// errNoBulk says that the server is older than this way; nothing has come.
var errNoBulk = errors.New("the server knows no bulk answers")

// fetchBulk is fetchBatch over HTTP/1.1.
func (c *Client) fetchBulk(ctx context.Context, digests []object.Digest, wanted map[object.Digest]*arriving, f func(object.Piece) error) error {
	const doing = "fetching objects"
	ctx, stall, cancel := c.watch(ctx, doing)
	defer cancel()
	url := c.bulk.url
	if c.bulk.again(digests) {
		url += "?" + bulk.Verify + "=full"
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(joinDigests(digests)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", bulk.RequestType)
	stall.begin()
	answer, err := c.bulk.http.Do(request)
	stall.end()
	if err != nil {
		return c.failed(ctx, doing, status.Error(codes.Unavailable, plain(err)))
	}
	defer answer.Body.Close() // what it has to say is known by then
	if err := c.refusedBulk(answer); err != nil {
		if err == errNoBulk {
			return err
		}
		return c.failed(ctx, doing, err)
	}
	var came []object.Digest
	defer func() { c.bulk.note(came) }()
	reader := bulk.NewReader(answer.Body, digests)
	last := time.Now() // when a piece came
	for {
		stall.begin()
		pieces, err := reader.Next()
		stall.end()
		if err == io.EOF {
			break
		}
		if err != nil {
			return c.brokenBulk(ctx, doing, err)
		}
		for _, piece := range pieces {
			if err := wanted[piece.Digest].accept(piece); err != nil {
				return &Error{CodeWrongAnswer, doing, err}
			}
			if piece.Last() {
				came = append(came, piece.Digest)
			}
			if err := f(piece); err != nil {
				return err
			}
		}
		if limit := stillWaits * c.options.Stall; len(pieces) > 0 {
			last = time.Now()
		} else if time.Since(last) > limit {
			return &Error{CodeLost, fmt.Sprintf("%s: image server %s sent no object for %s, only that it is there", doing, c.address, limit), nil}
		}
	}
	if missing := len(digests) - len(came); missing > 0 {
		return &Error{CodeWrongAnswer, doing, fmt.Errorf("%d of %d objects did not come", missing, len(digests))}
	}
	// Reading to the end of the body lets the connection be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(answer.Body, 1))
	return nil
}

// refusedBulk reads an answer that carries no objects.
func (c *Client) refusedBulk(answer *http.Response) error {
	if answer.StatusCode == http.StatusOK {
		if got := answer.Header.Get("Content-Type"); got != bulk.AnswerType {
			return status.Errorf(codes.Unimplemented, "its answer is of the type %q, wanted %q", got, bulk.AnswerType)
		}
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
	if err != nil {
		return status.Error(codes.Unavailable, plain(err))
	}
	said := strings.TrimSpace(string(text))
	switch answer.StatusCode {
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		c.bulk.mutex.Lock()
		c.bulk.without = true
		c.bulk.mutex.Unlock()
		return errNoBulk
	case http.StatusUnauthorized:
		return status.Error(codes.Unauthenticated, said)
	case http.StatusForbidden:
		return status.Error(codes.PermissionDenied, said)
	case http.StatusBadRequest:
		return status.Error(codes.InvalidArgument, said)
	case http.StatusServiceUnavailable:
		return status.Error(codes.ResourceExhausted, said)
	}
	return status.Errorf(codes.Internal, "%s: %s", answer.Status, said)
}

// brokenBulk is the error of an answer that did not end well.
func (c *Client) brokenBulk(ctx context.Context, doing string, err error) error {
	var failure *bulk.Failure
	switch {
	case errors.As(err, &failure):
		return c.failed(ctx, doing, status.Error(codes.Code(failure.Code), failure.Text))
	case errors.Is(err, bulk.ErrMalformed):
		return &Error{CodeWrongAnswer, doing, err}
	case isAlert(err):
		c.handshakes.record(err)
	}
	return c.failed(ctx, doing, status.Error(codes.Unavailable, plain(err)))
}

// plain is the text of a broken connection in a user's words.
func plain(err error) string {
	var timeout net.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout():
		return "it sent nothing for too long"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "it was cut off"
	}
	return err.Error()
}

// impatient is a connection whose reads end when nothing comes for a while.
type impatient struct {
	net.Conn
	silence time.Duration
	until   time.Time
}

// Read moves the deadline only when it has come a good deal closer: it is called
// thousands of times a second. One goroutine reads a connection at a time.
func (i *impatient) Read(p []byte) (int, error) {
	if now := time.Now(); i.until.Sub(now) < i.silence*3/4 {
		i.until = now.Add(i.silence)
		if err := i.Conn.SetReadDeadline(i.until); err != nil {
			return 0, err
		}
	}
	return i.Conn.Read(p)
}

// Write gives a read that waits already its full time again: on a connection
// that is kept for the next request, it has waited since the last answer.
func (i *impatient) Write(p []byte) (int, error) {
	if err := i.Conn.SetReadDeadline(time.Now().Add(i.silence)); err != nil {
		return 0, err
	}
	return i.Conn.Write(p)
}
