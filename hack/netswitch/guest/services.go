package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/server6"
	"github.com/pin/tftp/v3"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"
)

// dns answers for the station's names, and that there are no others: on a
// socket for each address, so that an answer comes from where it was asked.
func (s *station) dns(*fabric) (func() error, error) {
	var group errgroup.Group
	for _, p := range s.Addresses {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: p.Addr().AsSlice(), Port: 53})
		if err != nil {
			return nil, err
		}
		group.Go(func() error { return s.answerOn(conn) })
	}
	return group.Wait, nil
}

// answerOn answers until the socket fails.
func (s *station) answerOn(conn *net.UDPConn) error {
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFromUDP(buf)
		if err != nil {
			return err
		}
		answer, err := s.answer(buf[:n])
		if err != nil {
			continue // not a question
		}
		if _, err := conn.WriteToUDP(answer, from); err != nil {
			fmt.Printf("netswitch: %s: dns: %v\n", s.Name, err)
		}
	}
}

func (s *station) answer(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || len(m.Questions) != 1 || m.Response {
		return nil, errors.Join(err, errors.New("not a question"))
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	q := m.Questions[0]
	address, known := s.Names[string(bytes.TrimSuffix([]byte(q.Name.String()), []byte(".")))]
	if !known {
		m.RCode = dnsmessage.RCodeNameError
		return m.Pack()
	}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60}
	switch {
	case q.Type == dnsmessage.TypeA && address.Is4():
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AResource{A: address.As4()}}}
	case q.Type == dnsmessage.TypeAAAA && address.Is6():
		m.Answers = []dnsmessage.Resource{{Header: header, Body: &dnsmessage.AAAAResource{AAAA: address.As16()}}}
	}
	return m.Pack()
}

// tftp serves the station's files. Single port mode is slow and enough for
// them; the sockets of the other would open outside of the namespace.
func (s *station) tftp(*fabric) (func() error, error) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{Port: 69})
	if err != nil {
		return nil, err
	}
	server := tftp.NewServer(func(name string, to io.ReaderFrom) error {
		data, there := s.Files[string(bytes.TrimPrefix([]byte(name), []byte("/")))]
		if !there {
			return errors.New("file not found")
		}
		_, err := to.ReadFrom(bytes.NewReader(data))
		return err
	}, nil)
	server.EnableSinglePort()
	server.SetTimeout(time.Second)
	server.SetRetries(10)
	return func() error { return server.Serve(conn) }, nil
}

// dhcp4 offers everyone the one lease (RFC 2131). Answers are broadcast:
// nobody has the address yet.
func (s *station) dhcp4(f *fabric) (func() error, error) {
	handle := func(conn net.PacketConn, _ net.Addr, request *dhcpv4.DHCPv4) {
		if request.OpCode != dhcpv4.OpcodeBootRequest {
			return
		}
		kind := dhcpv4.MessageTypeOffer
		switch request.MessageType() {
		case dhcpv4.MessageTypeDiscover:
		case dhcpv4.MessageTypeRequest:
			kind = dhcpv4.MessageTypeAck
			if id := request.ServerIdentifier(); id != nil && !id.Equal(s.own(true).AsSlice()) {
				return // another server's
			}
		default:
			return
		}
		time.Sleep(s.DHCP.Delay)
		reply, err := dhcpv4.NewReplyFromRequest(request, s.options(kind)...)
		if err != nil {
			fmt.Printf("netswitch: %s: dhcp: %v\n", s.Name, err)
			return
		}
		if kind == dhcpv4.MessageTypeAck {
			f.count(f.leases, s.Name)
		} else {
			f.count(f.offers, s.Name)
		}
		if _, err := conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}); err != nil {
			fmt.Printf("netswitch: %s: dhcp: %v\n", s.Name, err)
		}
	}
	server, err := server4.NewServer(nic, &net.UDPAddr{IP: net.IPv4zero, Port: dhcpv4.ServerPort}, handle)
	if err != nil {
		return nil, err
	}
	return server.Serve, nil
}

func (s *station) options(kind dhcpv4.MessageType) []dhcpv4.Modifier {
	d := s.DHCP
	all := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithYourIP(d.Address.Addr().AsSlice()),
		dhcpv4.WithServerIP(s.own(true).AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.own(true).AsSlice())),
		dhcpv4.WithLeaseTime(3600),
		dhcpv4.WithNetmask(net.CIDRMask(d.Address.Bits(), 32)),
	}
	if d.Router.IsValid() {
		all = append(all, dhcpv4.WithRouter(d.Router.AsSlice()))
	}
	if d.NextServer.IsValid() {
		all = append(all, dhcpv4.WithServerIP(d.NextServer.AsSlice()),
			dhcpv4.WithOption(dhcpv4.OptTFTPServerName(d.NextServer.String())))
	}
	if servers := slices.Collect(only(d.DNS, true)); len(servers) > 0 {
		all = append(all, dhcpv4.WithDNS(servers...))
	}
	if d.Domain != "" {
		all = append(all, dhcpv4.WithOption(dhcpv4.OptDomainName(d.Domain)))
	}
	if d.MTU != 0 {
		all = append(all, dhcpv4.WithOption(dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{byte(d.MTU >> 8), byte(d.MTU)})))
	}
	return all
}

// only are the addresses of one family.
func only(addresses []netip.Addr, v4 bool) func(yield func(net.IP) bool) {
	return func(yield func(net.IP) bool) {
		for _, a := range addresses {
			if a.Is4() == v4 && !yield(a.AsSlice()) {
				return
			}
		}
	}
}

// own is the station's first address of a family.
func (s *station) own(v4 bool) netip.Addr {
	for _, p := range s.Addresses {
		if p.Addr().Is4() == v4 {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// dhcp6 gives everyone the one address, and name servers also to those who
// only ask for them (RFC 8415).
func (s *station) dhcp6(f *fabric) (func() error, error) {
	handle := func(conn net.PacketConn, peer net.Addr, m dhcpv6.DHCPv6) {
		request, err := m.GetInnerMessage()
		if err != nil {
			return
		}
		if err := s.answer6(f, conn, peer, request); err != nil {
			fmt.Printf("netswitch: %s: dhcp6: %v\n", s.Name, err)
		}
	}
	server, err := server6.NewServer(nic, &net.UDPAddr{IP: net.IPv6unspecified, Port: dhcpv6.DefaultServerPort}, handle)
	if err != nil {
		return nil, err
	}
	return server.Serve, nil
}

func (s *station) answer6(f *fabric, conn net.PacketConn, peer net.Addr, request *dhcpv6.Message) error {
	modifiers := []dhcpv6.Modifier{
		dhcpv6.WithServerID(&dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: s.mac}),
		dhcpv6.WithDNS(slices.Collect(only(s.DHCP.DNS, false))...),
	}
	if s.DHCP.Domain != "" {
		modifiers = append(modifiers, dhcpv6.WithDomainSearchList(s.DHCP.Domain))
	}
	if wanted := request.Options.OneIANA(); wanted != nil {
		modifiers = append(modifiers, dhcpv6.WithOption(&dhcpv6.OptIANA{
			IaId: wanted.IaId, T1: 30 * time.Minute, T2: 48 * time.Minute,
			Options: dhcpv6.IdentityOptions{Options: []dhcpv6.Option{&dhcpv6.OptIAAddress{
				IPv6Addr: s.DHCP.Address6.AsSlice(), PreferredLifetime: time.Hour, ValidLifetime: time.Hour,
			}}},
		}))
	}
	var reply *dhcpv6.Message
	var err error
	if request.MessageType == dhcpv6.MessageTypeSolicit {
		f.count(f.offers, s.Name)
		reply, err = dhcpv6.NewAdvertiseFromSolicit(request, modifiers...)
	} else {
		f.count(f.leases, s.Name)
		reply, err = dhcpv6.NewReplyFromMessage(request, modifiers...)
	}
	if err != nil {
		return err
	}
	_, err = conn.WriteTo(reply.ToBytes(), peer)
	return err
}

// router advertises the station as one (RFC 4861): every three seconds, and
// when it is asked.
func (s *station) router(*fabric) (func() error, error) {
	conn, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return nil, err
	}
	p := ipv6.NewPacketConn(conn)
	iface := &net.Interface{Index: s.index, Name: nic}
	all := &net.IPAddr{IP: net.ParseIP("ff02::1"), Zone: nic}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	if err := errors.Join(p.SetICMPFilter(&filter), p.SetMulticastHopLimit(255), p.SetHopLimit(255),
		p.SetMulticastInterface(iface), p.JoinGroup(iface, &net.IPAddr{IP: net.ParseIP("ff02::2")})); err != nil {
		return nil, err
	}
	advertise := func() {
		control := &ipv6.ControlMessage{HopLimit: 255, IfIndex: s.index}
		if _, err := p.WriteTo(s.advertisement(), control, all); err != nil {
			fmt.Printf("netswitch: %s: router: %v\n", s.Name, err)
		}
	}
	return func() error {
		go func() {
			for {
				advertise()
				time.Sleep(3 * time.Second)
			}
		}()
		buf := make([]byte, 1500)
		for {
			if _, _, _, err := p.ReadFrom(buf); err != nil {
				return err
			}
			advertise()
		}
	}, nil
}

// advertisement is RFC 4861, 4.2: the kernel adds the checksum.
func (s *station) advertisement() []byte {
	var flags byte
	if s.RA.Managed {
		flags |= 0x80
	}
	if s.RA.Other {
		flags |= 0x40
	}
	const lifetime = 1800 // seconds
	b := []byte{134, 0, 0, 0, 64, flags, lifetime >> 8, lifetime & 0xff, 0, 0, 0, 0, 0, 0, 0, 0}
	b = append(append(b, 1, 1), s.mac...) // source link-layer address
	long := []byte{0, 0, 0x0e, 0x10}      // an hour
	for _, prefix := range s.Addresses {
		if prefix.Addr().Is4() || prefix.Bits() > 64 {
			continue
		}
		onLink := byte(0x80)
		if !s.RA.Managed {
			onLink |= 0x40 // autonomous: addresses are made from it (RFC 4862)
		}
		b = append(b, 3, 4, byte(prefix.Bits()), onLink)
		b = append(slices.Concat(b, long, long), 0, 0, 0, 0)
		b = append(b, prefix.Masked().Addr().AsSlice()...)
	}
	if n := len(s.RA.DNS); n > 0 {
		b = append(b, 25, byte(1+2*n), 0, 0)
		b = append(b, long...)
		for _, a := range s.RA.DNS {
			b = append(b, a.AsSlice()...)
		}
	}
	return b
}

// names of all stations, sorted, for messages.
func (f *fabric) names() []string { return slices.Sorted(maps.Keys(f.stations)) }
