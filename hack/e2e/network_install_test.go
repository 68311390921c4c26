package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/netswitch"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/netconfig"
)

// exampleSite is what the machine of the example configuration is installed
// from: its files, its network, and an image server with an image.
type exampleSite struct {
	files  map[string][]byte
	config netconfig.Config
	lan    lan
	server *lab.Server
}

// The example's own addresses.
const (
	exampleHost    = "192.168.1.2"
	exampleGateway = "192.168.1.1"
)

// newExample prepares it: config.json is the example of the configuration
// files, unchanged; server has the image.
func newExample(t *testing.T, server *lab.Server, imageName string) *exampleSite {
	t.Helper()
	x := &exampleSite{server: server}
	data, err := os.ReadFile(filepath.Join(checkout, "netconfig", "testdata", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := site.NewConfig(lab.InGuest(server.Port))
	if err != nil {
		t.Fatal(err)
	}
	files["config.json"], files["imagename"] = data, []byte(imageName+"\n")
	x.files = files
	parsed, err := config.Parse(files, config.DefaultPort)
	if err != nil {
		t.Fatal(err)
	}
	var nics []netconfig.NIC
	for n := range 3 {
		mac := netconfig.MAC{0xde, 0xad, 0xbe, 0xef, 0, byte(n + 1)}
		nics = append(nics, netconfig.NIC{Name: fmt.Sprintf("eth%d", n), MAC: mac, PermanentMAC: mac, Carrier: true, PCI: fmt.Sprintf("0000:00:%02x.0", 3+n)})
	}
	if x.config, err = netconfig.Resolve(parsed.Network, nics); err != nil {
		t.Fatal(err)
	}
	x.lan = lanFor(x.config)
	for n := range x.lan.network.Stations {
		s := &x.lan.network.Stations[n]
		switch s.Name {
		case "v100", "v120": // the routers of the VLANs
			s.Addresses = append(s.Addresses, netip.MustParsePrefix("192.168."+s.Name[1:]+".1/24"))
		default:
			x.serve(s)
		}
	}
	return x
}

// serve makes the station of the host's own network a router and everything
// that a machine is installed with.
func (x *exampleSite) serve(s *netswitch.Station) {
	at := netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), uint16(x.server.Port))
	s.Addresses = append(s.Addresses, netip.MustParsePrefix("192.168.1.53/24"), netip.MustParsePrefix("8.8.8.8/32"))
	s.Relays = map[netip.AddrPort]netip.AddrPort{at: at}
	s.Names = map[string]netip.Addr{"hyper0.hypervisors.company.com": netip.MustParseAddr(exampleHost)}
	s.Files = x.files
	gateway := netip.MustParseAddr(exampleGateway)
	s.DHCP = &netswitch.DHCP{
		Address: netip.MustParsePrefix("192.168.1.77/24"), Router: gateway, NextServer: gateway,
		DNS: []netip.Addr{netip.MustParseAddr("192.168.1.53")},
	}
}

// machine is the machine of the example, not started yet.
func (x *exampleSite) machine(ctx context.Context, t *testing.T, dir string, s *netswitch.Switch, options string) qemu.Config {
	t.Helper()
	accel, _ := probe.Accel(ctx)
	lines := keepLines(t)
	c := qemu.Config{
		Dir: filepath.Join(dir, "m"), Accel: accel, Kernel: site.Kernel(), Initrd: site.Initramfs(),
		CommandLine: strings.TrimSpace(lab.CommandLine + " " + options), Net: qemu.Net{Absent: true}, Shell: true,
		Lines: lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true,
	}
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for n, mac := range x.lan.macs {
		c.Cables = append(c.Cables, s.Cable(n, mac.String()))
	}
	return c
}

// serveRoot starts an image server that has the root of a renderer's as an
// image, and returns its name.
func serveRoot(t *testing.T, program string) (*lab.Server, string) {
	t.Helper()
	server := serve(t, site, copyStore(t))
	name := "network/" + program + "/1"
	if err := site.Add(t.Context(), server, name, networkRoot(t, program)); err != nil {
		t.Fatal(err)
	}
	return server, name
}

// installExample installs the example's machine against the switch, with an
// image that has one program for the network, and looks at it from inside and
// from outside: after kexec, and after a power cycle.
func installExample(t *testing.T, program string) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	server, name := serveRoot(t, program)
	x := newExample(t, server, name)
	dir := shortDir(t)
	s := startSwitch(ctx, t, dir, x.lan.network)
	c := x.machine(ctx, t, dir, s, "")
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
	c.Disks = []qemu.Disk{{Path: disk}}
	start := time.Now()
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	found, err := m.WaitFor(ctx, regexp.MustCompile(`finish: handing over to (\S+) by kexec\n|`+failedLine.String()))
	if err != nil {
		t.Fatal(err)
	}
	if found[1] != name {
		t.Fatalf("the installation failed: %s", found[0])
	}
	t.Logf("installed after %s", time.Since(start).Round(time.Second))
	// The host's address is not the lease's: it was tried on a second interface
	// of the port, and everything else on the bond.
	for _, say := range []string{
		`prove: gateway 192\.168\.1\.1 \(\S+\) answers via eth0`,
		`prove: nobody else has the address 192\.168\.1\.2 via eth0`,
		`prove: name server \S+ answers via eth0`,
		`prove: the image server \S+ can be reached via eth0`,
		`prove: packets of 1500 bytes reach 192\.168\.1\.1 via eth0`,
		`prove: the switch speaks LACP on eth1, eth2`,
		`prove: gateway 192\.168\.100\.1 \(\S+\) answers on VLAN 100 via the bond of eth1, eth2`,
		`prove: gateway 192\.168\.120\.1 \(\S+\) answers on VLAN 120 via the bond of eth1, eth2`,
	} {
		if !regexp.MustCompile(say).MatchString(m.Text()) {
			t.Errorf("the console does not say %q", say)
		}
	}
	x.inspect(ctx, t, s, c)
	t.Logf("seen after kexec after %s", time.Since(start).Round(time.Second))
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	if testing.Short() || t.Failed() {
		return
	}
	// The other way into the system: its own boot loader, with no kernel left
	// over from before.
	c.Kernel, c.Initrd, c.CommandLine = "", "", ""
	if m, err = qemu.Start(ctx, c); err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	x.inspect(ctx, t, s, c)
	t.Logf("seen from its disk after %s", time.Since(start).Round(time.Second))
}

// inspect waits for the new system and compares it with the model.
func (x *exampleSite) inspect(ctx context.Context, t *testing.T, s *netswitch.Switch, c qemu.Config) {
	t.Helper()
	booted, stop := context.WithTimeout(ctx, 10*time.Minute)
	defer stop()
	shell, err := lab.OpenShell(booted, filepath.Join(c.Dir, qemu.ShellSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer shell.Close()
	settle(ctx, t, shell, x.config, false)
	outside(ctx, t, s, shell, x.lan)
	// As a person would ask, by the names that the configuration has.
	for command, want := range map[string]string{
		"hostname --fqdn":                   "hyper0.hypervisors.company.com",
		"getent hosts hyper0":               exampleHost,
		"cat /etc/hostname":                 "hyper0",
		"systemd-id128 machine-id":          "",
		"test -s /etc/machine-id && echo y": "y",
	} {
		out, err := shell.Run(ctx, command)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %q, %v; want %q in it", command, out, err, want)
		}
	}
}

// TestNetworkExample: the example of the configuration files, with two trunk
// NICs, becomes a host that answers on its address and bridges its VLANs. The
// long series does it with every program.
func TestNetworkExample(t *testing.T) { installExample(t, "netplan") }

// TestNetworkWrongVLAN: a VLAN that the switch does not have on the trunk ends
// the installation before the disk is touched, and is named.
func TestNetworkWrongVLAN(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	server := serve(t, site, copyStore(t))
	x := newExample(t, server, site.Image)
	for n := range x.lan.network.Ports {
		p := &x.lan.network.Ports[n]
		if p.Group != "" {
			p.Tagged = []uint16{100}
		}
	}
	dir := shortDir(t)
	s := startSwitch(ctx, t, dir, x.lan.network)
	c := x.machine(ctx, t, dir, s, "")
	disk := filepath.Join(t.TempDir(), "disk.raw")
	before := oldDisk(t, disk, 0)
	c.Disks = []qemu.Disk{{Path: disk}}
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	found, err := m.WaitFor(ctx, regexp.MustCompile(`commit: point of no return|`+failedLine.String()))
	if err != nil {
		t.Fatal(err)
	}
	if len(found[1]) == 0 {
		t.Fatal("the point of no return was passed")
	}
	t.Logf("%s: %s", found[1], found[2])
	if !strings.HasPrefix(found[1], "CNF-") || !strings.Contains(found[2], "192.168.120.1") || !strings.Contains(found[2], "VLAN 120") || !strings.HasSuffix(found[2], "; disks untouched") {
		t.Errorf("it failed with %s: %s", found[1], found[2])
	}
	writes, err := m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(writes) != 1 || !writes[0].None() {
		t.Errorf("the disk was written to: %+v", writes)
	}
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	if after, err := lab.HashDisk(disk); err != nil || !bytes.Equal(after[:], before[:]) {
		t.Errorf("the disk is not what it was: %v", err)
	}
}
