package pki

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRenew: a certificate is issued again when an address is new or its end is
// near, and only then; CA and key stay.
func TestRenew(t *testing.T) {
	dir, now := t.TempDir(), time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	if _, err := Init(dir, clock, Options{Also: []string{"192.0.2.1"}}); err != nil {
		t.Fatal(err)
	}
	ca, key := read(t, dir, CAFile), read(t, dir, ImageserverKeyFile)
	for _, step := range []struct {
		later     time.Duration
		addresses []string
		why       string
	}{
		{0, []string{"192.0.2.1"}, ""},
		{0, []string{"192.0.2.1", "boot.example.com"}, "it was not valid for boot.example.com"},
		{0, []string{"192.0.2.7"}, "it was not valid for 192.0.2.7"},
		{0, []string{"192.0.2.7"}, ""},
		{800 * 24 * time.Hour, []string{"192.0.2.7"}, "it ends on "},
		{0, []string{"192.0.2.7"}, ""},
	} {
		now = now.Add(step.later)
		authority, err := Open(dir, clock)
		if err != nil {
			t.Fatal(err)
		}
		issued, why, err := authority.Renew("imageserver", step.addresses)
		if err != nil || !strings.HasPrefix(why, step.why) || (why == "") != (step.why == "") || issued.New != (why != "") {
			t.Fatalf("%v: renewed because %q, want %q (%v)", step.addresses, why, step.why, err)
		}
		pair, err := tls.LoadX509KeyPair(issued.Cert, issued.Key)
		if err != nil {
			t.Fatal(err)
		}
		for _, address := range append(step.addresses, "localhost") {
			if err := pair.Leaf.VerifyHostname(address); err != nil {
				t.Error(err)
			}
		}
	}
	if read(t, dir, CAFile) != ca || read(t, dir, ImageserverKeyFile) != key {
		t.Error("CA or key were replaced")
	}
	if read(t, dir, ImageserverFile+".old") == read(t, dir, ImageserverFile) {
		t.Error("the old certificate was not kept")
	}
}

func read(t *testing.T, dir, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
