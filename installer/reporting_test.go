package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
)

// siteServer keeps what it is told, by path.
type siteServer struct {
	mu   sync.Mutex
	told map[string]string
}

func (s *siteServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost {
		http.Error(w, "POST only", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[r.URL.Path] += string(body)
}

func TestSiteServerIsToldInventoryEventsStateAndLog(t *testing.T) {
	server := &siteServer{told: map[string]string{}}
	web := httptest.NewServer(server)
	defer web.Close()
	i, _ := testInstallation(t, "-siteServer="+web.URL+"/", "-dryRun=false")
	i.nic = netconfig.NIC{Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}}
	var err error
	if i.journal, err = openJournal(i.runDir); err != nil {
		t.Fatal(err)
	}
	defer i.journal.close()
	i.model.AddSink(progress.LineWriter(i.journal.log))

	i.model.Start(progress.Config)
	i.startReporting()
	i.publishInventory(inventory.Document{Format: inventory.Format, Arch: "amd64"})
	i.model.Fail(progress.Inventory, errors.New("the disk is on fire"))
	if err := i.opened.close(); err != nil {
		t.Fatal(err)
	}

	machine := "/v1/machines/52-54-00-12-34-56/"
	for path, want := range map[string]string{
		machine + "inventory": `"arch": "amd64"`,
		machine + "events":    `"event":"fail"`,
		machine + "state":     "the disk is on fire",
		machine + "log":       "FAILED SRV-099: the disk is on fire; disks untouched",
	} {
		if !strings.Contains(server.told[path], want) {
			t.Errorf("%s was told %q, want %q in it", path, server.told[path], want)
		}
	}
}

func TestSiteServerThatIsAwayIsAWarning(t *testing.T) {
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	i, log := testInstallation(t, "-siteServer="+web.URL, "-dryRun=false")
	i.nic.MAC = netconfig.MAC{2, 0, 0, 0, 0, 1}
	i.model.Start(progress.Config)
	i.startReporting()
	if err := i.opened.close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(log.String(), "warning: SRV-030"); got != 1 {
		t.Errorf("%d warnings, want one:\n%s", got, log)
	}
}

func TestSiteServerIsNamedByFlagThenKernelThenFile(t *testing.T) {
	i, _ := testInstallation(t)
	i.config.SiteServer = "http://file"
	if got := i.siteServerURL(); got != "http://file" {
		t.Errorf("the file: got %q", got)
	}
	i.opt.kernel = splitKernelCommandLine("siteserver=http://kernel")
	if got := i.siteServerURL(); got != "http://kernel" {
		t.Errorf("the kernel command line: got %q", got)
	}
	i.opt.siteServer = "http://flag"
	if got := i.siteServerURL(); got != "http://flag" {
		t.Errorf("the flag: got %q", got)
	}
}

func TestNoSiteServerIsToldNothing(t *testing.T) {
	i, log := testInstallation(t, "-dryRun=false")
	i.startReporting()
	if len(i.opened.closers) > 0 || bytes.Contains([]byte(log.String()), []byte("reporting")) {
		t.Errorf("reports to nobody:\n%s", log)
	}
}
