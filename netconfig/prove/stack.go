package prove

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Everything here opens its sockets in the network namespace of the thread that
// calls it, with addresses, never names.

// askNameServer asks for the root of the name space, which every server has an
// opinion of: any answer shows that it is there (RFC 1035).
func askNameServer(ctx context.Context, server netip.AddrPort, wait time.Duration) error {
	id := uint16(rand.Uint32())
	question := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeNS, Class: dnsmessage.ClassINET}},
	}
	packet, err := question.Pack()
	if err != nil {
		return err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", server.String())
	if err != nil {
		return err
	}
	defer conn.Close() // nothing is lost when closing fails
	last := errSilent
	buf := make([]byte, 4096)
	for end := time.Now().Add(wait); time.Now().Before(end) && ctx.Err() == nil; {
		if _, err := conn.Write(packet); err != nil {
			last = err
			pause(ctx, time.Second)
			continue
		}
		_ = conn.SetReadDeadline(earlier(end, time.Now().Add(2*time.Second))) // an open socket takes any
		n, err := conn.Read(buf)
		var p dnsmessage.Parser
		switch {
		case errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH):
			last = err
			pause(ctx, time.Second)
		case err != nil:
		default:
			if head, err := p.Start(buf[:n]); err == nil && head.Response && head.ID == id {
				return nil
			}
		}
	}
	return errors.Join(last, ctx.Err())
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// ping sends echo requests in packets of size bytes that must not be
// fragmented, until one is answered.
func ping(ctx context.Context, to netip.Addr, size int, wait time.Duration) error {
	network, kind, protocol, head := "ip4:icmp", icmp.Type(ipv4.ICMPTypeEcho), 1, 20
	if to.Is6() {
		network, kind, protocol, head = "ip6:ipv6-icmp", ipv6.ICMPTypeEchoRequest, 58, 40
	}
	conn, err := net.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer conn.Close() // nothing is lost when closing fails
	if err := wholeOnly(conn.(*net.IPConn), to.Is6()); err != nil {
		return err
	}
	const icmpHead = 8
	echo := &icmp.Echo{ID: int(rand.Uint32() & 0xffff), Data: make([]byte, max(0, size-head-icmpHead))}
	last := errSilent
	buf := make([]byte, 65536)
	for end := time.Now().Add(wait); time.Now().Before(end) && ctx.Err() == nil; {
		echo.Seq++
		packet, err := (&icmp.Message{Type: kind, Body: echo}).Marshal(nil) // of IPv6 the kernel adds the checksum
		if err != nil {
			return err
		}
		if _, err := conn.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}); err != nil {
			if errors.Is(err, unix.EMSGSIZE) {
				return err
			}
			last = err
		}
		until := earlier(end, time.Now().Add(time.Second))
		_ = conn.SetReadDeadline(until) // an open socket takes any
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				break
			}
			m, err := icmp.ParseMessage(protocol, buf[:n])
			if err != nil || m.Type != ipv4.ICMPTypeEchoReply && m.Type != ipv6.ICMPTypeEchoReply {
				continue
			}
			if reply, ok := m.Body.(*icmp.Echo); ok && reply.ID == echo.ID && len(reply.Data) == len(echo.Data) {
				return nil
			}
		}
	}
	return errors.Join(last, ctx.Err())
}

// wholeOnly forbids that packets are fragmented, here or on the way, and lets
// the kernel forget what it has learnt of the way (ip(7), IP_PMTUDISC_PROBE).
func wholeOnly(conn *net.IPConn, v6 bool) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var setting error
	err = raw.Control(func(fd uintptr) {
		if v6 {
			setting = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		} else {
			setting = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		}
	})
	return errors.Join(err, setting)
}

// solicit lets the kernel find the hardware address of a neighbour of IPv6
// (RFC 4861), by sending it something.
func solicit(ctx context.Context, device string, to netip.Addr, wait time.Duration) (net.HardwareAddr, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return nil, err
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: hostNet(to), Scope: netlink.SCOPE_LINK}
	if !to.IsLinkLocalUnicast() {
		if err := netlink.RouteReplace(route); err != nil {
			return nil, fmt.Errorf("adding a route to %s: %w", to, err)
		}
		defer netlink.RouteDel(route) // it goes with the namespace, or stays for a route that is wanted
	}
	address := to
	if to.IsLinkLocalUnicast() {
		address = to.WithZone(device)
	}
	last := errSilent
	for end := time.Now().Add(wait); time.Now().Before(end) && ctx.Err() == nil; {
		const discard = 9 // RFC 863: nobody minds
		conn, err := net.Dial("udp6", netip.AddrPortFrom(address, discard).String())
		if err == nil {
			_, err = conn.Write([]byte{0})
			_ = conn.Close() // a datagram is sent or not
		}
		if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			last = err // such as no address of our own yet
		}
		for range 10 {
			pause(ctx, 100*time.Millisecond)
			if hardware := neighbour(link, to); hardware != nil {
				return hardware, nil
			}
		}
	}
	return nil, fmt.Errorf("%w within %v", errors.Join(last, ctx.Err()), wait)
}

func neighbour(link netlink.Link, of netip.Addr) net.HardwareAddr {
	list, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V6)
	if err != nil {
		return nil // asked again
	}
	const known = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
	for _, n := range list {
		if a, ok := netip.AddrFromSlice(n.IP); ok && a == of && n.State&known != 0 && binary.Size(n.HardwareAddr) == 6 {
			return n.HardwareAddr
		}
	}
	return nil
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
