package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/proto/auth"
)

// pageTLS is the TLS configuration of port 6978, nil where none is spoken. A
// certificate that was given is used or, where it is expired or unreadable,
// missed: it is never replaced by one that nobody has signed.
func (i *installation) pageTLS() (*tls.Config, error) {
	files := i.env.trust
	ca, err := existing(files.ca)
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	switch _, err := os.Stat(files.cert); {
	case err == nil:
		config, err := auth.ServerTLS(files.cert, files.key, ca, false, i.startTime())
		if err != nil {
			return nil, fmt.Errorf("the given certificate %s is not used, nor another one in its place: %w", files.cert, err)
		}
		config.Time = i.startTime
		return config, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case !i.opt.generateMissingCert:
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1", "h2"}, Time: i.startTime}
	if ca != "" {
		if config.ClientCAs, err = auth.LoadCA(ca); err != nil {
			return nil, err
		}
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	pair, err := ephemeralCertificate(i.startTime())
	if err != nil {
		return nil, err
	}
	config.Certificates = []tls.Certificate{pair}
	fingerprint := fingerprintOf(pair)
	i.model.Describe(func(f *progress.Facts) { f.Fingerprint = fingerprint })
	i.model.Logf(progress.Clock, "the certificate of port %d was made for this start: %s", i.opt.port, fingerprint)
	return config, nil
}

// startTime is the time as the clock phase is about to set it. The page opens
// before that, and certificates are judged, and made, by the time at which they
// are used.
func (i *installation) startTime() time.Time {
	now := i.env.now()
	if floor, err := clockFloor(buildTimestamp); err == nil && now.Before(floor) {
		return floor
	}
	return now // an error is the clock phase's to report
}

// existing is file, or empty where it is not there.
func existing(file string) (string, error) {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return file, err
}

// ephemeralLifetime is longer than any installation; clockSkew lets a reader
// whose clock is behind accept it too.
const (
	ephemeralLifetime = 7 * 24 * time.Hour
	clockSkew         = 24 * time.Hour
)

// ephemeralCertificate is signed by itself and lives as long as the process.
// Who uses it compares its fingerprint with the one on the console.
func ephemeralCertificate(now time.Time) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the key of the status page: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Firstlight installer"},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     now.Add(ephemeralLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making the certificate of the status page: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// fingerprintOf is the SHA-256 of a certificate's DER, as people compare it.
func fingerprintOf(pair tls.Certificate) string {
	sum := sha256.Sum256(pair.Certificate[0])
	return "SHA256:" + hex.EncodeToString(sum[:])
}
