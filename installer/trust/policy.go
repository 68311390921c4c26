package trust

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// The files of a trust directory beside the keys, *.pub. Each holds a number;
// where one is not there, it is 1 and 0.
const (
	ThresholdFile = "threshold"
	SequenceFile  = "sequence"
	keySuffix     = ".pub"
)

// ReadPolicy reads a trust directory, /etc/installer/trust of a boot medium. One
// that is not there is the policy that trusts nobody.
func ReadPolicy(dir fs.FS) (Policy, error) {
	files := make(map[string][]byte)
	entries, err := fs.ReadDir(dir, ".")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Policy{}, refuse(CodeKeys, "reading the trust keys: %w", err)
	}
	for _, e := range entries {
		if files[e.Name()], err = fs.ReadFile(dir, e.Name()); err != nil {
			return Policy{}, refuse(CodeKeys, "reading the trust keys: %w", err)
		}
	}
	return NewPolicy(files)
}

// NewPolicy is the policy that the files of a trust directory, by their names,
// state: *.pub, each one Ed25519 public key as PEM (SubjectPublicKeyInfo, RFC
// 8410), and the files threshold and sequence. No file at all is the policy
// that trusts nobody. Anything that cannot be used is an error: a medium that
// was meant to trust somebody must not end up believing everybody.
func NewPolicy(files map[string][]byte) (Policy, error) {
	if len(files) == 0 {
		return Policy{}, nil
	}
	var p Policy
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if path.Ext(name) != keySuffix {
			continue
		}
		key, err := ParsePublicKey(files[name])
		if err != nil {
			return Policy{}, refuse(CodeKeys, "the trust key %s: %w", name, err)
		}
		if slices.ContainsFunc(p.Keys, func(k ed25519.PublicKey) bool { return k.Equal(key) }) {
			return Policy{}, refuse(CodeKeys, "the trust key %s is there under another name too, and one signer must not count twice", name)
		}
		p.Keys = append(p.Keys, key)
	}
	threshold, err1 := number(files, ThresholdFile, 1)
	sequence, err2 := number(files, SequenceFile, 0)
	if err := errors.Join(err1, err2); err != nil {
		return Policy{}, refuse(CodeKeys, "reading whom to trust: %w", err)
	}
	switch {
	case len(p.Keys) == 0:
		return Policy{}, refuse(CodeKeys, "there is no *%s among the trust keys", keySuffix)
	case threshold < 1 || threshold > uint64(len(p.Keys)):
		return Policy{}, refuse(CodeKeys, "%d signatures are asked for, and there are %d trust keys", threshold, len(p.Keys))
	}
	p.Threshold, p.Sequence = int(threshold), sequence
	return p, nil
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

func number(files map[string][]byte, name string, absent uint64) (uint64, error) {
	text, there := files[name]
	if !there {
		return absent, nil
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}
