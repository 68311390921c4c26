package netconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Segment is one network that the installed system will be in, as it can be
// tried out from the installer: which ports lead there, and what should answer.
// Names of ports are those that the NICs have in the installer.
type Segment struct {
	// Ports are one NIC, or those of a bond.
	Ports []string     `json:"ports"`
	Bond  *BondOptions `json:"bond,omitempty"`
	// VLANID is 0 for untagged frames.
	VLANID uint16 `json:"vlanID,omitempty"`
	MTU    int    `json:"mtu,omitempty"` // bytes; 0: the kernel's
	// Addresses are the machine's own there; none on a network that it only
	// bridges.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Gateways are those of config.json's subnets there.
	Gateways []netip.Addr `json:"gateways,omitempty"`
	// Routes of the installed system that begin here, the default one first.
	Routes []Route `json:"routes,omitempty"`
	// DNS are the servers that are reached through it.
	DNS []netip.Addr `json:"dns,omitempty"`
}

// Where names the segment for people: "on VLAN 120 via eth1", "via the bond of
// eth1, eth2".
func (s Segment) Where() string {
	via := "via " + strings.Join(s.Ports, ", ")
	if s.Bond != nil {
		via = "via the bond of " + strings.Join(s.Ports, ", ")
	}
	if s.VLANID == 0 {
		return via
	}
	return fmt.Sprintf("on VLAN %d %s", s.VLANID, via)
}

// Segments are the networks of c, which Resolve has made of spec. One that asks
// for its address by DHCP and knows no gateway has nothing to be tried.
func Segments(spec Spec, c Config) []Segment {
	byName := map[string]Interface{}
	for _, i := range c.Interfaces {
		byName[i.Name] = i
	}
	var out []Segment
	for _, i := range c.Interfaces {
		if i.Kind == Bridge || i.Kind == Ethernet && byName[i.Master].Kind == Bond {
			continue
		}
		upper := i // has the addresses
		if bridge, ok := byName[i.Master]; ok {
			upper = bridge
		}
		s := Segment{VLANID: i.VLANID, Addresses: upper.Addresses, Gateways: gatewaysOf(spec, i, upper)}
		if len(s.Gateways) == 0 && len(s.Addresses) == 0 {
			continue
		}
		base := i
		if i.Kind == VLAN {
			base = byName[i.Parent]
		}
		s.MTU = base.MTU
		if i.MTU != 0 {
			s.MTU = i.MTU
		}
		if base.Kind == Bond {
			s.Bond = base.Bond
			for _, port := range base.Ports {
				s.Ports = append(s.Ports, byName[port].NIC)
			}
		} else {
			s.Ports = []string{base.NIC}
		}
		if gateway := upper.Gateway; gateway.IsValid() {
			s.Routes = append(s.Routes, Route{To: netip.PrefixFrom(unspecified(gateway), 0), Via: gateway})
			s.DNS = c.DNS
		}
		s.Routes = append(s.Routes, upper.Routes...)
		out = append(out, s)
	}
	return out
}

// gatewaysOf are the gateways of the subnets that an interface is in: those of
// its addresses, or where it has none that of its VLAN or of the bridge's name.
func gatewaysOf(spec Spec, i, upper Interface) []netip.Addr {
	var out []netip.Addr
	add := func(gateway netip.Addr) {
		if gateway.IsValid() && !slices.Contains(out, gateway) && !slices.ContainsFunc(upper.Addresses, func(a netip.Prefix) bool { return a.Addr() == gateway }) {
			out = append(out, gateway)
		}
	}
	for _, gateway := range upper.Gateways() {
		add(gateway)
	}
	for _, s := range spec.Subnets {
		switch {
		case slices.ContainsFunc(upper.Addresses, func(a netip.Prefix) bool {
			return s.Prefix.Contains(a.Addr()) && (i.Kind != VLAN || s.VlanID == i.VLANID)
		}):
			add(s.Gateway)
		case len(upper.Addresses) > 0:
		case i.Kind == VLAN && s.VlanID == i.VLANID && s.Manage:
			add(s.Gateway)
		case upper.Name == "br@"+s.ID:
			add(s.Gateway)
		}
	}
	return out
}

// NamesOneOf is nil where no entry, or one at least, has the MAC address of one
// of the NICs. Otherwise the configuration is another machine's: the error has
// code CNF-001.
func (s Spec) NamesOneOf(nics []NIC) error {
	var named []string
	for _, entry := range s.Entries {
		if entry.MAC.IsZero() {
			continue
		}
		if slices.ContainsFunc(nics, func(nic NIC) bool { return nic.MAC == entry.MAC || nic.PermanentMAC == entry.MAC }) {
			return nil
		}
		named = append(named, entry.MAC.String())
	}
	if len(named) == 0 {
		return nil
	}
	return NewError("CNF-001", "the configuration is another machine's: it names %s, which is no NIC of this one", strings.Join(named, ", "))
}

// OnlyLease says that the segments are nothing but what the installer's own
// lease has shown to work: its NIC, without a VLAN, with its address.
func OnlyLease(segments []Segment, nics []NIC) bool {
	if len(segments) == 0 {
		return true
	}
	s := segments[0]
	if len(segments) > 1 || len(s.Ports) != 1 || s.VLANID != 0 {
		return false
	}
	n := slices.IndexFunc(nics, func(nic NIC) bool { return nic.Lease && nic.Name == s.Ports[0] })
	return n >= 0 && !slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return a.Addr() != nics[n].Address.Addr() })
}
