package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/firstlight/firstlight/hack/netswitch"
	"github.com/firstlight/firstlight/netconfig"
)

// lan is the network that a configuration belongs in: the switch, the MAC
// addresses of the machine's NICs in the order of its ports, and what must be
// seen from the outside.
type lan struct {
	network netswitch.Network
	macs    []netconfig.MAC
	probes  []lanProbe
	guests  []guest
}

// lanProbe is a look from outside at an address of the machine. The MAC address
// in the answer to an ARP request must be mac.
type lanProbe struct {
	netswitch.Probe
	mac netconfig.MAC
}

// guest is a virtual machine of the machine, as far as the network can tell: a
// namespace on a bridge that has no address of its own.
type guest struct {
	bridge  string
	address netip.Prefix
}

// commands make the guest in the machine.
func (g guest) commands() string {
	return fmt.Sprintf("ip netns add on-%[1]s && ip link add g-%[1]s type veth peer name nic netns on-%[1]s && "+
		"ip link set g-%[1]s master %[1]s up && ip -n on-%[1]s address add %[2]s dev nic && ip -n on-%[1]s link set nic up", g.bridge, g.address)
}

// lanFor makes the network for a configuration: each trunk's port carries the
// configuration's VLANs with tags, each other port one VLAN without.
func lanFor(c netconfig.Config) lan {
	var l lan
	native := uint16(1000) // VLANs of the ports' untagged frames
	byName := map[string]netconfig.Interface{}
	for _, i := range c.Interfaces {
		byName[i.Name] = i
	}
	untagged := map[string]uint16{} // by the name of the topmost interface over the NIC that has no tag
	for _, i := range c.Interfaces {
		if i.Kind != netconfig.Ethernet {
			continue
		}
		top := i
		var port netswitch.Port
		for top.Master != "" {
			top = byName[top.Master]
			if top.Bond != nil && top.Bond.Mode == "802.3ad" {
				port.Group = "lag-" + top.Name
			}
		}
		if untagged[top.Name] == 0 {
			native++
			untagged[top.Name] = native
		}
		port.Untagged = untagged[top.Name]
		for _, v := range c.Interfaces {
			if v.Kind == netconfig.VLAN && (v.Parent == i.Name || v.Parent == top.Name || v.Parent == i.Master) {
				port.Tagged = append(port.Tagged, v.VLANID)
			}
		}
		l.network.Ports = append(l.network.Ports, port)
		l.macs = append(l.macs, i.MAC)
	}
	for _, i := range c.Interfaces {
		if i.Master != "" { // its master has the addresses
			continue
		}
		vlan := untagged[i.Name]
		below := i
		for vlan == 0 {
			if below.VLANID != 0 {
				vlan = below.VLANID
				break
			}
			below = byName[below.Ports[0]]
		}
		l.station(i, vlan)
	}
	return l
}

// station puts a host into the VLAN of an interface, and says what it must see.
func (l *lan) station(i netconfig.Interface, vlan uint16) {
	s := netswitch.Station{Name: fmt.Sprintf("v%d", vlan), VLAN: vlan}
	for _, a := range i.Addresses {
		own := hostOf(a, 250)
		for _, gateway := range i.Gateways() {
			if a.Contains(gateway) {
				own = gateway
			}
		}
		s.Addresses = append(s.Addresses, netip.PrefixFrom(own, a.Bits()))
		l.probes = append(l.probes, lanProbe{Probe: netswitch.Probe{Station: s.Name, Kind: netswitch.ProbePing, Target: a.Addr().String()}})
		if a.Addr().Is4() {
			l.probes = append(l.probes, lanProbe{netswitch.Probe{Station: s.Name, Kind: netswitch.ProbeARP, Target: a.Addr().String()}, i.MAC})
		}
	}
	switch {
	case i.DHCP4 || i.AcceptRA:
		leased := netip.MustParsePrefix("192.168.77.5/24")
		router := netip.MustParsePrefix("192.168.77.1/24")
		router6 := netip.MustParsePrefix("2001:db8:77::1/64")
		s.Addresses = append(s.Addresses, router, router6)
		s.DHCP = &netswitch.DHCP{Address: leased, Router: router.Addr(), DNS: []netip.Addr{netip.MustParseAddr("192.168.77.53")}, Domain: "leased.test"}
		s.RA = &netswitch.RA{}
		l.probes = append(l.probes, lanProbe{netswitch.Probe{Station: s.Name, Kind: netswitch.ProbeARP, Target: leased.Addr().String()}, i.MAC},
			lanProbe{Probe: netswitch.Probe{Station: s.Name, Kind: netswitch.ProbePing, Target: leased.Addr().String()}})
	case i.Kind == netconfig.Bridge && len(i.Addresses) == 0:
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(vlan), 50}), 24)
		s.Addresses = append(s.Addresses, netip.PrefixFrom(hostOf(network, 250), 24))
		l.guests = append(l.guests, guest{i.Name, network})
		l.probes = append(l.probes, lanProbe{Probe: netswitch.Probe{Station: s.Name, Kind: netswitch.ProbePing, Target: network.Addr().String()}})
	}
	if len(s.Addresses) == 0 {
		return
	}
	if n := slices.IndexFunc(l.network.Stations, func(had netswitch.Station) bool { return had.Name == s.Name }); n >= 0 {
		l.network.Stations[n].Addresses = append(l.network.Stations[n].Addresses, s.Addresses...)
		return
	}
	l.network.Stations = append(l.network.Stations, s)
}

// hostOf is the network's host with that number.
func hostOf(p netip.Prefix, number byte) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	b[len(b)-1] = number
	a, _ := netip.AddrFromSlice(b) // of a valid length
	return a
}

// settling is how long a machine's network may take to become what it shall
// be, from when its shell answers: STP and LACP have timers of their own.
const settling = 3 * time.Minute
