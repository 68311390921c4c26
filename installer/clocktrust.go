package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/proto/auth"
)

// tlsTime is the time at which certificates of servers are judged: the clock's,
// or the one that agreeOnTime has found.
func (i *installation) tlsTime() time.Time {
	if at := i.judgedAt.Load(); at != nil {
		return *at
	}
	return i.env.now()
}

// agreeOnTime calls do, which speaks TLS with address (host:port), and sees to
// it that a real-time clock that is wrong is no reason to refuse a server. Where
// a certificate does not fit the clock, and no time server has been heard, do is
// called once more with certificates judged at the earliest time that it can be:
// that at which the last of the server's chain was issued, or the boot image was
// made. Everything else about them is judged as ever, and one that ended before
// the boot image was made is refused by any clock.
func (i *installation) agreeOnTime(ctx context.Context, address string, do func() error) error {
	err := do()
	if !outsideItsTime(err) || i.timeKnown || i.judgedAt.Load() != nil {
		return err
	}
	chain, asking := certificatesOf(ctx, address)
	if asking != nil || len(chain) == 0 {
		return err
	}
	at := earliest(chain, i.builtAt())
	i.judgedAt.Store(&at)
	if do() != nil {
		i.judgedAt.Store(nil)
		return err
	}
	i.model.Warn(progress.Config, fmt.Sprintf("the clock says %s, the certificate of %s is valid from %s to %s, and no time server is there: the clock is taken to be wrong",
		i.env.now().UTC().Format(time.RFC3339), address, chain[0].NotBefore.UTC().Format(time.RFC3339), chain[0].NotAfter.UTC().Format(time.RFC3339)))
	return nil
}

// agreeOnTimeOf does so with a web server, to which nothing is said yet: where
// it cannot be reached, or not trusted, whoever asks it next will say so.
func (i *installation) agreeOnTimeOf(ctx context.Context, web string, config *tls.Config) {
	u, err := url.Parse(web)
	if err != nil || u.Scheme != "https" {
		return
	}
	address := u.Host
	if u.Port() == "" {
		address = net.JoinHostPort(u.Hostname(), "443")
	}
	_ = i.agreeOnTime(ctx, address, func() error { // see above
		ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
		defer cancel()
		conn, err := (&tls.Dialer{Config: config.Clone()}).DialContext(ctx, "tcp", address)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
}

// outsideItsTime says that the one fault of a server's certificate is its time.
func outsideItsTime(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

// handshakeLimit is how long a server may take to show its certificate, where
// nothing else is wanted of it.
const handshakeLimit = 10 * time.Second

// certificatesOf are those that a server shows; they are not trusted, and
// nothing is said to it.
func certificatesOf(ctx context.Context, address string) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close() // nothing was said
	var chain []*x509.Certificate
	enough := errors.New("the certificates are all that is wanted")
	client := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"},
		VerifyConnection: func(state tls.ConnectionState) error {
			chain = state.PeerCertificates
			return enough
		}})
	if err := client.HandshakeContext(ctx); !errors.Is(err, enough) {
		return nil, err
	}
	return chain, nil
}

// earliest is the first time, not before floor, at which all of a chain had
// been issued.
func earliest(chain []*x509.Certificate, floor time.Time) time.Time {
	at := floor
	for _, certificate := range chain {
		if certificate.NotBefore.After(at) {
			at = certificate.NotBefore
		}
	}
	return at
}

// builtAt is the time at which the boot image was made; the zero time where
// that is not known.
func (i *installation) builtAt() time.Time {
	floor, err := clockFloor(buildTimestamp)
	if err != nil {
		return time.Time{} // the clock phase has reported it
	}
	return floor
}

// ownTime is the time at which the installer's own certificate is judged before
// it is shown: the server has a clock of its own.
func (i *installation) ownTime(cert, key string) time.Time {
	now := i.env.now()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil || i.timeKnown {
		return now // what is wrong with it is told where it is used
	}
	if now.Before(pair.Leaf.NotBefore) || now.After(pair.Leaf.NotAfter) {
		return earliest([]*x509.Certificate{pair.Leaf}, i.builtAt())
	}
	return now
}

// clientTLSWith is auth.ClientTLS for a machine whose clock may be wrong.
func (i *installation) clientTLSWith(ca, cert, key string) (*tls.Config, error) {
	config, err := auth.ClientTLS(ca, cert, key, i.ownTime(cert, key))
	if err != nil {
		return nil, err
	}
	config.Time = i.tlsTime
	return config, nil
}
