package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/plan"
	installing "github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/receipt"
	"github.com/firstlight/firstlight/tools/pki"
)

// TestMachineVerify compares a root with its receipt, and says whom it believes.
func TestMachineVerify(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	l.must(t, "image", "add", "debian/12/1", root)
	var shown struct {
		Name   string        `json:"name"`
		Digest object.Digest `json:"digest"`
	}
	decode(t, l.must(t, "image", "show", "debian/12", "--output", "json"), &shown)

	l.must(t, "keys", "issue", "installer", "--server", "--address", "10.0.2.15")
	secrets := pki.Directory(l.site)
	own, err := tls.LoadX509KeyPair(filepath.Join(secrets, "installer.pem"), filepath.Join(secrets, "installer-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	ephemeral, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("etc/hostname", "web1\n")
	r := receipt.Receipt{
		Machine: plan.Machine{Hostname: "web1.example.com", MACs: []string{}}, Image: plan.ImageSummary{Name: "debian/12/1", Digest: shown.Digest},
		Plan: "sha256:ab", Objects: []installing.SourceStatus{}, Disks: []receipt.Disk{{Path: "/dev/vda", Serial: "S1", Result: "erased", Volumes: []receipt.Volume{}}},
		Files: []receipt.Written{receipt.WrittenFile("/etc/hostname", 0o644, []byte("web1\n"), false)}, Began: time.Now(), Ended: time.Now(),
	}
	sign := func(certificate []byte, key crypto.PrivateKey) {
		t.Helper()
		document, err := r.Sign(certificate, key.(crypto.Signer))
		if err != nil {
			t.Fatal(err)
		}
		write("var/log/installer/receipt.json", string(document))
	}
	verify := func(want int, says string, args ...string) {
		t.Helper()
		stdout, stderr, code := l.run(t, append([]string{"machine", "verify", "web1", "--root", root}, args...)...)
		if code != want || !strings.Contains(stdout+stderr, says) {
			t.Errorf("verify %q: exit %d, want %d; it says not %q:\n%s%s", args, code, want, says, stdout, stderr)
		}
	}
	sign(own.Certificate[0], own.PrivateKey)
	verify(0, "as it was installed")
	verify(0, "signed by installer of the site's CA")
	if _, stderr, code := l.run(t, "machine", "verify", "web2", "--root", root); code != exitRefused {
		t.Errorf("another machine's receipt: exit %d, %s", code, stderr)
	}
	write("etc/cron.d/evil", "x")
	verify(exitDamaged, "/etc/cron.d")
	verify(0, "as it was installed", "--ignore", "/etc/cron.d")
	if err := os.RemoveAll(filepath.Join(root, "etc/cron.d")); err != nil {
		t.Fatal(err)
	}

	sign(ephemeral, key)
	verify(exitTrust, "nobody vouches for")
	parsed, err := x509.ParseCertificate(ephemeral)
	if err != nil {
		t.Fatal(err)
	}
	verify(0, "as it was installed", "--fingerprint", receipt.Fingerprint(parsed))
	verify(exitTrust, "and not by", "--fingerprint", "SHA256:00")
	// What the site server has kept counts before what lies on the disk.
	document, err := os.ReadFile(filepath.Join(root, "var/log/installer/receipt.json"))
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(l.site, "state", "machines", "web1")
	if err := errors.Join(os.MkdirAll(kept, 0o755), os.WriteFile(filepath.Join(kept, "receipt.json"), document, 0o644)); err != nil {
		t.Fatal(err)
	}
	write("var/log/installer/receipt.json", "changed")
	verify(0, "kept by the site server")
	if err := os.WriteFile(filepath.Join(kept, "receipt.json"), append(document[:len(document)/2:len(document)/2], []byte("x\"}")...), 0o644); err != nil {
		t.Fatal(err)
	}
	verify(exitTrust, "TRU-040")
}
