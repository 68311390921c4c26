package pki

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/firstlight/firstlight/installer/trust"
)

// Signers and the escrow identity lie in the secrets directory too:
//
//	signers/NAME.pub      a public key that boot media trust; it is no secret
//	signers/NAME.key      its private key (0600): who has it decides what machines become
//	escrow.pub            the age recipient that machines encrypt recovery keys to; no secret
//	escrow.key            its identity (0600): it opens recovery keys, and belongs off line
const (
	signersDirectory = "signers"
	EscrowFile       = "escrow.pub"
	EscrowKeyFile    = "escrow.key"
)

// Signer is a key that bundles are signed with.
type Signer struct {
	Name   string      `json:"name"`
	ID     trust.KeyID `json:"id"`
	Public string      `json:"public"` // path
	Key    string      `json:"key"`    // path
	New    bool        `json:"new"`    // made by this call
}

func signerFiles(dir, name string) Signer {
	at := filepath.Join(dir, signersDirectory, name)
	return Signer{Name: name, Public: at + ".pub", Key: at + ".key"}
}

// InitSigner makes a signer unless it is there. It never replaces one.
func InitSigner(dir, name string) (Signer, error) {
	if err := checkRequest(Request{Name: name}); err != nil {
		return Signer{}, err
	}
	if err := os.MkdirAll(filepath.Join(dir, signersDirectory), 0o700); err != nil {
		return Signer{}, fmt.Errorf("making the signers' directory: %w", err)
	}
	s := signerFiles(dir, name)
	key, err := OpenSigner(dir, name)
	if err == nil {
		s.ID = trust.IDOf(key.Public().(ed25519.PublicKey))
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return s, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return s, err
	}
	text, err := trust.FormatPublicKey(public)
	if err != nil {
		return s, err
	}
	// The private key first: a public one without it could never sign.
	if err := writePEM(s.Key, 0o600, "PRIVATE KEY", der); err != nil {
		return s, err
	}
	if err := writeNew(s.Public, 0o644, text); err != nil {
		return s, errors.Join(err, os.Remove(s.Key))
	}
	s.ID, s.New = trust.IDOf(public), true
	return s, nil
}

// OpenSigner reads a signer's private key. The error wraps fs.ErrNotExist where
// there is none.
func OpenSigner(dir, name string) (ed25519.PrivateKey, error) {
	file := signerFiles(dir, name).Key
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, &Error{code: CodeNoSigner, text: fmt.Sprintf("there is no signer %q; make it: firstlight keys init --signer %s", name, name), err: err}
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, &Error{code: CodeNoSigner, text: file + " is not a PEM file"}
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, &Error{code: CodeNoSigner, text: "reading " + file, err: err}
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, &Error{code: CodeNoSigner, text: file + " is not an Ed25519 key"}
	}
	return key, nil
}

// TrustKeys are the public keys of all signers of a site, by file name.
func TrustKeys(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, signersDirectory, "*.pub"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	return files, nil
}

// Escrow is what recovery keys are encrypted to.
type Escrow struct {
	Recipient string `json:"recipient"` // age1…
	File      string `json:"file"`      // path of the recipient
	Key       string `json:"key"`       // path of the identity
	New       bool   `json:"new"`
}

// InitEscrow makes the site's escrow identity unless its recipient is there:
// the identity itself may, and should, have been taken off line.
func InitEscrow(dir string) (Escrow, error) {
	e := Escrow{File: filepath.Join(dir, EscrowFile), Key: filepath.Join(dir, EscrowKeyFile)}
	text, err := os.ReadFile(e.File)
	if err == nil {
		recipient, err := age.ParseX25519Recipient(strings.TrimSpace(string(text)))
		if err != nil {
			return e, fmt.Errorf("reading %s: %w", e.File, err)
		}
		e.Recipient = recipient.String()
		return e, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return e, err
	}
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return e, err
	}
	e.Recipient, e.New = identity.Recipient().String(), true
	if err := writeNew(e.Key, 0o600, []byte(identity.String()+"\n")); err != nil {
		return e, err
	}
	return e, writeNew(e.File, 0o644, []byte(e.Recipient+"\n"))
}
