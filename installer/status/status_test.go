package status_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/status"
	"github.com/firstlight/firstlight/netconfig"
)

type noKernel struct{}

func (noKernel) Error() string { return "the image <demo> has no kernel" }
func (noKernel) Code() string  { return "BOO-001" }

// busy is a machine in the middle of everything.
func busy() *progress.Model {
	m := progress.New(time.Now)
	m.Describe(func(f *progress.Facts) {
		f.Version, f.Machine, f.Image = "0.1", "node7.example.org", "debian/12/2026-11-20"
		f.ImageDigest, f.Plan = "sha256:"+strings.Repeat("ab", 32), "sha256:"+strings.Repeat("cd", 32)
		f.Fingerprint = "SHA256:abcdef"
	})
	for _, p := range progress.Phases()[:10] {
		m.Start(p)
		m.Done(p)
	}
	m.Warn(progress.Config, "there is no CA.pem: everything is plaintext")
	m.Objects(progress.FromServer, 12_000, 300<<20)
	m.Objects(progress.FromOldOS, 49, 1<<20)
	m.Skip(progress.Tools, "all programs are there")
	m.PointOfNoReturn()
	m.DisksChanged()
	m.Start(progress.Storage)
	m.Start(progress.Unpack)
	m.Update(progress.Unpack, 100<<20, 400<<20)
	m.Wait(progress.Unpack, "volume /var/log")
	m.DiskStep("vda", "", "mkfs.ext4 /var/log", progress.Running)
	m.Log(progress.Storage, "<script>alert('log')</script>")
	return m
}

func get(t *testing.T, h http.Handler, method, target string) *http.Response {
	t.Helper()
	r := httptest.NewRecorder()
	h.ServeHTTP(r, httptest.NewRequest(method, target, nil))
	return r.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPage(t *testing.T) {
	h := status.Handler(status.Options{Model: busy()})
	r := get(t, h, "GET", "/")
	page := body(t, r)
	if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %v", r.StatusCode, r.Header)
	}
	for _, want := range []string{
		"node7.example.org", "debian/12/2026-11-20", "there is no CA.pem", "12000", "300.0 MiB", "image server",
		"100.0 MiB of 400.0 MiB (25 %)", "for volume /var/log", "mkfs.ext4 /var/log", "commit: point of no return",
		"&lt;script&gt;alert(&#39;log&#39;)", `<noscript><meta http-equiv="refresh" content="5"></noscript>`,
		"prefers-color-scheme", "width=device-width", "Disks are being changed",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, bad := range []string{"<script>alert", "ZgotmplZ", "src=\"http", "href=\"http", "<no value>"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	// The script that is in the page is the one that the policy allows.
	if policy := r.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "script-src 'sha256-") || !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("policy %q", policy)
	}
	if path := os.Getenv("STATUS_PAGE"); path != "" { // to look at it in a browser
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPageOfAFailure(t *testing.T) {
	m := busy()
	m.Fail(progress.Storage, fmt.Errorf("resolving: %w", noKernel{}))
	m.Next("reboot", time.Now().Add(5*time.Minute))
	page := body(t, get(t, status.Handler(status.Options{Model: m}), "GET", "/"))
	top, _, _ := strings.Cut(page, "<h2>Phases</h2>")
	for _, want := range []string{"BOO-001", "failed in phase storage", "image &lt;demo&gt; has no kernel", "; disks changed.</p>", "Disks have been changed", "What to do", "reboot", "4 min 5"} {
		if !strings.Contains(top, want) {
			t.Errorf("the top of the page lacks %q:\n%s", want, top)
		}
	}
}

// However much there is to say, the page stays small.
func TestPageStaysSmall(t *testing.T) {
	for _, word := range []string{"plain text ", "<&>'\"<&>'\""} { // each of these becomes five bytes
		m := busy()
		long := strings.Repeat(word, 200)
		for i := range 500 {
			m.Warn(progress.Storage, fmt.Sprint(i, long))
			m.DiskStep(fmt.Sprint("sd", i), "", long, progress.Running)
		}
		m.Wait(progress.Unpack, long)
		m.Fail(progress.Unpack, errors.New(strings.Repeat(long+"\n", 50)))
		page := body(t, get(t, status.Handler(status.Options{Model: m}), "GET", "/"))
		if len(page) > 60<<10 {
			t.Errorf("%q: %d bytes", word, len(page))
		}
		if !regexp.MustCompile(`and 4[0-9]{2} more disks`).MatchString(page) {
			t.Errorf("%q: the page does not say that there is more", word)
		}
	}
}

func TestAddresses(t *testing.T) {
	var plan []byte
	h := status.Handler(status.Options{Model: busy(), Plan: func() []byte { return plan }})
	for _, c := range []struct {
		method, target string
		code           int
		kind, has      string
	}{
		{"GET", "/healthz", 200, "text/plain; charset=utf-8", "ok"},
		{"HEAD", "/healthz", 200, "", ""},
		{"GET", "/log", 200, "text/plain; charset=utf-8", "] commit: point of no return\n"},
		{"HEAD", "/log?follow=1", 200, "", ""},
		{"HEAD", "/api/v1/events", 200, "text/event-stream", ""},
		{"GET", "/api/v1/status", 200, "application/json", `"machine": "node7.example.org"`},
		{"GET", "/api/v1/plan", 404, "", "there is no plan yet"},
		{"GET", "/api/v1/inventory", 404, "", "there is no inventory yet"},
		{"GET", "/api/v1", 404, "", ""},
		{"GET", "/index.html", 404, "", ""},
		{"GET", "//", 404, "", ""},
		{"POST", "/", 405, "", ""},
		{"PUT", "/api/v1/plan", 405, "", ""},
		{"DELETE", "/log", 405, "", ""},
		{"OPTIONS", "/", 405, "", ""},
		{"POST", "/firstlight.installer.v1.Installer/Reboot", 404, "", ""},
	} {
		r := get(t, h, c.method, c.target)
		text := body(t, r)
		if r.StatusCode != c.code || c.kind != "" && r.Header.Get("Content-Type") != c.kind || !strings.Contains(text, c.has) {
			t.Errorf("%s %s: %d %s %.200q", c.method, c.target, r.StatusCode, r.Header.Get("Content-Type"), text)
		}
		if c.code == 405 && r.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow %q", c.method, c.target, r.Header.Get("Allow"))
		}
		if r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: no nosniff", c.method, c.target)
		}
	}
	plan = []byte(`{"format":1}`)
	if text := body(t, get(t, h, "GET", "/api/v1/plan")); text != `{"format":1}` {
		t.Errorf("plan %q", text)
	}
	var s progress.Snapshot
	if err := json.Unmarshal([]byte(body(t, get(t, h, "GET", "/api/v1/status"))), &s); err != nil || len(s.Phases) != 16 {
		t.Errorf("status: %v, %d phases", err, len(s.Phases))
	}
}

func TestMetrics(t *testing.T) {
	m := busy()
	m.Fail(progress.Storage, noKernel{})
	h := status.Handler(status.Options{Model: m,
		NetworkReceived: func() uint64 { return 4711 },
		DiskWritten:     func() map[string]uint64 { return map[string]uint64{"vda": 42} },
		MemoryPeak:      func() uint64 { return 1 << 20 },
	})
	text := body(t, get(t, h, "GET", "/metrics"))
	for _, want := range []string{
		`installer_build_info{arch="`, `version="0.1"} 1`,
		`installer_phase{phase="unpack"} 1`, `installer_phase{phase="clock"} 0`,
		`installer_phase_duration_seconds{phase="stage"} `,
		`installer_progress_ratio 0.`,
		`installer_objects_total{source="server"} 12000`, `installer_objects_total{source="medium"} 0`,
		`installer_object_bytes_total{source="old_os"} 1.048576e+06`,
		`installer_network_received_bytes_total 4711`,
		`installer_disk_written_bytes_total{disk="vda"} 42`,
		`installer_memory_peak_bytes 1.048576e+06`,
		`installer_errors_total{code="BOO-001"} 1`,
	} {
		if !strings.Contains(text, "\n"+want) && !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

// start serves h on a port of its own and returns its URL.
func start(t *testing.T, h http.Handler) (url string, stop func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	server := &http.Server{Handler: h, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		err := server.Shutdown(context.Background())
		if served := <-done; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String(), stop
}

func TestFollowing(t *testing.T) {
	m := progress.New(time.Now)
	m.Start(progress.Clock)
	m.Log(progress.Clock, "before")
	url, stop := start(t, status.Handler(status.Options{Model: m}))
	follow := func(path string) *bufio.Scanner {
		r, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Body.Close() })
		return bufio.NewScanner(r.Body)
	}
	next := func(s *bufio.Scanner, want string) {
		t.Helper()
		for s.Scan() {
			if strings.Contains(s.Text(), want) {
				return
			}
		}
		t.Fatalf("%q did not come: %v", want, s.Err())
	}
	log, events := follow("/log?follow=1"), follow("/api/v1/events")
	next(log, "clock: before")
	next(events, `data: {"format":1,`)
	m.Log(progress.Clock, "after")
	m.Done(progress.Clock)
	next(log, "clock: after")
	next(events, `"event":"done"`)
	// The port closes at the hand-over, followers or not.
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if log.Scan() {
		t.Errorf("another line: %q", log.Text())
	}
	if _, err := http.Get(url + "/"); err == nil {
		t.Error("it still answers")
	}
}

// Followers cannot take all places: others still see the page.
func TestTooManyFollowers(t *testing.T) {
	m := progress.New(time.Now)
	url, _ := start(t, status.Handler(status.Options{Model: m}))
	refused := 0
	for range 60 {
		r, err := http.Get(url + "/log?follow=1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Body.Close() })
		if r.StatusCode == http.StatusServiceUnavailable {
			refused++
		}
	}
	if refused != 12 {
		t.Errorf("%d were refused", refused)
	}
	if r, err := http.Get(url + "/"); err != nil || r.StatusCode != 200 {
		t.Errorf("%v %v", r, err)
	}
}

// The page says what is at the other end of each cable, as text.
func TestPageShowsTheNetwork(t *testing.T) {
	nics := func() []netconfig.NIC {
		return []netconfig.NIC{
			{Name: "eth0", MAC: netconfig.MAC{2}, Driver: "igb", Carrier: true, SpeedMbps: 10000, Counters: &netconfig.Counters{ReceivedBytes: 3 << 20, ReceiveErrors: 7},
				Neighbour: &netconfig.Neighbour{Chassis: "52:54:00:00:00:99", System: "leaf<1>", Port: "Eth1/7", VLANs: []netconfig.NamedVLAN{{ID: 120, Name: "prod"}}}},
			{Name: "eth1", MAC: netconfig.MAC{4}},
		}
	}
	page := body(t, get(t, status.Handler(status.Options{Model: busy(), NICs: nics, Leases: func() map[string]string { return map[string]string{"eth0": "10.0.2.15/24, leased by 10.0.2.2"} }}), "GET", "/"))
	for _, want := range []string{"eth0<br><small class=\"one\">02:00:00:00:00:00 igb", "10.0.2.15/24, leased by 10.0.2.2", "10 Gbit/s", "3.0 MiB, 7 errors", "switch leaf&lt;1&gt;, port Eth1/7, VLANs 120 prod", "eth1", "none"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}
