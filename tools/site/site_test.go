package site

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
)

const (
	layout = `{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 1073741824}]}`
	web1   = "52:54:00:00:00:01"
)

func configOf(hostname, mac string) string {
	return fmt.Sprintf(`{"Machine": {"Hostname": %q, "HostMacAddress": %q}}`, hostname, mac)
}

func write(t *testing.T, s *Site, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(s.Dir(), name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// open makes a site with the machine web1.
func open(t *testing.T) *Site {
	t.Helper()
	s, err := Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s, map[string]string{
		"machines/web1/config.json": configOf("web1", web1), "machines/web1/storage-layout.json": layout, "machines/web1/imagename": "debian/12\n",
	})
	return s
}

func who(t *testing.T, macs ...string) Identity {
	t.Helper()
	var i Identity
	for _, text := range macs {
		mac, err := netconfig.ParseMAC(text)
		if err != nil {
			t.Fatal(err)
		}
		i.MACs = append(i.MACs, mac)
	}
	return i
}

func claim(t *testing.T, s *Site, i Identity, boot string, want State) Answer {
	t.Helper()
	answer, err := s.Claim(i, boot, "192.0.2.10")
	if err != nil {
		t.Fatal(err)
	}
	if answer.State != want {
		t.Fatalf("the machine is told %s (%s), want %s", answer.State, answer.Reason, want)
	}
	return answer
}

func snapshot(phase progress.Phase, state progress.State) progress.Snapshot {
	return progress.Snapshot{Format: 1, Phases: []progress.PhaseStatus{{Phase: phase, State: state}}}
}

func code(err error) string { return progress.Code(err) }

// TestOneApprovalOneInstallation: what is approved once is installed once, by one
// boot of the machine, whatever is lost on the way.
func TestOneApprovalOneInstallation(t *testing.T) {
	s, me := open(t), who(t, web1)
	claim(t, s, me, "boot-1", Waiting)
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	claim(t, s, me, "boot-2", Installing)
	claim(t, s, me, "boot-2", Installing) // the installer started afresh
	if err := s.Approve("web1", "ann", true); code(err) != CodeState {
		t.Errorf("approved while it is being installed: %v", err)
	}
	if err := s.Told("web1", snapshot(progress.Stage, progress.Running)); err != nil {
		t.Fatal(err)
	}
	// The server was away when it handed over: nobody knows how it ended.
	if a := claim(t, s, me, "boot-3", Failed); !strings.Contains(a.Reason, "restarted") {
		t.Errorf("reason: %s", a.Reason)
	}
	claim(t, s, me, "boot-2", Failed)
	if err := s.Approve("web1", "ann", true); err != nil {
		t.Fatal(err)
	}
	claim(t, s, me, "boot-4", Installing)
	if err := s.Told("web1", snapshot(progress.Finish, progress.Done)); err != nil {
		t.Fatal(err)
	}
	m, err := s.Machine("web1")
	if err != nil || m.Status.Headline() != "handed over, not seen since" {
		t.Errorf("%v, %q", err, m.Status.Headline())
	}
	for n := range 3 {
		claim(t, s, me, fmt.Sprintf("boot-%d", 5+n), Installed)
	}
	if err := s.Approve("web1", "ann", false); code(err) != CodeState {
		t.Errorf("an installed machine was approved again: %v", err)
	}
	if err := s.Answered("web1", "ssh"); err != nil {
		t.Fatal(err)
	}
	if m, _ = s.Machine("web1"); m.Status.Headline() != "installed" {
		t.Errorf("headline %q", m.Status.Headline())
	}
	// A late report changes nothing.
	if err := s.Told("web1", progress.Snapshot{Failure: &progress.Failure{Code: "STO-001"}}); err != nil {
		t.Fatal(err)
	}
	if m, _ = s.Machine("web1"); m.Status.State != Installed {
		t.Errorf("a late report made it %s", m.Status.State)
	}
	trail, err := s.Audit()
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for _, e := range trail {
		verbs = append(verbs, e.Who+":"+e.Verb)
	}
	if got := strings.Join(verbs, " "); got != "ann:approve machine:install ann:reinstall machine:install machine:installed" {
		t.Errorf("the trail: %s", got)
	}
}

// TestInterruptedByItsBoot: a machine that asks for something to boot is not
// installing any more.
func TestInterruptedByItsBoot(t *testing.T) {
	s, me := open(t), who(t, web1)
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Booted(me, "192.0.2.10", ""); err != nil || m.Status.State != Approved {
		t.Fatalf("%v: booting used the approval up", err)
	}
	claim(t, s, me, "boot-1", Installing)
	if m, err := s.Booted(me, "192.0.2.10", ""); err != nil || m.Status.State != Failed {
		t.Fatalf("%v: %s", err, m.Status.State)
	}
	claim(t, s, me, "boot-2", Failed)
}

func TestFailure(t *testing.T) {
	s, me := open(t), who(t, web1)
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	claim(t, s, me, "boot-1", Installing)
	if err := s.Told("web1", progress.Snapshot{Failure: &progress.Failure{Code: "STO-002", Text: "too small", Do: "Take a larger one."}}); err != nil {
		t.Fatal(err)
	}
	m, err := s.Machine("web1")
	if err != nil || m.Status.State != Failed || !strings.Contains(m.Status.Reason, "STO-002: too small; disks untouched") || !strings.HasPrefix(m.Status.Do, "Take a larger one.") {
		t.Errorf("%v: %+v", err, m.Status)
	}
	claim(t, s, me, "boot-2", Failed)
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	claim(t, s, me, "boot-3", Installing)
}

func TestUnknownMachine(t *testing.T) {
	s, me := open(t), who(t, "52:54:00:00:00:99")
	m, err := s.Booted(me, "192.0.2.9", "BIOS")
	if err != nil || m.Status.State != New || m.Name != "52-54-00-00-00-99" {
		t.Fatalf("%v: %+v", err, m)
	}
	claim(t, s, me, "boot-1", Waiting)
	if err := s.Approve("52-54-00-00-00-99", "ann", false); code(err) != CodeState {
		t.Errorf("a machine without a configuration was approved: %v", err)
	}
	document := inventory.Document{Format: 1, Arch: "amd64", DMI: inventory.DMI{Serial: "S-99"}, NICs: []netconfig.NIC{{Name: "eth0", MAC: me.MACs[0]}, {Name: "eth1", MAC: netconfig.MAC{0x52, 0x54, 0, 0, 1, 0x99}}}}
	data, err := document.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.KeepInventory(m.Name, data); err != nil {
		t.Fatal(err)
	}
	// It is the same by its other NIC, and by its serial number.
	for _, i := range []Identity{who(t, "52:54:00:00:01:99"), {MACs: who(t, "52:54:00:00:02:99").MACs, Serial: "s-99"}} {
		if m, err := s.Find(i); err != nil || m == nil || m.Name != "52-54-00-00-00-99" {
			t.Errorf("%v: %v is not found again", err, i)
		}
	}
	if err := s.Adopt(m.Name, "db1", "ann", map[string][]byte{
		"config.json": []byte(configOf("db1", "52:54:00:00:00:99")), "storage-layout.json": []byte(layout), "imagename": []byte("debian/12\n"),
	}); err != nil {
		t.Fatal(err)
	}
	if a := claim(t, s, me, "boot-1", Waiting); a.Name != "db1" {
		t.Errorf("it is %s now", a.Name)
	}
	if found, ok := s.Hardware("db1"); !ok || found.DMI.Serial != "S-99" {
		t.Error("its inventory did not come along")
	}
	if err := s.Approve("db1", "ann", false); err != nil {
		t.Fatal(err)
	}
	claim(t, s, me, "boot-1", Installing)
	if entries, err := os.ReadDir(filepath.Join(s.Dir(), "pending")); err != nil || len(entries) != 0 {
		t.Errorf("%v: %d are pending", err, len(entries))
	}
}

// TestFilesOneByOne: whoever fetches the files one by one takes the approval with
// the first of them, and only for so long as no restart can lie between.
func TestFilesOneByOne(t *testing.T) {
	for _, first := range []string{"config.json", "bundle.json"} {
		s, me := open(t), who(t, web1)
		now := time.Now()
		s.now = func() time.Time { return now }
		gets := func(file string, want bool) {
			t.Helper()
			if _, err := s.ClaimFile(me, file, "192.0.2.10"); (err == nil) != want {
				t.Fatalf("%s: %v", file, err)
			}
		}
		gets(first, false)
		if err := s.Approve("web1", "ann", false); err != nil {
			t.Fatal(err)
		}
		gets("imagename", false) // not the first: who is this?
		gets(first, true)
		gets(first, true) // again, over a network that stumbles
		now = now.Add(2 * time.Minute)
		gets("imagename", true)
		gets(first, false) // it was restarted
		gets("imagename", false)
		if m, err := s.Machine("web1"); err != nil || m.Status.State != Failed {
			t.Errorf("%v: %s", err, m.Status.State)
		}
	}
}

// TestApprovalIsForTheMachine: an approval is for the machine that had the name
// when it was given, and not for another one to whose directory the name goes.
func TestApprovalIsForTheMachine(t *testing.T) {
	other := who(t, "52:54:00:00:00:02")
	for _, file := range []string{"", "config.json"} {
		s := open(t)
		if err := s.Approve("web1", "ann", false); err != nil {
			t.Fatal(err)
		}
		write(t, s, map[string]string{"machines/web1/config.json": configOf("web1", "52:54:00:00:00:02")})
		if file != "" {
			if _, err := s.ClaimFile(other, file, "192.0.2.10"); code(err) != CodeState {
				t.Errorf("another machine is given %s: %v", file, err)
			}
		} else if a := claim(t, s, other, "boot-1", Waiting); !strings.Contains(a.Reason, "another machine") {
			t.Errorf("reason: %s", a.Reason)
		}
		if m, err := s.Machine("web1"); err != nil || m.Status.State != Waiting || m.Status.Approval != nil {
			t.Errorf("%v: the approval is still there: %+v", err, m.Status)
		}
		// One more card in the same machine changes nothing.
		if err := s.Approve("web1", "ann", false); err != nil {
			t.Fatal(err)
		}
		write(t, s, map[string]string{"machines/web1/machine.yaml": "macs: ['52:54:00:00:00:03']\n"})
		claim(t, s, who(t, "52:54:00:00:00:03", "52:54:00:00:00:02"), "boot-2", Installing)
	}
}

func TestTwoMatch(t *testing.T) {
	s := open(t)
	write(t, s, map[string]string{
		"machines/web2/config.json": configOf("web2", "52:54:00:00:00:02"), "machines/web2/storage-layout.json": layout, "machines/web2/imagename": "debian/12\n",
		"machines/web2/machine.yaml": "serial: ABC\n",
	})
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	_, err := s.Claim(Identity{MACs: who(t, web1).MACs, Serial: "ABC"}, "boot-1", "")
	if code(err) != CodeTwice || !strings.Contains(err.Error(), "web1") || !strings.Contains(err.Error(), "web2") {
		t.Errorf("two machines match: %v", err)
	}
	// What all boards of a vendor say is no mark.
	write(t, s, map[string]string{"machines/web2/machine.yaml": "serial: Default string\nuuid: 03000200-0400-0500-0006-000700080009\n"})
	answer, err := s.Claim(Identity{MACs: who(t, web1).MACs, Serial: "Default string", UUID: "03000200-0400-0500-0006-000700080009"}, "boot-1", "")
	if err != nil || answer.Name != "web1" || answer.State != Installing {
		t.Errorf("%v: %+v", err, answer)
	}
}

// TestEditsAreSeen: a mistake in a file keeps the machine from being installed,
// and is gone when it is corrected.
func TestEditsAreSeen(t *testing.T) {
	s, me := open(t), who(t, web1)
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	write(t, s, map[string]string{"machines/web1/storage-layout.json": `{"BootDrive": []}`})
	if a := claim(t, s, me, "boot-1", Failed); !strings.Contains(a.Reason, "storage-layout.json") {
		t.Errorf("reason: %s", a.Reason)
	}
	if err := s.Approve("web1", "ann", false); code(err) != CodeMachine {
		t.Errorf("approved with a mistake in it: %v", err)
	}
	write(t, s, map[string]string{"machines/web1/storage-layout.json": layout})
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	claim(t, s, me, "boot-2", Installing)
}

// TestGivenUp: of an installation that is never heard of again a person can say
// that it has ended; of one that goes on nobody can.
func TestGivenUp(t *testing.T) {
	s, me := open(t), who(t, web1)
	now := time.Now()
	s.now = func() time.Time { return now }
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	claim(t, s, me, "takeover boot-1", Installing)
	now = now.Add(givenUp - time.Second)
	if err := s.Told("web1", snapshot(progress.Stage, progress.Running)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(givenUp - time.Second)
	if err := s.Keep("web1", "ann", Waiting); code(err) != CodeState {
		t.Errorf("it goes on, and its approval was taken back: %v", err)
	}
	now = now.Add(2 * time.Second)
	if err := s.Keep("web1", "ann", Waiting); err != nil {
		t.Errorf("nothing can be done to it any more: %v", err)
	}
	claim(t, s, me, "boot-2", Waiting)
}

// TestTooMuch: a report that is too large to be read again is not kept.
func TestTooMuch(t *testing.T) {
	s, me := open(t), who(t, web1)
	claim(t, s, me, "boot-1", Waiting)
	p := snapshot(progress.Stage, progress.Running)
	p.Phases = make([]progress.PhaseStatus, 50_000)
	if err := s.Told("web1", p); code(err) != CodeState {
		t.Errorf("it was kept: %v", err)
	}
	claim(t, s, me, "boot-1", Waiting)
}

// TestDamagedState: a machine of which it is not known where it stands is left
// alone.
func TestDamagedState(t *testing.T) {
	s, me := open(t), who(t, web1)
	write(t, s, map[string]string{"state/machines/web1/status.json": `{"format": 1, "state": "approved"}`})
	if _, err := s.Claim(who(t, web1), "boot-1", ""); err == nil {
		t.Error("it is approved by nobody, and told to go on")
	}
	write(t, s, map[string]string{"state/machines/web1/status.json": `{"format": 1, "state": "app`})
	if a, err := s.Claim(me, "boot-1", ""); err == nil {
		t.Errorf("it is told %+v", a)
	}
	if m, err := s.Machine("web1"); err != nil || m.Status.State != Failed || m.Mistake == "" {
		t.Errorf("%v: %+v", err, m)
	}
}

func TestNewerFormat(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "site.yaml"), []byte("format: 2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, time.Now); code(err) != CodeNewer {
		t.Errorf("%v", err)
	}
}

// TestMigrate: a copy is there before anything is changed, and stays when it
// fails.
func TestMigrate(t *testing.T) {
	s := open(t)
	write(t, s, map[string]string{"site.yaml": "# ours\nformat: 1\nname: lab\n", "secrets/ca-key.pem": "secret"})
	upgrade := append(steps(), step{to: 2, do: func(dir string) error { return errors.New("no") }})
	if err := s.migrate(upgrade); code(err) != CodeDirectory {
		t.Fatalf("%v", err)
	}
	copied := filepath.Join(s.Dir(), "state/before-format-2")
	for file, want := range map[string]bool{"site.yaml": true, "machines/web1/config.json": true, "secrets/ca-key.pem": false} {
		if _, err := os.Stat(filepath.Join(copied, file)); (err == nil) != want {
			t.Errorf("%s is in the copy: %v", file, err == nil)
		}
	}
	upgrade[1].do = func(dir string) error {
		return os.Rename(filepath.Join(dir, "machines/web1"), filepath.Join(dir, "machines/web9"))
	}
	if err := s.migrate(upgrade); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(filepath.Join(s.Dir(), "site.yaml")); string(text) != "# ours\nformat: 2\nname: lab\n" {
		t.Errorf("site.yaml: %s", text)
	}
}

func TestSettings(t *testing.T) {
	good := `format: 1
names: [boot.example.com]
subnets:
- network: 192.0.2.0/24
  pool: 192.0.2.100-192.0.2.199
  router: 192.0.2.1
  dns: [192.0.2.1]
  lease: 2h
`
	settings, err := parseSettings([]byte(good))
	if err != nil || len(settings.Subnets) != 1 || settings.Subnets[0].Last.String() != "192.0.2.199" || settings.Subnets[0].Lease != 2*time.Hour {
		t.Fatalf("%v: %+v", err, settings)
	}
	for name, change := range map[string][2]string{
		"unknown field":      {"names:", "nmaes:"},
		"pool elsewhere":     {"192.0.2.100-", "198.51.100.1-"},
		"pool backwards":     {"100-192.0.2.199", "200-192.0.2.199"},
		"no network":         {"192.0.2.0/24", "192.0.2.0"},
		"unknown in subnet":  {"router:", "routr:"},
		"lease that is none": {"2h", "soon"},
	} {
		if _, err := parseSettings([]byte(strings.Replace(good, change[0], change[1], 1))); code(err) != CodeSettings {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAuditAfterPowerCut: a line that was cut short does not swallow the next.
func TestAuditAfterPowerCut(t *testing.T) {
	s := open(t)
	write(t, s, map[string]string{"state/audit.jsonl": `{"who":"ann","verb":"approve","machine":"a"}` + "\n" + `{"who":"an`})
	if err := s.Note(Entry{Who: "bob", Verb: "wipe", Machine: "b"}); err != nil {
		t.Fatal(err)
	}
	trail, err := s.Audit()
	if err != nil || len(trail) != 2 || trail[1].Who != "bob" {
		t.Errorf("%v: %+v", err, trail)
	}
}

// TestBelongs: what root does in a site that is another user's, the server's for
// one, that user can go on with.
func TestBelongs(t *testing.T) {
	const other = 65534 // nobody, who is on every machine
	dir := filepath.Join(t.TempDir(), "site")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, other, other)); err != nil {
		t.Fatalf("it is for root to run: %v", err)
	}
	s, err := Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	claim(t, s, who(t, web1), "boot-1", Waiting)
	err = s.Adopt("52-54-00-00-00-01", "web1", "root", map[string][]byte{
		"config.json": []byte(configOf("web1", web1)), "storage-layout.json": []byte(layout), "imagename": []byte("debian/12\n"),
	})
	if err = errors.Join(err, s.PutFiles("web1", "root", map[string][]byte{"steps/a.sh": []byte("#!/bin/sh\n")}), s.Approve("web1", "root", false)); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err = errors.Join(err, unix.Lstat(name, &st)); err == nil && st.Uid != other {
			t.Errorf("%s belongs to user %d", name, st.Uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
