package dhcp

import (
	"cmp"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/firstlight/firstlight/netconfig"
)

// Lease is what a DHCP server gave (RFC 2131, options of RFC 2132; RFC 8415),
// or the address that the kernel made from a router's prefix, with what the
// router said. Its JSON form is kept below /var/log/installer/dhcp; there is no
// secret in it.
type Lease struct {
	Interface string        `json:"interface"`
	MAC       netconfig.MAC `json:"mac"`
	Address   netip.Prefix  `json:"address"`
	// Auto says that the kernel has made the address itself (RFC 4862) and
	// keeps it.
	Auto bool `json:"auto,omitempty"`
	// Routes are all routes to set, the default route (0.0.0.0/0) among them.
	// Where the server sends classless routes the Router option does not count
	// (RFC 3442). Those of IPv6 are the kernel's own affair.
	Routes   []Route      `json:"routes,omitempty"`
	DNS      []netip.Addr `json:"dns,omitempty"`
	Domain   string       `json:"domain,omitempty"`
	Search   []string     `json:"search,omitempty"` // RFC 3397
	HostName string       `json:"hostName,omitempty"`
	NTP      []netip.Addr `json:"ntp,omitempty"`
	MTU      int          `json:"mtu,omitempty"`    // bytes; 0 when not said
	Server   netip.Addr   `json:"server,omitzero"`  // server identifier
	Next     netip.Addr   `json:"siaddr,omitzero"`  // next server, the field siaddr
	TFTPName string       `json:"tftp66,omitempty"` // option 66 or the field sname
	TFTP150  []netip.Addr `json:"tftp150,omitempty"`
	BootFile string       `json:"bootFile,omitempty"` // option 67 or the field file
	Obtained time.Time    `json:"obtained"`
	Duration Seconds      `json:"seconds"`       // Infinite for ever
	Renew    Seconds      `json:"renewSeconds"`  // T1
	Rebind   Seconds      `json:"rebindSeconds"` // T2
	// Summary is the whole acknowledgement in words, a line an option.
	Summary string `json:"summary"`

	from  *nclient4.Lease // of DHCPv4
	from6 *dhcpv6.Message // the reply, of DHCPv6
}

// V6 says that it is a lease of IPv6.
func (l Lease) V6() bool { return l.Address.Addr().Is6() }

// Route is one route of a lease. A zero Via is a route to the link itself.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via,omitzero"`
}

// Seconds is a time as DHCP counts it.
type Seconds uint32

// Infinite is the lease time that never ends (RFC 2131, 3.3).
const Infinite Seconds = 0xffffffff

// Duration converts to Go's unit.
func (s Seconds) Duration() time.Duration { return time.Duration(s) * time.Second }

// Expires is when the lease ends; ok is false for one that never does.
func (l Lease) Expires() (at time.Time, ok bool) {
	return l.Obtained.Add(l.Duration.Duration()), l.Duration != Infinite
}

// mostTFTPServers is how many of a lease's TFTP servers count: each may have to
// be waited for, and one option has room for sixty.
const mostTFTPServers = 8

// TFTPServers are the names or addresses of TFTP servers, best first: siaddr,
// option 66, option 150, without repetition; the first eight.
func (l Lease) TFTPServers() []string {
	var out []string
	add := func(s string) {
		if s != "" && len(out) < mostTFTPServers && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	if l.Next.IsValid() && !l.Next.IsUnspecified() {
		add(l.Next.String())
	}
	add(l.TFTPName)
	for _, addr := range l.TFTP150 {
		add(addr.String())
	}
	return out
}

// Router is the gateway of the default route; the zero Addr when there is none.
func (l Lease) Router() netip.Addr {
	for _, route := range l.Routes {
		if route.To.Bits() == 0 {
			return route.Via
		}
	}
	return netip.Addr{}
}

// newLease reads an acknowledgement. ok is false when it gives no address.
func newLease(name string, mac netconfig.MAC, got *nclient4.Lease) (lease Lease, ok bool) {
	ack := got.ACK
	ip := addr(ack.YourIPAddr)
	if !usable(ack.YourIPAddr) {
		return Lease{}, false
	}
	lease = Lease{
		Interface: name, MAC: mac, Address: netip.PrefixFrom(ip, maskBits(ack)),
		DNS: addrs(ack.DNS()), Domain: hostName(ack.DomainName()), HostName: hostName(ack.HostName()), NTP: addrs(ack.NTPServers()),
		Server: addr(ack.ServerIdentifier()), Next: addr(ack.ServerIPAddr),
		TFTPName: ack.TFTPServerName(), BootFile: ack.BootFileNameOption(),
		TFTP150:  addrs(dhcpv4.GetIPs(dhcpv4.OptionTFTPServerAddress, ack.Options)),
		Obtained: got.CreationTime, Summary: ack.Summary(), from: got,
	}
	if labels := ack.DomainSearch(); labels != nil {
		lease.Search = hostNames(labels.Labels)
	}
	lease.TFTPName = hostName(cmp.Or(lease.TFTPName, ack.ServerHostName))
	// Some servers end the name with a NUL.
	lease.BootFile = strings.TrimRight(cmp.Or(lease.BootFile, ack.BootFileName), "\x00")
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, ack.Options); err == nil {
		lease.MTU = int(mtu)
	}
	seconds := func(code dhcpv4.OptionCode, otherwise Seconds) Seconds {
		if v := ack.Options.Get(code); len(v) == 4 {
			return Seconds(binary.BigEndian.Uint32(v))
		}
		return otherwise
	}
	const day = 24 * 60 * 60
	lease.Duration = seconds(dhcpv4.OptionIPAddressLeaseTime, day)
	// RFC 2131, 4.4.5: T1 is half, T2 seven eighths of the lease.
	lease.Renew = seconds(dhcpv4.OptionRenewTimeValue, lease.Duration/2)
	lease.Rebind = seconds(dhcpv4.OptionRebindingTimeValue, lease.Duration/8*7)
	for _, route := range ack.ClasslessStaticRoute() {
		if route.Dest == nil {
			continue
		}
		ones, _ := route.Dest.Mask.Size()
		to := Route{To: netip.PrefixFrom(addr(route.Dest.IP), ones).Masked()}
		if !to.To.IsValid() {
			continue
		}
		if via := addr(route.Router); usable(route.Router) {
			to.Via = via
		}
		lease.Routes = append(lease.Routes, to)
	}
	if len(lease.Routes) == 0 {
		if routers := slices.DeleteFunc(addrs(ack.Router()), func(a netip.Addr) bool { return !a.IsGlobalUnicast() }); len(routers) > 0 {
			lease.Routes = []Route{{To: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: routers[0]}}
		}
	}
	return lease, true
}

// maskBits is the length of the network's prefix; that of the address's class
// (RFC 950) where the server says none, or one with holes.
func maskBits(ack *dhcpv4.DHCPv4) int {
	if bits, of := ack.SubnetMask().Size(); of == 32 && bits > 0 {
		return bits
	}
	if bits, of := ack.YourIPAddr.DefaultMask().Size(); of == 32 {
		return bits
	}
	return 32
}

// hostName is a name as it may stand in resolv.conf and in a URL; empty for what
// is none. Some servers end it with a NUL.
func hostName(text string) string {
	text = strings.TrimRight(text, "\x00")
	for label := range strings.SplitSeq(strings.TrimSuffix(text, "."), ".") {
		if label == "" || !plain([]byte(label)) {
			if _, err := netip.ParseAddr(text); err == nil {
				return text
			}
			return ""
		}
	}
	return text
}

func hostNames(all []string) []string {
	var out []string
	for _, one := range all {
		if name := hostName(one); name != "" {
			out = append(out, name)
		}
	}
	return out
}

// fill takes from the lease before what a renewal did not say again; some
// servers answer a renewal with the times only.
func (l Lease) fill(before Lease) Lease {
	if len(l.Routes) == 0 {
		l.Routes = before.Routes
	}
	if len(l.DNS) == 0 {
		l.DNS = before.DNS
	}
	if len(l.Search) == 0 {
		l.Search = before.Search
	}
	if len(l.NTP) == 0 {
		l.NTP = before.NTP
	}
	l.Domain = cmp.Or(l.Domain, before.Domain)
	l.HostName = cmp.Or(l.HostName, before.HostName)
	l.MTU = cmp.Or(l.MTU, before.MTU)
	return l
}

// usable says that an address can be a machine's.
func usable(ip net.IP) bool {
	a := addr(ip)
	return a.IsGlobalUnicast() // false for none, for groups and for all
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip) // the zero Addr when the server sent none
	return a.Unmap()
}

func addrs(ips []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range ips {
		if a := addr(ip); a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}
