package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writePair writes a self-signed certificate, made at a time, and its key.
func writePair(t *testing.T, made time.Time, files trustFiles) {
	t.Helper()
	pair, err := ephemeralCertificate(made)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, files.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}))
	writeFile(t, files.key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
}

func writeFile(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func trustIn(directory string) trustFiles {
	return trustFiles{filepath.Join(directory, "CA.pem"), filepath.Join(directory, "cert.pem"), filepath.Join(directory, "key.pem"), filepath.Join(directory, "trust")}
}

func TestGivenCertificateIsUsedOrMissedAndNeverReplaced(t *testing.T) {
	for name, test := range map[string]struct {
		write func(trustFiles)
		used  bool
	}{
		"good":                   {func(f trustFiles) { writePair(t, time.Now(), f) }, true},
		"expired":                {func(f trustFiles) { writePair(t, time.Now().AddDate(0, -1, 0), f) }, false},
		"unreadable":             {func(f trustFiles) { writeFile(t, f.cert, []byte("no certificate\n")); writeFile(t, f.key, nil) }, false},
		"without a key":          {func(f trustFiles) { writePair(t, time.Now(), f); os.Remove(f.key) }, false},
		"a CA that is none":      {func(f trustFiles) { writePair(t, time.Now(), f); writeFile(t, f.ca, []byte("no CA\n")) }, false},
		"only a CA that is none": {func(f trustFiles) { writeFile(t, f.ca, []byte("no CA\n")) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			i, log := testInstallation(t, "-portNum=0")
			i.env.trust = trustIn(t.TempDir())
			test.write(i.env.trust)
			closePage, err := i.openPage(t.Context(), func(error) {})
			if err != nil {
				t.Fatal(err)
			}
			defer closePage()
			address := fmt.Sprintf("127.0.0.1:%d", i.pagePort)
			if fingerprint := i.model.Snapshot().Facts.Fingerprint; fingerprint != "" {
				t.Errorf("a certificate %s was made in place of the given one", fingerprint)
			}
			connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
			if err == nil {
				connection.Close()
			}
			if (err == nil) != test.used {
				t.Errorf("TLS is spoken: %v; the certificate is to be used: %v", err, test.used)
			}
			if !test.used && !strings.Contains(log.String(), "speaks no TLS: ") {
				t.Errorf("nobody is told:\n%s", log)
			}
			get(t, http.DefaultClient, "http://"+address+"/healthz")
		})
	}
}

func TestWithACANothingButTLSIsSpoken(t *testing.T) {
	i, _ := testInstallation(t)
	i.env.trust = trustIn(t.TempDir())
	if config, err := i.clientTLS(); config != nil || err != nil {
		t.Errorf("without a CA: %v, %v", config, err)
	}
	writeFile(t, i.env.trust.ca, []byte("no CA\n"))
	if config, err := i.clientTLS(); config != nil || err == nil {
		t.Errorf("with a CA that cannot be read: %v, %v; it must be an error, and no plain text", config, err)
	}
	writePair(t, time.Now(), trustFiles{cert: i.env.trust.ca, key: filepath.Join(t.TempDir(), "key")})
	config, err := i.clientTLS()
	if err != nil || config == nil || config.MinVersion != tls.VersionTLS13 || config.RootCAs == nil || config.InsecureSkipVerify {
		t.Errorf("with a CA: %+v, %v", config, err)
	}
}
