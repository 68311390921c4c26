package tpm2_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tpm2"
	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

func code(err error) string {
	var coded *storage.Error
	if !errors.As(err, &coded) {
		return ""
	}
	return coded.Code()
}

func secret(t *testing.T) []byte {
	t.Helper()
	s := make([]byte, tpm2.SecretSize)
	rand.Read(s)
	return s
}

// TestSeal seals, reads the token back, and unseals; a TPM that was started
// another way, and another TPM, release nothing.
func TestSeal(t *testing.T) {
	dir := tpm2test.Dir(t)
	c := tpm2test.Start(t, dir)
	c.Extend(t, 7, "secure boot")
	s := secret(t)
	token, err := c.Seal(t.Context(), s, []uint{7})
	if err != nil {
		t.Fatal(err)
	}
	token.KeySlots = []int{1}
	data, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	var read tpm2.Token
	if err := json.Unmarshal(data, &read); err != nil {
		t.Fatal(err)
	}
	// Over and over: nothing stays behind in the TPM, which has room for three
	// objects.
	for range 5 {
		got, err := c.Unseal(t.Context(), read)
		if err != nil || !bytes.Equal(got, s) {
			t.Fatalf("%x, %v", got, err)
		}
	}
	if bytes.Contains(c.Said(), s[:8]) {
		t.Error("the secret went to the TPM, or came from it, in the clear")
	}
	for _, form := range []string{string(s), hex.EncodeToString(s), base64.StdEncoding.EncodeToString(s)} {
		if strings.Contains(string(data), form) {
			t.Error("the secret stands in the token")
		}
	}

	c.Extend(t, 8, "something else")
	if _, err := c.Unseal(t.Context(), read); err != nil {
		t.Errorf("another PCR keeps the key: %v", err)
	}
	c.Extend(t, 7, "secure boot off")
	if got, err := c.Unseal(t.Context(), read); code(err) != storage.CodeSealed {
		t.Errorf("with another PCR 7: %x, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}

	again := tpm2test.Start(t, dir)
	if got, err := again.Unseal(t.Context(), read); code(err) != storage.CodeSealed {
		t.Errorf("after a start without measurements: %x, %v", got, err)
	}
	again.Extend(t, 7, "secure boot")
	if got, err := again.Unseal(t.Context(), read); err != nil || !bytes.Equal(got, s) {
		t.Errorf("after a start: %x, %v", got, err)
	}

	other := tpm2test.Start(t, tpm2test.Dir(t))
	other.Extend(t, 7, "secure boot")
	if got, err := other.Unseal(t.Context(), read); code(err) != storage.CodeSealed {
		t.Errorf("another TPM: %x, %v", got, err)
	}
}

func TestSealRefuses(t *testing.T) {
	c := tpm2test.Start(t, tpm2test.Dir(t))
	c.Extend(t, 7, "secure boot")
	for name, pcrs := range map[string][]uint{
		"nothing measured":           {5},
		"one of two":                 {5, 7},
		"all ones":                   {17},
		"none":                       {},
		"no such PCR":                {24},
		"not sorted":                 {7, 0},
		"twice":                      {7, 7},
		"all ones beside a good one": {7, 22},
	} {
		if token, err := c.Seal(t.Context(), secret(t), pcrs); code(err) != storage.CodePCR {
			t.Errorf("%s: %v, %v", name, token, err)
		}
	}
	values, err := c.Values(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if tpm2.Unmeasured(values[7]) != "" || tpm2.Unmeasured(values[5]) == "" || tpm2.Unmeasured(values[17]) == "" {
		t.Errorf("%x", values)
	}
	if _, err := tpm2.Open(filepath.Join(t.TempDir(), "tpm")); code(err) != storage.CodeTPM {
		t.Errorf("no TPM: %v", err)
	}
}

// stuck is a TPM that does not answer.
type stuck struct{ until chan struct{} }

func (s stuck) Send([]byte) ([]byte, error) { <-s.until; return nil, os.ErrClosed }
func (s stuck) Close() error                { return nil }

// busy is a TPM that is busy at first.
type busy struct {
	*tpm2test.Chip
	times int
}

func (b *busy) Send(command []byte) ([]byte, error) {
	if b.times--; b.times >= 0 {
		return []byte{0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x22}, nil // TPM_RC_RETRY
	}
	return b.Wire().Send(command)
}

func TestBusy(t *testing.T) {
	b := &busy{tpm2test.Measured(t), 3}
	values, err := tpm2.New(b).Values(t.Context())
	if err != nil || tpm2.Unmeasured(values[7]) != "" || b.times >= 0 {
		t.Errorf("%v, %d", err, b.times)
	}
}

func TestStuck(t *testing.T) {
	s := stuck{make(chan struct{})}
	defer close(s.until)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := tpm2.New(s).Values(ctx); code(err) != storage.CodeTPM || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestTokenRefuses(t *testing.T) {
	c := tpm2test.Start(t, tpm2test.Dir(t))
	c.Extend(t, 7, "secure boot")
	token, err := c.Seal(t.Context(), secret(t), []uint{7})
	if err != nil {
		t.Fatal(err)
	}
	good, err := json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(m map[string]any){
		"type":         func(m map[string]any) { m["type"] = "systemd-recovery" },
		"PIN":          func(m map[string]any) { m["tpm2-pin"] = true },
		"public key":   func(m map[string]any) { m["tpm2_pubkey"] = "AAAA" },
		"bank":         func(m map[string]any) { m["tpm2-pcr-bank"] = "sha1" },
		"RSA":          func(m map[string]any) { m["tpm2-primary-alg"] = "rsa" },
		"PCRs":         func(m map[string]any) { m["tpm2-pcrs"] = []int{} },
		"slots":        func(m map[string]any) { m["keyslots"] = []string{"x"} },
		"policy":       func(m map[string]any) { m["tpm2-policy-hash"] = "zz" },
		"short blob":   func(m map[string]any) { m["tpm2-blob"] = "AAAA" },
		"longer blob":  func(m map[string]any) { m["tpm2-blob"] = base64.StdEncoding.EncodeToString(append(token.Blob, 0)) },
		"blob no text": func(m map[string]any) { m["tpm2-blob"] = "#" },
	} {
		var m map[string]any
		if err := json.Unmarshal(good, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var read tpm2.Token
		if err := json.Unmarshal(data, &read); code(err) != storage.CodeToken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzToken: whatever stands on an old disk, reading it ends with a token or an
// error.
func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"type":"systemd-tpm2","keyslots":["1"],"tpm2-blob":"AAAAAA==","tpm2-pcrs":[7],"tpm2-policy-hash":"00","tpm2-pin":false}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var token tpm2.Token
		if err := json.Unmarshal(data, &token); err != nil {
			return
		}
		if _, err := json.Marshal(token); err != nil {
			t.Error(err)
		}
	})
}
