package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

func clock() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) }

func code(err error) string {
	var coded interface{ Code() string }
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}

func initSite(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "secrets")
	if _, err := pki.Init(dir, clock, pki.Options{Name: "test", Addresses: []string{"host1", "10.0.2.2"}, Also: []string{"192.0.2.7"}}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestInitByOpenSSL has another program judge what Init made.
func TestInitByOpenSSL(t *testing.T) {
	dir := initSite(t)
	at := "-attime"
	stamp := "1795176000" // 2026-11-20 12:00:00 UTC
	for file, purpose := range map[string]string{pki.ImageserverFile: "sslserver", pki.AdminFile: "sslclient"} {
		output, err := exec.CommandContext(t.Context(), "openssl", "verify", at, stamp, "-x509_strict", "-purpose", purpose,
			"-CAfile", filepath.Join(dir, pki.CAFile), filepath.Join(dir, file)).CombinedOutput()
		if err != nil {
			t.Errorf("openssl verify %s: %v\n%s", file, err, output)
		}
	}
	for _, host := range []string{"localhost", "host1"} {
		opensslVerify(t, dir, stamp, "-verify_hostname", host)
	}
	for _, ip := range []string{"127.0.0.1", "::1", "10.0.2.2", "192.0.2.7"} {
		opensslVerify(t, dir, stamp, "-verify_ip", ip)
	}
	text, err := exec.CommandContext(t.Context(), "openssl", "x509", "-noout", "-text", "-in", filepath.Join(dir, pki.AdminFile)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, want := range []string{"URI:urn:firstlight:role:admin", "prime256v1", "Not Before: Nov 19 12:00:00 2026 GMT"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("admin certificate lacks %q:\n%s", want, text)
		}
	}
}

func opensslVerify(t *testing.T, dir, stamp string, check ...string) {
	t.Helper()
	args := append([]string{"verify", "-attime", stamp, "-CAfile", filepath.Join(dir, pki.CAFile)}, check...)
	output, err := exec.CommandContext(t.Context(), "openssl", append(args, filepath.Join(dir, pki.ImageserverFile))...).CombinedOutput()
	if err != nil {
		t.Errorf("openssl verify %v: %v\n%s", check, err, output)
	}
}

func TestModes(t *testing.T) {
	dir := initSite(t)
	want := map[string]fs.FileMode{
		".": fs.ModeDir | 0o700, pki.CAFile: 0o644, pki.CAKeyFile: 0o600, pki.ImageserverFile: 0o644,
		pki.ImageserverKeyFile: 0o600, pki.AdminFile: 0o644, pki.AdminKeyFile: 0o600,
	}
	for name, mode := range want {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(names) != len(want)-1 {
		t.Errorf("%d files, want %d: %v", len(names), len(want)-1, names)
	}
}

// TestAgain runs Init a second time: nothing changes.
func TestAgain(t *testing.T) {
	dir := initSite(t)
	before := contents(t, dir)
	issued, err := pki.Init(dir, clock, pki.Options{Addresses: []string{"10.0.2.2"}, Also: []string{"198.51.100.1"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range issued {
		if one.New {
			t.Errorf("%s was made again", one.Name)
		}
	}
	for name, data := range contents(t, dir) {
		if before[name] != data {
			t.Errorf("%s has changed", name)
		}
	}
}

// TestAgainWithAnotherAddress: the CA and all keys stay, and what lacks the
// address, or ends soon, is issued again.
func TestAgainWithAnotherAddress(t *testing.T) {
	dir := initSite(t)
	before := contents(t, dir)
	issued, err := pki.Init(dir, clock, pki.Options{Addresses: []string{"10.9.9.9", "images.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range issued {
		if one.New != (one.Name == "imageserver") || one.New && one.Why != "it was not valid for 10.9.9.9, images.example.com" {
			t.Errorf("%+v", one)
		}
	}
	after := contents(t, dir)
	for _, name := range []string{pki.CAFile, pki.CAKeyFile, pki.ImageserverKeyFile, pki.AdminFile, pki.AdminKeyFile} {
		if file := filepath.Join(dir, name); before[file] != after[file] {
			t.Errorf("%s has changed", name)
		}
	}
	leaf := load(t, pki.Issued{Cert: filepath.Join(dir, pki.ImageserverFile), Key: filepath.Join(dir, pki.ImageserverKeyFile)})
	for _, address := range []string{"10.0.2.2", "localhost", "127.0.0.1", "10.9.9.9", "images.example.com"} {
		if err := leaf.VerifyHostname(address); err != nil {
			t.Error(err)
		}
	}
	later := func() time.Time { return clock().AddDate(2, 3, 0) }
	issued, err = pki.Init(dir, later, pki.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range issued {
		if one.New != (one.Name != "CA") {
			t.Errorf("two years later: %+v", one)
		}
	}
	if got := auth.RoleOf(load(t, pki.Issued{Cert: filepath.Join(dir, pki.AdminFile), Key: filepath.Join(dir, pki.AdminKeyFile)})); got != auth.Admin {
		t.Errorf("the admin's certificate has the role %s then", got)
	}
}

func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[file] = string(data)
	}
	return all
}

func TestRefusals(t *testing.T) {
	role := &url.URL{Scheme: "urn", Opaque: "firstlight:role:operator"}
	tests := map[string]struct {
		code string
		do   func(t *testing.T, dir string) error
	}{
		"half a CA": {"TRU-010", func(t *testing.T, dir string) error {
			remove(t, filepath.Join(dir, pki.CAKeyFile))
			_, err := pki.Init(dir, clock, pki.Options{})
			return err
		}},
		"issue without the CA's key": {"TRU-010", func(t *testing.T, dir string) error {
			remove(t, filepath.Join(dir, pki.CAKeyFile))
			_, err := pki.Open(dir, clock)
			return err
		}},
		"a certificate that is none": {"TRU-011", func(t *testing.T, dir string) error {
			if err := os.WriteFile(filepath.Join(dir, pki.ImageserverFile), []byte("hello"), 0o644); err != nil {
				t.Fatal(err)
			}
			_, err := pki.Init(dir, clock, pki.Options{Addresses: []string{"10.9.9.9"}})
			return err
		}},
		"name taken":             {"TRU-011", issue(pki.Request{Name: "admin", Role: role})},
		"the CA's name":          {"TRU-012", issue(pki.Request{Name: "CA", Role: role})},
		"a key's name":           {"TRU-012", issue(pki.Request{Name: "imageserver-key", Role: role})},
		"path as a name":         {"TRU-012", issue(pki.Request{Name: "../x", Role: role})},
		"hidden name":            {"TRU-012", issue(pki.Request{Name: ".x", Role: role})},
		"server without address": {"TRU-012", issue(pki.Request{Name: "x", Server: true})},
		"server with a role":     {"TRU-012", issue(pki.Request{Name: "x", Server: true, Addresses: []string{"h"}, Role: role})},
		"address with a port":    {"TRU-012", issue(pki.Request{Name: "x", Server: true, Addresses: []string{"host:6971"}})},
		"address with a scheme":  {"TRU-012", issue(pki.Request{Name: "x", Server: true, Addresses: []string{"https://host"}})},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := test.do(t, initSite(t)); code(err) != test.code {
				t.Errorf("error %v (%s), want %s", err, code(err), test.code)
			}
		})
	}
}

func issue(request pki.Request) func(*testing.T, string) error {
	return func(t *testing.T, dir string) error {
		t.Helper()
		authority, err := pki.Open(dir, clock)
		if err != nil {
			t.Fatal(err)
		}
		_, err = authority.Issue(request)
		return err
	}
}

func remove(t *testing.T, file string) {
	t.Helper()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// TestRolesAreUnderstood holds the names of roles in certificates together with
// what the servers read.
func TestRolesAreUnderstood(t *testing.T) {
	dir := initSite(t)
	authority, err := pki.Open(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []auth.Role{auth.Viewer, auth.Operator, auth.Admin} {
		issued, err := authority.Issue(pki.Request{Name: "test-" + role.String(), Role: role.URI()})
		if err != nil {
			t.Fatal(err)
		}
		if got := auth.RoleOf(load(t, issued)); got != role {
			t.Errorf("certificate of role %s is read as %s", role, got)
		}
	}
	admin := load(t, pki.Issued{Cert: filepath.Join(dir, pki.AdminFile), Key: filepath.Join(dir, pki.AdminKeyFile)})
	if got := auth.RoleOf(admin); got != auth.Admin {
		t.Errorf("the admin's certificate has role %s", got)
	}
	shown, err := pki.Show(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(shown) != 6 || shown[0].Kind != "ca" || !shown[0].HasKey || shown[1].Role != "admin" || shown[2].Kind != "server" {
		t.Errorf("shown: %+v", shown)
	}
}

func load(t *testing.T, issued pki.Issued) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(issued.Cert, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}
