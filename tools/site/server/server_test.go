package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/site"
)

const (
	mac    = "52-54-00-00-00-01"
	layout = `{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 1073741824}]}`
)

// lab is a site with a server that is reached over HTTP.
type lab struct {
	t    *testing.T
	site *site.Site
	url  string
	dir  string
	stop func()
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	s, err := site.Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, site: s, dir: dir}
	l.write("media/amd64/vmlinuz", "the kernel of the installer")
	server := New(Options{
		Site: s, Media: filepath.Join(dir, "media"), ImageServer: ":6971", Log: slog.New(slog.DiscardHandler), Version: "test", Now: time.Now,
		Images: func(context.Context) ([]Image, error) {
			return []Image{{Name: "debian/12/1", Arch: "amd64", Bytes: 435e6}}, nil
		},
		Notices: func() []Notice { return []Notice{{Bad: true, Text: "port 67 is taken by dnsmasq", Do: "stop it"}} },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { server.Follow(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	web := httptest.NewServer(server)
	l.stop = sync.OnceFunc(func() { web.Listener.Close(); web.CloseClientConnections(); web.Close() })
	t.Cleanup(l.stop)
	l.url = web.URL
	return l
}

func (l *lab) write(name, text string) {
	l.t.Helper()
	file := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

// machine adds web1.
func (l *lab) machine() {
	l.write("machines/web1/config.json", `{"Machine": {"Hostname": "web1", "HostMacAddress": "52:54:00:00:00:01"}}`)
	l.write("machines/web1/storage-layout.json", layout)
	l.write("machines/web1/imagename", "debian/12\n")
	l.write("machines/web1/machine.yaml", "labels: {rack: r1}\n")
}

func (l *lab) get(path string) (int, string) {
	l.t.Helper()
	r, err := http.NewRequestWithContext(l.t.Context(), http.MethodGet, l.url+path, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		l.t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		l.t.Fatal(err)
	}
	return answer.StatusCode, string(body)
}

func (l *lab) wants(path string, status int, texts ...string) string {
	l.t.Helper()
	got, body := l.get(path)
	if got != status {
		l.t.Errorf("GET %s: %d, want %d: %s", path, got, status, body)
	}
	for _, text := range texts {
		if !strings.Contains(body, text) {
			l.t.Errorf("GET %s: no %q in\n%s", path, text, body)
		}
	}
	return body
}

// client is the installer's end.
func (l *lab) client() *report.Site {
	l.t.Helper()
	address, err := netconfig.ParseMAC("52:54:00:00:00:01")
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := report.New(l.url, address, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

func (l *lab) ask(boot string, want report.Word) report.Configuration {
	l.t.Helper()
	c, err := l.client().Configuration(l.t.Context(), report.Asker{Boot: boot})
	if err != nil {
		l.t.Fatal(err)
	}
	if c.Word != want {
		l.t.Fatalf("boot %s is told %d (%s), want %d", boot, c.Word, c.Reason, want)
	}
	return c
}

func (l *lab) post(kind report.Kind, v any) {
	l.t.Helper()
	body, err := json.Marshal(v)
	if err == nil {
		err = l.client().Post(l.t.Context(), kind, body)
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// TestFromUnknownToInstalled is a machine's life: it boots, waits, is named and
// approved by the operator in the site's directory, installs, and boots its disk.
func TestFromUnknownToInstalled(t *testing.T) {
	l := newLab(t)
	l.wants("/api/v1/machines", 200, `"machines": []`)
	l.wants("/api/v1/audit", 200, "[]")
	l.wants("/sd", 200, "[]")
	script := l.wants("/v1/ipxe/"+mac, 200, "#!ipxe\n", "/boot/amd64/vmlinuz initrd=initramfs ", "siteserver="+l.url, "BOOTIF=01-"+mac, "\ninitrd "+l.url+"/boot/amd64/initramfs\nboot\n")
	if strings.Contains(script, "sanboot") {
		t.Error("an unknown machine is sent to its disk")
	}
	c := l.ask("boot-1", report.Wait)
	if !strings.Contains(c.Reason, "firstlight machine set "+mac) {
		t.Errorf("the machine's console does not say what to do: %s", c.Reason)
	}
	l.post(report.Inventory, inventory.Document{Format: 1, Arch: "amd64", Disks: []storage.Disk{{Name: "vda", Path: "/dev/vda"}}})
	l.post(report.State, progress.Snapshot{Format: 1, Ratio: 0.03, Phases: []progress.PhaseStatus{{Phase: progress.Config, State: progress.Waiting, WaitingFor: "the site server"}}})
	l.wants("/", 200, mac, "waiting", "firstlight machine set", "port 67 is taken by dnsmasq", "stop it", "debian/12/1")
	l.wants("/api/v1/machines/"+mac+"/inventory", 200, `"/dev/vda"`)
	l.wants("/sd", 200, `"127.0.0.1:6978"`, `"state": "waiting"`)

	l.machine()
	if err := l.site.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	c = l.ask("boot-1", report.Go)
	if got := string(c.Files[fetch.SiteServer]); got != l.url+"\n" {
		t.Errorf("siteserver: %q", got)
	}
	if got := string(c.Files[fetch.ImageServer]); got != "127.0.0.1:6971\n" {
		t.Errorf("imageserver: %q", got)
	}
	if c.Files["machine.yaml"] != nil || string(c.Files["imagename"]) != "debian/12\n" {
		t.Errorf("files: %q", c.Files)
	}
	l.post(report.State, progress.Snapshot{Format: 1, Seconds: 60, Ratio: 0.5, Phases: []progress.PhaseStatus{{Phase: progress.Stage, State: progress.Running}}})
	l.wants("/", 200, "installing", "50 %", "stage", "about 60 s left", "rack=r1", `href="http://127.0.0.1:6978/"`)
	l.wants("/metrics", 200, `site_machines{state="installing"} 1`, `site_machine_progress_ratio{machine="web1"} 0.5`, "site_notices 1")
	if err := l.client().Post(t.Context(), report.Log, []byte("[   1.000] config: a line of the log\n")); err != nil {
		t.Fatal(err)
	}
	l.post(report.State, progress.Snapshot{Format: 1, Ratio: 1, Phases: []progress.PhaseStatus{{Phase: progress.Finish, State: progress.Done}}})
	l.wants("/machines/web1", 200, "handed over, not seen since", "a line of the log", "ann", "approve")
	l.wants("/v1/ipxe/"+mac, 200, "sanboot", "web1 is installed")
	l.wants("/v1/boot/52:54:00:00:00:01", 404)
	l.ask("boot-2", report.BootDisk)
	if err := l.client().Post(t.Context(), report.NewSystem, nil); err != nil {
		t.Fatal(err)
	}
	body := l.wants("/machines/web1", 200, "it reported itself from 127.0.0.1")
	if strings.Contains(body, "not seen since") {
		t.Error("the new system has reported itself and was not seen")
	}
	if err := l.site.Approve("web1", "ann", true); err != nil {
		t.Fatal(err)
	}
	l.wants("/v1/boot/52:54:00:00:00:01", 200, l.url+"/boot/amd64/vmlinuz", "siteserver="+l.url)
}

// TestFailureStays: what went wrong is there when the machine's own page is gone.
func TestFailureStays(t *testing.T) {
	l := newLab(t)
	l.machine()
	if err := l.site.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	l.ask("boot-1", report.Go)
	l.post(report.State, progress.Snapshot{Format: 1, Failure: &progress.Failure{Code: "STO-002", Text: "/dev/vda is too small", Do: "Take a larger disk."}})
	l.wants("/", 200, "failed", "STO-002: /dev/vda is too small", "disks untouched", "Take a larger disk.")
	l.wants("/metrics", 200, `site_machine_failed{code="STO-002",machine="web1"} 1`)
	l.ask("boot-2", report.Wait)
}

// TestConfigurationFiles: a web server as -configurationBaseUrl asks it.
func TestConfigurationFiles(t *testing.T) {
	l := newLab(t)
	l.machine()
	l.write("machines/web1/config.json", `{"Machine": {"Hostname": "web1", "HostMacAddress": "52:54:00:00:00:01"}, "Install": {"Steps": [{"Programme": "cable.sh", "Before": "commit"}]}}`)
	l.write("machines/web1/steps/cable.sh", "#!/bin/sh\n")
	source := func() fetch.Source {
		address, _ := netconfig.ParseMAC("52:54:00:00:00:01")
		s, err := fetch.HTTP(l.url+"/config", address, "")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if files, err := fetch.All(t.Context(), source()); files != nil || progress.Code(err) != "CFG-103" || !strings.Contains(err.Error(), "403") {
		t.Errorf("nobody has approved it: %v, %v", files, err)
	}
	if err := l.site.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	l.wants("/config/storage-layout.json?mac=52:54:00:00:00:01", 403) // config.json comes first
	files, err := fetch.All(t.Context(), source())
	if err != nil || string(files[fetch.ImageName]) != "debian/12\n" || files[fetch.SiteServer] == nil {
		t.Fatalf("%v: %v", err, files)
	}
	l.wants("/config/tools-imagename?mac=52:54:00:00:00:01", 404)
	l.wants("/config/steps/cable.sh?mac=52:54:00:00:00:01", 200, "#!/bin/sh")
	l.wants("/config/steps/../machine.yaml?mac=52:54:00:00:00:01", 404)
	l.wants("/config/steps%2F..%2Fmachine.yaml?mac=52:54:00:00:00:01", 404)
	l.wants("/config/machine.yaml?mac=52:54:00:00:00:01", 404)
	l.wants("/config/config.json", 400)
}

// TestLookingTakesNoApproval: HEAD is what programs send that only look.
func TestLookingTakesNoApproval(t *testing.T) {
	l := newLab(t)
	l.machine()
	if err := l.site.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/config/config.json?mac=52:54:00:00:00:01", "/v1/machines/" + mac + "/config?boot=b", "/v1/ipxe/" + mac, "/v1/boot/52:54:00:00:00:01"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, l.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if m, err := l.site.Machine("web1"); err != nil || m.Status.State != site.Approved {
			t.Errorf("after HEAD %s (%s): %s, %v", path, answer.Status, m.Status.State, err)
		}
	}
}

func TestMedia(t *testing.T) {
	l := newLab(t)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, l.url+"/boot/amd64/vmlinuz", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Range", "bytes=4-9")
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusPartialContent || string(body) != "kernel" {
		t.Errorf("%d %q", answer.StatusCode, body)
	}
	l.wants("/boot/amd64/..%2f..%2fsite.yaml", 404)
	l.wants("/boot/..%2f../site.yaml", 404)
	l.wants("/boot/amd64/.hidden", 404)
}

func TestTwoMachinesBootTheirDisk(t *testing.T) {
	l := newLab(t)
	l.machine()
	l.write("machines/web2/config.json", `{"Machine": {"Hostname": "web2", "HostMacAddress": "52:54:00:00:00:01"}}`)
	l.write("machines/web2/imagename", "debian/12\n")
	l.wants("/v1/ipxe/"+mac, 200, "sanboot", "web1 and web2 are both this machine")
	if _, err := l.client().Configuration(t.Context(), report.Asker{Boot: "b"}); err == nil || !strings.Contains(err.Error(), "SRV-043") {
		t.Errorf("%v", err)
	}
}

// TestLive: whoever follows is told of what another process changes in the site's
// directory within a second or so.
func TestLive(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url+"/api/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	message := func() error {
		for lines.Scan() {
			if lines.Text() == "data: changed" {
				return nil
			}
		}
		return fmt.Errorf("the stream ended: %v", lines.Err())
	}
	if err := message(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * followInterval) // the first look
	start := time.Now()
	l.machine()
	if err := message(); err != nil {
		t.Fatal(err)
	}
	t.Logf("told after %s", time.Since(start).Round(time.Millisecond))
}

// TestNoScriptInjection: what a machine says of itself is shown, never run.
func TestNoScriptInjection(t *testing.T) {
	l := newLab(t)
	l.wants("/v1/ipxe/"+mac, 200)
	l.post(report.State, progress.Snapshot{Format: 1, Warnings: []string{"<script>alert(1)</script>"}})
	if body := l.wants("/machines/"+mac, 200, "&lt;script&gt;"); strings.Contains(body, "<script>alert") {
		t.Error("a machine's words are part of the page")
	}
	if got := diskScript("a ${b} && shell\nreboot"); strings.Contains(got, "&& shell") || strings.Contains(got, "\nreboot") {
		t.Errorf("a name is part of the script:\n%s", got)
	}
}
