// Package tpm2test starts TPMs of software (swtpm(8)) for tests.
package tpm2test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	gotpm "github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/firstlight/firstlight/storage/tpm2"
)

// Chip is a TPM of software that was just switched on.
type Chip struct {
	*tpm2.TPM
	wire *wire
}

// wire notes all that is said to and by a TPM.
type wire struct {
	transport.TPMCloser
	end  func()
	mu   sync.Mutex
	said bytes.Buffer
}

// Send implements transport.TPM.
func (w *wire) Send(command []byte) ([]byte, error) {
	answer, err := w.TPMCloser.Send(command)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said.Write(command)
	w.said.Write(answer)
	return answer, err
}

// Close switches the TPM off.
func (w *wire) Close() error {
	defer w.end()
	return w.TPMCloser.Close()
}

// Dir is a directory for a TPM's state; its path leaves room for the name of a
// socket.
func Dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a socket and some state
	return dir
}

// Start switches on the TPM with its state in dir: nothing is measured yet. It
// goes off when it is closed, or with the test.
func Start(t *testing.T, dir string) *Chip {
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
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		device, err := linuxudstpm.Open(socket)
		if err == nil { // which may be nobody's yet
			w := &wire{TPMCloser: device, end: end}
			c := &Chip{tpm2.New(w), w}
			if _, err = c.Values(t.Context()); err == nil {
				return c
			}
		}
		if time.Now().After(deadline) {
			end()
			t.Fatalf("%v: %s", err, said.String())
		}
	}
}

// Measured is a new TPM into whose PCR 7 something was measured, as a firmware
// does.
func Measured(t *testing.T) *Chip {
	t.Helper()
	c := Start(t, Dir(t))
	c.Extend(t, 7, "Secure Boot is on")
	return c
}

// Extend measures something into a PCR.
func (c *Chip) Extend(t *testing.T, pcr uint, what string) {
	t.Helper()
	var digest [32]byte
	copy(digest[:], what)
	_, err := gotpm.PCRExtend{
		PCRHandle: gotpm.AuthHandle{Handle: gotpm.TPMHandle(pcr), Auth: gotpm.PasswordAuth(nil)},
		Digests:   gotpm.TPMLDigestValues{Digests: []gotpm.TPMTHA{{HashAlg: gotpm.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(c.wire)
	if err != nil {
		t.Fatal(err)
	}
}

// Wire is the connection to the TPM.
func (c *Chip) Wire() transport.TPM { return c.wire }

// Said is every byte that went to the TPM or came from it.
func (c *Chip) Said() []byte {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	return bytes.Clone(c.wire.said.Bytes())
}
