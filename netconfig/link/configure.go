package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
)

// Configure gives the lease's interface its address, routes and MTU. It may be
// called again with a renewed or another lease: what is no longer in it goes
// away. The error is a *netconfig.Error with code NET-005.
func Configure(lease dhcp.Lease) error {
	if err := configure(lease); err != nil {
		return netconfig.NewError("NET-005", "configuring %s with %s: %w", lease.Interface, lease.Address, err)
	}
	return nil
}

func configure(lease dhcp.Lease) error {
	l, err := netlink.LinkByName(lease.Interface)
	if err != nil {
		return err
	}
	// RFC 791 demands 68 bytes of a link, RFC 2132 of the option; below 576
	// some servers only mean that they do not know.
	if lease.MTU >= 576 && lease.MTU != l.Attrs().MTU {
		if err := netlink.LinkSetMTU(l, lease.MTU); err != nil {
			return fmt.Errorf("setting the MTU to %d: %w", lease.MTU, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("raising the link: %w", err)
	}
	if lease.V6() {
		return configure6(l, lease)
	}
	// The new address first: were the old one removed before, its routes
	// would go and connections break though nothing changed.
	address := &netlink.Addr{IPNet: ipNet(lease.Address)}
	if err := netlink.AddrReplace(l, address); err != nil {
		return fmt.Errorf("adding the address: %w", err)
	}
	old, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing addresses: %w", err)
	}
	for _, a := range old {
		if a.IPNet.String() != address.IPNet.String() {
			if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
				return fmt.Errorf("removing the old address %s: %w", a.IPNet, err)
			}
		}
	}
	return routes(l, lease)
}

// configure6 adds the address of a DHCPv6 server, or sees that its time is
// longer; it ends by itself when nobody renews it.
func configure6(l netlink.Link, lease dhcp.Lease) error {
	if lease.Auto {
		return nil
	}
	address := &netlink.Addr{IPNet: ipNet(lease.Address)}
	if _, ends := lease.Expires(); ends {
		address.ValidLft, address.PreferedLft = int(lease.Duration), int(lease.Duration)
	}
	if err := netlink.AddrReplace(l, address); err != nil {
		return fmt.Errorf("adding the address: %w", err)
	}
	if err := usable6(l, lease.Address.Addr()); err != nil {
		return err
	}
	if lease.Server.IsValid() {
		return nil // a router's routes are the kernel's own affair
	}
	for _, r := range lease.Routes { // those of a fixed address
		route := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.To), Protocol: unix.RTPROT_STATIC, Gw: r.Via.AsSlice()}
		if r.Via.IsValid() && !lease.Address.Contains(r.Via) {
			route.SetFlag(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("adding the route to %s: %w", r.To, err)
		}
	}
	return nil
}

// usable6 waits until the kernel has found that nobody else has the address
// (RFC 4862, 5.4).
func usable6(l netlink.Link, wanted netip.Addr) error {
	const limit = 5 * time.Second
	for end := time.Now().Add(limit); ; time.Sleep(poll) {
		have, err := netlink.AddrList(l, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("listing addresses: %w", err)
		}
		for _, a := range have {
			if got, _ := netip.AddrFromSlice(a.IP); got != wanted {
				continue
			}
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("another machine has the address %s", wanted)
			}
			if a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return nil
			}
		}
		if time.Now().After(end) {
			return fmt.Errorf("the kernel does not let the address %s be used", wanted)
		}
	}
}

// routes sets those of the lease, routes to the link itself first, because a
// gateway may be reached by one of them (RFC 3442).
func routes(l netlink.Link, lease dhcp.Lease) error {
	wanted := map[netip.Prefix]bool{}
	for _, direct := range []bool{true, false} {
		for _, r := range lease.Routes {
			if r.Via.IsValid() == direct {
				continue
			}
			route := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.To), Protocol: unix.RTPROT_DHCP}
			if r.Via.IsValid() {
				route.Gw = r.Via.AsSlice()
				if !lease.Address.Contains(r.Via) {
					route.SetFlag(netlink.FLAG_ONLINK) // clouds put the gateway outside of a /32
				}
			} else {
				route.Scope = netlink.SCOPE_LINK
			}
			wanted[r.To] = true
			if err := netlink.RouteReplace(&route); err != nil {
				return fmt.Errorf("adding the route to %s: %w", r.To, err)
			}
		}
	}
	have, err := netlink.RouteListFiltered(netlink.FAMILY_V4,
		&netlink.Route{LinkIndex: l.Attrs().Index, Protocol: unix.RTPROT_DHCP}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, route := range have {
		if !wanted[prefix(route.Dst)] {
			if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("removing the route to %s: %w", prefix(route.Dst), err)
			}
		}
	}
	return nil
}

// Flush takes all IPv4 addresses, and those that DHCPv6 servers gave, and with
// them their routes, from the interface, and gives it the MTU that it had before
// a lease, unless that is 0. It stays up.
func Flush(name string, mtu int) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return netconfig.NewError("NET-005", "flushing %s: %w", name, err)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return netconfig.NewError("NET-005", "flushing %s: %w", name, err)
	}
	for _, a := range addrs {
		if bits, of := a.Mask.Size(); of == 128 && bits != of {
			continue // the link's own, and what the kernel makes from advertisements
		}
		if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return netconfig.NewError("NET-005", "flushing %s: removing %s: %w", name, a.IPNet, err)
		}
	}
	if mtu != 0 && mtu != l.Attrs().MTU {
		if err := netlink.LinkSetMTU(l, mtu); err != nil {
			return netconfig.NewError("NET-005", "flushing %s: setting the MTU to %d: %w", name, mtu, err)
		}
	}
	return nil
}

// ResolvConf is /etc/resolv.conf for the installer itself, see resolv.conf(5);
// nil when the lease names no server.
func ResolvConf(lease dhcp.Lease) []byte {
	if len(lease.DNS) == 0 {
		return nil
	}
	var b strings.Builder
	search := lease.Search
	if len(search) == 0 && lease.Domain != "" {
		search = []string{lease.Domain}
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	for _, server := range lease.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	return []byte(b.String())
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix is the inverse; nil stands for the default route.
func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP) // from the kernel, always 4 bytes
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
