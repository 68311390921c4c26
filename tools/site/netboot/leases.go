package netboot

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/site"
)

// lease is an address that was given or offered.
type lease struct {
	Address netip.Addr    `json:"address"`
	MAC     netconfig.MAC `json:"mac"`
	Until   time.Time     `json:"until"`
	// Bad says that somebody else uses the address (DHCPDECLINE).
	Bad bool `json:"bad,omitempty"`
}

// leases are the addresses of the pools. Reservations are those that machines of
// the site shall have by their configuration.
type leases struct {
	site    *site.Site
	subnets []site.Subnet
	own     netip.Addr // this server's, which nobody else is given
	now     func() time.Time
	mu      sync.Mutex
	given   map[netip.Addr]lease
}

func openLeases(s *site.Site, subnets []site.Subnet, own netip.Addr, now func() time.Time) (*leases, error) {
	if len(subnets) == 0 {
		return nil, fail(CodeNoPool, "site.yaml has no subnets, so there are no addresses to hand out")
	}
	l := &leases{site: s, subnets: subnets, own: own, now: now, given: make(map[netip.Addr]lease)}
	data, err := os.ReadFile(l.file())
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, &Error{CodeNoPool, "reading the leases", err}
	}
	var kept struct {
		Format int     `json:"format"`
		Leases []lease `json:"leases"`
	}
	if err := json.Unmarshal(data, &kept); err != nil || kept.Format != 1 {
		return nil, &Error{CodeNoPool, l.file() + " holds no leases of format 1; move it away once every lease has ended", err}
	}
	for _, one := range kept.Leases {
		l.given[one.Address] = one
	}
	return l, nil
}

func (l *leases) file() string { return l.site.State("leases.json") }

// save is called with mu held. An address that was given and forgotten would be
// given twice.
func (l *leases) save() error {
	all := []lease{}
	for address, one := range l.given {
		if l.now().After(one.Until) {
			delete(l.given, address)
			continue
		}
		all = append(all, one)
	}
	data, err := json.MarshalIndent(map[string]any{"format": 1, "leases": all}, "", "  ")
	if err != nil {
		return err
	}
	next, err := os.OpenFile(l.file()+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	// On the disk before it has the name: a file that a power cut has left empty
	// would keep the server from starting.
	_, err = next.Write(data)
	if err = errors.Join(err, next.Sync(), next.Close()); err != nil {
		return err
	}
	return os.Rename(next.Name(), l.file())
}

// subnetOf is the subnet that an address lies in, nil where there is none.
func (l *leases) subnetOf(address netip.Addr) *site.Subnet {
	for n := range l.subnets {
		if l.subnets[n].Network.Contains(address) {
			return &l.subnets[n]
		}
	}
	return nil
}

// offer finds an address for a machine in a subnet: the one that its
// configuration has, the one that it had, the one that it asks for, or a free one.
func (l *leases) offer(subnet *site.Subnet, c client, wish netip.Addr) (netip.Addr, error) {
	reserved := make(map[netip.Addr]bool)
	machines, err := l.site.Machines()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, m := range machines {
		if m.Config == nil {
			continue
		}
		for _, entry := range m.Config.Network.Entries {
			if !entry.IP.IsValid() || !subnet.Network.Contains(entry.IP) {
				continue
			}
			if entry.MAC == c.mac {
				return entry.IP, nil
			}
			reserved[entry.IP] = true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// A pool may be drawn over what is not for machines.
	for _, a := range append([]netip.Addr{l.own, subnet.Router, subnet.Network.Addr(), broadcast(subnet.Network)}, subnet.DNS...) {
		reserved[a] = true
	}
	free := func(a netip.Addr) bool {
		one, taken := l.given[a]
		return !reserved[a] && (!taken || !one.Bad && one.MAC == c.mac || l.now().After(one.Until))
	}
	for _, one := range l.given {
		if one.MAC == c.mac && !one.Bad && subnet.Network.Contains(one.Address) && free(one.Address) {
			return one.Address, nil
		}
	}
	inPool := func(a netip.Addr) bool {
		return subnet.First.IsValid() && !a.Less(subnet.First) && !subnet.Last.Less(a)
	}
	if wish.IsValid() && inPool(wish) && free(wish) {
		return wish, nil
	}
	if subnet.First.IsValid() {
		for a := subnet.First; !subnet.Last.Less(a); a = a.Next() {
			if free(a) {
				return a, nil
			}
		}
	}
	return netip.Addr{}, fail(CodeNoPool, "no address is left in %s", subnet.Network)
}

// broadcast is the last address of an IPv4 network.
func broadcast(network netip.Prefix) netip.Addr {
	a := network.Addr().As4()
	for bit := network.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// take notes that an address belongs to a machine until then, or for as long as it
// was given to it before: an offer that is not taken up ends no lease.
func (l *leases) take(address netip.Addr, mac netconfig.MAC, until time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if had := l.given[address]; had.MAC == mac && !had.Bad && had.Until.After(until) {
		until = had.Until
	}
	l.given[address] = lease{Address: address, MAC: mac, Until: until}
	return l.save()
}

// spoil leaves an address alone for a while that was this machine's, and that the
// machine says somebody else uses. Of other addresses nobody's word counts.
func (l *leases) spoil(address netip.Addr, mac netconfig.MAC, until time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one, given := l.given[address]; !given || one.MAC != mac {
		return nil
	}
	l.given[address] = lease{Address: address, MAC: mac, Until: until, Bad: true}
	return l.save()
}

// leave gives an address back, if it was this machine's.
func (l *leases) leave(address netip.Addr, mac netconfig.MAC) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.given[address].MAC == mac {
		delete(l.given, address)
	}
	return l.save()
}

const (
	offerTime = time.Minute      // an offer is kept for so long
	badTime   = 10 * time.Minute // an address that somebody else uses is left alone
)

// leased is the answer with an address (RFC 2131, 4.3).
func (s *Server) leased(m *dhcpv4.DHCPv4, c client, kind dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	at := s.Address
	if relay, ok := netip.AddrFromSlice(m.GatewayIPAddr.To4()); ok && !relay.IsUnspecified() {
		at = relay
	} else if there, ok := netip.AddrFromSlice(m.ClientIPAddr.To4()); ok && !there.IsUnspecified() {
		at = there
	}
	subnet := s.leases.subnetOf(at)
	if subnet == nil {
		return nil // not ours to speak for
	}
	wish, _ := netip.AddrFromSlice(m.RequestedIPAddress().To4())
	reply := func(kind dhcpv4.MessageType, address netip.Addr) *dhcpv4.DHCPv4 {
		r, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.Address.AsSlice())))
		if err != nil {
			s.Log.Warn("making an answer", "error", err)
			return nil
		}
		if kind == dhcpv4.MessageTypeNak {
			return r
		}
		if address.IsValid() {
			r.YourIPAddr = address.AsSlice()
			r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(subnet.Lease))
		}
		describe(r, subnet)
		return r
	}
	switch kind {
	case dhcpv4.MessageTypeDiscover:
		address, err := s.leases.offer(subnet, c, wish)
		if err == nil {
			err = s.leases.take(address, c.mac, s.Now().Add(offerTime))
		}
		if err != nil {
			s.Log.Warn("no address is offered", "mac", c.mac, "error", err)
			return nil
		}
		return reply(dhcpv4.MessageTypeOffer, address)
	case dhcpv4.MessageTypeRequest:
		if chosen := m.ServerIdentifier(); chosen != nil && !chosen.IsUnspecified() && !chosen.Equal(s.Address.AsSlice()) {
			return nil // it has chosen another server
		}
		if !wish.IsValid() || wish.IsUnspecified() {
			wish, _ = netip.AddrFromSlice(m.ClientIPAddr.To4()) // it renews
		}
		address, err := s.leases.offer(subnet, c, wish)
		if err != nil || address != wish {
			return reply(dhcpv4.MessageTypeNak, netip.Addr{})
		}
		if err := s.leases.take(address, c.mac, s.Now().Add(subnet.Lease)); err != nil {
			s.Log.Warn("an address is not given, for it could not be written down", "error", err)
			return nil
		}
		return reply(dhcpv4.MessageTypeAck, address)
	case dhcpv4.MessageTypeInform:
		return reply(dhcpv4.MessageTypeAck, netip.Addr{})
	case dhcpv4.MessageTypeDecline:
		s.Log.Warn("somebody else uses an address of the pool", "address", wish, "says", c.mac)
		if err := s.leases.spoil(wish, c.mac, s.Now().Add(badTime)); err != nil {
			s.Log.Warn("writing the leases", "error", err)
		}
	case dhcpv4.MessageTypeRelease:
		if mine, ok := netip.AddrFromSlice(m.ClientIPAddr.To4()); ok {
			if err := s.leases.leave(mine, c.mac); err != nil {
				s.Log.Warn("writing the leases", "error", err)
			}
		}
	}
	return nil
}

// describe says how the network is.
func describe(r *dhcpv4.DHCPv4, subnet *site.Subnet) {
	r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(subnet.Network.Bits(), 32)))
	if subnet.Router.IsValid() {
		r.UpdateOption(dhcpv4.OptRouter(subnet.Router.AsSlice()))
	}
	var dns []net.IP
	for _, a := range subnet.DNS {
		dns = append(dns, a.AsSlice())
	}
	if len(dns) > 0 {
		r.UpdateOption(dhcpv4.OptDNS(dns...))
	}
	if subnet.Domain != "" {
		r.UpdateOption(dhcpv4.OptDomainName(subnet.Domain))
	}
}
