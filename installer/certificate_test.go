package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// servePage serves a test installation's page and returns its host:port.
func servePage(t *testing.T, args ...string) (*installation, string) {
	t.Helper()
	i, _ := testInstallation(t, append(args, "-portNum=0")...)
	closePage, err := i.openPage(t.Context(), func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(closePage)
	return i, fmt.Sprintf("127.0.0.1:%d", i.pagePort)
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	answer, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, answer.Status, err)
	}
	return string(body)
}

func TestPageAnswersPlainlyAndOverTLSWithTheFingerprintThatItShows(t *testing.T) {
	i, address := servePage(t)
	fingerprint := i.model.Snapshot().Facts.Fingerprint
	if !strings.HasPrefix(fingerprint, "SHA256:") {
		t.Fatalf("fingerprint %q", fingerprint)
	}
	if page := get(t, http.DefaultClient, "http://"+address+"/"); !strings.Contains(page, fingerprint) {
		t.Error("the page does not show the fingerprint")
	}
	seen := ""
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // the fingerprint is what is checked
		VerifyConnection: func(state tls.ConnectionState) error {
			seen = fingerprintOf(tls.Certificate{Certificate: [][]byte{state.PeerCertificates[0].Raw}})
			return nil
		},
	}}}
	get(t, client, "https://"+address+"/api/v1/status")
	if seen != fingerprint {
		t.Errorf("certificate %s, the page shows %s", seen, fingerprint)
	}
}

func TestPageWithoutACertificateSpeaksNoTLS(t *testing.T) {
	i, address := servePage(t, "-generateMissingWebcert=false")
	if fingerprint := i.model.Snapshot().Facts.Fingerprint; fingerprint != "" {
		t.Errorf("fingerprint %q of no certificate", fingerprint)
	}
	get(t, http.DefaultClient, "http://"+address+"/healthz")
	if connection, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true}); err == nil {
		connection.Close()
		t.Error("TLS was spoken with a certificate from nowhere")
	}
}

func TestEveryRPCIsRefused(t *testing.T) {
	_, address := servePage(t)
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = connection.Invoke(ctx, "/firstlight.installer.v1.Installer/Reboot", nil, nil, grpc.ForceCodec(noBytes{}))
	if code := status.Code(err); code != codes.Unimplemented && code != codes.PermissionDenied && code != codes.Unauthenticated {
		t.Errorf("got %v", err)
	}
}

// noBytes is a codec for a call that never gets far enough to need one.
type noBytes struct{}

func (noBytes) Marshal(any) ([]byte, error) { return nil, nil }
func (noBytes) Unmarshal([]byte, any) error { return nil }
func (noBytes) Name() string                { return "none" }
