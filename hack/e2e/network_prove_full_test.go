//go:build full

package e2e

import (
	"context"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/netswitch"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/netconfig"
)

// TestNetworkProveOwnPort: both NICs are the bond, so the installer's own port
// joins it last, comes back, and the installation goes on. What the kernel
// command line has given the other port comes back too.
func TestNetworkProveOwnPort(t *testing.T) {
	t.Run("leased", func(t *testing.T) { proveOwnPort(t, "") })
	t.Run("another-address", func(t *testing.T) {
		proveOwnPort(t, "ip=eth0:dhcp ip=192.168.9.9:::255.255.255.0::eth1:none ip=[2001:db8:9::9]:::64::eth1:none",
			`prove: eth1 has 192\.168\.9\.9/24, 2001:db8:9::9/64 again`)
	})
}

// proveOwnPort plays it with words on the kernel command line, up to the point of
// no return; the console must say what says has.
func proveOwnPort(t *testing.T, options string, says ...string) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	server, name := serveRoot(t, "netplan")
	files, err := site.NewConfig(lab.InGuest(server.Port))
	if err != nil {
		t.Fatal(err)
	}
	gateway := netip.MustParseAddr("192.168.120.1")
	files["imagename"] = []byte(name + "\n")
	if files["config.json"], err = json.Marshal(map[string]any{
		"Machine": map[string]any{"Hostname": lab.Hostname, "HostIpAddress": "192.168.120.2"},
		"Subnets": []any{map[string]any{"Id": "prod", "IpGateway": gateway, "IpMask": "255.255.255.0", "VlanId": 120,
			"DomainName": lab.Domain, "DomainNameServers": []any{gateway}}},
	}); err != nil {
		t.Fatal(err)
	}
	x := &exampleSite{server: server, files: files}
	port := netswitch.Port{Untagged: 1, Tagged: []uint16{120}, Group: "lag"}
	own := netswitch.Station{Name: "v1", VLAN: 1, Addresses: []netip.Prefix{netip.MustParsePrefix(exampleGateway + "/24")}}
	x.serve(&own)
	prod := netswitch.Station{Name: "v120", VLAN: 120, Addresses: []netip.Prefix{netip.PrefixFrom(gateway, 24)},
		Names: map[string]netip.Addr{"a.test": gateway}}
	x.lan.network = netswitch.Network{Ports: []netswitch.Port{port, port}, Stations: []netswitch.Station{own, prod}}
	x.lan.macs = []netconfig.MAC{{0xde, 0xad, 0xbe, 0xef, 0, 1}, {0xde, 0xad, 0xbe, 0xef, 0, 2}}
	dir := shortDir(t)
	s := startSwitch(ctx, t, dir, x.lan.network)
	c := x.machine(ctx, t, dir, s, options)
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
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
	if len(found) > 1 && found[1] != "" {
		t.Errorf("it failed: %s", found[0])
	}
	for _, say := range append(says,
		`prove: gateway 192\.168\.120\.1 \([0-9a-f:]+\) answers on VLAN 120 via the bond of eth0, eth1`,
		`prove: nobody else has the address 192\.168\.120\.2`,
		`prove: name server 192\.168\.120\.1 answers`,
		`prove: (eth0|eth1) joins its bond for at most 20 s`,
		`prove: the switch speaks LACP on (eth0|eth1) as well`,
		`prove: (eth0|eth1) is back`,
	) {
		if !regexp.MustCompile(say).MatchString(m.Text()) {
			t.Errorf("the console does not say %q", say)
		}
	}
	if strings.Contains(m.Text(), "CNF-03") {
		t.Logf("warnings:\n%s", m.Tail(40))
	}
}
