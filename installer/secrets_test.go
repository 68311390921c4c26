package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/netconfig"
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
