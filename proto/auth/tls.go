package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"
)

// Error is a failure of trust that a user can meet.
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

// Code is the stable code, TRU-… or SRV-….
func (e *Error) Code() string { return e.code }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// The codes of this package; docs/errors.md explains each.
const (
	codeFiles   = "TRU-008" // certificate, key or CA unreadable or not fitting
	codeExpired = "TRU-009" // our own certificate is outside its time
)

// alpnHTTP and alpnGRPC are the application protocols of a port (RFC 7301). A
// gRPC client offers h2 only; a browser or curl offers http/1.1 as well and
// gets it, so pages never reach gRPC's server.
const (
	alpnHTTP = "http/1.1"
	alpnGRPC = "h2"
)

// ServerTLS is a server's TLS 1.3 configuration: its certificate and key, and
// the CA that client certificates must be signed by. With clientCA empty no
// client certificate is asked for, so no peer has a role. With
// requireClientCert a peer without a certificate is refused at the handshake.
// The files are PEM. The error is an *Error, also where the certificate has
// expired.
func ServerTLS(cert, key, clientCA string, requireClientCert bool, now time.Time) (*tls.Config, error) {
	pair, err := loadPair(cert, key, now)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{pair},
		NextProtos:   []string{alpnHTTP, alpnGRPC},
	}
	switch {
	case clientCA != "":
		if config.ClientCAs, err = LoadCA(clientCA); err != nil {
			return nil, err
		}
		config.ClientAuth = tls.VerifyClientCertIfGiven
		if requireClientCert {
			config.ClientAuth = tls.RequireAndVerifyClientCert
		}
	case requireClientCert:
		return nil, &Error{code: codeFiles, text: "client certificates cannot be required without the CA that signs them"}
	}
	return config, nil
}

// ServerTLSWith is ServerTLS for a server whose certificate may be issued again
// while it runs: certificate is asked for at each handshake. clientCA is a PEM
// file.
func ServerTLSWith(certificate func() (*tls.Certificate, error), clientCA string) (*tls.Config, error) {
	pool, err := LoadCA(clientCA)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		NextProtos:     []string{alpnHTTP, alpnGRPC},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate() },
		ClientCAs:      pool,
		ClientAuth:     tls.VerifyClientCertIfGiven,
	}, nil
}

// ClientTLS is a client's TLS 1.3 configuration: the CA that server
// certificates must be signed by and, unless cert and key are empty, the
// client's own certificate. The files are PEM. The error is an *Error.
func ClientTLS(ca, cert, key string, now time.Time) (*tls.Config, error) {
	pool, err := LoadCA(ca)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if cert == "" && key == "" {
		return config, nil
	}
	pair, err := loadPair(cert, key, now)
	if err != nil {
		return nil, err
	}
	config.Certificates = []tls.Certificate{pair}
	return config, nil
}

// LoadCA reads the certificates of a PEM file. The error is an *Error.
func LoadCA(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, &Error{code: codeFiles, text: "reading the CA", err: err}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, &Error{code: codeFiles, text: file + " holds no PEM certificate"}
	}
	return pool, nil
}

func loadPair(cert, key string, now time.Time) (tls.Certificate, error) {
	if cert == "" || key == "" {
		return tls.Certificate{}, &Error{code: codeFiles, text: "a certificate and its key must be given together"}
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, &Error{code: codeFiles, text: fmt.Sprintf("reading certificate %s with key %s", cert, key), err: err}
	}
	if now.After(pair.Leaf.NotAfter) {
		return tls.Certificate{}, &Error{code: codeExpired, text: fmt.Sprintf("certificate %s expired on %s", cert, pair.Leaf.NotAfter.UTC().Format(time.DateOnly)),
			err: errors.New("issue a new one: firstlight keys issue")}
	}
	if now.Before(pair.Leaf.NotBefore) {
		return tls.Certificate{}, &Error{code: codeExpired, text: fmt.Sprintf("certificate %s is valid from %s only, and the clock says %s", cert,
			pair.Leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))}
	}
	return pair, nil
}
