package report

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/tpm2"
	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

// TestSecretsGoToOneTPMOnly: with the right TPM the files arrive; without it there
// is nothing to be read, by whoever sees every byte on the wire either.
func TestSecretsGoToOneTPMOnly(t *testing.T) {
	own, other := tpm2test.Start(t, tpm2test.Dir(t)), tpm2test.Start(t, tpm2test.Dir(t))
	id, err := own.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const token = "join-token-that-nobody-may-see"
	known := id.Name()
	files := map[string][]byte{"/etc/join-token": []byte(token)}
	var wire bytes.Buffer
	mux := http.NewServeMux()
	mux.Handle("/v1/machines/{machine}/secrets", SecretsHandler(func(_ context.Context, machine string, want []string) (string, map[string][]byte, error) {
		if machine != "52-54-00-12-34-56" || len(want) != 1 {
			t.Errorf("%s asks for %q", machine, want)
		}
		return known, files, nil
	}))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		recorder := httptest.NewRecorder()
		mux.ServeHTTP(recorder, r)
		wire.Write(body)
		wire.Write(recorder.Body.Bytes())
		w.WriteHeader(recorder.Code)
		w.Write(recorder.Body.Bytes())
	}))
	defer server.Close()
	site, err := New(server.URL, netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/etc/join-token"}
	got, err := site.SecretFiles(t.Context(), own, want)
	if err != nil || string(got["/etc/join-token"]) != token {
		t.Fatalf("%v, %q", err, got)
	}
	if bytes.Contains(wire.Bytes(), []byte(token)) || bytes.Contains(wire.Bytes(), []byte("am9pbi10b2tlb")) {
		t.Error("the token went over the wire")
	}
	if got, err := site.SecretFiles(t.Context(), other, want); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("another TPM gets %q, %v", got, err)
	}
	// A TPM that claims to be the other one, with an answer meant for that.
	if got, err := site.SecretFiles(t.Context(), impostor{own, other}, want); err == nil {
		t.Errorf("an impostor gets %q", got)
	}
	known = ""
	if got, err := site.SecretFiles(t.Context(), own, want); err == nil {
		t.Errorf("a machine that nobody knows gets %q", got)
	}
	known = id.Name()
	files["/etc/shadow"] = []byte("root::")
	if got, err := site.SecretFiles(t.Context(), own, want); err == nil || !strings.Contains(err.Error(), "nobody asked for") {
		t.Errorf("what nobody asked for: %q, %v", got, err)
	}
	clear(files)
	if _, err := site.SecretFiles(t.Context(), own, want); !errors.Is(err, ErrNoSecrets) {
		t.Errorf("got %v", err)
	}
	for _, body := range []string{"", "{", `{"format":2}`, `{"format":1,"identity":{"endorsementKey":"AAAA"}}`} {
		files["x"] = nil
		answer, err := http.Post(server.URL+"/v1/machines/52-54-00-12-34-56/secrets", "application/json", strings.NewReader(strings.Replace(body, `"identity"`, `"want":["x"],"identity"`, 1)))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode/100 != 4 {
			t.Errorf("%q: %s", body, answer.Status)
		}
	}
}

// impostor shows the identity of one TPM and is another.
type impostor struct {
	shown Prover
	Prover
}

// Identity implements Prover.
func (i impostor) Identity(ctx context.Context) (tpm2.Identity, error) { return i.shown.Identity(ctx) }
