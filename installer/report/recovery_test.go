package report

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/recovery"
)

func escrow(t *testing.T) recovery.Escrow {
	t.Helper()
	const recipient = "age1gdrpuawclwlpw25el7tpxvan2lz80gewj53zamcmvyevy6txvc0qhehwas"
	sealed, err := recovery.Seal([]byte("cccccccc-vvvvvvvv"), []string{recipient})
	if err != nil {
		t.Fatal(err)
	}
	return recovery.Escrow{
		Format: recovery.Format, Hostname: "web1", Recipients: []string{recipient},
		Volumes: []recovery.Volume{{UUID: "11111111-2222-3333-4444-555555555555", MountPoint: "/"}}, Sealed: string(sealed),
	}
}

func siteAt(t *testing.T, handler http.Handler) *Site {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/v1/machines/{machine}/recovery", handler)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	site, err := New(server.URL, netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return site
}

func TestDeposit(t *testing.T) {
	var kept []string
	site := siteAt(t, RecoveryHandler(func(_ context.Context, machine string, e recovery.Escrow, document []byte) error {
		kept = append(kept, machine, e.Hostname)
		if again, err := recovery.Parse(document); err != nil || again.Sealed != e.Sealed {
			t.Errorf("the document is not what it says: %v", err)
		}
		return nil
	}))
	if err := site.Deposit(t.Context(), escrow(t)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(kept); got != "[52-54-00-12-34-56 web1]" {
		t.Errorf("kept %s", got)
	}
}

// TestNotDeposited: only the server's word that it keeps these very bytes counts.
func TestNotDeposited(t *testing.T) {
	keep := func(context.Context, string, recovery.Escrow, []byte) error { return nil }
	for name, handler := range map[string]http.Handler{
		"says yes to all": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}),
		"other bytes": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"sha256": "%064d"}`, 0)
		}),
		"no site": http.NotFoundHandler(),
		"disk full": RecoveryHandler(func(context.Context, string, recovery.Escrow, []byte) error {
			return errors.New("no space left on device")
		}),
	} {
		err := siteAt(t, handler).Deposit(t.Context(), escrow(t))
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != CodeSite {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is no sealed key is not kept.
	clear := escrow(t)
	clear.Sealed = "cccccccc-vvvvvvvv"
	if err := siteAt(t, RecoveryHandler(keep)).Deposit(t.Context(), clear); err == nil {
		t.Error("a key in the clear was taken")
	}
	server := httptest.NewServer(RecoveryHandler(keep))
	defer server.Close()
	for _, request := range []struct {
		method, body string
		status       int
	}{
		{http.MethodGet, "", http.StatusMethodNotAllowed},
		{http.MethodPost, "{", http.StatusUnprocessableEntity},
		{http.MethodPost, strings.Repeat(" ", mostEscrow+1), http.StatusRequestEntityTooLarge},
	} {
		r, err := http.NewRequestWithContext(t.Context(), request.method, server.URL, strings.NewReader(request.body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != request.status {
			t.Errorf("%s of %d bytes: %s, want %d", request.method, len(request.body), answer.Status, request.status)
		}
	}
}
