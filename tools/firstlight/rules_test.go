package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/site"
)

// waits is a machine that has asked for its configuration and sent what it is.
func (l *lab) waits(t *testing.T, n byte, change func(*inventory.Document)) string {
	t.Helper()
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	mac := netconfig.MAC{0x52, 0x54, 0, 0, 0, n}
	d := inventory.Document{
		Format: inventory.Format, Arch: "amd64", Firmware: storage.UEFI, CPUs: 8, MemoryBytes: 15 << 30,
		DMI:   inventory.DMI{Vendor: "Dell Inc.", Serial: "SN" + string('0'+n)},
		NICs:  []netconfig.NIC{{Name: "eth0", MAC: mac, Lease: true}},
		Disks: []storage.Disk{{Name: "sda", Path: "/dev/sda", Transport: "sata", Size: 480e9, SectorSize: 512, Contents: []storage.Content{{Where: "sda", Kind: "ntfs", Label: "books", Size: 480e9}}}},
	}
	if change != nil {
		change(&d)
	}
	if _, err := s.Claim(site.IdentityOf(d), "boot", "192.0.2.7"); err != nil {
		t.Fatal(err)
	}
	data, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	id := site.IdentityOf(d).ID()
	if err := s.KeepInventory(id, data); err != nil {
		t.Fatal(err)
	}
	return id
}

func (l *lab) write(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join(l.site, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const rulesText = `rules:
  - name: web
    when: {cores: ">= 8", vendor: dell*}
    set: {image: debian/12, layout: layouts/web.json, labels: {role: web}, name: "web-{n:2}"}
`

// TestRules is a fleet by rules: preview, apply of exactly that, installed when
// approved.
func TestRules(t *testing.T) {
	l := newLab(t)
	l.must(t, "image", "add", "debian/12/1", tree(t), "--arch", "amd64", "--quiet")
	l.write(t, "layouts/web.json", `{"BootDriveLayout": [{"MountPoint": "/", "MinimumFreeBytes": 1000000}]}`)
	l.write(t, "rules.yaml", rulesText)
	first := l.waits(t, 1, nil)
	second := l.waits(t, 2, func(d *inventory.Document) { d.CPUs = 2 })
	hash := func() string {
		t.Helper()
		var p hashed
		decode(t, l.must(t, "rules", "preview", "--json"), &p)
		return p.Hash
	}

	shown := l.must(t, "rules", "preview")
	for _, text := range []string{first, "web-01", "debian/12 (debian/12/1)", "role=web", second, "cores", ">= 8", hash()} {
		if !strings.Contains(shown, text) {
			t.Errorf("the preview lacks %q:\n%s", text, shown)
		}
	}
	// Whatever changes after the preview refuses it; a machine that comes, or one
	// that matched nothing and is another one now, does not.
	old := hash()
	l.waits(t, 3, nil)
	l.waits(t, 2, func(d *inventory.Document) { d.CPUs = 64 })
	l.must(t, "rules", "apply", old, "--dry-run")
	l.write(t, "layouts/web.json", `{"BootDriveLayout": [{"MountPoint": "/", "MinimumFreeBytes": 2000000}]}`)
	if _, stderr, code := l.run(t, "rules", "apply", old); code != exitRefused || !strings.Contains(stderr, "layouts/web.json is another one") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	l.waits(t, 2, func(d *inventory.Document) { d.CPUs = 2 })
	if _, stderr, code := l.run(t, "rules", "apply", "sha256:"+strings.Repeat("0", 64)); code != exitRefused || !strings.Contains(stderr, "no preview") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if _, stderr, code := l.run(t, "rules", "apply", hash(), "--approve"); code != exitRefused || !strings.Contains(stderr, "erases its disks") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	now := hash()
	if out := l.must(t, "rules", "apply", now, "--approve", "--yes"); strings.Count(out, "named and approved") != 2 {
		t.Errorf("applied:\n%s", out)
	}
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Machine("web-01")
	if err != nil {
		t.Fatal(err)
	}
	if m.Mistake != "" || m.Image != "debian/12" || m.Hostname != "web-01" || m.Card.Labels["role"] != "web" || m.Status.State != site.Approved || m.Arch != "amd64" {
		t.Errorf("%+v", m)
	}
	if found, err := s.Find(site.Identity{Serial: "SN1"}); err != nil || found == nil || found.Name != "web-01" {
		t.Errorf("it is not found by its serial number: %v, %v", found, err)
	}
	if len(m.Config.Storage.Volumes) != 1 || m.Config.Storage.Volumes[0].MinimumFreeBytes != 2000000 {
		t.Errorf("layout: %+v", m.Config.Storage)
	}
	if _, _, code := l.run(t, "rules", "apply", now); code != exitRefused {
		t.Errorf("a preview was applied twice: exit %d", code)
	}
	trail, err := s.Audit()
	if err != nil {
		t.Fatal(err)
	}
	var verbs []string
	for _, e := range trail {
		if e.Machine == "web-01" {
			verbs = append(verbs, e.Verb)
			if e.Verb == "rules" && !strings.Contains(e.Detail, now) {
				t.Errorf("audit: %+v", e)
			}
		}
	}
	if strings.Join(verbs, " ") != "name rules approve" {
		t.Errorf("audit: %q", verbs)
	}
}

// TestRulesRefused: what cannot be is refused before anything is done to any
// machine.
func TestRulesRefused(t *testing.T) {
	l := newLab(t)
	if _, stderr, code := l.run(t, "rules", "preview"); code != exitUsage || !strings.Contains(stderr, "rules.yaml is not there") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	l.must(t, "image", "add", "debian/12/1", tree(t), "--arch", "amd64", "--quiet")
	good := l.waits(t, 1, nil)
	l.waits(t, 2, func(d *inventory.Document) { d.Arch = "arm64" })
	for name, c := range map[string]struct {
		rules string
		says  string
	}{
		"another architecture": {strings.Replace(rulesText, "layout: layouts/web.json, ", "", 1), "the image debian/12/1 is for amd64, and the machine is arm64"},
		"twice":                {"rules:\n  - {name: a, when: {cores: 8}, set: {image: debian/12, name: a}}\n  - {name: b, when: {vendor: dell*}, set: {image: debian/12, name: b}}\n", "the rules a and b both match it"},
		"no layout":            {rulesText, "there is no file layouts/web.json"},
	} {
		l.write(t, "rules.yaml", c.rules)
		var p hashed
		decode(t, l.must(t, "rules", "preview", "--json"), &p)
		_, stderr, code := l.run(t, "rules", "apply", p.Hash)
		if code != exitRefused || !strings.Contains(stderr, c.says) {
			t.Errorf("%s: exit %d: %s", name, code, stderr)
		}
	}
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := s.Machine(good); err != nil || !m.Pending {
		t.Errorf("something was done: %+v, %v", m, err)
	}
	l.write(t, "rules.yaml", "rules:\n  - name: a\n    when: {core: 3}\n    set: {image: x/1, name: a}\n")
	if _, stderr, code := l.run(t, "rules", "preview"); code != exitInvalid || !strings.Contains(stderr, "rules.yaml:3: rule a: there is no condition \"core\"") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	l.write(t, "rules.yaml", rulesText)
	if _, stderr, code := l.run(t, "rules", "preview", "--imageserver", "127.0.0.1:1"); code != exitUnreachable {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

// TestMachineWipe: what would be lost is shown first, and nothing is allowed
// without a word for it.
func TestMachineWipe(t *testing.T) {
	l := newLab(t)
	l.must(t, "image", "add", "debian/12/1", tree(t), "--arch", "amd64", "--quiet")
	l.write(t, "rules.yaml", strings.Replace(rulesText, "layout: layouts/web.json, ", "", 1))
	id := l.waits(t, 1, nil)
	var p hashed
	decode(t, l.must(t, "rules", "preview", "--json"), &p)
	l.must(t, "rules", "apply", p.Hash)
	for args, want := range map[string]int{
		"machine wipe web-01":                       exitUsage,
		"machine wipe web-01 --erase gently":        exitUsage,
		"machine wipe web-02 --erase discard --yes": exitNotFound,
		"machine wipe " + id + " --erase overwrite": exitRefused, // it is web-01, and nobody said yes
		"machine wipe web-01 --erase crypto --yes":  exitRefused, // its disk cannot do that
		"machine rescue web-02":                     exitNotFound,
	} {
		if _, stderr, code := l.run(t, strings.Fields(args)...); code != want {
			t.Errorf("%s: exit %d, want %d: %s", args, code, want, stderr)
		}
	}
	_, stderr, _ := l.run(t, "machine", "wipe", "web-01", "--erase", "overwrite")
	if !strings.Contains(stderr, `ntfs "books"`) || !strings.Contains(stderr, "say --yes") {
		t.Errorf("it does not say what is lost: %s", stderr)
	}
	l.must(t, "machine", "wipe", "web-01", "--erase", "overwrite", "--yes")
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Machine("web-01")
	if err != nil || m.Status.Approval == nil || m.Status.Approval.Action != site.Wipe || m.Status.Approval.Erase != storage.EraseOverwrite {
		t.Errorf("%+v, %v", m.Status, err)
	}
	l.must(t, "machine", "rescue", "web-01")
	if m, err = s.Machine("web-01"); err != nil || m.Status.State != site.Rescue || m.Status.Approval != nil {
		t.Errorf("%+v, %v", m.Status, err)
	}
	l.write(t, "machines/web-01/storage-layout.json", `{"BootDriveLayout": [{"MountPoint": "/"}, {"MountPoint": "/srv", "FileSystemLabel": "srv"}], "ExtraMountPointsBasename": "/data/", "Preserve": ["srv"]}`)
	if _, stderr, code := l.run(t, "machine", "wipe", "web-01", "--erase", "overwrite", "--yes"); code != exitRefused || !strings.Contains(stderr, "preserves srv") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
