package rules

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

const text = `
# The hall.
format: 1
rules:
  - name: storage
    priority: 10
    when:
      cores: ">= 40"
      memory: ">= 256GiB, < 1TiB"
      disks: {count: ">= 4", size: ">= 500GB", transport: [sas, nvme]}
    set:
      image: debian/12
      layout: layouts/storage.json
      labels: {role: storage}
      name: "{label:role}-{n:2}"
  - name: any dell
    priority: 1
    when:
      arch: amd64
      vendor: dell*
    set: {image: debian/12, name: "dell-{serial}"}
  - name: arm
    when: {arch: [arm64]}
    set: {image: debian/12-arm, name: "arm-{mac}"}
  - name: rack 7
    when:
      switch: {name: rack7-*, port: "/^Eth[0-9]+$/"}
    set: {image: debian/12, name: "rack7-{n}"}
`

func box(serial string, change func(*inventory.Document)) *inventory.Document {
	d := &inventory.Document{
		Format: inventory.Format, Arch: "amd64", Firmware: storage.UEFI, CPUs: 48, MemoryBytes: 251 << 30,
		DMI:  inventory.DMI{Vendor: "Dell Inc.", Product: "PowerEdge R740", Serial: serial, BIOSVersion: "2.10.2"},
		NICs: []netconfig.NIC{{Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0, 0, 1}, Driver: "mlx5_core"}},
	}
	for n := range 4 {
		name := fmt.Sprintf("sd%c", 'a'+n)
		d.Disks = append(d.Disks, storage.Disk{Name: name, Path: "/dev/" + name, Transport: "sas", Size: 960e9, SectorSize: 512})
	}
	if change != nil {
		change(d)
	}
	return d
}

func world() World {
	return World{
		Images: map[string]Image{
			"debian/12":     {"debian/12/1", "sha256:a", "amd64"},
			"debian/12-arm": {"debian/12-arm/1", "sha256:b", "arm64"},
		},
		Layouts:   map[string][]byte{"layouts/storage.json": []byte("{}")},
		Taken:     func(name string) bool { return name == "storage-01" },
		CheckName: func(string) error { return nil },
	}
}

func preview(t *testing.T, text string, w World, machines ...Machine) Preview {
	t.Helper()
	rules, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPreview(rules, []byte(text), machines, w)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPreview(t *testing.T) {
	p := preview(t, text, world(),
		Machine{"a", box("ABC 1", nil)},
		Machine{"b", box("ABC2", func(d *inventory.Document) { d.CPUs = 16 })},
		Machine{"c", box("ABC3", func(d *inventory.Document) { d.Arch = "arm64"; d.DMI.Vendor = "Ampere" })},
		Machine{"d", nil},
		Machine{"e", box("X", func(d *inventory.Document) { d.DMI.Vendor = "HPE"; d.Disks = d.Disks[:2] })},
		Machine{"f", box("ABC4", func(d *inventory.Document) {
			d.DMI.Vendor, d.CPUs = "HPE", 4
			d.NICs[0].Neighbour = &netconfig.Neighbour{System: "RACK7-a", Port: "Eth12"}
		})},
	)
	type row struct{ Rule, Name, Also, Miss, Problem string }
	got := map[string]row{}
	for _, d := range p.Machines {
		r := row{d.Rule, d.Name, strings.Join(d.Also, ","), "", d.Problem}
		for _, m := range d.Misses {
			r.Miss += m.Rule + ": " + m.Condition + " " + m.Wants + " has " + m.Has + "; "
		}
		got[d.Machine] = r
	}
	const arm, rack = "arm: arch arm64 has amd64; ", "rack 7: switch name rack7-*, port /^Eth[0-9]+$/ has nothing; "
	want := map[string]row{
		"a": {"storage", "storage-02", "any dell", arm + rack, ""},
		"b": {"any dell", "dell-abc2", "", "storage: cores >= 40 has 16; " + arm + rack, ""},
		"c": {"arm", "arm-000001", "", "any dell: arch amd64 has arm64; " + rack, "storage"},
		"d": {},
		"e": {"", "", "", "storage: disks count >= 4, size >= 500GB, transport sas or nvme has 2 of 2 (sas 894.1 GiB, sas 894.1 GiB); any dell: vendor dell* has HPE; " + arm + rack, ""},
		"f": {"rack 7", "rack7-1", "", "storage: cores >= 40 has 4; any dell: vendor dell* has HPE; " + arm, ""},
	}
	// c matches storage and arm, and arm has no priority: refused.
	want["c"] = row{"", "", "", "any dell: arch amd64 has arm64; " + rack, `the rules storage and arm both match it, and no priorities say which goes first`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if d := p.Machines[0]; d.Resolved == nil || d.Resolved.Digest != "sha256:a" || d.Labels["role"] != "storage" || d.LayoutDigest == "" {
		t.Errorf("%+v", d)
	}
	if !p.Machines[3].Silent {
		t.Error("a machine without inventory is not called silent")
	}
}

// What cannot be is told, and nothing becomes of the machine.
func TestProblems(t *testing.T) {
	rule := func(set string) string {
		return "rules:\n  - name: r\n    when: {arch: '*'}\n    set: " + set + "\n"
	}
	for _, c := range []struct{ set, says string }{
		{`{image: debian/12-arm, name: x}`, "the image debian/12-arm/1 is for arm64, and the machine is amd64"},
		{`{image: debian/13, name: x}`, "there is no image debian/13"},
		{`{image: debian/12, name: x, layout: layouts/none.json}`, "there is no file layouts/none.json in the site"},
		{`{image: debian/12, name: storage-01}`, "there is a machine of that name"},
		{`{image: debian/12, name: same}`, "it would be called same, as a would"},
		{`{image: debian/12, name: "x-{serial}"}`, "which it does not say"},
	} {
		p := preview(t, rule(c.set), world(), Machine{"a", box("S", nil)}, Machine{"b", box("", nil)})
		if problem := p.Machines[1].Problem; !strings.Contains(problem, c.says) || p.Machines[1].Matches() {
			t.Errorf("%s: problem %q", c.set, problem)
		}
	}
}

func TestPriorities(t *testing.T) {
	rule := func(name, priority string) string {
		return "  - {name: " + name + priority + ", when: {arch: '*'}, set: {image: debian/12, name: n}}\n"
	}
	for _, c := range []struct{ rules, rule, problem string }{
		{rule("a", ", priority: 1") + rule("b", ", priority: 2"), "b", ""},
		{rule("a", ", priority: 2") + rule("b", ", priority: 2"), "", "the rules a and b both"},
		{rule("a", ", priority: 2") + rule("b", ""), "", "the rules a and b both"},
		{rule("a", "") + rule("b", ""), "", "the rules a and b both"},
		{rule("a", ", priority: 1") + rule("b", ", priority: 1") + rule("c", ", priority: 2"), "c", ""},
		{rule("a", ", priority: 0") + rule("b", ", priority: -1"), "a", ""},
	} {
		d := preview(t, "rules:\n"+c.rules, world(), Machine{"m", box("S", nil)}).Machines[0]
		if d.Rule != c.rule || !strings.HasPrefix(d.Problem, c.problem) || (d.Problem == "") != (c.problem == "") {
			t.Errorf("%s: rule %q, problem %q", c.rules, d.Rule, d.Problem)
		}
	}
}

func TestConditions(t *testing.T) {
	machine := box("CZ-1234", func(d *inventory.Document) {
		d.TPM, d.SecureBoot = &inventory.TPM{Version: 2, Manufacturer: "INTC"}, true
		d.Disks[0].Transport, d.Disks[0].Rotational = "nvme", true
		d.Disks[1].Transport = "usb" // no installation uses it
	})
	for condition, want := range map[string]bool{
		`cores: 48`:                                true,
		`cores: "> 40, <= 48"`:                     true,
		`cores: "!= 48"`:                           false,
		`memory: ">= 256GiB"`:                      true, // the kernel shows 251
		`memory: ">= 257GiB"`:                      false,
		`memory: ">= 100GB"`:                       true,
		`disks: 3`:                                 true,
		`disks: ">= 4"`:                            false,
		`disks: ">= 500GB"`:                        true,
		`disks: ">= 1TB"`:                          false,
		`disks: {transport: nvme, count: 1}`:       true,
		`disks: {rotational: true}`:                true,
		`disks: {rotational: true, count: 2}`:      false,
		`firmware: uefi`:                           true,
		`tpm: 2`:                                   true,
		`model: "*R740"`:                           true,
		`model: "R740"`:                            false,
		`serial: "/^cz-[0-9]{4}$/"`:                true,
		`serial: ["AB*", "cz-????"]`:               true,
		`mac: "52:54"`:                             true,
		`mac: 52-54-00-00-00-01`:                   true,
		`mac: ["aa", "52:54:0"]`:                   true,
		`mac: "54:00"`:                             false,
		`switch: "*"`:                              false,
		`fact: {dmi.biosVersion: "2.*"}`:           true,
		`fact: {nics.driver: mlx5_core}`:           true,
		`fact: {nics.driver: e1000e}`:              false,
		`fact: {secureBoot: true}`:                 true,
		`fact: {tpm.manufacturer: intc, cpus: 48}`: true,
		`fact: {disks.0.transport: nvme}`:          true,
		`fact: {disks.9.transport: nvme}`:          false,
		`fact: {disks.size: ">= 900GB"}`:           true,
		`fact: {watchdog: "*"}`:                    false,
		`fact: {nics.mac: "52:54:*"}`:              true,
		`fact: {disks.bootMedium: false}`:          true,
	} {
		source := "rules:\n  - name: r\n    when:\n      " + condition + "\n    set: {image: debian/12, name: n}\n"
		d := preview(t, source, world(), Machine{"m", machine}).Machines[0]
		if got := d.Rule != ""; got != want {
			t.Errorf("%s: matches %t, %+v", condition, got, d.Misses)
		}
	}
}

// Each mistake is told with its line, its rule and its condition, all of them at
// once.
func TestMistakes(t *testing.T) {
	const wrong = `format: 1
rules:
  - name: a
    when:
      core: ">= 40"
      memory: ">= 40"
      cores: ">= 4GB"
      disks: {size: 4}
      mac: "5254"
      serial: "/(/"
      fact: {dmi.bios: "2", cpus: many, nics: x}
    set: {image: "deb ian", name: "x-{nn}", color: red}
  - name: a
    priority: high
    set: {image: debian/12, name: "{label:role}", layout: ../etc/passwd}
`
	_, err := Parse([]byte(wrong))
	var coded *Error
	if !errors.As(err, &coded) || coded.Code() != CodeRules {
		t.Fatalf("%v", err)
	}
	want := []string{
		`rules.yaml:5: rule a: there is no condition "core"; did you mean cores?`,
		`rules.yaml:6: rule a: condition memory: ">= 40" is no size`,
		`rules.yaml:7: rule a: condition cores: ">= 4GB" is a size`,
		`rules.yaml:8: rule a: condition disks: "4" is no size`,
		`rules.yaml:9: rule a: condition mac: "5254" is no beginning`,
		`rules.yaml:10: rule a: condition serial: "/(/" is no regular expression`,
		`rules.yaml:11: rule a: condition fact: dmi.bios: an inventory has no "bios"; did you mean biosVendor?`,
		`rules.yaml:11: rule a: condition fact: cpus: "many" is no comparison`,
		`rules.yaml:11: rule a: condition fact: nics: there is more than one value`,
		`rules.yaml:12: set of rule a has no "color"`,
		`rules.yaml:12: rule a: `,
		`rules.yaml:12: rule a: name: there is no {nn}`,
		`rules.yaml:14: rule a: priority is a whole number`,
		`rules.yaml:13: rule a: it has no conditions`,
		`rules.yaml:15: rule a: layout is a file in the site's directory`,
		`rules.yaml:15: rule a: name: the rule sets no label "role"`,
		`rules.yaml:13: there is a rule "a" in line 3 already`,
	}
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != len(want) {
		t.Errorf("%d mistakes, want %d:\n%v", len(lines), len(want), err)
	}
	for n, line := range lines {
		if n < len(want) && !strings.HasPrefix(line, want[n]) {
			t.Errorf("%s\nwant %s", line, want[n])
		}
	}
	for _, broken := range []string{"rules: [", "- a", "format: 2\n", "rules: {a: 1}", "a: 1\n---\nb: 2\n"} {
		if _, err := Parse([]byte(broken)); !errors.As(err, &coded) {
			t.Errorf("%q: %v", broken, err)
		}
	}
	if rules, err := Parse([]byte("# nothing yet\n")); err != nil || len(rules) != 0 {
		t.Errorf("%v, %v", rules, err)
	}
}

// The hash says whether the same would be done: it stays while a machine waits,
// and is another one when anything that counts is.
func TestHash(t *testing.T) {
	base := func() (string, World, *inventory.Document) { return text, world(), box("S", nil) }
	hash := func(text string, w World, d *inventory.Document) (Preview, string) {
		p := preview(t, text, w, Machine{"a", d})
		h, err := p.Hash()
		if err != nil {
			t.Fatal(err)
		}
		return p, h
	}
	before, was := hash(base())
	for name, change := range map[string]func(*string, *World, *inventory.Document){
		"nothing that counts": func(_ *string, _ *World, d *inventory.Document) {
			d.MemoryAvailableBytes, d.Seed = 7, inventory.Seed{1}
			d.NICs[0].Counters = &netconfig.Counters{}
		},
		"rules.yaml is another one": func(s *string, _ *World, _ *inventory.Document) { *s += "# more\n" },
		"hardware":                  func(_ *string, _ *World, d *inventory.Document) { d.Disks[2].Serial = "new" },
		"its image debian/12 was sha256:a": func(_ *string, w *World, _ *inventory.Document) {
			w.Images["debian/12"] = Image{"debian/12/2", "sha256:c", "amd64"}
		},
		"layouts/storage.json":        func(_ *string, w *World, _ *inventory.Document) { w.Layouts["layouts/storage.json"] = []byte("[]") },
		`to be called "storage-02"`:   func(_ *string, w *World, _ *inventory.Document) { w.Taken = func(string) bool { return false } },
		`now it has "there is no ima`: func(_ *string, w *World, _ *inventory.Document) { delete(w.Images, "debian/12") },
	} {
		s, w, d := base()
		change(&s, &w, d)
		now, is := hash(s, w, d)
		changes := strings.Join(before.Changes(now), "\n")
		if name == "nothing that counts" {
			if is != was || changes != "" {
				t.Errorf("%s: %s", name, changes)
			}
			continue
		}
		if is == was || !strings.Contains(changes, name) {
			t.Errorf("%s: hash differs: %t, changes %q", name, is != was, changes)
		}
	}
	data, err := before.JSON()
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParsePreview(data)
	if diff := cmp.Diff(before, again); diff != "" || err != nil {
		t.Errorf("%v: %s", err, diff)
	}
}
