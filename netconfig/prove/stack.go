package prove

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

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

// solicit asks every second for the hardware address of a neighbour of IPv6
// (RFC 4861, 4.3), from the device's own address of the link. The kernel is not
// asked, for it would want a route, and where the device is the installer's own
// a route could lead its connection astray.
func solicit(ctx context.Context, device string, to netip.Addr, wait time.Duration) (net.HardwareAddr, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	defer conn.Close() // nothing is lost when closing fails
	p := ipv6.NewPacketConn(conn)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeNeighborAdvertisement)
	if err := errors.Join(p.SetICMPFilter(&filter), p.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true), p.SetMulticastHopLimit(neighbourHops)); err != nil {
		return nil, err
	}
	question, group := solicitation(to, link.HardwareAddr)
	last := errSilent
	buf := make([]byte, 1500)
	for end := time.Now().Add(wait); time.Now().Before(end) && ctx.Err() == nil; {
		next := earlier(end, time.Now().Add(time.Second))
		if _, err := p.WriteTo(question, &ipv6.ControlMessage{IfIndex: link.Index}, &net.IPAddr{IP: group.AsSlice(), Zone: device}); err != nil {
			last = err // such as no address of our own yet
			pause(ctx, 100*time.Millisecond)
			continue
		}
		_ = p.SetReadDeadline(next) // an open socket takes any
		for {
			n, control, _, err := p.ReadFrom(buf)
			if err != nil {
				break
			}
			if control == nil || control.IfIndex != link.Index || control.HopLimit != neighbourHops {
				continue
			}
			if hardware := advertised(buf[:n], to); hardware != nil {
				return hardware, nil
			}
		}
	}
	return nil, fmt.Errorf("%w within %v", errors.Join(last, ctx.Err()), wait)
}

// neighbourHops is the hop limit of what neighbours say to each other: nobody
// further away can send with it (RFC 4861, 3.1).
const neighbourHops = 255

// solicitation asks for a neighbour's hardware address; it goes to the group of
// all that have addresses ending as that one (RFC 4291, 2.7.1). The kernel adds
// the checksum.
func solicitation(of netip.Addr, own net.HardwareAddr) (message []byte, group netip.Addr) {
	target := of.As16()
	message = append([]byte{135, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	message = append(append(message, 1, 1), own...) // source link-layer address
	to := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(to[13:], target[13:])
	return message, netip.AddrFrom16(to)
}

// advertised is the hardware address that a neighbour advertisement (RFC 4861,
// 4.4) gives for an address; nil where it is not about that one, or malformed.
func advertised(m []byte, of netip.Addr) net.HardwareAddr {
	const head, ethernet = 24, 8
	if len(m) < head || m[0] != 136 || m[1] != 0 || netip.AddrFrom16([16]byte(m[8:head])) != of {
		return nil
	}
	for options := m[head:]; len(options) >= ethernet; {
		size := int(options[1]) * 8
		if size == 0 || size > len(options) {
			return nil
		}
		if options[0] == 2 && size == ethernet { // target link-layer address
			return bytes.Clone(options[2:ethernet])
		}
		options = options[size:]
	}
	return nil
}
