package netconfig_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
)

// example reads the example of the configuration files, as far as the network
// goes.
func example(t *testing.T) netconfig.Spec {
	t.Helper()
	data, err := os.ReadFile("testdata/config.json")
	if err != nil {
		t.Fatal(err)
	}
	var raw struct {
		Machine struct {
			Hostname       string
			HostIpAddress  netip.Addr
			HostMacAddress netconfig.MAC
		}
		Subnets []struct {
			Id, DomainName    string
			IpGateway         netip.Addr
			IpMask            netip.Addr
			DomainNameServers []netip.Addr
			Manage            bool
			VlanId            uint16
		}
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		t.Fatal(err)
	}
	spec := netconfig.Spec{
		Hostname: raw.Machine.Hostname,
		Entries:  []netconfig.Entry{{IP: raw.Machine.HostIpAddress, MAC: raw.Machine.HostMacAddress}},
	}
	for _, s := range raw.Subnets {
		bits, _ := net.IPMask(s.IpMask.AsSlice()).Size()
		spec.Subnets = append(spec.Subnets, netconfig.Subnet{
			ID: s.Id, Gateway: s.IpGateway, Prefix: netip.PrefixFrom(s.IpGateway, bits).Masked(),
			Domain: s.DomainName, DNS: s.DomainNameServers, Manage: s.Manage, VlanID: s.VlanId,
		})
	}
	return spec
}

func mac(t *testing.T, s string) netconfig.MAC {
	t.Helper()
	m, err := netconfig.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func nic(t *testing.T, name, address string) netconfig.NIC {
	t.Helper()
	m := mac(t, address)
	return netconfig.NIC{Name: name, MAC: m, PermanentMAC: m, Carrier: true}
}

const (
	hostMAC   = "de:ad:be:ef:00:01"
	secondMAC = "de:ad:be:ef:00:02"
	thirdMAC  = "de:ad:be:ef:00:03"
	fourthMAC = "de:ad:be:ef:00:04"
)

// golden compares got with a file under testdata; UPDATE_GOLDEN=1 writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

func TestResolveGolden(t *testing.T) {
	down := func(n netconfig.NIC) netconfig.NIC { n.Carrier = false; return n }
	leased := func(n netconfig.NIC) netconfig.NIC { n.Lease = true; return n }
	addr, net24 := netip.MustParseAddr, netip.MustParsePrefix
	tests := []struct {
		name string
		spec func(*netconfig.Spec)
		nics []netconfig.NIC
	}{
		{name: "one-nic", nics: []netconfig.NIC{nic(t, "eth0", hostMAC)}},
		{name: "host-nic-without-link", nics: []netconfig.NIC{down(nic(t, "eth0", hostMAC))}},
		{name: "two-trunk-nics", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC), nic(t, "eth2", thirdMAC)}},
		{name: "one-trunk-nic", nics: []netconfig.NIC{nic(t, "eth1", secondMAC), nic(t, "eth0", hostMAC), down(nic(t, "eth2", thirdMAC))}},
		{name: "vlan-trunk-on-the-host-nic", nics: []netconfig.NIC{nic(t, "eth0", hostMAC)},
			spec: func(s *netconfig.Spec) { s.Entries[0].VlanTrunk = true }},
		{name: "vlan-trunk-beside-others", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC), nic(t, "eth2", thirdMAC)},
			spec: func(s *netconfig.Spec) { s.Entries[0].VlanTrunk = true }},
		{name: "host-on-a-vlan", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC)},
			spec: func(s *netconfig.Spec) { s.Entries = []netconfig.Entry{{IP: addr("192.168.120.7")}} }},
		{name: "host-untagged-without-mac", nics: []netconfig.NIC{nic(t, "eth0", hostMAC)},
			spec: func(s *netconfig.Spec) { s.Entries[0].MAC = netconfig.MAC{} }},
		{name: "managed-host-subnet", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC)},
			spec: func(s *netconfig.Spec) {
				s.Entries = []netconfig.Entry{{IP: addr("192.168.100.9"), MAC: mac(t, hostMAC)}}
			}},
		{name: "bridge-only", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC), nic(t, "eth2", thirdMAC)},
			spec: func(s *netconfig.Spec) {
				s.Entries = append(s.Entries, netconfig.Entry{MAC: mac(t, secondMAC), SubnetID: "Dev"})
			}},
		{name: "four-nics", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC), nic(t, "eth2", thirdMAC), nic(t, "eth3", fourthMAC)},
			spec: func(s *netconfig.Spec) {
				s.Entries = append(s.Entries, netconfig.Entry{MAC: mac(t, secondMAC), SubnetID: "Dev"}, netconfig.Entry{IP: addr("192.168.120.9")})
			}},
		{name: "gateway-subnet", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC)},
			spec: func(s *netconfig.Spec) {
				s.Entries = append(s.Entries, netconfig.Entry{IP: addr("192.168.120.9")})
				s.GatewaySubnetID = "Prod"
			}},
		{name: "two-addresses-on-a-nic", nics: []netconfig.NIC{nic(t, "eth0", hostMAC)},
			spec: func(s *netconfig.Spec) {
				s.Subnets = append(s.Subnets, netconfig.Subnet{ID: "v6", Gateway: addr("2001:db8::1"), Prefix: net24("2001:db8::/64")})
				s.Entries = append(s.Entries, netconfig.Entry{IP: addr("2001:db8::9"), MAC: mac(t, hostMAC)})
			}},
		{name: "dhcp", nics: []netconfig.NIC{nic(t, "eth0", hostMAC), leased(nic(t, "eth1", secondMAC)), down(nic(t, "eth2", thirdMAC))},
			spec: func(s *netconfig.Spec) { s.Entries = []netconfig.Entry{{}} }},
		{name: "dhcp-on-a-bridge", nics: []netconfig.NIC{leased(nic(t, "eth0", hostMAC))},
			spec: func(s *netconfig.Spec) {
				s.Entries = []netconfig.Entry{{MAC: mac(t, hostMAC), SubnetID: "Dev"}}
			}},
		{name: "no-permanent-mac", nics: []netconfig.NIC{{Name: "eth0", MAC: mac(t, hostMAC), Carrier: true}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := example(t)
			if test.spec != nil {
				test.spec(&spec)
			}
			config, err := netconfig.Resolve(spec, test.nics)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(config, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.name+".json", append(got, '\n'))
		})
	}
}

// The README of the configuration files says what its example becomes.
func TestResolveExampleAsDocumented(t *testing.T) {
	nics := []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC), nic(t, "eth2", thirdMAC)}
	config, err := netconfig.Resolve(example(t), nics)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	by := map[string]netconfig.Interface{}
	for _, i := range config.Interfaces {
		names = append(names, i.Name)
		by[i.Name] = i
	}
	if diff := cmp.Diff([]string{"lan0", "lan1", "lan2", "bond0", "bond0.100", "bond0.120", "br100", "br120"}, names); diff != "" {
		t.Fatal(diff)
	}
	if got := by["lan0"].Addresses[0].String(); got != "192.168.1.2/24" {
		t.Errorf("primary address %s", got)
	}
	if got := by["lan0"].Gateway.String(); got != "192.168.1.1" {
		t.Errorf("default route by %s", got)
	}
	bond := by["bond0"]
	if bond.MTU != 9000 || bond.Bond.Mode != "802.3ad" || bond.Bond.HashPolicy != "layer3+4" {
		t.Errorf("bond0 is %+v, %+v", bond, bond.Bond)
	}
	if diff := cmp.Diff([]string{"bond0.120"}, by["br120"].Ports); diff != "" {
		t.Error(diff)
	}
	if config.Domain != "hypervisors.company.com" || len(config.DNS) != 2 {
		t.Errorf("DNS %v, domain %q", config.DNS, config.Domain)
	}
}

// The kernel may find the NICs in another order at the next boot.
func TestResolveIsIndependentOfTheOrderOfNICs(t *testing.T) {
	a, b, c := nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC), nic(t, "eth2", thirdMAC)
	first, err := netconfig.Resolve(example(t), []netconfig.NIC{a, b, c})
	if err != nil {
		t.Fatal(err)
	}
	second, err := netconfig.Resolve(example(t), []netconfig.NIC{c, a, b})
	if err != nil {
		t.Fatal(err)
	}
	x, _ := json.Marshal(first) // a Config always marshals
	y, _ := json.Marshal(second)
	if diff := cmp.Diff(string(x), string(y)); diff != "" {
		t.Error(diff)
	}
}

func TestResolveErrors(t *testing.T) {
	addr := netip.MustParseAddr
	bridge := func(m, id string) func(*netconfig.Spec) {
		return func(s *netconfig.Spec) {
			s.Entries = append(s.Entries, netconfig.Entry{MAC: mac(t, m), SubnetID: id})
		}
	}
	host := []netconfig.NIC{nic(t, "eth0", hostMAC)}
	two := []netconfig.NIC{nic(t, "eth0", hostMAC), nic(t, "eth1", secondMAC)}
	tests := []struct {
		name string
		spec func(*netconfig.Spec)
		nics []netconfig.NIC
		code string
		text string
	}{
		{"no NIC has the host's MAC", nil, []netconfig.NIC{nic(t, "eth1", secondMAC)}, "CNF-001", "found de:ad:be:ef:00:02 (eth1)"},
		{"no NIC at all", nil, nil, "CNF-001", "no NIC at all"},
		{"bridge's MAC not found", bridge(secondMAC, "Dev"), host, "CNF-001", secondMAC},
		{"no subnet", func(s *netconfig.Spec) { s.Entries[0].IP = addr("10.9.9.9") }, host, "CNF-002", "10.9.9.9"},
		{"bridge in an unknown subnet", bridge(secondMAC, "Nowhere"), two, "CNF-003", `"Nowhere"`},
		{"bridge in an unmanaged subnet", bridge(secondMAC, "Hypervisors"), two, "CNF-003", "not managed"},
		{"bridge's subnet id too long", func(s *netconfig.Spec) {
			s.Subnets[0].ID = "Developers"
			bridge(secondMAC, "Developers")(s)
		}, two, "CNF-003", "longer than 9"},
		{"bridge's subnet id with a dot", func(s *netconfig.Spec) {
			s.Subnets[0].ID = "a.b"
			bridge(secondMAC, "a.b")(s)
		}, two, "CNF-003", "character"},
		{"VLAN without a trunk", func(s *netconfig.Spec) {
			s.Entries = append(s.Entries, netconfig.Entry{IP: addr("192.168.100.9")})
		}, host, "CNF-004", "192.168.100.9"},
		{"unknown gateway subnet", func(s *netconfig.Spec) { s.GatewaySubnetID = "Prd" }, host, "CNF-005", `"Prd"`},
		{"no address in the gateway subnet", func(s *netconfig.Spec) { s.GatewaySubnetID = "Prod" }, host, "CNF-005", `"Prod"`},
		{"nothing to ask for an address", func(s *netconfig.Spec) { s.Entries = []netconfig.Entry{{}} },
			[]netconfig.NIC{{Name: "eth0", MAC: mac(t, hostMAC)}}, "CNF-006", "no NIC has a link"},
		{"one NIC, two uses", bridge(hostMAC, "Dev"), host, "CNF-007", hostMAC},
		{"two bridges of one name", func(s *netconfig.Spec) {
			s.Subnets[1].Manage = true
			s.Subnets = append(s.Subnets, netconfig.Subnet{ID: "x", Prefix: netip.MustParsePrefix("10.0.0.0/8"), Manage: true})
			s.Entries = append(s.Entries, netconfig.Entry{IP: addr("10.0.0.1"), MAC: mac(t, secondMAC)})
		}, two, "CNF-007", "br0"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := example(t)
			if test.spec != nil {
				test.spec(&spec)
			}
			config, err := netconfig.Resolve(spec, test.nics)
			var coded *netconfig.Error
			if !errors.As(err, &coded) || coded.Code() != test.code || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %+v, %v; want %s with %q", config, err, test.code, test.text)
			}
		})
	}
}

func TestResolveReportsEveryMistake(t *testing.T) {
	spec := example(t)
	spec.GatewaySubnetID = "Nowhere"
	_, err := netconfig.Resolve(spec, nil)
	for _, want := range []string{"Nowhere", hostMAC} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not speak of %s", err, want)
		}
	}
}

func TestIdentity(t *testing.T) {
	static, err := netconfig.Resolve(example(t), []netconfig.NIC{nic(t, "eth0", hostMAC)})
	if err != nil {
		t.Fatal(err)
	}
	const v6 = "\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	tests := []struct {
		name   string
		config netconfig.Config
		want   map[string]string
	}{
		{"static", static, map[string]string{
			"/etc/hostname": "hyper0\n",
			"/etc/hosts":    "127.0.0.1\tlocalhost\n192.168.1.2\thyper0.hypervisors.company.com hyper0\n" + v6,
		}},
		{"DHCP", netconfig.Config{Hostname: "hyper0"}, map[string]string{
			"/etc/hostname": "hyper0\n",
			"/etc/hosts":    "127.0.0.1\tlocalhost\n127.0.1.1\thyper0\n" + v6,
		}},
		{"qualified", netconfig.Config{Hostname: "a.example.org", Domain: "other.org"}, map[string]string{
			"/etc/hostname": "a.example.org\n",
			"/etc/hosts":    "127.0.0.1\tlocalhost\n127.0.1.1\ta.example.org a\n" + v6,
		}},
		{"nameless", netconfig.Config{}, map[string]string{
			"/etc/hosts": "127.0.0.1\tlocalhost\n" + v6,
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := map[string]string{}
			for _, file := range netconfig.Identity(test.config) {
				got[file.Path] = string(file.Data)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
