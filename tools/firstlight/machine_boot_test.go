package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/tools/site"
)

// TestMachineBoot: what is wrong is found before a machine is restarted, and said
// with what to do.
func TestMachineBoot(t *testing.T) {
	l := newLab(t)
	images := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/boot/amd64/firstlight.iso" {
			http.NotFound(w, r)
		}
	}))
	defer images.Close()
	l.write(t, "machines/web1/config.json", `{"Machine": {"Hostname": "web1", "HostMacAddress": "52:54:00:00:00:01"}}`)
	l.write(t, "machines/web1/imagename", "debian/12\n")
	const boot = "machine boot web1 --via redfish --yes --server "
	for _, c := range []struct {
		card, args string
		exit       int
		says       string
	}{
		{"{}\n", boot + images.URL, exitUsage, "has no bmc"},
		{"bmc: {url: 'https://127.0.0.1:1', user: root, password-file: ../x}\n", boot + images.URL, exitUsage, "is the name of a file in"},
		{"bmc: {url: 'https://127.0.0.1:1', user: root, password-file: web1}\n", boot + images.URL, exitUsage, "no such file"},
		{"bmc: {url: 'https://127.0.0.1:1', user: root, password-file: admin.pem, ca: site.yaml}\n", boot + images.URL, exitUsage, "holds no certificate"},
		{"bmc: {url: 'https://127.0.0.1:1', user: root, password-file: admin.pem}\n", boot + images.URL + "/elsewhere", exitRefused, "there is no ISO at"},
		{"bmc: {url: 'https://127.0.0.1:1', user: root, password-file: admin.pem}\n", boot + images.URL, exitUnreachable, "logging in to the BMC"},
		{"bmc: {url: 'http://192.0.2.1', user: root, password-file: admin.pem}\n", boot + images.URL, exitTrust, "use https"},
		{"bmc: {url: 'https://127.0.0.1:1', user: root, password-file: admin.pem}\n", "machine boot web1 --server " + images.URL, exitRefused, "whatever runs on it"},
		{"{}\n", "machine boot web1 --interface nosuch", exitFailed, "there is no interface nosuch"},
		{"{}\n", "machine boot web1 --via smoke", exitUsage, "--via is redfish or wol"},
		{"{}\n", "machine boot web2", exitNotFound, ""},
	} {
		l.write(t, "machines/web1/machine.yaml", c.card)
		if _, stderr, code := l.run(t, strings.Fields(c.args)...); code != c.exit || !strings.Contains(stderr, c.says) {
			t.Errorf("%q %q: exit %d, want %d: %s", c.card, c.args, code, c.exit, stderr)
		}
	}
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	trail, err := s.Audit()
	if err != nil || len(trail) == 0 || trail[len(trail)-1].Verb != "boot" {
		t.Errorf("%v, %v", trail, err)
	}
}
