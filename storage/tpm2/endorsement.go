package tpm2

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	gotpm "github.com/google/go-tpm/tpm2"
)

// EndorsementKey is the SHA-256, in lower-case hexadecimal digits, of the public
// area of the TPM's endorsement key for the ECC P-256 template (TCG EK Credential
// Profile for TPM 2.0, B.4.5, template L-2). The TPM derives that key from a seed
// that never leaves it and that no reset changes, so it tells one TPM from all
// others.
func (t *TPM) EndorsementKey(ctx context.Context) (string, error) {
	return within(ctx, "asking the TPM who it is", func() (string, error) {
		made, err := gotpm.CreatePrimary{PrimaryHandle: gotpm.TPMRHEndorsement, InPublic: gotpm.New2B(gotpm.ECCEKTemplate)}.Execute(t.device)
		if err != nil {
			return "", err
		}
		defer t.flush(made.ObjectHandle)
		sum := sha256.Sum256(made.OutPublic.Bytes())
		return hex.EncodeToString(sum[:]), nil
	})
}
