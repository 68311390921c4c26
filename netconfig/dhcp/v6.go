package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/net/ipv6"

	"github.com/firstlight/firstlight/netconfig"
)

// discover6 asks for routers and, where one says so, for DHCPv6 servers, and
// notes every offer until the window ends.
func (s *Search) discover6(ctx context.Context, name string, window time.Duration) error {
	_, mac, err := hardware(name)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	heard := false
	err = solicitRouters(limited, name, func(a advertisement) {
		heard = true
		if a.lifetime == 0 && !a.managed {
			return // neither a way out nor an address
		}
		if !a.managed {
			s.add(Offer{Interface: name, MAC: mac, V6: true, Server: a.router, router: a})
			return
		}
		for _, message := range solicit6(limited, name, mac) {
			offered := message.Options.OneIANA().Options.OneAddress()
			s.add(Offer{Interface: name, MAC: mac, V6: true, Server: a.router, Address: addr(offered.IPv6Addr), router: a, v6: message})
		}
	})
	switch {
	case heard:
		return nil
	case err == nil || errors.Is(err, context.DeadlineExceeded):
		return errNoAnswer
	}
	return err
}

// solicitRouters sends a router solicitation (RFC 4861, 6.3.7) and calls heard
// with each advertisement until ctx ends.
func solicitRouters(ctx context.Context, name string, heard func(advertisement)) error {
	hw, _, err := hardware(name)
	if err != nil {
		return err
	}
	conn, err := net.ListenPacket("ip6:ipv6-icmp", "::")
	if err != nil {
		return fmt.Errorf("opening an ICMPv6 socket: %w", err)
	}
	defer conn.Close() // nothing is lost when closing fails
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	p := ipv6.NewPacketConn(conn)
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterAdvertisement)
	const hops = 255 // whoever is not on this link cannot send with it
	if err := errors.Join(p.SetICMPFilter(&filter), p.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true), p.SetMulticastHopLimit(hops)); err != nil {
		return fmt.Errorf("preparing an ICMPv6 socket: %w", err)
	}
	solicitation := []byte{133, 0, 0, 0, 0, 0, 0, 0} // the kernel adds the checksum
	routers := &net.IPAddr{IP: net.ParseIP("ff02::2"), Zone: name}
	if _, err := p.WriteTo(solicitation, &ipv6.ControlMessage{IfIndex: hw.Index}, routers); err != nil {
		return fmt.Errorf("soliciting routers: %w", err) // no link-local address yet
	}
	buf := make([]byte, 9216)
	for {
		n, control, from, err := p.ReadFrom(buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("waiting for a router: %w", err)
		}
		if control == nil || control.IfIndex != hw.Index || control.HopLimit != hops {
			continue
		}
		source, ok := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		if !ok || !source.IsLinkLocalUnicast() {
			continue
		}
		if a, err := parseAdvertisement(buf[:n]); err == nil {
			a.router = source
			heard(a)
		}
	}
}

func open6(name string, wait time.Duration) (*nclient6.Client, error) {
	client, err := nclient6.New(name, nclient6.WithTimeout(wait), nclient6.WithRetry(2))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	return client, nil
}

// modifiers6 make every message one of the same client: the library's identity
// changes with the time.
func modifiers6(mac netconfig.MAC) []dhcpv6.Modifier {
	return []dhcpv6.Modifier{
		dhcpv6.WithClientID(&dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: mac[:]}),
		dhcpv6.WithRequestedOptions(dhcpv6.OptionBootfileURL, dhcpv6.OptionNTPServer),
	}
}

// solicit6 is what DHCPv6 servers advertise within two seconds.
func solicit6(ctx context.Context, name string, mac netconfig.MAC) []*dhcpv6.Message {
	const window = 2 * time.Second
	client, err := open6(name, window)
	if err != nil {
		return nil // the address is not ready: the next round asks again
	}
	defer client.Close() // a datagram socket: nothing is lost
	solicit, err := dhcpv6.NewSolicit(mac[:], modifiers6(mac)...)
	if err != nil {
		return nil // only without randomness
	}
	ctx, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	var all []*dhcpv6.Message
	// Its error says that the time is over.
	_, _ = client.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, solicit, func(m *dhcpv6.Message) bool {
		if m.MessageType == dhcpv6.MessageTypeAdvertise && given(m) == nil && m.Options.ServerID() != nil {
			all = append(all, m)
		}
		return len(all) > 0 && m.Options.Preference() == 255 // RFC 8415, 18.2.1: no need to wait for others
	})
	return all
}

// given is nil where a message gives a usable address.
func given(m *dhcpv6.Message) error {
	if status := m.Options.Status(); status != nil && status.StatusCode != iana.StatusSuccess {
		return fmt.Errorf("the server says %s: %s", status.StatusCode, status.StatusMessage)
	}
	one := m.Options.OneIANA()
	if one == nil {
		return errors.New("the server gives no address")
	}
	if status := one.Options.Status(); status != nil && status.StatusCode != iana.StatusSuccess {
		return fmt.Errorf("the server says %s: %s", status.StatusCode, status.StatusMessage)
	}
	if a := one.Options.OneAddress(); a == nil || !usable(a.IPv6Addr) || a.ValidLifetime == 0 {
		return errors.New("the server gives no address")
	}
	return nil
}

// take6 accepts what a DHCPv6 server has advertised, or waits for the address
// that the kernel makes from the router's prefix.
func take6(ctx context.Context, o Offer) (Lease, error) {
	lease := Lease{
		Interface: o.Interface, MAC: o.MAC, Server: o.Server, DNS: o.router.dns, Search: o.router.search, MTU: o.router.mtu,
		Obtained: time.Now(), Duration: Infinite,
		Routes: []Route{{To: netip.PrefixFrom(netip.IPv6Unspecified(), 0), Via: o.router.router}},
	}
	const wait = 2 * time.Second
	if o.v6 != nil {
		client, err := open6(o.Interface, wait)
		if err != nil {
			return Lease{}, err
		}
		defer client.Close() // as in solicit6
		reply, err := client.Request(ctx, o.v6, modifiers6(o.MAC)...)
		if err != nil {
			return Lease{}, fmt.Errorf("requesting the address: %w", err)
		}
		if err := given(reply); err != nil {
			return Lease{}, err
		}
		lease.read6(reply)
		return lease, nil
	}
	lease.Auto = true
	address, err := ownAddress(ctx, o.Interface, o.router.prefixes)
	if err != nil {
		return Lease{}, err
	}
	lease.Address = address
	if o.router.other {
		if err := lease.ask6(ctx, wait); err != nil {
			return Lease{}, err
		}
	}
	return lease, nil
}

// ask6 asks for the options that come without an address (RFC 8415, 18.2.6).
func (l *Lease) ask6(ctx context.Context, wait time.Duration) error {
	client, err := open6(l.Interface, wait)
	if err != nil {
		return err
	}
	defer client.Close() // as in solicit6
	request, err := dhcpv6.NewMessage(append(modifiers6(l.MAC),
		dhcpv6.WithRequestedOptions(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList))...)
	if err != nil {
		return err
	}
	request.MessageType = dhcpv6.MessageTypeInformationRequest
	request.AddOption(dhcpv6.OptElapsedTime(0))
	reply, err := client.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, request, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	if err != nil {
		return fmt.Errorf("asking for DHCPv6 information: %w", err)
	}
	l.options6(reply)
	return nil
}

// read6 takes the address and the options of a reply.
func (l *Lease) read6(reply *dhcpv6.Message) {
	one := reply.Options.OneIANA()
	given := one.Options.OneAddress()
	l.from6 = reply
	l.Obtained = time.Now()
	// The prefix of the link is the router's to tell (RFC 8415, 18.2.10.1).
	l.Address = netip.PrefixFrom(addr(given.IPv6Addr), 128)
	l.Duration = inSeconds(given.ValidLifetime)
	preferred := inSeconds(given.PreferredLifetime)
	l.Renew, l.Rebind = inSeconds(one.T1), inSeconds(one.T2)
	if l.Renew == 0 { // RFC 8415, 14.2: ours to choose
		l.Renew = preferred / 2
	}
	if l.Rebind == 0 {
		l.Rebind = preferred / 5 * 4
	}
	l.options6(reply)
}

func (l *Lease) options6(reply *dhcpv6.Message) {
	if servers := addrs(reply.Options.DNS()); len(servers) > 0 {
		l.DNS = servers
	}
	if labels := reply.Options.DomainSearchList(); labels != nil && len(labels.Labels) > 0 {
		l.Search = hostNames(labels.Labels)
	}
	l.NTP = addrs(append(reply.Options.NTPServers(), reply.Options.SNTP()...))
	if l.BootFile = reply.Options.BootFileURL(); l.BootFile != "" {
		if u, err := url.Parse(l.BootFile); err == nil && u.Scheme == "tftp" {
			l.TFTPName = hostName(u.Hostname())
		}
	}
	l.Summary = reply.Summary()
}

func inSeconds(d time.Duration) Seconds {
	if d/time.Second >= time.Duration(Infinite) {
		return Infinite
	}
	return Seconds(max(d, 0) / time.Second)
}

// ownAddress waits until the kernel has made an address with one of the
// prefixes (RFC 4862) and found that nobody else has it.
func ownAddress(ctx context.Context, name string, prefixes []netip.Prefix) (netip.Prefix, error) {
	if len(prefixes) == 0 {
		return netip.Prefix{}, errors.New("the router neither has a prefix for addresses nor a DHCPv6 server")
	}
	const limit, poll = 10 * time.Second, 100 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		hw, _, err := hardware(name)
		if err != nil {
			return netip.Prefix{}, err
		}
		have, err := hw.Addrs()
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("listing the addresses of %s: %w", name, err)
		}
		for _, one := range have {
			network, ok := one.(*net.IPNet)
			if !ok {
				continue
			}
			for _, p := range prefixes {
				if a := addr(network.IP); a.Is6() && p.Contains(a) && bindable(a) {
					return netip.PrefixFrom(a, p.Bits()), nil
				}
			}
		}
		if !sleep(ctx, poll) {
			return netip.Prefix{}, fmt.Errorf("the kernel has made no address with the prefix %s", prefixes[0])
		}
	}
}

// bindable is false while the kernel still looks for duplicates of an address.
func bindable(a netip.Addr) bool {
	conn, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return false
	}
	_ = conn.Close() // it was never used
	return true
}

// message6 is one about the address of a lease.
func message6(lease Lease, kind dhcpv6.MessageType, toServer bool) (*dhcpv6.Message, error) {
	m, err := dhcpv6.NewMessage(modifiers6(lease.MAC)...)
	if err != nil {
		return nil, err
	}
	m.MessageType = kind
	m.AddOption(dhcpv6.OptElapsedTime(0))
	m.AddOption(lease.from6.Options.OneIANA())
	if toServer {
		m.AddOption(dhcpv6.OptServerID(lease.from6.Options.ServerID()))
	}
	return m, nil
}

// renew6 asks the server of the lease, or once the time to rebind has come any
// server, for more of it (RFC 8415, 18.2.4 and 18.2.5).
func renew6(ctx context.Context, lease Lease, o Options) (Lease, error) {
	client, err := open6(lease.Interface, o.FirstWait)
	if err != nil {
		return Lease{}, err
	}
	defer client.Close() // as in solicit6
	kind, toServer := dhcpv6.MessageTypeRenew, true
	if time.Now().After(lease.Obtained.Add(lease.Rebind.Duration())) {
		kind, toServer = dhcpv6.MessageTypeRebind, false
	}
	request, err := message6(lease, kind, toServer)
	if err != nil {
		return Lease{}, err
	}
	reply, err := client.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, request, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	if err != nil {
		return Lease{}, err
	}
	if err := given(reply); err != nil {
		return Lease{}, fmt.Errorf("%w: %w", errRefused, err)
	}
	next := lease
	next.read6(reply)
	return next, nil
}

func release6(lease Lease) {
	const wait = time.Second
	client, err := open6(lease.Interface, wait)
	if err != nil {
		return
	}
	defer client.Close() // as in solicit6
	request, err := message6(lease, dhcpv6.MessageTypeRelease, true)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	// See Release.
	_, _ = client.SendAndRead(ctx, nclient6.AllDHCPRelayAgentsAndServers, request, nil)
}
