package netboot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
)

// Serve answers on the interface until ctx ends. The error is an *Error with code
// CodePort where a port cannot be had.
func (s *Server) Serve(ctx context.Context) error {
	if s.Mode == Off {
		return nil
	}
	ports := []int{serverPort, bootPort}
	failed := make(chan error, len(ports))
	var servers []*server4.Server
	closeAll := func() {
		for _, one := range servers {
			_ = one.Close() // a socket for datagrams: nothing is lost
		}
	}
	defer closeAll()
	for _, port := range ports {
		// The library lets sockets share a port; packets would then go to either.
		if owner := portOwner("udp", port); owner != "" {
			return fail(CodePort, "UDP port %d is taken by %s", port, owner)
		}
		conn, err := server4.NewIPv4UDPConn(s.Interface, &net.UDPAddr{Port: port})
		if err != nil {
			return &Error{CodePort, fmt.Sprintf("UDP port %d on %s", port, s.Interface), err}
		}
		one, err := server4.NewServer(s.Interface, nil, s.handler(port), server4.WithConn(conn))
		if err != nil {
			return errors.Join(&Error{CodePort, fmt.Sprintf("UDP port %d on %s", port, s.Interface), err}, conn.Close())
		}
		servers = append(servers, one)
	}
	if s.Ready != nil {
		s.Ready()
	}
	for _, one := range servers {
		go func() { failed <- one.Serve() }()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return &Error{CodePort, "the DHCP server on " + s.Interface + " has ended", err}
	}
}

// handler sends what Answer says to where it belongs (RFC 2131, 4.1).
func (s *Server) handler(port int) server4.Handler {
	return func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		answer := s.Answer(m, port)
		if answer == nil {
			return
		}
		to := &net.UDPAddr{IP: net.IPv4bcast, Port: clientPort}
		from, direct := peer.(*net.UDPAddr)
		switch {
		case m.GatewayIPAddr != nil && !m.GatewayIPAddr.IsUnspecified():
			to = &net.UDPAddr{IP: m.GatewayIPAddr, Port: serverPort}
		case port == bootPort && direct && !from.IP.Equal(net.IPv4bcast):
			to = from
		case m.ClientIPAddr != nil && !m.ClientIPAddr.IsUnspecified() && answer.MessageType() != dhcpv4.MessageTypeNak:
			to = &net.UDPAddr{IP: m.ClientIPAddr, Port: clientPort}
		}
		if _, err := conn.WriteTo(answer.ToBytes(), to); err != nil {
			s.Log.Warn("an answer could not be sent", "to", to, "error", err)
			return
		}
		s.Log.Debug("answered", "kind", answer.MessageType(), "mac", m.ClientHWAddr.String(), "to", to, "file", answer.BootFileNameOption())
	}
}

// probeClass is how the question of Rivals names itself.
const probeClass = "Firstlight-probe"

// probeTime is how long answers are waited for.
const probeTime = 3 * time.Second

// Rivals are the DHCP servers that offer an address on an interface, except one
// at own. It asks as any machine does that was switched on, and takes nothing up.
func Rivals(ctx context.Context, name string, own netip.Addr) ([]netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, &Error{CodeNetwork, "looking for DHCP servers", err}
	}
	client, err := nclient4.New(name, nclient4.WithTimeout(probeTime), nclient4.WithRetry(1))
	if err != nil {
		return nil, &Error{CodeNetwork, "looking for DHCP servers on " + name, err}
	}
	defer client.Close() // a packet socket: nothing is lost
	discover, err := dhcpv4.NewDiscovery(i.HardwareAddr, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(probeClass)))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var found []netip.Addr
	_, err = client.SendAndRead(ctx, nclient4.DefaultServers, discover, func(m *dhcpv4.DHCPv4) bool {
		server, ok := netip.AddrFromSlice(m.ServerIdentifier().To4())
		offers := m.MessageType() == dhcpv4.MessageTypeOffer && m.YourIPAddr != nil && !m.YourIPAddr.IsUnspecified()
		if ok && offers && server != own && !slices.Contains(found, server) {
			found = append(found, server)
		}
		return false // others may follow
	})
	if err != nil && !errors.Is(err, nclient4.ErrNoResponse) && !errors.Is(err, context.DeadlineExceeded) {
		return found, &Error{CodeNetwork, "looking for DHCP servers on " + name, err}
	}
	return found, nil
}

// Choose turns Auto into what fits, and refuses what would hurt: with a DHCP
// server that answers already, no second one hands out addresses. note is for
// people.
func Choose(wanted Mode, rivals []netip.Addr, name string) (mode Mode, note string, err error) {
	var names []string
	for _, r := range rivals {
		names = append(names, r.String())
	}
	found := strings.Join(names, ", ")
	switch {
	case wanted == Full && len(rivals) > 0:
		return Off, "", fail(CodeRival, "%s hands out addresses on %s already: two servers would hand out addresses that contradict each other. Use --dhcp proxy beside it, or stop it", found, name)
	case wanted == Auto && len(rivals) > 0:
		return Proxy, fmt.Sprintf("%s hands out addresses on %s; this server only says what to boot (proxy)", found, name), nil
	case wanted == Auto, wanted == Proxy && len(rivals) == 0:
		return Proxy, fmt.Sprintf("no DHCP server has answered on %s: machines get no address there. Start one, or use --dhcp full", name), nil
	}
	return wanted, "", nil
}
