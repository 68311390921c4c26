// Package trust decides whether a machine may believe a configuration: it
// signs bundles, verifies them against the keys in the boot medium, and says
// for which machine and for how long one holds.
//
// A bundle is one document, bundle.json, that carries everything a machine is
// told: its configuration files, its image by name and digest, its image
// servers. Beside it lies bundle.sig with Ed25519 signatures (RFC 8032) of the
// very bytes of bundle.json. The order is always Verify, then Parse, then
// Admit: not one byte is parsed before enough signers have vouched for it.
//
// The package reads no clock, network or disk of its own.
package trust

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// The files of a signed configuration, where the single files would be.
const (
	BundleFile    = "bundle.json"
	SignatureFile = "bundle.sig"
)

// MaxBundleBytes is the size beyond which no bundle is looked at.
const MaxBundleBytes = 1 << 20

// Error is a refusal, with a stable code TRU-030 to TRU-037.
type Error struct {
	code string
	err  error
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.err }

// Code is the stable code.
func (e *Error) Code() string { return e.code }

// The codes.
const (
	CodeUnsigned   = "TRU-030" // there is no bundle, and only a signed one counts
	CodeSignature  = "TRU-031" // not enough of the trusted signers have signed it
	CodeSignatures = "TRU-032" // bundle.sig is not what it should be
	CodeExpired    = "TRU-033" // the bundle's time is over, or has not come
	CodeMachine    = "TRU-034" // the bundle is for another machine
	CodeSequence   = "TRU-035" // a newer bundle was there before
	CodeBundle     = "TRU-036" // what was signed is no bundle
	CodeKeys       = "TRU-037" // the trust keys of the medium cannot be used
)

func refuse(code, format string, args ...any) error {
	return &Error{code, fmt.Errorf(format, args...)}
}

// KeyID names a signer: the SHA-256 of the 32 bytes of the public key.
type KeyID [sha256.Size]byte

// IDOf is the name of a key.
func IDOf(key ed25519.PublicKey) KeyID { return sha256.Sum256(key) }

// String is the whole name in hexadecimal digits.
func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

// Short is enough of the name for a person to tell keys apart.
func (k KeyID) Short() string { return k.String()[:16] }

// MarshalText writes the name as String does.
func (k KeyID) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (k *KeyID) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(k) || k.setString(raw) != string(text) {
		return fmt.Errorf("%q names no key: %d lower-case hexadecimal digits do", text, 2*len(k))
	}
	return nil
}

func (k *KeyID) setString(raw []byte) string {
	copy(k[:], raw)
	return k.String()
}
