package main

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/trust"
)

// signedSite is a boot medium that trusts one key, and a directory with what
// that key has signed for a machine of serial number S1.
func signedSite(t *testing.T) (i *installation, log *strings.Builder, directory string) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	i, log = testInstallation(t)
	i.env.trust.keys, directory = t.TempDir(), t.TempDir()
	i.env.sys = fstest.MapFS{"class/dmi/id/product_serial": {Data: []byte("S1\n")}}
	public, err := trust.FormatPublicKey(key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(i.env.trust.keys, "ann.pub"), public)
	raw, err := trust.Bundle{
		Name: "node1", Binding: trust.Binding{Serial: "S1"}, Sequence: 1,
		Signed: time.Now().Add(-time.Hour), Expires: time.Now().Add(time.Hour),
		Image:        trust.Pinned{Name: "debian/12", Digest: "sha256:" + strings.Repeat("ab", 32)},
		ImageServers: []string{"one:6971", "two:6971"},
		Files:        map[string][]byte{"config.json": []byte(`{"Machine":{"Hostname":"node1"}}`)},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	sig, err := trust.Sign(raw, nil, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(directory, trust.BundleFile), raw)
	writeFile(t, filepath.Join(directory, trust.SignatureFile), sig)
	return i, log, directory
}

func TestSignedConfigurationIsUsed(t *testing.T) {
	i, log, directory := signedSite(t)
	// What lies beside it, unsigned, counts for nothing.
	writeFile(t, filepath.Join(directory, "config.json"), []byte(`{"Machine":{"Hostname":"other"}}`))
	writeFile(t, filepath.Join(directory, "imagename"), []byte("other\n"))
	if err := i.configFromBoard(t.Context(), directory); err != nil {
		t.Fatal(err)
	}
	if i.config.Network.Hostname != "node1" || i.config.Image != "debian/12@sha256:"+strings.Repeat("ab", 32) || strings.Join(i.config.ImageServers, " ") != "one:6971 two:6971" {
		t.Errorf("got %+v", i.config)
	}
	if !strings.Contains(log.String(), "the bundle of node1, sequence 1, is signed by ") {
		t.Errorf("the log does not say who signed:\n%s", log)
	}
}

// A bundle that lies alone in the medium is its configuration, and no server is
// asked for another; where nobody is trusted it is none.
func TestBundleAloneIsOnBoard(t *testing.T) {
	i, _, directory := signedSite(t)
	i.opt.tftpDirectory = directory
	if found, err := i.onBoard(t.Context()); err != nil || found != directory {
		t.Errorf("got %q, %v", found, err)
	}
	other, _ := testInstallation(t, "-tftpDirectory="+directory)
	other.env.trust.keys = filepath.Join(t.TempDir(), "absent")
	if found, err := other.onBoard(t.Context()); err != nil || found != "" {
		t.Errorf("without keys: got %q, %v", found, err)
	}
}

func TestUntrustedConfigurationIsRefused(t *testing.T) {
	change := func(name string, f func(string) string) func(*testing.T, *installation, string) {
		return func(t *testing.T, _ *installation, directory string) {
			data, err := os.ReadFile(filepath.Join(directory, name))
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(directory, name), []byte(f(string(data))))
		}
	}
	remove := func(name string) func(*testing.T, *installation, string) {
		return func(t *testing.T, _ *installation, directory string) {
			if err := os.Remove(filepath.Join(directory, name)); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(directory, "config.json"), []byte(`{}`))
			writeFile(t, filepath.Join(directory, "imagename"), []byte("other\n"))
		}
	}
	for name, test := range map[string]struct {
		code  string
		spoil func(*testing.T, *installation, string)
	}{
		"no bundle":           {trust.CodeUnsigned, remove(trust.BundleFile)},
		"no signature":        {trust.CodeUnsigned, remove(trust.SignatureFile)},
		"a changed digest":    {trust.CodeSignature, change(trust.BundleFile, func(s string) string { return strings.Replace(s, "abab", "baba", 1) })},
		"a changed signature": {trust.CodeSignatures, change(trust.SignatureFile, func(s string) string { return s + " " })},
		"another machine":     {trust.CodeMachine, func(_ *testing.T, i *installation, _ string) { i.env.sys = fstest.MapFS{} }},
		"expired": {trust.CodeExpired, func(_ *testing.T, i *installation, _ string) {
			i.env.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
		}},
		"expired, and the clock was set back": {trust.CodeExpired, func(_ *testing.T, i *installation, _ string) {
			i.started = time.Now().Add(2 * time.Hour)
		}},
		"a broken trust key": {trust.CodeKeys, func(t *testing.T, i *installation, _ string) {
			writeFile(t, filepath.Join(i.env.trust.keys, "bob.pub"), []byte("x"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			i, _, directory := signedSite(t)
			test.spoil(t, i, directory)
			if err := i.configFromBoard(t.Context(), directory); progress.Code(err) != test.code {
				t.Errorf("got %v, want %s", err, test.code)
			}
		})
	}
}

func TestUnsignedConfigurationIsSaidOnce(t *testing.T) {
	i, log := testInstallation(t)
	i.env.trust.keys = filepath.Join(t.TempDir(), "absent")
	directory := t.TempDir()
	writeFile(t, filepath.Join(directory, "config.json"), []byte(`{}`))
	writeFile(t, filepath.Join(directory, "imagename"), []byte("debian/12\n"))
	for range 2 {
		if err := i.configFromBoard(t.Context(), directory); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "believed unsigned"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, log)
	}
}
