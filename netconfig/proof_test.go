package netconfig_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
)

func equalAddrs() cmp.Options {
	return cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
}

// trial is a host on its own NIC, a storage network on a VLAN of the trunk, and
// a VLAN that is only bridged.
func trial(t *testing.T, nics ...netconfig.NIC) []netconfig.Segment {
	t.Helper()
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	spec := netconfig.Spec{
		Hostname: "h1",
		Entries: []netconfig.Entry{
			{IP: addr("192.168.1.2"), MAC: netconfig.MAC{2, 0, 0, 0, 0, 1}},
			{IP: addr("10.9.0.2")},
		},
		Subnets: []netconfig.Subnet{
			{ID: "hosts", Gateway: addr("192.168.1.1"), Prefix: prefix("192.168.1.0/24"), DNS: []netip.Addr{addr("192.168.1.53")}},
			{ID: "storage", Gateway: addr("10.9.0.1"), Prefix: prefix("10.9.0.0/24"), VlanID: 9},
			{ID: "prod", Gateway: addr("192.168.120.1"), Prefix: prefix("192.168.120.0/24"), VlanID: 120, Manage: true},
		},
	}
	c, err := netconfig.Resolve(spec, nics)
	if err != nil {
		t.Fatal(err)
	}
	return netconfig.Segments(spec, c)
}

func TestSegments(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	host := netconfig.NIC{Name: "eth0", MAC: netconfig.MAC{2, 0, 0, 0, 0, 1}, Carrier: true}
	trunk := []netconfig.NIC{{Name: "eth1", MAC: netconfig.MAC{2, 0, 0, 0, 0, 2}, Carrier: true}, {Name: "eth2", MAC: netconfig.MAC{2, 0, 0, 0, 0, 3}, Carrier: true}}
	hosts := netconfig.Segment{
		Ports: []string{"eth0"}, Addresses: []netip.Prefix{prefix("192.168.1.2/24")}, Gateways: []netip.Addr{addr("192.168.1.1")},
		Routes: []netconfig.Route{{To: prefix("0.0.0.0/0"), Via: addr("192.168.1.1")}}, DNS: []netip.Addr{addr("192.168.1.53")},
	}
	storage := netconfig.Segment{Ports: []string{"eth1"}, VLANID: 9, Addresses: []netip.Prefix{prefix("10.9.0.2/24")}, Gateways: []netip.Addr{addr("10.9.0.1")}}
	prod := netconfig.Segment{Ports: []string{"eth1"}, VLANID: 120, Gateways: []netip.Addr{addr("192.168.120.1")}}
	if diff := cmp.Diff([]netconfig.Segment{hosts, storage, prod}, trial(t, host, trunk[0]), equalAddrs()); diff != "" {
		t.Errorf("one trunk NIC: %s", diff)
	}
	for _, s := range []*netconfig.Segment{&storage, &prod} {
		s.Ports, s.MTU = []string{"eth1", "eth2"}, 9000
		s.Bond = &netconfig.BondOptions{Mode: "802.3ad", HashPolicy: "layer3+4", LACPRate: "slow", MIIMonMillis: 100}
	}
	if diff := cmp.Diff([]netconfig.Segment{hosts, storage, prod}, trial(t, host, trunk[0], trunk[1]), equalAddrs()); diff != "" {
		t.Errorf("a bond: %s", diff)
	}
}

func TestOnlyLease(t *testing.T) {
	prefix := netip.MustParsePrefix
	lease := netconfig.NIC{Name: "eth0", Lease: true, Address: prefix("192.168.1.2/24")}
	own := netconfig.Segment{Ports: []string{"eth0"}, Addresses: []netip.Prefix{prefix("192.168.1.2/24")}}
	other, bonded, tagged, elsewhere := own, own, own, own
	other.Addresses = []netip.Prefix{prefix("192.168.1.3/24")}
	bonded.Ports = []string{"eth0", "eth1"}
	tagged.VLANID = 5
	elsewhere.Ports = []string{"eth1"}
	for name, test := range map[string]struct {
		segments []netconfig.Segment
		want     bool
	}{
		"nothing to try":  {nil, true},
		"its own lease":   {[]netconfig.Segment{own}, true},
		"another address": {[]netconfig.Segment{other}, false},
		"a bond":          {[]netconfig.Segment{bonded}, false},
		"a VLAN":          {[]netconfig.Segment{tagged}, false},
		"another NIC":     {[]netconfig.Segment{elsewhere}, false},
		"more":            {[]netconfig.Segment{own, tagged}, false},
	} {
		if got := netconfig.OnlyLease(test.segments, []netconfig.NIC{lease, {Name: "eth1"}}); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestNamesOneOf(t *testing.T) {
	nics := []netconfig.NIC{{MAC: netconfig.MAC{2, 1}, PermanentMAC: netconfig.MAC{2, 9}}, {MAC: netconfig.MAC{2, 2}}}
	for _, test := range []struct {
		entries []netconfig.Entry
		want    bool
	}{
		{nil, true},
		{[]netconfig.Entry{{IP: netip.MustParseAddr("10.0.0.1")}}, true},
		{[]netconfig.Entry{{MAC: netconfig.MAC{2, 9}}}, true},
		{[]netconfig.Entry{{MAC: netconfig.MAC{2, 7}}, {MAC: netconfig.MAC{2, 2}}}, true},
		{[]netconfig.Entry{{MAC: netconfig.MAC{2, 7}}}, false},
	} {
		if err := (netconfig.Spec{Entries: test.entries}).NamesOneOf(nics); (err == nil) != test.want {
			t.Errorf("%+v: %v", test.entries, err)
		}
	}
}
