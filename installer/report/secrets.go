package report

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/storage/tpm2"
)

// Secrets is the kind by which a machine asks for what is meant for it alone: join
// tokens, host keys.
const Secrets Kind = "secrets"

// ErrNoSecrets says that the site has none for the machine.
var ErrNoSecrets = errors.New("the site server has no secrets for this machine")

// Prover is the machine's TPM.
type Prover interface {
	Identity(context.Context) (tpm2.Identity, error)
	Activate(context.Context, tpm2.Credential) ([]byte, error)
}

// secretsFormat is the version of both documents.
const secretsFormat = 1

// secretsRequest says who asks, for which files of the new system.
type secretsRequest struct {
	Format   int           `json:"format"`
	Identity tpm2.Identity `json:"identity"`
	Want     []string      `json:"want"`
}

// secretsAnswer can be read with the machine's TPM at hand, and by nobody else:
// the files are encrypted with a key that only that TPM gives out.
type secretsAnswer struct {
	Format     int             `json:"format"`
	Credential tpm2.Credential `json:"credential"`
	Nonce      []byte          `json:"nonce"`
	Sealed     []byte          `json:"sealed"` // AES-256-GCM of a JSON object: path to content
}

// mostSecrets bounds both documents, in bytes.
const mostSecrets = 1 << 20

// SecretFiles asks for the files want, by their paths in the new system, and has
// the TPM prove who asks. What the site does not have is missing in the answer;
// where it has nothing, the error is ErrNoSecrets.
func (s *Site) SecretFiles(ctx context.Context, tpm Prover, want []string) (map[string][]byte, error) {
	id, err := tpm.Identity(ctx)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(secretsRequest{secretsFormat, id, want})
	if err != nil {
		return nil, err
	}
	status, said, err := s.ask(ctx, Secrets, body, mostSecrets)
	switch {
	case err != nil:
		return nil, err
	case status == http.StatusNotFound:
		return nil, ErrNoSecrets
	case status != http.StatusOK:
		return nil, &Error{text: fmt.Sprintf("asking the site server for secrets: it answers %d: %s", status, firstLine(said))}
	}
	var answer secretsAnswer
	if err := json.Unmarshal(said, &answer); err != nil || answer.Format != secretsFormat {
		return nil, &Error{text: fmt.Sprintf("asking the site server for secrets: its answer is none of format %d", secretsFormat), err: err}
	}
	key, err := tpm.Activate(ctx, answer.Credential)
	if err != nil {
		return nil, err
	}
	seal, err := sealWith(key)
	if err != nil {
		return nil, &Error{"opening the site server's secrets", err}
	}
	if len(answer.Nonce) != seal.NonceSize() {
		return nil, &Error{text: "the site server's secrets cannot be opened"}
	}
	text, err := seal.Open(nil, answer.Nonce, answer.Sealed, secretsFor(id))
	if err != nil {
		return nil, &Error{"opening the site server's secrets", err}
	}
	var files map[string][]byte
	if err := json.Unmarshal(text, &files); err != nil {
		return nil, &Error{"reading the site server's secrets", err}
	}
	for name := range files {
		if !slices.Contains(want, name) {
			return nil, &Error{text: fmt.Sprintf("the site server sends %q, which nobody asked for", name)}
		}
	}
	return files, nil
}

func sealWith(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// secretsFor is what is sealed together with the secrets: for whom they are.
func secretsFor(id tpm2.Identity) []byte { return []byte("firstlight secrets 1\x00" + id.Name()) }

// ask posts body and returns the whole answer, at most so many bytes.
func (s *Site) ask(ctx context.Context, kind Kind, body []byte, most int64) (status int, said []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.machine.JoinPath(string(kind)).String(), strings.NewReader(string(body)))
	if err != nil {
		return 0, nil, &Error{"asking the site server", err}
	}
	request.Header.Set("Content-Type", kind.contentType())
	answer, err := s.client.Do(request)
	if err != nil {
		return 0, nil, &Error{"asking the site server", err}
	}
	defer answer.Body.Close() // only read from
	said, err = io.ReadAll(io.LimitReader(answer.Body, most+1))
	if err == nil && int64(len(said)) > most {
		err = fmt.Errorf("it answers with more than %d bytes", most)
	}
	if err != nil {
		return 0, nil, &Error{"asking the site server", err}
	}
	return answer.StatusCode, said, nil
}

// SecretsHandler is the other end, for POST /v1/machines/{machine}/secrets (the
// machine's name is a path value of that name). lookup returns the SHA-256 of the
// machine's endorsement key, as inventories name it, and of the files that it asks
// for those that the site has, by their paths in the new system. What is handed
// out can be read by that machine's TPM alone: a machine without a known key gets
// nothing, and so does another TPM.
func SecretsHandler(lookup func(ctx context.Context, machine string, want []string) (endorsementKey string, files map[string][]byte, err error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "POST who you are here", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostSecrets))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		var request secretsRequest
		if err := json.Unmarshal(body, &request); err != nil || request.Format != secretsFormat {
			http.Error(w, fmt.Sprintf("this is no request of format %d", secretsFormat), http.StatusUnprocessableEntity)
			return
		}
		known, files, err := lookup(r.Context(), r.PathValue("machine"), request.Want)
		switch {
		case err != nil:
			http.Error(w, err.Error(), statusOf(err))
			return
		case len(files) == 0:
			http.Error(w, "there are no secrets for this machine", http.StatusNotFound)
			return
		case known == "" || !strings.EqualFold(known, request.Identity.Name()):
			http.Error(w, "this is not the TPM that the site knows of this machine", http.StatusForbidden)
			return
		}
		answer, err := sealFor(request.Identity, files)
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// A client that is gone asks again.
		_ = json.NewEncoder(w).Encode(answer)
	})
}

func sealFor(id tpm2.Identity, files map[string][]byte) (secretsAnswer, error) {
	key, answer := make([]byte, tpm2.MaxCredential), secretsAnswer{Format: secretsFormat}
	rand.Read(key) // it never fails (crypto/rand)
	var err error
	if answer.Credential, err = tpm2.MakeCredential(rand.Reader, id, key); err != nil {
		return answer, err
	}
	seal, err := sealWith(key)
	if err != nil {
		return answer, err
	}
	text, err := json.Marshal(files)
	if err != nil {
		return answer, err
	}
	answer.Nonce = make([]byte, seal.NonceSize())
	rand.Read(answer.Nonce)
	answer.Sealed = seal.Seal(nil, answer.Nonce, text, secretsFor(id))
	return answer, nil
}
