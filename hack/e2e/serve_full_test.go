//go:build full

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// layoutOnce is a small layout that is installed quickly.
const layoutOnce = `{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 1073741824}], "ExtraMountPointsBasename": "/data/", "UseKexec": true}`

// name says what a machine shall be.
func (s *served) name(t *testing.T, id, name string) {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf(`{"Machine": {"Hostname": %q, "HostIpAddress": "10.99.0.60", "HostMacAddress": %q},
		"Subnets": [{"Id": "lan", "IpGateway": "10.99.0.2", "IpMask": "255.255.255.0", "DomainName": "demo.test", "DomainNameServers": ["10.99.0.2"]}]}`, name, servedMAC)
	for file, text := range map[string]string{"layout.json": layoutOnce, "config.json": config} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.firstlight("machine", "set", id, "--name", name, "--image", site.Image, "--layout", filepath.Join(dir, "layout.json"), "--config", filepath.Join(dir, "config.json"))
}

// newServedWithImage is newServed with the image of all tests.
func newServedWithImage(t *testing.T, taps int) *served {
	t.Helper()
	s := newServed(t, taps)
	s.firstlight("image", "add", site.Image, site.Products.Root, "--quiet")
	return s
}

// TestServeInstall: a machine that waits is named and approved, is installed while
// the server is restarted under it, is seen when its new system runs, and boots
// its disk from then on, though its firmware asks the network first. An approval
// that a power cut has used up is not used again.
func TestServeInstall(t *testing.T) {
	s := newServedWithImage(t, 1)
	c := s.machine(t, 0)
	lines := keepLines(t)
	m := powerOn(t, c, lines)
	await(t, m, 3*time.Minute, waitsForName)
	s.name(t, servedID, lab.Hostname)
	await(t, m, time.Minute, regexp.MustCompile(`waiting for the site server: nobody has approved it`))
	untouched(t, m)

	// Power goes while it is being installed.
	s.firstlight("machine", "approve", lab.Hostname)
	await(t, m, 2*time.Minute, regexp.MustCompile(`stage: `))
	if got := s.headline(lab.Hostname); got != "installing" {
		t.Errorf("it is %q", got)
	}
	m.Kill()
	m = powerOn(t, c, lines)
	await(t, m, 3*time.Minute, regexp.MustCompile(`waiting for the site server: the machine was restarted before its installer had said how it ended`))
	untouched(t, m)

	// Approved again, it is installed; the server goes away and comes back.
	s.firstlight("machine", "reinstall", lab.Hostname, "--yes")
	await(t, m, 2*time.Minute, regexp.MustCompile(`plan: plan sha256`))
	s.proc.Stop(10 * time.Second)
	s.start()
	found := await(t, m, 8*time.Minute, overOrFailed)
	if found[2] != "" {
		t.Fatalf("FAILED %s: %s", found[2], found[3])
	}
	awaitLogin(t, m)
	s.eventually(2*time.Minute, "seen by the port that its new system answers on", func() bool { return s.headline(lab.Hostname) == "installed" })
	m.Kill()

	// Its firmware still asks the network first.
	m = powerOn(t, c, lines)
	awaitLogin(t, m)
	if strings.Contains(m.Text(), "Firstlight installer") {
		t.Error("an installed machine booted the installer")
	}
	trail, err := os.ReadFile(filepath.Join(s.dir, "state", "audit.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(trail), `"verb":"install"`); n != 2 {
		t.Errorf("%d installations are in the audit trail, want 2:\n%s", n, trail)
	}
}

// TestServeFirmwares: a machine with UEFI by PXE and by HTTP boot, and three with
// BIOS at once, wait for somebody.
func TestServeFirmwares(t *testing.T) {
	for name, off := range map[string][]string{
		"PXE":  {"IPv6PXESupport"},
		"HTTP": {"IPv4PXESupport", "IPv6PXESupport"},
	} {
		t.Run("UEFI "+name, func(t *testing.T) {
			s := newServed(t, 1)
			c := s.machine(t, 0)
			c.Vars = filepath.Join(t.TempDir(), "vars.fd")
			if err := qemu.CreateVars(c.Vars, false); err != nil {
				t.Fatal(err)
			}
			for _, feature := range off {
				c.Args = append(c.Args, "-fw_cfg", "name=opt/org.tianocore/"+feature+",string=no")
			}
			// The card's own iPXE would go before the firmware.
			for n, argument := range c.Args {
				if strings.HasPrefix(argument, "virtio-net-pci,") {
					c.Args[n] += ",romfile="
				}
			}
			m := powerOn(t, c, keepLines(t))
			await(t, m, 6*time.Minute, waitsForName)
			untouched(t, m)
		})
	}
	t.Run("three at once", func(t *testing.T) {
		s := newServed(t, 3)
		var all []*qemu.Machine
		for n := range 3 {
			all = append(all, powerOn(t, s.machine(t, n), keepLines(t)))
		}
		for n, m := range all {
			await(t, m, 6*time.Minute, waitsForName)
			id := fmt.Sprintf("52-54-00-12-34-%02x", 0x56+n)
			s.eventually(time.Minute, id+" waiting", func() bool { return s.headline(id) == "waiting" })
			untouched(t, m)
		}
	})
}
