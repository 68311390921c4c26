// Package tpm2 seals keys to the machine's TPM 2.0 and has it release them
// again. What it seals stands in a LUKS2 token of the kind that systemd knows
// (systemd-cryptenroll(1)), so that the installed system opens its volumes with
// its own programs.
//
// A key is bound to the values of PCRs: the TPM releases it to software that was
// started the same way, by the same firmware settings, and to nobody else. This
// package never changes the TPM: no object stays in it.
package tpm2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"github.com/firstlight/firstlight/storage"
)

// Device is the kernel's resource manager of the first TPM, which keeps its
// users apart.
const Device = "/dev/tpmrm0"

// PCRs is how many platform configuration registers a TPM of a PC has.
const PCRs = 24

// patience bounds everything that is asked of the TPM at once. Making a key
// takes a slow one seconds; one that answers nothing in that time never will,
// and a read from its device cannot be interrupted.
const patience = 60 * time.Second

// bank is the only one that is used: SHA-256, which each TPM of a PC has.
const bank = gotpm.TPMAlgSHA256

// TPM is an open TPM. One goroutine at a time may use it.
type TPM struct {
	device transport.TPMCloser
}

// Open opens a TPM by its device. Errors have code LUK-008.
func Open(path string) (*TPM, error) {
	device, err := linuxtpm.Open(path)
	if err != nil {
		return nil, storage.Errorf(storage.CodeTPM, "opening the TPM %s: %w", path, err)
	}
	return New(device), nil
}

// New is a TPM behind a connection, which Close closes.
func New(device transport.TPMCloser) *TPM { return &TPM{insistent{device}} }

// insistent says again what the TPM was too busy for: such a command has not
// begun (TPM_RC_RETRY; TPM 2.0 Library, part 2, 6.6.3).
type insistent struct{ transport.TPMCloser }

// How often, and how long apart, something is said again: ten seconds in all.
const (
	retries    = 200
	retryPause = 50 * time.Millisecond
)

// Send implements transport.TPM.
func (i insistent) Send(command []byte) ([]byte, error) {
	for try := 0; ; try++ {
		answer, err := i.TPMCloser.Send(command)
		if err != nil || try == retries || len(answer) < 10 || gotpm.TPMRC(binary.BigEndian.Uint32(answer[6:])) != gotpm.TPMRCRetry {
			return answer, err
		}
		time.Sleep(retryPause)
	}
}

// Close lets go of the TPM.
func (t *TPM) Close() error {
	if err := t.device.Close(); err != nil {
		return storage.Errorf(storage.CodeTPM, "closing the TPM: %w", err)
	}
	return nil
}

// Manufacturer is TPM_PT_MANUFACTURER (TPM 2.0 Library, part 2, 6.13): up to four
// letters.
func (t *TPM) Manufacturer(ctx context.Context) (string, error) {
	return within(ctx, "asking the TPM for its manufacturer", t.manufacturer)
}

func (t *TPM) manufacturer() (string, error) {
	response, err := gotpm.GetCapability{
		Capability:    gotpm.TPMCapTPMProperties,
		Property:      uint32(gotpm.TPMPTManufacturer),
		PropertyCount: 1,
	}.Execute(t.device)
	if err != nil {
		return "", err
	}
	properties, err := response.CapabilityData.Data.TPMProperties()
	if err != nil {
		return "", err
	}
	for _, p := range properties.TPMProperty {
		if p.Property == gotpm.TPMPTManufacturer {
			letters := []byte{byte(p.Value >> 24), byte(p.Value >> 16), byte(p.Value >> 8), byte(p.Value)}
			return strings.TrimRight(strings.TrimRight(string(letters), "\x00"), " "), nil
		}
	}
	return "", errors.New("it does not tell")
}

// Values reads all PCRs of the SHA-256 bank, by number. A TPM without that bank
// is an error with code LUK-009.
func (t *TPM) Values(ctx context.Context) ([PCRs][32]byte, error) {
	return within(ctx, "reading the PCRs", func() (values [PCRs][32]byte, err error) {
		for first := uint(0); first < PCRs; first += 8 { // eight digests fit into one answer
			read, err := t.values(numbers(first, first+8))
			if err != nil {
				return values, err
			}
			copy(values[first:], read)
		}
		return values, nil
	})
}

// Unmeasured says why a PCR of that value cannot be sealed to; it is empty for
// one that can. A PCR that nothing was measured into is zero after every start,
// whoever starts the machine (ff after a start that a debugger controls, TCG PC
// Client Platform TPM Profile, 4.6.2).
func Unmeasured(value [32]byte) string {
	switch {
	case bytes.Count(value[:], []byte{0}) == len(value):
		return "it is all zeros: the firmware measures nothing into it"
	case bytes.Count(value[:], []byte{0xff}) == len(value):
		return "it is all ones: the firmware has not set it up"
	}
	return ""
}

// Seal makes the TPM keep a secret, of at most 128 bytes, which it releases only
// while the PCRs have the values that they have now. The secret travels to the
// TPM encrypted, under a key that the TPM derives anew each time from its own
// seed. Errors have the codes LUK-008 and LUK-009; PCRs that nobody measured into
// are refused. pcrs are numbers from 0 to 23, at least one.
func (t *TPM) Seal(ctx context.Context, secret []byte, pcrs []uint) (Token, error) {
	// A TPM that hangs may come back when the caller's memory is gone.
	own := bytes.Clone(secret)
	return within(ctx, "sealing a key", func() (Token, error) {
		defer clear(own)
		return t.seal(own, pcrs)
	})
}

// Unseal has the TPM release the secret of a token. An error with code LUK-010
// says that it does not: its PCRs, or the TPM, are others than those that the
// secret was sealed to. Other errors have the codes LUK-008 and LUK-011. The
// caller wipes what is returned.
func (t *TPM) Unseal(ctx context.Context, token Token) ([]byte, error) {
	return within(ctx, "unsealing a key", func() ([]byte, error) { return t.unseal(token) })
}

// within bounds what the TPM is asked to do. What hangs is left behind with
// what it holds.
func within[T any](ctx context.Context, doing string, do func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the TPM has not answered for %s", patience))
	defer cancel()
	type answer struct {
		result T
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		result, err := do()
		answers <- answer{result, err}
	}()
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		a.err = context.Cause(ctx)
	}
	var coded *storage.Error
	if a.err != nil && !errors.As(a.err, &coded) {
		a.err = storage.Errorf(storage.CodeTPM, "%s: %w", doing, a.err)
	}
	return a.result, a.err
}

// primary makes the storage key under which secrets are sealed. The TPM derives
// it from its seed and this template, so that it is the same every time; the
// template is systemd's (it differs from the TCG's in noDA and in the empty
// unique field).
func (t *TPM) primary() (parent gotpm.NamedHandle, public gotpm.TPMTPublic, release func(), err error) {
	template := gotpm.TPMTPublic{
		Type:    gotpm.TPMAlgECC,
		NameAlg: gotpm.TPMAlgSHA256,
		ObjectAttributes: gotpm.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, Decrypt: true,
		},
		Parameters: gotpm.NewTPMUPublicParms(gotpm.TPMAlgECC, &gotpm.TPMSECCParms{
			Symmetric: gotpm.TPMTSymDefObject{
				Algorithm: gotpm.TPMAlgAES,
				KeyBits:   gotpm.NewTPMUSymKeyBits(gotpm.TPMAlgAES, gotpm.TPMKeyBits(128)),
				Mode:      gotpm.NewTPMUSymMode(gotpm.TPMAlgAES, gotpm.TPMAlgCFB),
			},
			CurveID: gotpm.TPMECCNistP256,
		}),
		Unique: gotpm.NewTPMUPublicID(gotpm.TPMAlgECC, &gotpm.TPMSECCPoint{}),
	}
	made, err := gotpm.CreatePrimary{PrimaryHandle: gotpm.TPMRHOwner, InPublic: gotpm.New2B(template)}.Execute(t.device)
	if err != nil {
		return parent, public, nil, fmt.Errorf("making the storage key: %w", err)
	}
	release = func() { t.flush(made.ObjectHandle) }
	known, err := made.OutPublic.Contents()
	if err != nil {
		release()
		return parent, public, nil, fmt.Errorf("reading the storage key: %w", err)
	}
	return gotpm.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, *known, release, nil
}

// flush takes an object out of the TPM. Where that fails the kernel does it when
// the device is closed.
func (t *TPM) flush(handle gotpm.TPMHandle) {
	_, _ = gotpm.FlushContext{FlushHandle: handle}.Execute(t.device)
}

func (t *TPM) seal(secret []byte, pcrs []uint) (Token, error) {
	if err := checkPCRs(pcrs); err != nil {
		return Token{}, err
	}
	values, err := t.values(pcrs)
	if err != nil {
		return Token{}, err
	}
	for i, value := range values {
		if why := Unmeasured(value); why != "" {
			return Token{}, storage.Errorf(storage.CodePCR, "PCR %d cannot protect a key: %s", pcrs[i], why)
		}
	}
	policy, err := policyOf(pcrs, values)
	if err != nil {
		return Token{}, err
	}
	parent, public, release, err := t.primary()
	if err != nil {
		return Token{}, err
	}
	defer release()
	// The TPM's answer would not show that a secret came in damaged: Unseal will.
	made, err := gotpm.Create{
		ParentHandle: gotpm.AuthHandle{Handle: parent.Handle, Name: parent.Name, Auth: gotpm.PasswordAuth(nil)},
		InSensitive: gotpm.TPM2BSensitiveCreate{Sensitive: &gotpm.TPMSSensitiveCreate{
			Data: gotpm.NewTPMUSensitiveCreate(&gotpm.TPM2BSensitiveData{Buffer: secret}),
		}},
		InPublic: gotpm.New2B(gotpm.TPMTPublic{
			Type:             gotpm.TPMAlgKeyedHash,
			NameAlg:          gotpm.TPMAlgSHA256,
			ObjectAttributes: gotpm.TPMAObject{FixedTPM: true, FixedParent: true},
			AuthPolicy:       gotpm.TPM2BDigest{Buffer: policy},
		}),
	}.Execute(t.device, gotpm.HMAC(gotpm.TPMAlgSHA256, 16, gotpm.AESEncryption(128, gotpm.EncryptIn), gotpm.Salted(parent.Handle, public)))
	if err != nil {
		return Token{}, fmt.Errorf("sealing: %w", err)
	}
	return Token{
		PCRs:       slices.Clone(pcrs),
		Blob:       append(gotpm.Marshal(made.OutPrivate), gotpm.Marshal(made.OutPublic)...),
		PolicyHash: policy,
	}, nil
}

func (t *TPM) unseal(token Token) ([]byte, error) {
	private, sealed, err := token.parts()
	if err != nil {
		return nil, err
	}
	parent, public, release, err := t.primary()
	if err != nil {
		return nil, err
	}
	defer release()
	loaded, err := gotpm.Load{
		ParentHandle: gotpm.AuthHandle{Handle: parent.Handle, Name: parent.Name, Auth: gotpm.PasswordAuth(nil)},
		InPrivate:    private,
		InPublic:     sealed,
	}.Execute(t.device)
	if errors.Is(err, gotpm.TPMRCIntegrity) || errors.Is(err, gotpm.TPMRCSize) || errors.Is(err, gotpm.TPMRCValue) {
		return nil, storage.Errorf(storage.CodeSealed, "the TPM does not know the key: it was sealed by another TPM, or before this one was cleared: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the sealed key: %w", err)
	}
	defer t.flush(loaded.ObjectHandle)
	policy := func(device transport.TPM, session gotpm.TPMISHPolicy, _ gotpm.TPM2BNonce) error {
		_, err := gotpm.PolicyPCR{PolicySession: session, Pcrs: selection(token.PCRs)}.Execute(device)
		return err
	}
	opened, err := gotpm.Unseal{ItemHandle: gotpm.AuthHandle{
		Handle: loaded.ObjectHandle, Name: loaded.Name,
		Auth: gotpm.Policy(gotpm.TPMAlgSHA256, 16, policy, gotpm.AESEncryption(128, gotpm.EncryptOut), gotpm.Salted(parent.Handle, public)),
	}}.Execute(t.device)
	if errors.Is(err, gotpm.TPMRCPolicyFail) || errors.Is(err, gotpm.TPMRCPCRChanged) {
		return nil, storage.Errorf(storage.CodeSealed, "the TPM does not release the key: PCR %s is not what it was sealed to: %w", list(token.PCRs), err)
	}
	if err != nil {
		return nil, fmt.Errorf("unsealing: %w", err)
	}
	return opened.OutData.Buffer, nil
}
