package pki

import (
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/firstlight/firstlight/installer/trust"
)

func TestSigner(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenSigner(dir, "ann"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before it was made: %v", err)
	}
	made, err := InitSigner(dir, "ann")
	if err != nil || !made.New {
		t.Fatalf("%+v, %v", made, err)
	}
	again, err := InitSigner(dir, "ann")
	if err != nil || again.New || again.ID != made.ID {
		t.Errorf("made again: %+v, %v", again, err)
	}
	if info, err := os.Stat(made.Key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the private key: %v, %v", info, err)
	}
	keys, err := TrustKeys(dir)
	if err != nil || len(keys) != 1 || keys[0] != made.Public {
		t.Fatalf("%v, %v", keys, err)
	}
	text, err := os.ReadFile(made.Public)
	if err != nil {
		t.Fatal(err)
	}
	public, err := trust.ParsePublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	private, err := OpenSigner(dir, "ann")
	if err != nil || !public.Equal(private.Public().(ed25519.PublicKey)) || trust.IDOf(public) != made.ID {
		t.Errorf("the keys are not a pair: %v", err)
	}
	if _, err := InitSigner(dir, "../ann"); err == nil {
		t.Error("a name with a path was taken")
	}
	if err := os.WriteFile(made.Key, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := InitSigner(dir, "ann"); err == nil {
		t.Error("a broken key was taken, or replaced")
	}
}

func TestEscrow(t *testing.T) {
	dir := t.TempDir()
	made, err := InitEscrow(dir)
	if err != nil || !made.New {
		t.Fatalf("%+v, %v", made, err)
	}
	text, err := os.ReadFile(made.Key)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := age.ParseX25519Identity(strings.TrimSpace(string(text)))
	if err != nil || identity.Recipient().String() != made.Recipient {
		t.Errorf("the identity does not fit: %v", err)
	}
	// The identity is off line now.
	if err := os.Remove(made.Key); err != nil {
		t.Fatal(err)
	}
	again, err := InitEscrow(dir)
	if err != nil || again.New || again.Recipient != made.Recipient {
		t.Errorf("made again: %+v, %v", again, err)
	}
	if _, err := os.Stat(made.Key); !errors.Is(err, fs.ErrNotExist) {
		t.Error("another identity was made")
	}
}
