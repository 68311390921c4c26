package serve

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
)

// eitherListener accepts TLS and plain connections on one port: the first byte of
// TLS is a handshake record's, 0x16 (RFC 8446, 5.1), with which no HTTP request
// begins. Firmware boots plainly; the installer, which has the site's CA, speaks
// TLS.
type eitherListener struct {
	net.Listener
	config *tls.Config
}

// Accept does not wait for the first byte: who is silent holds up nobody else.
func (l *eitherListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &eitherConn{Conn: conn, config: l.config}, nil
}

// eitherConn finds out at the first read what it is. How long that may take is the
// web server's affair, which sets the deadlines.
type eitherConn struct {
	net.Conn
	config *tls.Config
	once   sync.Once
	inner  net.Conn
	err    error
}

func (c *eitherConn) decide() (net.Conn, error) {
	c.once.Do(func() {
		var first [1]byte
		if _, c.err = io.ReadFull(c.Conn, first[:]); c.err != nil {
			return
		}
		c.inner = &prefixed{Conn: c.Conn, first: first[:]}
		if first[0] == 0x16 {
			c.inner = tls.Server(c.inner, c.config)
		}
	})
	return c.inner, c.err
}

func (c *eitherConn) Read(b []byte) (int, error) {
	inner, err := c.decide()
	if err != nil {
		return 0, err
	}
	return inner.Read(b)
}

func (c *eitherConn) Write(b []byte) (int, error) {
	inner, err := c.decide()
	if err != nil {
		return 0, err
	}
	return inner.Write(b)
}

// prefixed is a connection of which some bytes have been read already.
type prefixed struct {
	net.Conn
	first []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
