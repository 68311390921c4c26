package netplan_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/netconfigtest"
	"github.com/firstlight/firstlight/netconfig/netplan"
)

func TestRenderGolden(t *testing.T) { netconfigtest.Golden(t, netplan.Render) }

// generate lets the real netplan make its files, and returns all their text
// behind "== <name>" lines.
func generate(t *testing.T, config netconfig.Config, r netconfig.Resolver) string {
	t.Helper()
	root := netconfigtest.Write(t, netplan.Render(config, r))
	out, err := exec.Command("netplan", "generate", "--root-dir", root).CombinedOutput()
	if err != nil || len(strings.TrimSpace(string(out))) > 0 {
		t.Fatalf("netplan generate: %v\n%s", err, out)
	}
	paths, err := filepath.Glob(filepath.Join(root, "run/systemd/network/*"))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("== " + filepath.Base(path) + "\n" + string(data))
	}
	return b.String()
}

// section is the text of one generated file.
func section(text, name string) string {
	_, after, _ := strings.Cut(text, "== "+name+"\n")
	before, _, _ := strings.Cut(after, "\n== ")
	return before
}

// netplan takes every file without a word of complaint, and says the same to
// systemd-networkd as was decided.
func TestNetplanGenerates(t *testing.T) {
	for name, config := range netconfigtest.Configs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := generate(t, config, netconfig.Resolved)
			for _, i := range config.Interfaces {
				network := section(text, "10-netplan-"+i.Name+".network")
				want := []string{"Name=" + i.Name}
				for _, a := range i.Addresses {
					want = append(want, "Address="+a.String())
				}
				for _, a := range i.Gateways() {
					want = append(want, "Gateway="+a.String())
				}
				for _, a := range i.DNS {
					want = append(want, "DNS="+a.String())
				}
				if i.DHCP4 {
					want = append(want, "DHCP=ipv4")
				}
				if i.AcceptRA {
					want = append(want, "IPv6AcceptRA=yes")
				}
				if i.Master != "" {
					want = append(want, "="+i.Master)
				}
				for _, w := range want {
					if !strings.Contains(network, w) {
						t.Errorf("%s: no %q in\n%s", i.Name, w, network)
					}
				}
				netdev := section(text, "10-netplan-"+i.Name+".netdev")
				if i.Kind != netconfig.Ethernet && !strings.Contains(netdev, "Kind="+string(i.Kind)) {
					t.Errorf("%s is no %s:\n%s", i.Name, i.Kind, text)
				}
				if i.Bridge != nil && !i.Bridge.STP && !strings.Contains(netdev, "STP=false") {
					t.Errorf("%s has STP:\n%s", i.Name, netdev)
				}
				if i.Bridge != nil && !strings.Contains(netdev, "ForwardDelaySec=") {
					t.Errorf("%s holds frames back:\n%s", i.Name, netdev)
				}
			}
		})
	}
}

// What becomes of the bond, in the words of systemd-networkd.
func TestNetplanMakesTheBond(t *testing.T) {
	text := generate(t, netconfigtest.Configs(t)["two-trunk-nics"], netconfig.ResolvConf)
	for file, lines := range map[string][]string{
		"10-netplan-bond0.netdev":      {"MTUBytes=9000", "MACAddress=de:ad:be:ef:00:02", "Mode=802.3ad", "LACPTransmitRate=slow", "MIIMonitorSec=100ms", "TransmitHashPolicy=layer3+4"},
		"10-netplan-lan1.network":      {"Bond=bond0", "LinkLocalAddressing=no", "RequiredForOnline=no"},
		"10-netplan-bond0.network":     {"VLAN=bond0.100", "VLAN=bond0.120"},
		"10-netplan-bond0.120.netdev":  {"Id=120"},
		"10-netplan-bond0.120.network": {"Bridge=br120"},
	} {
		for _, line := range lines {
			if !strings.Contains(section(text, file), line) {
				t.Errorf("no %q in %s:\n%s", line, file, section(text, file))
			}
		}
	}
	if strings.Contains(text, "DNS=") {
		t.Error("name servers stand in two places")
	}
}
