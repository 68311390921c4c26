package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/firstlight/firstlight/netconfig"
)

// acknowledgement is one with every option that is read.
func acknowledgement(tb testing.TB, more ...dhcpv4.Modifier) []byte {
	tb.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 5)), dhcpv4.WithServerIP(net.IPv4(10, 0, 0, 1)), dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(net.IPv4(10, 0, 0, 1)), dhcpv4.WithDNS(net.IPv4(10, 0, 0, 1)),
		dhcpv4.WithLeaseTime(3600), dhcpv4.WithDomainSearchList("a.example", "b.example"),
		dhcpv4.WithOption(dhcpv4.OptDomainName("lab.example")), dhcpv4.WithOption(dhcpv4.OptHostName("m1")),
		dhcpv4.WithOption(dhcpv4.OptTFTPServerName("10.0.0.9\x00")), dhcpv4.WithOption(dhcpv4.OptBootFileName("boot")),
		dhcpv4.WithOption(dhcpv4.OptClasslessStaticRoute(&dhcpv4.Route{Dest: &net.IPNet{IP: net.IPv4(10, 9, 0, 0), Mask: net.CIDRMask(16, 32)}, Router: net.IPv4(10, 0, 0, 3)})),
	}, more...)...)
	if err != nil {
		tb.Fatal(err)
	}
	return m.ToBytes()
}

// checkLease is what must be true of a lease whatever the server sent: it goes
// to the kernel, to resolv.conf and into URLs.
func checkLease(t *testing.T, lease Lease) {
	t.Helper()
	if !lease.Address.IsValid() || lease.Address.Bits() < 1 {
		t.Errorf("address %v", lease.Address)
	}
	for _, route := range lease.Routes {
		if !route.To.IsValid() || route.Via.IsValid() && !route.Via.IsGlobalUnicast() && !lease.V6() {
			t.Errorf("route %+v", route)
		}
	}
	for _, name := range append([]string{lease.Domain, lease.HostName, lease.TFTPName}, lease.Search...) {
		if strings.ContainsAny(name, " \n\t\x00/") {
			t.Errorf("name %q", name)
		}
	}
	for _, server := range lease.TFTPServers() {
		if server == "" {
			t.Error("an empty TFTP server")
		}
	}
	lease.Expires()
}

func FuzzAcknowledgement(f *testing.F) {
	f.Add(acknowledgement(f))
	f.Add(acknowledgement(f, dhcpv4.WithNetmask(net.IPv4Mask(255, 0, 255, 0)), dhcpv4.WithRouter(net.IPv4zero)))
	f.Add(acknowledgement(f, dhcpv4.WithOption(dhcpv4.OptDomainName("x\nnameserver 6.6.6.6"))))
	f.Add(acknowledgement(f, dhcpv4.WithYourIP(net.IPv4(240, 0, 0, 1)), dhcpv4.WithNetmask(nil)))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := dhcpv4.FromBytes(data)
		if err != nil {
			return
		}
		if lease, ok := newLease("eth0", netconfig.MAC{2}, &nclient4.Lease{Offer: m, ACK: m, CreationTime: time.Now()}); ok {
			checkLease(t, lease.fill(Lease{}))
		}
	})
}

func FuzzReply(f *testing.F) {
	reply, err := dhcpv6.NewMessage(dhcpv6.WithServerID(&dhcpv6.DUIDLL{}), dhcpv6.WithIANA(dhcpv6.OptIAAddress{
		IPv6Addr: net.ParseIP("2001:db8::5"), PreferredLifetime: time.Hour, ValidLifetime: time.Hour}),
		dhcpv6.WithDNS(net.ParseIP("2001:db8::53")), dhcpv6.WithDomainSearchList("lab.example"), dhcpv6.WithOption(dhcpv6.OptBootFileURL("tftp://[2001:db8::9]/b")))
	if err != nil {
		f.Fatal(err)
	}
	reply.MessageType = dhcpv6.MessageTypeReply
	f.Add(reply.ToBytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := dhcpv6.MessageFromBytes(data)
		if err != nil || given(m) != nil {
			return
		}
		var lease Lease
		lease.read6(m)
		checkLease(t, lease)
	})
}

// advertised is an advertisement as radvd sends it.
func advertised() []byte {
	a := []byte{routerAdvertisement, 0, 0, 0, 64, 0x40, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	prefix := netip.MustParseAddr("2001:db8:1::").As16()
	a = append(a, optionPrefix, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0)
	a = append(a, prefix[:]...)
	a = append(a, optionMTU, 1, 0, 0, 0, 0, 0x05, 0xdc)
	server := netip.MustParseAddr("2001:db8:1::53").As16()
	a = append(a, optionDNS, 3, 0, 0, 0, 0, 0x0e, 0x10)
	a = append(a, server[:]...)
	return append(a, optionSearch, 3, 0, 0, 0, 0, 0x0e, 0x10, 3, 'l', 'a', 'b', 7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 0, 0, 0, 0)
}

func TestParseAdvertisement(t *testing.T) {
	got, err := parseAdvertisement(advertised())
	if err != nil {
		t.Fatal(err)
	}
	want := advertisement{
		other: true, lifetime: 1800 * time.Second, prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}, mtu: 1500,
		dns: []netip.Addr{netip.MustParseAddr("2001:db8:1::53")}, search: []string{"lab.example"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(advertisement{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	for n := range len(advertised()) {
		if _, err := parseAdvertisement(advertised()[:n]); err == nil && n != 16 && n != 48 && n != 56 && n != 80 {
			t.Errorf("cut to %d bytes, it was read", n)
		}
	}
}

func FuzzAdvertisement(f *testing.F) {
	f.Add(advertised())
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parseAdvertisement(data)
		if err != nil {
			return
		}
		for _, name := range a.search {
			if strings.ContainsAny(name, " \n\t\x00") {
				t.Errorf("name %q", name)
			}
		}
		for _, p := range a.prefixes {
			if !p.IsValid() {
				t.Error("a prefix that is none")
			}
		}
	})
}
