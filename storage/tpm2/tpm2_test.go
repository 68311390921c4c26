package tpm2

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/firstlight/firstlight/storage"
)

// wire notes all that is said to and by a TPM.
type wire struct {
	transport.TPMCloser
	end  func()
	mu   sync.Mutex
	said bytes.Buffer
}

// Close switches the TPM off.
func (w *wire) Close() error {
	defer w.end()
	return w.TPMCloser.Close()
}

func (w *wire) Send(command []byte) ([]byte, error) {
	answer, err := w.TPMCloser.Send(command)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said.Write(command)
	w.said.Write(answer)
	return answer, err
}

// chip is a TPM of software with its state in dir.
func chip(t *testing.T, dir string) (*TPM, *wire) {
	t.Helper()
	socket := filepath.Join(dir, "tpm")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket,
		"--flags", "not-need-init,startup-clear")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (hack/setup installs it)", err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // it may have ended with its connection
		_ = cmd.Wait()
		_ = os.Remove(socket) // as above
	})
	t.Cleanup(end)
	var w *wire
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		device, err := linuxudstpm.Open(socket)
		if err == nil { // which may be nobody's yet
			w = &wire{TPMCloser: device, end: end}
			if _, err = New(w).Values(t.Context()); err == nil {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v: %s", err, said.String())
		}
	}
	return New(w), w
}

func extend(t *testing.T, c *TPM, pcr uint, what string) {
	t.Helper()
	var digest [32]byte
	copy(digest[:], what)
	_, err := gotpm.PCRExtend{
		PCRHandle: gotpm.AuthHandle{Handle: gotpm.TPMHandle(pcr), Auth: gotpm.PasswordAuth(nil)},
		Digests:   gotpm.TPMLDigestValues{Digests: []gotpm.TPMTHA{{HashAlg: bank, Digest: digest[:]}}},
	}.Execute(c.device)
	if err != nil {
		t.Fatal(err)
	}
}

// short is a directory whose path leaves room for the name of a socket.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a socket and some state
	return dir
}

func code(err error) string {
	var coded *storage.Error
	if !errors.As(err, &coded) {
		return ""
	}
	return coded.Code()
}

func secret(t *testing.T) []byte {
	t.Helper()
	s := make([]byte, SecretSize)
	rand.Read(s)
	return s
}

// TestSeal seals, reads the token back, and unseals; a TPM that was started
// another way, and another TPM, release nothing.
func TestSeal(t *testing.T) {
	dir := short(t)
	c, w := chip(t, dir)
	extend(t, c, 7, "secure boot")
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
	var read Token
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
	if bytes.Contains(w.said.Bytes(), s[:8]) {
		t.Error("the secret went to the TPM, or came from it, in the clear")
	}
	for _, form := range []string{string(s), hex.EncodeToString(s), base64.StdEncoding.EncodeToString(s)} {
		if strings.Contains(string(data), form) {
			t.Error("the secret stands in the token")
		}
	}

	extend(t, c, 8, "something else")
	if _, err := c.Unseal(t.Context(), read); err != nil {
		t.Errorf("another PCR keeps the key: %v", err)
	}
	extend(t, c, 7, "secure boot off")
	if got, err := c.Unseal(t.Context(), read); code(err) != storage.CodeSealed {
		t.Errorf("with another PCR 7: %x, %v", got, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}

	again, _ := chip(t, dir)
	if got, err := again.Unseal(t.Context(), read); code(err) != storage.CodeSealed {
		t.Errorf("after a start without measurements: %x, %v", got, err)
	}
	extend(t, again, 7, "secure boot")
	if got, err := again.Unseal(t.Context(), read); err != nil || !bytes.Equal(got, s) {
		t.Errorf("after a start: %x, %v", got, err)
	}

	other, _ := chip(t, short(t))
	extend(t, other, 7, "secure boot")
	if got, err := other.Unseal(t.Context(), read); code(err) != storage.CodeSealed {
		t.Errorf("another TPM: %x, %v", got, err)
	}
}

func TestSealRefuses(t *testing.T) {
	c, _ := chip(t, short(t))
	extend(t, c, 7, "secure boot")
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
	if Unmeasured(values[7]) != "" || Unmeasured(values[5]) == "" || Unmeasured(values[17]) == "" {
		t.Errorf("%x", values)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "tpm")); code(err) != storage.CodeTPM {
		t.Errorf("no TPM: %v", err)
	}
}

// stuck is a TPM that does not answer.
type stuck struct{ until chan struct{} }

func (s stuck) Send([]byte) ([]byte, error) { <-s.until; return nil, os.ErrClosed }
func (s stuck) Close() error                { return nil }

func TestStuck(t *testing.T) {
	s := stuck{make(chan struct{})}
	defer close(s.until)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := New(s).Values(ctx); code(err) != storage.CodeTPM || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestTokenRefuses(t *testing.T) {
	c, _ := chip(t, short(t))
	extend(t, c, 7, "secure boot")
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
		var read Token
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
		var token Token
		if err := json.Unmarshal(data, &token); err != nil {
			return
		}
		if _, err := json.Marshal(token); err != nil {
			t.Error(err)
		}
	})
}
