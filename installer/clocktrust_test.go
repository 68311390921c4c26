package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// certifiedServer is a CA with a web server that has a certificate of it.
func certifiedServer(t *testing.T, ca, from, to time.Time) (*httptest.Server, []byte) {
	t.Helper()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	sign := func(template, parent *x509.Certificate, public any, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caKey, serverKey := key(), key()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: ca, NotAfter: ca.AddDate(20, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	rootDER := sign(root, root, caKey.Public(), caKey)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, NotBefore: from, NotAfter: to,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{sign(leaf, root, serverKey.Public(), caKey)}, PrivateKey: serverKey}}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
}

// A wrong clock is no reason to refuse the site's server, and no reason to
// accept another's; where a time server has spoken, the clock counts.
func TestAWrongClockRefusesNobody(t *testing.T) {
	now := time.Now()
	server, ca := certifiedServer(t, now.AddDate(-1, 0, 0), now.Add(-time.Hour), now.AddDate(1, 0, 0))
	_, otherCA := certifiedServer(t, now.AddDate(-1, 0, 0), now.Add(-time.Hour), now.AddDate(1, 0, 0))
	address := strings.TrimPrefix(server.URL, "https://")
	for _, test := range []struct {
		name      string
		clock     time.Time
		ca        []byte
		timeKnown bool
		trusted   bool
	}{
		{"the right clock", now, ca, false, true},
		{"before the CA was made", now.AddDate(-30, 0, 0), ca, false, true},
		{"after the certificate has ended", now.AddDate(3, 0, 0), ca, false, true},
		{"after the certificate has ended, said by a time server", now.AddDate(3, 0, 0), ca, true, false},
		{"another CA", now, otherCA, false, false},
		{"another CA and a wrong clock", now.AddDate(3, 0, 0), otherCA, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			i, log := testInstallation(t)
			i.env.trust, i.env.now, i.timeKnown = trustIn(t.TempDir()), func() time.Time { return test.clock }, test.timeKnown
			writeFile(t, i.env.trust.ca, test.ca)
			config, err := i.clientTLS()
			if err != nil {
				t.Fatal(err)
			}
			err = i.agreeOnTime(t.Context(), address, func() error {
				conn, err := (&tls.Dialer{Config: config}).DialContext(t.Context(), "tcp", address)
				if err == nil {
					err = conn.Close()
				}
				return err
			})
			if (err == nil) != test.trusted {
				t.Errorf("got %v, want it trusted: %v", err, test.trusted)
			}
			if told := strings.Contains(log.String(), "the clock is taken to be wrong"); told != (test.trusted && !test.clock.Equal(now)) {
				t.Errorf("said so: %v\n%s", told, log)
			}
			if !test.trusted && i.judgedAt.Load() != nil {
				t.Error("another time stays")
			}
		})
	}
}

func TestOwnCertificateAndAWrongClock(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name  string
		clock time.Time
		known bool
		good  bool
	}{
		{"right", now, false, true}, {"behind", now.AddDate(-10, 0, 0), false, true},
		{"ahead", now.AddDate(10, 0, 0), false, true}, {"ahead, said by a time server", now.AddDate(10, 0, 0), true, false},
	} {
		i, _ := testInstallation(t)
		i.env.trust, i.env.now, i.timeKnown = trustIn(t.TempDir()), func() time.Time { return test.clock }, test.known
		writePair(t, now, i.env.trust)
		_, ca := certifiedServer(t, now, now, now)
		writeFile(t, i.env.trust.ca, ca)
		if _, err := i.clientTLS(); (err == nil) != test.good {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

func TestTimeOfAServer(t *testing.T) {
	floor := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		now    time.Time
		offset time.Duration
		set    time.Time
		known  bool
	}{
		{"behind", floor, time.Hour, floor.Add(time.Hour), true},
		{"ahead", floor.AddDate(50, 0, 0), -49 * 365 * 24 * time.Hour, floor.AddDate(50, 0, 0).Add(-49 * 365 * 24 * time.Hour), true},
		{"right", floor.Add(time.Hour), time.Millisecond, time.Time{}, true},
		{"before the boot image", floor.Add(time.Hour), -2 * time.Hour, time.Time{}, false},
	} {
		var set time.Time
		i, log := testInstallation(t)
		i.env.now = func() time.Time { return test.now }
		i.env.setClock = func(to time.Time) error { set = to; return nil }
		i.setTime(test.offset, floor)
		if !set.Equal(test.set) || i.timeKnown != test.known {
			t.Errorf("%s: set to %s, known %v\n%s", test.name, set, i.timeKnown, log)
		}
	}
	i, _ := testInstallation(t)
	i.env.now = func() time.Time { return floor }
	i.env.setClock = func(time.Time) error { return errors.New("operation not permitted") }
	if i.setTime(time.Hour, floor); i.timeKnown {
		t.Error("a clock that could not be set is known")
	}
}

// A web server that takes the connection and then says nothing must not hold up
// the installation: the look at its time has an end.
func TestAskingForTheTimeEnds(t *testing.T) {
	now := time.Now()
	server, ca := certifiedServer(t, now.AddDate(-1, 0, 0), now.Add(-time.Hour), now.AddDate(1, 0, 0))
	server.TLS.ClientAuth = tls.RequestClientCert
	i, _ := testInstallation(t)
	i.env.trust = trustIn(t.TempDir())
	writeFile(t, i.env.trust.ca, ca)
	config, err := i.clientTLS()
	if err != nil {
		t.Fatal(err)
	}
	asked, ends := false, false
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		asked = true
		_, ends = info.Context().Deadline()
		return &tls.Certificate{}, nil
	}
	if i.agreeOnTimeOf(t.Context(), server.URL, config); !asked || !ends {
		t.Errorf("asked: %v, with an end: %v", asked, ends)
	}
}

// What the time server of a lease said is forgotten with the lease.
func TestTimeOfAUselessLease(t *testing.T) {
	floor := time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)
	clock := floor.Add(time.Hour)
	i, _ := testInstallation(t)
	i.env.now = func() time.Time { return clock }
	i.env.setClock = func(to time.Time) error { clock = to; return nil }
	takeBack := i.rememberTime()
	if err := takeBack(); err != nil || !clock.Equal(floor.Add(time.Hour)) {
		t.Errorf("nobody was heard, and the clock is %s (%v)", clock, err)
	}
	i.setTime(20*365*24*time.Hour, floor)
	if err := takeBack(); err != nil || i.timeKnown || clock.Before(floor.Add(time.Hour)) || clock.After(floor.AddDate(1, 0, 0)) {
		t.Errorf("the clock is %s, known %v (%v)", clock, i.timeKnown, err)
	}
}
