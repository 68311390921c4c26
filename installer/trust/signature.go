package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"slices"
)

// signatureFormat is the version of bundle.sig.
const signatureFormat = 1

// domain keeps a signature of a bundle from counting for anything else that
// the same key may sign, and the other way round.
const domain = "firstlight bundle 1\x00"

// signatures are bundle.sig.
type signatures struct {
	Format     int         `json:"format"`
	Signatures []signature `json:"signatures"`
}

type signature struct {
	Key       KeyID  `json:"key"`
	Signature []byte `json:"signature"` // 64 bytes, as base64
}

func signed(bundle []byte) []byte { return append([]byte(domain), bundle...) }

// Sign adds a signer's signature of a bundle to those in sig, which may be
// empty, and returns the new bundle.sig. A signature of the same signer is
// replaced; those of another content are not kept, as they hold no longer:
// which ones cannot be told without the other signers' keys, so others, as far
// as they are given, are checked.
func Sign(bundle, sig []byte, signer ed25519.PrivateKey, others []ed25519.PublicKey) ([]byte, error) {
	doc := signatures{Format: signatureFormat}
	if len(sig) > 0 {
		var err error
		if doc, err = parseSignatures(sig); err != nil {
			return nil, err
		}
	}
	self := IDOf(signer.Public().(ed25519.PublicKey))
	doc.Signatures = slices.DeleteFunc(doc.Signatures, func(s signature) bool {
		i := slices.IndexFunc(others, func(k ed25519.PublicKey) bool { return IDOf(k) == s.Key })
		return s.Key == self || i < 0 || !ed25519.Verify(others[i], signed(bundle), s.Signature)
	})
	doc.Signatures = append(doc.Signatures, signature{self, ed25519.Sign(signer, signed(bundle))})
	slices.SortFunc(doc.Signatures, func(a, b signature) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	return doc.encode()
}

func (s signatures) encode() ([]byte, error) {
	out, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(out, '\n'), nil
}

// parseSignatures takes bundle.sig only as Sign writes it, to the byte: JSON
// and base64 have several ways to write one thing, and nobody needs them here.
func parseSignatures(sig []byte) (signatures, error) {
	var doc signatures
	if err := decodeStrict(sig, &doc); err != nil {
		return doc, refuse(CodeSignatures, "%s cannot be read: %w", SignatureFile, err)
	}
	if doc.Format != signatureFormat {
		return doc, refuse(CodeSignatures, "%s has format %d, and %d is known here", SignatureFile, doc.Format, signatureFormat)
	}
	again, err := doc.encode()
	if err != nil || !bytes.Equal(again, sig) {
		return doc, refuse(CodeSignatures, "%s is not as it was written", SignatureFile)
	}
	return doc, nil
}

// Verify returns who signed these very bytes, if they are enough of the
// policy's signers. The bundle is not parsed. A signature by an unknown key
// counts for nothing; a wrong one by a known key, or two by one key, mean that
// somebody tampers, and refuse the whole.
func (p Policy) Verify(bundle, sig []byte) ([]KeyID, error) {
	if len(p.Keys) == 0 {
		return nil, refuse(CodeKeys, "there is no trust key to verify a bundle by")
	}
	if len(bundle) > MaxBundleBytes || len(sig) > MaxBundleBytes {
		return nil, refuse(CodeSignatures, "%s or %s is larger than %d bytes", BundleFile, SignatureFile, MaxBundleBytes)
	}
	doc, err := parseSignatures(sig)
	if err != nil {
		return nil, err
	}
	var signers, seen []KeyID
	for _, s := range doc.Signatures {
		if slices.Contains(seen, s.Key) {
			return nil, refuse(CodeSignature, "%s has two signatures by key %s", SignatureFile, s.Key.Short())
		}
		seen = append(seen, s.Key)
		i := slices.IndexFunc(p.Keys, func(k ed25519.PublicKey) bool { return IDOf(k) == s.Key })
		switch {
		case i < 0:
		case len(s.Signature) != ed25519.SignatureSize || !ed25519.Verify(p.Keys[i], signed(bundle), s.Signature):
			return nil, refuse(CodeSignature, "the signature by key %s is not one of this %s", s.Key.Short(), BundleFile)
		default:
			signers = append(signers, s.Key)
		}
	}
	if len(signers) < p.Threshold {
		return nil, refuse(CodeSignature, "%s is signed by %d of the %d keys that this medium trusts, and %d must have signed it", BundleFile, len(signers), len(p.Keys), p.Threshold)
	}
	return signers, nil
}

// decodeStrict takes exactly one JSON value with no field that is not known
// and nothing but white space behind it.
func decodeStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind its end")
	}
	return nil
}
