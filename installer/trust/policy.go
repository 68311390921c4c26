package trust

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Policy is whom a boot medium trusts. The zero value trusts nobody.
type Policy struct {
	// Keys are the signers, each once, in the order of their files.
	Keys []ed25519.PublicKey
	// Threshold is how many of them must have signed, at least 1.
	Threshold int
	// Sequence is the lowest that a bundle may have.
	Sequence uint64
}

// Signed reports whether only signed bundles count.
func (p Policy) Signed() bool { return len(p.Keys) > 0 }

// The files of a trust directory beside the keys. Each holds a number; where
// one is not there, it is 1 and 0.
const (
	thresholdFile = "threshold"
	sequenceFile  = "sequence"
	keySuffix     = ".pub"
)

// ReadPolicy reads a trust directory, /etc/installer/trust of a boot medium:
// *.pub, each one Ed25519 public key as PEM (SubjectPublicKeyInfo, RFC 8410),
// and the files threshold and sequence. A directory that is not there, or is
// empty, is the policy that trusts nobody. Anything in it that cannot be used
// is an error: a medium that was meant to trust somebody must not end up
// believing everybody.
func ReadPolicy(dir fs.FS) (Policy, error) {
	entries, err := fs.ReadDir(dir, ".")
	if errors.Is(err, fs.ErrNotExist) {
		return Policy{}, nil
	}
	if err != nil {
		return Policy{}, refuse(CodeKeys, "reading the trust keys: %w", err)
	}
	if len(entries) == 0 {
		return Policy{}, nil
	}
	p := Policy{Threshold: 1}
	for _, e := range entries {
		if path.Ext(e.Name()) == keySuffix {
			if err := p.readKey(dir, e.Name()); err != nil {
				return Policy{}, refuse(CodeKeys, "the trust key %s: %w", e.Name(), err)
			}
		}
	}
	threshold, err1 := readNumber(dir, thresholdFile, 1)
	sequence, err2 := readNumber(dir, sequenceFile, 0)
	if err := errors.Join(err1, err2); err != nil {
		return Policy{}, refuse(CodeKeys, "reading whom to trust: %w", err)
	}
	p.Sequence = sequence
	switch {
	case len(p.Keys) == 0:
		return Policy{}, refuse(CodeKeys, "the directory of trust keys has no *%s in it", keySuffix)
	case threshold < 1 || threshold > uint64(len(p.Keys)):
		return Policy{}, refuse(CodeKeys, "%d signatures are asked for, and there are %d trust keys", threshold, len(p.Keys))
	}
	p.Threshold = int(threshold)
	return p, nil
}

func (p *Policy) readKey(dir fs.FS, name string) error {
	text, err := fs.ReadFile(dir, name)
	if err != nil {
		return err
	}
	key, err := ParsePublicKey(text)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(p.Keys, func(k ed25519.PublicKey) bool { return k.Equal(key) }) {
		return errors.New("it is there under another name too, and one signer must not count twice")
	}
	p.Keys = append(p.Keys, key)
	return nil
}

// ParsePublicKey reads one Ed25519 public key as PEM.
func ParsePublicKey(text []byte) (ed25519.PublicKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" || len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("it is not one PEM block PUBLIC KEY")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("it is a %T, and only Ed25519 keys sign bundles", parsed)
	}
	return key, nil
}

// FormatPublicKey is what ParsePublicKey reads.
func FormatPublicKey(key ed25519.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), nil
}

func readNumber(dir fs.FS, name string, absent uint64) (uint64, error) {
	text, err := fs.ReadFile(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
