package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/site"
)

// TestMachineStory: a machine that waits is named, approved, installed, left alone
// from then on, and installed again only by the word for it.
func TestMachineStory(t *testing.T) {
	l := newLab(t)
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	mac := netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	me := site.Identity{MACs: []netconfig.MAC{mac}}
	claim := func(boot string, want site.State) {
		t.Helper()
		if a, err := s.Claim(me, boot, "192.0.2.9"); err != nil || a.State != want {
			t.Fatalf("%v: the machine is told %s (%s), want %s", err, a.State, a.Reason, want)
		}
	}
	claim("boot-1", site.Waiting)
	found, err := inventory.Document{Format: 1, Arch: "amd64", DMI: inventory.DMI{Serial: "S-1"}, NICs: []netconfig.NIC{{Name: "eth0", MAC: mac}}}.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.KeepInventory("52-54-00-12-34-56", found); err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	does := func(exit int, says, args string) string {
		t.Helper()
		stdout, stderr, code := l.run(t, strings.Fields(args)...)
		if code != exit || !strings.Contains(stdout+stderr, says) {
			t.Fatalf("firstlight %s: exit %d, want %d with %q:\n%s%s", args, code, exit, says, stdout, stderr)
		}
		return stdout
	}
	const id = "52-54-00-12-34-56"
	does(exitOK, "waiting", "machine list")
	does(exitRefused, "nobody has said what", "machine approve "+id)
	does(exitUsage, "give --name and --image", "machine set "+id+" --name web1")
	does(exitInvalid, "storage-layout.json", "machine set "+id+" --name web1 --image debian/12 --unchecked --layout "+file("bad.json", `{"BootDriveLayuot": []}`))
	does(exitInvalid, "is no name for a machine", "machine set "+id+" --name ../web1 --image debian/12 --unchecked")
	does(exitUnreachable, "", "machine set "+id+" --name web1 --image debian/12 --imageserver 127.0.0.1:1")
	does(exitOK, "machine approve web1", "machine set 52:54:00:12:34:56 --name web1 --image debian/12 --unchecked --label rack=r1 --layout "+
		file("layout.json", `{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/"}]}`))
	claim("boot-1", site.Waiting)
	does(exitOK, "approved", "machine approve web1")
	does(exitOK, "waiting", "machine set web1 --state waiting") // taken back
	claim("boot-1", site.Waiting)
	does(exitOK, "approved", "machine approve web1")
	claim("boot-1", site.Installing)
	does(exitRefused, "is being installed", "machine set web1 --state installed")
	does(exitNotFound, "no machine is called", "machine show web2")
	claim("boot-2", site.Failed)
	does(exitRefused, "web1 has failed", "machine watch web1 --until installed")
	does(exitOK, "installed", "machine set web1 --state installed --label rack=")
	does(exitOK, "web1: installed", "machine watch web1 --until installed")
	does(exitRefused, "machine reinstall web1 erases it", "machine approve web1")
	does(exitRefused, "say --yes", "machine reinstall web1")
	claim("boot-3", site.Installed)
	does(exitOK, "approved", "machine reinstall web1 --yes")
	claim("boot-4", site.Installing)

	var shown struct {
		Name, Headline, Marks string
		Card                  site.Card
		Inventory             inventory.Document
	}
	if err := json.Unmarshal([]byte(does(exitOK, "", "machine show web1 --json")), &shown); err != nil {
		t.Fatal(err)
	}
	if shown.Name != "web1" || shown.Headline != "installing" || !strings.Contains(shown.Marks, "S-1") || shown.Inventory.DMI.Serial != "S-1" || len(shown.Card.Labels) != 0 {
		t.Errorf("%+v", shown)
	}
	trail, err := s.Audit()
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for _, e := range trail {
		verbs = append(verbs, e.Verb)
	}
	if got := strings.Join(verbs, " "); got != "name approve waiting approve install set installed reinstall install" {
		t.Errorf("the audit trail: %s", got)
	}
}
