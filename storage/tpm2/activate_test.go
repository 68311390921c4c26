package tpm2_test

import (
	"bytes"
	"crypto/rand"
	"testing"

	gotpm "github.com/google/go-tpm/tpm2"

	"github.com/firstlight/firstlight/storage/tpm2"
	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

// Only the TPM for which a credential was made gives out its secret, and it does
// after a restart as well.
func TestCredential(t *testing.T) {
	dir := tpm2test.Dir(t)
	own, other := tpm2test.Start(t, dir), tpm2test.Start(t, tpm2test.Dir(t))
	id, err := own.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if key, err := own.EndorsementKey(t.Context()); err != nil || key != id.Name() {
		t.Errorf("the inventory says %s, %v, and the identity is %s", key, err, id.Name())
	}
	strange, err := other.Identity(t.Context())
	if err != nil || strange.Name() == id.Name() {
		t.Fatalf("%v; two TPMs are called %s", err, id.Name())
	}
	secret := []byte("0123456789abcdef0123456789abcdef")
	credential, err := tpm2.MakeCredential(rand.Reader, id, secret)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := own.Activate(t.Context(), credential); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := other.Activate(t.Context(), credential); err == nil {
		t.Errorf("another TPM gives out %q", got)
	}
	// Somebody who names another's endorsement key with an attestation key of
	// their own TPM gets what neither TPM opens.
	mixed, err := tpm2.MakeCredential(rand.Reader, tpm2.Identity{EndorsementKey: id.EndorsementKey, AttestationKey: strange.AttestationKey}, secret)
	if err != nil {
		t.Fatal(err)
	}
	for name, chip := range map[string]*tpm2test.Chip{"own": own, "other": other} {
		if got, err := chip.Activate(t.Context(), mixed); err == nil {
			t.Errorf("the %s TPM opens a mixed credential: %q", name, got)
		}
	}
	for at := range len(credential.Object) {
		changed := tpm2.Credential{Object: bytes.Clone(credential.Object), Seed: credential.Seed}
		changed.Object[at] ^= 1
		if at%9 == 0 { // each takes a while
			if _, err := own.Activate(t.Context(), changed); err == nil {
				t.Errorf("byte %d can be changed", at)
			}
		}
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	again := tpm2test.Start(t, dir)
	if got, err := again.Activate(t.Context(), credential); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("after a restart: %q, %v", got, err)
	}
}

func TestCredentialForKeysThatAreNone(t *testing.T) {
	id, err := tpm2test.Start(t, tpm2test.Dir(t)).Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	edit := func(key []byte, change func(*gotpm.TPMAObject)) []byte {
		public, err := gotpm.Unmarshal[gotpm.TPMTPublic](key)
		if err != nil {
			t.Fatal(err)
		}
		change(&public.ObjectAttributes)
		return gotpm.Marshal(public)
	}
	for name, wrong := range map[string]tpm2.Identity{
		"empty":                         {},
		"garbage":                       {EndorsementKey: []byte("hello"), AttestationKey: id.AttestationKey},
		"the attestation key as both":   {EndorsementKey: id.AttestationKey, AttestationKey: id.AttestationKey},
		"the endorsement key as both":   {EndorsementKey: id.EndorsementKey, AttestationKey: id.EndorsementKey},
		"an attestation key that moves": {EndorsementKey: id.EndorsementKey, AttestationKey: edit(id.AttestationKey, func(a *gotpm.TPMAObject) { a.FixedTPM = false })},
		"one that was brought in":       {EndorsementKey: id.EndorsementKey, AttestationKey: edit(id.AttestationKey, func(a *gotpm.TPMAObject) { a.SensitiveDataOrigin = false })},
		"one that signs anything":       {EndorsementKey: id.EndorsementKey, AttestationKey: edit(id.AttestationKey, func(a *gotpm.TPMAObject) { a.Restricted = false })},
		"an endorsement key that moves": {EndorsementKey: edit(id.EndorsementKey, func(a *gotpm.TPMAObject) { a.FixedParent = false }), AttestationKey: id.AttestationKey},
	} {
		if _, err := tpm2.MakeCredential(rand.Reader, wrong, []byte("x")); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := tpm2.MakeCredential(rand.Reader, id, make([]byte, tpm2.MaxCredential+1)); err == nil {
		t.Error("a long secret is taken")
	}
}
