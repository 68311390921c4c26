package tpm2

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"strconv"

	gotpm "github.com/google/go-tpm/tpm2"

	"github.com/firstlight/firstlight/storage"
)

// TokenType is the type of the LUKS2 tokens that systemd-cryptsetup opens
// volumes with (tpm2-device= in crypttab(5)). The key slot of such a token has
// as its passphrase the base64 text of the secret that the TPM releases.
const TokenType = "systemd-tpm2"

// SecretSize is the length of the secrets that are sealed, in bytes.
const SecretSize = 32

// Token is a sealed secret: nothing in it is a secret to anyone but the TPM.
type Token struct {
	// KeySlots are the LUKS2 key slots that the secret opens.
	KeySlots []int
	// PCRs of the SHA-256 bank that the secret is bound to.
	PCRs []uint
	// Blob is the sealed object: a TPM2B_PRIVATE and a TPM2B_PUBLIC.
	Blob []byte
	// PolicyHash is the digest of the policy.
	PolicyHash []byte
}

// rawToken is the JSON object (src/shared/tpm2-util.h of systemd).
type rawToken struct {
	Type       string   `json:"type"`
	KeySlots   []string `json:"keyslots"`
	Blob       []byte   `json:"tpm2-blob"`
	PCRs       []uint   `json:"tpm2-pcrs"`
	Bank       string   `json:"tpm2-pcr-bank,omitempty"`
	Primary    string   `json:"tpm2-primary-alg,omitempty"`
	PolicyHash string   `json:"tpm2-policy-hash"`
	PIN        bool     `json:"tpm2-pin"`

	// What systemd writes since, and this package does not read.
	SRK    []byte `json:"tpm2_srk,omitempty"`
	PubKey []byte `json:"tpm2_pubkey,omitempty"`
	Lock   bool   `json:"tpm2_pcrlock,omitempty"`
}

// MarshalJSON writes the LUKS2 token.
func (t Token) MarshalJSON() ([]byte, error) {
	raw := rawToken{
		Type: TokenType, KeySlots: []string{}, Blob: t.Blob, PCRs: t.PCRs,
		Bank: "sha256", Primary: "ecc", PolicyHash: hex.EncodeToString(t.PolicyHash),
	}
	for _, slot := range t.KeySlots {
		raw.KeySlots = append(raw.KeySlots, strconv.Itoa(slot))
	}
	return json.Marshal(raw)
}

// UnmarshalJSON reads a LUKS2 token of this type. Tokens that need more than the
// TPM (a PIN, a signature), or that a TPM of another kind has sealed, are refused
// with code LUK-011.
func (t *Token) UnmarshalJSON(data []byte) error {
	wrong := func(format string, args ...any) error {
		return storage.Errorf(storage.CodeToken, "the token of a sealed key cannot be used: "+format, args...)
	}
	var raw rawToken
	if err := json.Unmarshal(data, &raw); err != nil {
		return wrong("%w", err)
	}
	switch {
	case raw.Type != TokenType:
		return wrong("it is of type %q", raw.Type)
	case raw.PIN:
		return wrong("it asks for a PIN")
	case len(raw.PubKey) > 0 || raw.Lock:
		return wrong("it asks for a signed policy")
	case raw.Bank != "" && raw.Bank != "sha256":
		return wrong("it is bound to PCRs of the bank %q", raw.Bank)
	case raw.Primary != "" && raw.Primary != "ecc" || len(raw.SRK) > 0:
		return wrong("it was sealed under another kind of storage key")
	}
	policy, err := hex.DecodeString(raw.PolicyHash)
	if err != nil {
		return wrong("%w", err)
	}
	read := Token{PCRs: raw.PCRs, Blob: raw.Blob, PolicyHash: policy}
	if err := checkPCRs(raw.PCRs); err != nil {
		return wrong("%w", err)
	}
	for _, slot := range raw.KeySlots {
		n, err := strconv.Atoi(slot)
		if err != nil {
			return wrong("%w", err)
		}
		read.KeySlots = append(read.KeySlots, n)
	}
	if _, _, err := read.parts(); err != nil {
		return err
	}
	*t = read
	return nil
}

// parts takes the blob apart.
func (t Token) parts() (private gotpm.TPM2BPrivate, public gotpm.TPM2BPublic, err error) {
	wrong := func(why string) error {
		return storage.Errorf(storage.CodeToken, "the token of a sealed key cannot be used: its blob is %s", why)
	}
	// Each part begins with its length in two bytes.
	rest := t.Blob
	var halves [2][]byte
	for i := range halves {
		if len(rest) < 2 {
			return private, public, wrong("too short")
		}
		n := 2 + int(rest[0])<<8 + int(rest[1])
		if len(rest) < n {
			return private, public, wrong("too short")
		}
		halves[i], rest = rest[:n], rest[n:]
	}
	if len(rest) > 0 {
		return private, public, wrong("too long")
	}
	p, err := gotpm.Unmarshal[gotpm.TPM2BPrivate](halves[0])
	if err != nil {
		return private, public, wrong("damaged")
	}
	q, err := gotpm.Unmarshal[gotpm.TPM2BPublic](halves[1])
	if err != nil {
		return private, public, wrong("damaged")
	}
	if bytes.Equal(halves[1], []byte{0, 0}) {
		return private, public, wrong("empty")
	}
	return *p, *q, nil
}
