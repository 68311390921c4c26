package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/installer/trust"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/recovery"
)

// sayer answers each question with the next of its answers, and the last for
// ever.
type sayer struct {
	mu      sync.Mutex
	answers []report.Configuration
	asked   []report.Asker
	kinds   []report.Kind
}

func (s *sayer) Configuration(_ *http.Request, _ string, who report.Asker) (report.Configuration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, who)
	answer := s.answers[0]
	if len(s.answers) > 1 {
		s.answers = s.answers[1:]
	}
	return answer, nil
}

func (s *sayer) Take(_ *http.Request, _ string, kind report.Kind, _ []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kinds = append(s.kinds, kind)
	return nil
}

func (s *sayer) KeepRecovery(context.Context, string, recovery.Escrow, []byte) error { return nil }

// askSite is an installation that asks a site server with these answers.
func askSite(t *testing.T, handler http.Handler, flags ...string) (*installation, *strings.Builder) {
	t.Helper()
	web := httptest.NewServer(handler)
	t.Cleanup(web.Close)
	i, log := testInstallation(t, append([]string{"-siteServer=" + web.URL, "-dryRun=false"}, flags...)...)
	i.env.trust.ca, i.env.trust.keys = "/nonexistent", t.TempDir()
	i.env.proc = fstest.MapFS{"sys/kernel/random/boot_id": {Data: []byte("boot-1\n")}, "meminfo": {Data: []byte("MemTotal: 1024 kB\nMemAvailable: 512 kB\n")}}
	i.nic = netconfig.NIC{Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}}
	// The look at this host's hardware is not what these tests are about.
	i.publishInventory(inventory.Document{Format: inventory.Format, Arch: "amd64"})
	i.model.Start(progress.Config)
	return i, log
}

func TestSiteServerGivesTheConfigurationAfterAWait(t *testing.T) {
	server := &sayer{answers: []report.Configuration{
		{Word: report.Wait, Reason: "nobody has approved it", Again: time.Second},
		{Word: report.Go, Machine: "web1", Files: map[string][]byte{"config.json": []byte(`{}`), "imagename": []byte("debian/12\n")}},
	}}
	i, log := askSite(t, report.Handler(server))
	files, err := i.filesFromNetwork(t.Context(), attempt{})
	if err != nil {
		t.Fatal(err)
	}
	if string(files["imagename"]) != "debian/12\n" || len(files) != 2 {
		t.Errorf("files: %v", files)
	}
	if len(server.asked) != 2 || server.asked[0].Boot != "boot-1" {
		t.Errorf("asked by %+v", server.asked)
	}
	if !strings.Contains(log.String(), "waiting for the site server: nobody has approved it") {
		t.Errorf("the log does not say why it waited:\n%s", log)
	}
	if err := i.opened.close(); err != nil {
		t.Fatal(err)
	}
	told := map[report.Kind]bool{}
	for _, kind := range server.kinds {
		told[kind] = true
	}
	if !told[report.Inventory] || !told[report.State] {
		t.Errorf("while it waited it told %v", server.kinds)
	}
}

// TestInstalledMachineIsNotInstalled: "boot your disk" never gives a
// configuration, and the machine is restarted only where that leads to its disk.
func TestInstalledMachineIsNotInstalled(t *testing.T) {
	for name, c := range map[string]struct {
		kernel  string
		reboots bool
	}{
		"from a medium":    {"", false},
		"from the network": {"BOOTIF=01-52-54-00-12-34-56", true},
	} {
		server := &sayer{answers: []report.Configuration{{Word: report.BootDisk, Reason: "it is installed"}}}
		i, _ := askSite(t, report.Handler(server))
		i.opt.kernel = splitKernelCommandLine(c.kernel)
		i.env.inMemory = true
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		rebooted, sent := false, false
		i.forwarded = func() { sent = true }
		i.env.reboot = func() error { rebooted = sent; cancel(); return nil }
		files, err := i.filesFromNetwork(ctx, attempt{})
		cancel()
		if files != nil || err == nil {
			t.Errorf("%s: it got %v", name, files)
		}
		if rebooted != c.reboots {
			t.Errorf("%s: rebooted %v", name, rebooted)
		}
	}
}

// TestSiteServerThatFailsGivesNoConfiguration: only a server that says that it
// has none lets the machine look elsewhere.
func TestSiteServerThatFailsGivesNoConfiguration(t *testing.T) {
	i, _ := askSite(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if files, err := i.filesFromNetwork(ctx, attempt{}); files != nil || err == nil || progress.Code(err) == "NET-020" {
		t.Errorf("%v, %v", files, err)
	}
	i, log := askSite(t, http.NotFoundHandler())
	if _, err := i.filesFromNetwork(t.Context(), attempt{}); progress.Code(err) != "NET-020" || !strings.Contains(log.String(), "takes reports only") {
		t.Errorf("it did not go on to TFTP: %v\n%s", err, log)
	}
}

// TestDryRunUsesNoApproval: who only looks does not say which boot it is.
func TestDryRunUsesNoApproval(t *testing.T) {
	server := &sayer{answers: []report.Configuration{{Word: report.Wait, Reason: "nobody has approved it"}}}
	i, _ := askSite(t, report.Handler(server), "-dryRun=true")
	_, err := i.filesFromNetwork(t.Context(), attempt{})
	if coded := new(refusal); !errors.As(err, &coded) || coded.code != "SRV-032" {
		t.Errorf("%v", err)
	}
	if len(server.asked) != 1 || server.asked[0].Boot != "" {
		t.Errorf("asked by %+v", server.asked)
	}
}

// TestWaitingMachineStaysWithItsServer: a server that has said "wait" and then
// knows nothing of configurations (a proxy before it, an old version) does not
// send the machine to somebody else's.
func TestWaitingMachineStaysWithItsServer(t *testing.T) {
	none := report.Configuration{Word: report.NotHere}
	server := &sayer{answers: []report.Configuration{
		{Word: report.Wait, Reason: "nobody has approved it", Again: time.Second},
		none,
		{Word: report.Go, Machine: "web1", Files: map[string][]byte{"config.json": []byte(`{}`)}},
	}}
	i, log := askSite(t, report.Handler(server))
	files, err := i.filesFromNetwork(t.Context(), attempt{})
	if err != nil || len(files) != 1 || strings.Contains(log.String(), "TFTP") {
		t.Errorf("%v, %v\n%s", files, err, log)
	}
}

// TestDryRunOfAnInstalledMachineEnds: nobody can say "reinstall" to who only looks.
func TestDryRunOfAnInstalledMachineEnds(t *testing.T) {
	server := &sayer{answers: []report.Configuration{{Word: report.BootDisk, Reason: "it is installed"}}}
	i, _ := askSite(t, report.Handler(server), "-dryRun=true")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := i.filesFromNetwork(ctx, attempt{}); progress.Code(err) != "SRV-032" {
		t.Errorf("%v", err)
	}
}

// TestCommandsUseNoApproval: "installer plan" on a machine claims nothing there.
func TestCommandsUseNoApproval(t *testing.T) {
	opt, err := parseOptions([]string{"-dryRun=false"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	i, end, err := newSession(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	if who := i.asker(); who.Boot != "" {
		t.Errorf("a command asks as %+v", who)
	}
}

// TestAnInstallationIsNeverALook: to the site server, who names no boot only looks,
// and is given the files of a machine that nobody has approved.
func TestAnInstallationIsNeverALook(t *testing.T) {
	i, _ := askSite(t, http.NotFoundHandler())
	i.env.proc = fstest.MapFS{}
	if i.asker().Boot == "" {
		t.Error("an installation names no boot where the kernel names none")
	}
}

// TestWipeIsNotTakenForAnInstallation: whatever files come with it.
func TestWipeIsNotTakenForAnInstallation(t *testing.T) {
	installs := map[string][]byte{"config.json": []byte(`{"Machine": {"Hostname": "web1"}}`), "imagename": []byte("debian/12")}
	server := &sayer{answers: []report.Configuration{{Word: report.Go, Wipe: "discard", Files: installs}}}
	i, _ := askSite(t, report.Handler(server))
	files, err := i.filesFromNetwork(t.Context(), attempt{})
	if err != nil {
		t.Fatal(err)
	}
	read, err := config.Parse(files, config.DefaultPort)
	if err != nil || read.Install.Wipe != storage.EraseDiscard || read.Image != "" {
		t.Errorf("%+v, %v", read.Install, err)
	}
	server.answers[0].Wipe = "gently"
	if files, err := i.filesFromNetwork(t.Context(), attempt{}); files != nil || progress.Code(err) != config.CodeValue {
		t.Errorf("%v, %v", files, err)
	}
	// Where signatures count, the site server's word is not enough.
	key := filepath.Join(t.TempDir(), "signer.pub")
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := trust.FormatPublicKey(public)
	if err := errors.Join(err, os.WriteFile(key, text, 0o644)); err != nil {
		t.Fatal(err)
	}
	server.answers[0].Wipe = "discard"
	i.env.trust.keys = filepath.Dir(key)
	if files, err := i.filesFromNetwork(t.Context(), attempt{}); files != nil || progress.Code(err) != trust.CodeUnsigned {
		t.Errorf("%v, %v", files, err)
	}
}
