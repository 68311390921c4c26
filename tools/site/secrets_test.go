package site

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/receipt"
)

func TestSecretsStayInTheirDirectory(t *testing.T) {
	s := open(t)
	write(t, s, map[string]string{
		"machines/web1/machine.yaml": "endorsement-key: abcd\n", "secrets/machines/web1/etc/token": "secret", "secrets/ca-key.pem": "KEY",
	})
	if err := os.Symlink("../../../ca-key.pem", filepath.Join(s.Dir(), "secrets/machines/web1/etc/link")); err != nil {
		t.Fatal(err)
	}
	key, files, err := s.Secrets("web1", []string{"/etc/token", "/etc/none", "/../../ca-key.pem"})
	if err != nil || key != "abcd" || len(files) != 1 || string(files["/etc/token"]) != "secret" {
		t.Errorf("%v: key %q, files %q", err, key, files)
	}
	if _, files, err := s.Secrets("web1", []string{"/etc/link"}); err == nil {
		t.Errorf("a link leads to %q", files)
	}
	if _, _, err := s.Secrets("other", nil); err == nil {
		t.Error("a machine that there is not has secrets")
	}
}

func TestFilesHaveTheSteps(t *testing.T) {
	s := open(t)
	write(t, s, map[string]string{
		"machines/web1/config.json": `{"Machine": {"Hostname": "web1"}, "Install": {"Steps": [{"Programme": "a.sh", "After": "plan"}]}}`, "machines/web1/steps/a.sh": "#!/bin/sh\n",
	})
	files, err := s.Files("web1")
	if err != nil || string(files["steps/a.sh"]) != "#!/bin/sh\n" {
		t.Errorf("%v, %q", err, files)
	}
}

func TestReceiptsAreChecked(t *testing.T) {
	s := open(t)
	if err := s.KeepReceipt("web1", []byte("{}")); err == nil {
		t.Error("something else is kept as a receipt")
	}
	if _, err := s.Receipt("../web1"); err == nil {
		t.Error("a path is a machine")
	}
}

// receiptOf is a receipt that anybody can make, with a certificate of his own.
func receiptOf(t *testing.T, plan string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	data, err := receipt.Receipt{Plan: plan}.Sign(der, key)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestReceiptStays: once a machine is installed its receipt is that of its
// installation, whatever is sent later in its name.
func TestReceiptStays(t *testing.T) {
	s, me := open(t), who(t, web1)
	real, forged := receiptOf(t, "sha256:aa"), receiptOf(t, "sha256:bb")
	for n, boot := range []string{"boot-1", "boot-2"} {
		if err := s.Approve("web1", "ann", n > 0); err != nil {
			t.Fatal(err)
		}
		claim(t, s, me, boot, Installing)
		if _, err := s.Receipt("web1"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the receipt of an earlier installation counts for this one: %v", err)
		}
		err := errors.Join(s.KeepReceipt("web1", forged), s.KeepReceipt("web1", real), s.Told("web1", snapshot(progress.Finish, progress.Done)), s.KeepReceipt("web1", real))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.KeepReceipt("web1", forged); code(err) != CodeState {
			t.Errorf("another receipt was taken: %v", err)
		}
		if kept, err := s.Receipt("web1"); err != nil || !bytes.Equal(kept, real) {
			t.Errorf("%v: the receipt is another one", err)
		}
	}
}

// TestWhoeverSendsForever fills neither the disk with recovery keys nor the audit
// trail with lines that cannot be read.
func TestWhoeverSendsForever(t *testing.T) {
	s := open(t)
	for range mostRecoveryKeys {
		write(t, s, map[string]string{"state/machines/web1/recovery/" + rand.Text() + ".json": "{}"})
	}
	if err := s.KeepRecovery("web1", []byte("{}")); code(err) != CodeState {
		t.Errorf("one more key was kept: %v", err)
	}
	if err := s.Note(Entry{Who: "ann", Verb: "name", Detail: strings.Repeat("52:54:00:00:00:01, ", 10_000)}); err != nil {
		t.Fatal(err)
	}
	if all, err := s.Audit(); err != nil || len(all) != 1 {
		t.Errorf("%d lines, %v", len(all), err)
	}
}
