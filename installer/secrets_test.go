package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// Without a TPM, a site server, or what is wanted, no disk is touched.
func TestSecretsThatAreNotToBeHad(t *testing.T) {
	i, _ := testInstallation(t)
	if err := i.fetchSecrets(t.Context()); err != nil {
		t.Errorf("where none are wanted: %v", err)
	}
	i.plan.Secrets = []string{"/etc/token"}
	if err := i.fetchSecrets(t.Context()); progress.Code(err) != codeSecrets || !strings.Contains(err.Error(), "no site server") {
		t.Errorf("got %v", err)
	}
	server := httptest.NewServer(report.SecretsHandler(func(context.Context, string, []string) (string, map[string][]byte, error) { return "", nil, nil }))
	defer server.Close()
	var err error
	if i.site, err = report.New(server.URL, netconfig.MAC{2}, nil); err != nil {
		t.Fatal(err)
	}
	i.env.tpm = "/dev/no-such-tpm"
	if err := i.fetchSecrets(t.Context()); progress.Code(err) != codeSecrets || !strings.Contains(err.Error(), "TPM") {
		t.Errorf("got %v", err)
	}
	if _, err := http.Get(server.URL); err != nil {
		t.Error(err)
	}
}

// someTPM proves nothing.
type someTPM struct{ report.Prover }

func (someTPM) Identity(context.Context) (tpm2.Identity, error) { return tpm2.Identity{}, nil }

// A site server that is away for a moment is asked again; what it says counts.
func TestSecretsOfASiteServerThatIsBackSoon(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		if asked++; asked == 1 {
			panic(http.ErrAbortHandler) // the connection ends
		}
	}))
	defer server.Close()
	i, _ := testInstallation(t)
	var err error
	if i.site, err = report.New(server.URL, netconfig.MAC{2}, nil); err != nil {
		t.Fatal(err)
	}
	_, err = i.askForSecrets(t.Context(), someTPM{}, []string{"/etc/token"})
	if asked != 2 || err == nil || !strings.Contains(err.Error(), "is none of format") {
		t.Errorf("asked %d times, %v", asked, err)
	}
}

// Where the boot medium says who the site is, nobody else's secrets are taken: who
// is on the way cannot read them, but could put others in their place.
func TestSecretsInTheClearAreNotTaken(t *testing.T) {
	i, _ := testInstallation(t)
	i.env.trust, i.env.tpm = trustIn(t.TempDir()), "/dev/no-such-tpm"
	writePair(t, time.Now(), i.env.trust)
	writeFile(t, i.env.trust.ca, mustRead(t, i.env.trust.cert))
	i.plan.Secrets = []string{"/etc/token"}
	for base, want := range map[string]string{"http://site.test": "by https", "https://site.test": "TPM"} {
		var err error
		if i.site, err = report.New(base, netconfig.MAC{2}, nil); err != nil {
			t.Fatal(err)
		}
		if err := i.fetchSecrets(t.Context()); progress.Code(err) != codeSecrets || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", base, err)
		}
	}
}
