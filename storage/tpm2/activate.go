package tpm2

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Identity is what a TPM shows of itself: the public areas (TPMT_PUBLIC) of its
// endorsement key, which no other TPM has, and of a key that lies in the same
// TPM and never leaves it. It is no secret.
type Identity struct {
	EndorsementKey []byte `json:"endorsementKey"`
	AttestationKey []byte `json:"attestationKey"`
}

// Name is the endorsement key as inventories and bundles name it: its SHA-256, in
// lower-case hexadecimal.
func (id Identity) Name() string {
	sum := sha256.Sum256(id.EndorsementKey)
	return hex.EncodeToString(sum[:])
}

// Credential is a secret that only the TPM of one Identity gives out
// (TPM 2.0 library part 1, "Credential Protection").
type Credential struct {
	Object []byte `json:"object"` // TPMS_ID_OBJECT
	Seed   []byte `json:"seed"`   // TPM2B_ENCRYPTED_SECRET's buffer
}

// MaxCredential is how long the secret of a Credential may be, in bytes.
const MaxCredential = 32

// MakeCredential encrypts a secret for the TPM of id, without one at hand. An
// attestation key that could leave its TPM, or sign what it is given, is refused.
func MakeCredential(random io.Reader, id Identity, secret []byte) (Credential, error) {
	if len(secret) > MaxCredential {
		return Credential{}, fmt.Errorf("a credential of %d bytes: at most %d", len(secret), MaxCredential)
	}
	endorsement, err := gotpm.Unmarshal[gotpm.TPMTPublic](id.EndorsementKey)
	if err != nil {
		return Credential{}, fmt.Errorf("reading the endorsement key: %w", err)
	}
	if a := endorsement.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return Credential{}, errors.New("the endorsement key is none: it is not a restricted key for decryption that stays in its TPM")
	}
	attestation, err := gotpm.Unmarshal[gotpm.TPMTPublic](id.AttestationKey)
	if err != nil {
		return Credential{}, fmt.Errorf("reading the attestation key: %w", err)
	}
	if a := attestation.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.Restricted || !a.SignEncrypt || a.Decrypt {
		return Credential{}, errors.New("the attestation key is none: it is not a restricted key for signatures that was made in its TPM and stays there")
	}
	name, err := gotpm.ObjectName(attestation)
	if err != nil {
		return Credential{}, fmt.Errorf("naming the attestation key: %w", err)
	}
	to, err := gotpm.ImportEncapsulationKey(endorsement)
	if err != nil {
		return Credential{}, fmt.Errorf("using the endorsement key: %w", err)
	}
	object, seed, err := gotpm.CreateCredential(random, to, name.Buffer, secret)
	if err != nil {
		return Credential{}, fmt.Errorf("making a credential: %w", err)
	}
	return Credential{object, seed}, nil
}

// attestationTemplate is a restricted ECDSA key: it signs only what the TPM itself
// has made. From one template the same TPM makes the same key, always.
func attestationTemplate() gotpm.TPMTPublic {
	return gotpm.TPMTPublic{
		Type: gotpm.TPMAlgECC, NameAlg: gotpm.TPMAlgSHA256,
		ObjectAttributes: gotpm.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true},
		Parameters: gotpm.NewTPMUPublicParms(gotpm.TPMAlgECC, &gotpm.TPMSECCParms{
			CurveID: gotpm.TPMECCNistP256,
			Scheme:  gotpm.TPMTECCScheme{Scheme: gotpm.TPMAlgECDSA, Details: gotpm.NewTPMUAsymScheme(gotpm.TPMAlgECDSA, &gotpm.TPMSSigSchemeECDSA{HashAlg: gotpm.TPMAlgSHA256})},
		}),
	}
}

// identityKeys makes both keys; release takes them out of the TPM again.
func (t *TPM) identityKeys() (endorsement, attestation *gotpm.CreatePrimaryResponse, release func(), err error) {
	endorsement, err = gotpm.CreatePrimary{PrimaryHandle: gotpm.TPMRHEndorsement, InPublic: gotpm.New2B(gotpm.ECCEKTemplate)}.Execute(t.device)
	if err != nil {
		return nil, nil, nil, err
	}
	attestation, err = gotpm.CreatePrimary{PrimaryHandle: gotpm.TPMRHEndorsement, InPublic: gotpm.New2B(attestationTemplate())}.Execute(t.device)
	if err != nil {
		t.flush(endorsement.ObjectHandle)
		return nil, nil, nil, err
	}
	return endorsement, attestation, func() {
		t.flush(attestation.ObjectHandle)
		t.flush(endorsement.ObjectHandle)
	}, nil
}

// Identity asks the TPM who it is.
func (t *TPM) Identity(ctx context.Context) (Identity, error) {
	return within(ctx, "asking the TPM who it is", func() (Identity, error) {
		endorsement, attestation, release, err := t.identityKeys()
		if err != nil {
			return Identity{}, err
		}
		defer release()
		return Identity{EndorsementKey: endorsement.OutPublic.Bytes(), AttestationKey: attestation.OutPublic.Bytes()}, nil
	})
}

// Activate has the TPM give out the secret of a credential that was made for its
// Identity; no other TPM can.
func (t *TPM) Activate(ctx context.Context, c Credential) ([]byte, error) {
	return within(ctx, "proving to be this TPM", func() ([]byte, error) {
		endorsement, attestation, release, err := t.identityKeys()
		if err != nil {
			return nil, err
		}
		defer release()
		policy := gotpm.Policy(gotpm.TPMAlgSHA256, 16, func(device transport.TPM, session gotpm.TPMISHPolicy, nonce gotpm.TPM2BNonce) error {
			_, err := gotpm.PolicySecret{AuthHandle: gotpm.AuthHandle{Handle: gotpm.TPMRHEndorsement, Auth: gotpm.PasswordAuth(nil)}, PolicySession: session, NonceTPM: nonce}.Execute(device)
			return err
		})
		opened, err := gotpm.ActivateCredential{
			ActivateHandle: gotpm.AuthHandle{Handle: attestation.ObjectHandle, Name: attestation.Name, Auth: gotpm.PasswordAuth(nil)},
			KeyHandle:      gotpm.AuthHandle{Handle: endorsement.ObjectHandle, Name: endorsement.Name, Auth: policy},
			CredentialBlob: gotpm.TPM2BIDObject{Buffer: c.Object},
			Secret:         gotpm.TPM2BEncryptedSecret{Buffer: c.Seed},
		}.Execute(t.device)
		if err != nil {
			return nil, err
		}
		return opened.CertInfo.Buffer, nil
	})
}
