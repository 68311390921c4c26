package netconfig

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const (
	bondName    = "bond0"
	bondMTU     = 9000 // bytes
	maxBridgeID = 9    // bytes of a subnet's id in "br@<id>"
)

// Resolve decides the network of the installed system.
//
//   - An entry with an IP and a MAC is the NIC with that MAC, with the address,
//     in the subnet that holds the IP. Where the machine manages that subnet
//     the NIC is the port of a bridge br<VlanID>, which has the address.
//   - An entry with an IP and no MAC sits on the VLAN <trunk>.<VlanID>; in an
//     untagged subnet (VlanID 0) it sits on the trunk itself.
//   - An entry with a MAC, a SubnetID and no IP is a bridge br@<SubnetID> over
//     that NIC and has no address.
//   - All other NICs with carrier are the trunk: one is used as it is, two or
//     more become bond0 (802.3ad, layer3+4, MTU 9000). Where there are none, the
//     first NIC whose entry has VlanTrunk is the trunk as well.
//   - Each managed VLAN subnet that no entry uses gets a bridge br<VlanID> over
//     <trunk>.<VlanID>, when there is a trunk.
//   - With no entry that has an IP, the NIC of the installer's lease (else the
//     first with carrier) takes DHCPv4 and router advertisements.
//   - Default route and DNS are those of the subnet of the first entry with an
//     IP, or of GatewaySubnetID. Where entries have addresses of both families,
//     the other family's default route is that of the first entry with such an
//     IP.
//
// NICs that are used are named lan0, lan1, … in the order of their PCI address,
// then of their name in the installer. A name of our own holds on every
// system, whatever its udev would have chosen; eth0 cannot be used, because the
// kernel hands out the same names and a swap of two would fail
// (systemd.link(5), Name=).
//
// What config.json asks for and the machine cannot give is an error, never a
// shorter list of interfaces: a machine that comes up without its address can
// be reached by nobody. All mistakes are returned, joined, each an *Error with
// code CNF-001 to CNF-007.
func Resolve(spec Spec, nics []NIC) (Config, error) {
	r := &resolver{spec: spec, nics: sortedNICs(nics), role: map[string]*role{}}
	r.gateway()
	r.entries()
	r.dhcp()
	r.findTrunk()
	r.vlanEntries()
	r.spareSubnets()
	config := r.config()
	if err := errors.Join(r.errs...); err != nil {
		return Config{}, err
	}
	return config, nil
}

// role is what one NIC of the machine is used for.
type role struct {
	entry      *Entry
	addresses  []netip.Prefix
	gateways   []netip.Addr // of default routes
	bridge     string       // name of the bridge it is a port of
	trunk      bool         // carries VLANs
	bonded     bool
	dhcp       bool
	bridgeOnly bool
}

// vlan is one VLAN over the trunk; id 0 is the trunk itself, untagged.
type vlan struct {
	id        uint16
	addresses []netip.Prefix
	gateways  []netip.Addr // of default routes
	bridge    string
}

type resolver struct {
	spec  Spec
	nics  []NIC
	role  map[string]*role // by the NIC's name in the installer
	used  []string         // IDs of the subnets that entries use
	vlans []vlan
	trunk struct {
		nics     []NIC // two or more: a bond; one: that NIC
		declared bool  // the NIC has an entry of its own, with VlanTrunk
	}
	preferred *Subnet // of the default route
	routed    bool    // an interface has it
	other     bool    // an interface has the default route of the other family
	errs      []error
}

func (r *resolver) fail(code, format string, args ...any) {
	r.errs = append(r.errs, NewError(code, format, args...))
}

// sortedNICs puts the NICs in an order that does not depend on which of them
// the kernel found first.
func sortedNICs(nics []NIC) []NIC {
	out := slices.Clone(nics)
	slices.SortStableFunc(out, func(a, b NIC) int {
		return cmp.Or(cmp.Compare(a.PCI, b.PCI), cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func (r *resolver) subnet(id string) *Subnet {
	for i := range r.spec.Subnets {
		if r.spec.Subnets[i].ID == id {
			return &r.spec.Subnets[i]
		}
	}
	return nil
}

// subnetOf finds the subnet that holds the entry's IP. Where several do (one
// network in two VLANs), the entry's SubnetID chooses.
func (r *resolver) subnetOf(entry Entry) *Subnet {
	if s := r.subnet(entry.SubnetID); s != nil && entry.SubnetID != "" && s.Prefix.Contains(entry.IP) {
		return s
	}
	for i := range r.spec.Subnets {
		if r.spec.Subnets[i].Prefix.Contains(entry.IP) {
			return &r.spec.Subnets[i]
		}
	}
	return nil
}

func (r *resolver) nicWith(mac MAC) (NIC, bool) {
	for _, nic := range r.nics {
		if nic.PermanentMAC == mac {
			return nic, true
		}
	}
	for _, nic := range r.nics {
		if nic.MAC == mac {
			return nic, true
		}
	}
	return NIC{}, false
}

// found lists the machine's NICs for an error message.
func (r *resolver) found() string {
	if len(r.nics) == 0 {
		return "this machine has no NIC at all"
	}
	var list []string
	for _, nic := range r.nics {
		list = append(list, fmt.Sprintf("%s (%s)", nic.MAC, nic.Name))
	}
	return "found " + strings.Join(list, ", ")
}

// gateway chooses the subnet of the default route.
func (r *resolver) gateway() {
	if id := r.spec.GatewaySubnetID; id != "" {
		if r.preferred = r.subnet(id); r.preferred == nil {
			r.fail("CNF-005", "GatewaySubnetId is %q, but Subnets has no such Id", id)
		}
		if !r.addressed() { // DHCP will say where the default route goes
			r.preferred = nil
		}
		return
	}
	for _, entry := range r.spec.Entries {
		if entry.IP.IsValid() {
			r.preferred = r.subnetOf(entry)
			return
		}
	}
}

// addressed says that some entry has an IP.
func (r *resolver) addressed() bool {
	return slices.ContainsFunc(r.spec.Entries, func(e Entry) bool { return e.IP.IsValid() })
}

// routes are the gateways to write where an address of the subnet is, one at
// most: the first interface in the subnet of the default route gets it, and the
// first in a subnet of the other address family gets that family's.
func (r *resolver) routes(subnet *Subnet) []netip.Addr {
	gateway := subnet.Gateway
	switch {
	case subnet == r.preferred && !r.routed:
		r.routed = true
	case r.preferred != nil && gateway.IsValid() && r.preferred.Gateway.IsValid() && r.preferred.Gateway.Is4() != gateway.Is4() && !r.other:
		r.other = true
	default:
		return nil
	}
	if !gateway.IsValid() {
		return nil
	}
	return []netip.Addr{gateway}
}

// entries settles those that name a NIC.
func (r *resolver) entries() {
	for i := range r.spec.Entries {
		entry := &r.spec.Entries[i]
		if entry.MAC.IsZero() || (!entry.IP.IsValid() && entry.SubnetID == "") {
			continue
		}
		nic, ok := r.nicWith(entry.MAC)
		if !ok {
			r.fail("CNF-001", "no NIC of this machine has the MAC address %s: %s", entry.MAC, r.found())
			continue
		}
		if entry.IP.IsValid() {
			r.plain(entry, nic)
		} else {
			r.bridgeOnly(entry, nic)
		}
	}
}

func (r *resolver) plain(entry *Entry, nic NIC) {
	subnet := r.subnetOf(*entry)
	if subnet == nil {
		r.fail("CNF-002", "no subnet holds the IP address %s", entry.IP)
		return
	}
	r.used = append(r.used, subnet.ID)
	use := r.role[nic.Name]
	switch {
	case use == nil:
		use = &role{entry: entry}
		r.role[nic.Name] = use
	case use.bridgeOnly:
		r.fail("CNF-007", "the NIC %s is given to the bridge %s and to the address %s", entry.MAC, use.bridge, entry.IP)
		return
	}
	if subnet.Manage {
		bridge := fmt.Sprintf("br%d", subnet.VlanID)
		if use.bridge != "" && use.bridge != bridge {
			r.fail("CNF-007", "the NIC %s would be a port of both %s and %s", entry.MAC, use.bridge, bridge)
			return
		}
		use.bridge = bridge
	}
	use.addresses = append(use.addresses, netip.PrefixFrom(entry.IP, subnet.Prefix.Bits()))
	use.gateways = append(use.gateways, r.routes(subnet)...)
	use.trunk = use.trunk || entry.VlanTrunk
}

func (r *resolver) bridgeOnly(entry *Entry, nic NIC) {
	id := entry.SubnetID
	subnet := r.subnet(id)
	switch {
	case subnet == nil:
		r.fail("CNF-003", "the entry with MAC address %s names the subnet %q, but Subnets has no such Id", entry.MAC, id)
	case !subnet.Manage:
		r.fail("CNF-003", "the subnet %q cannot be bridged on the NIC %s: it is not managed (set Manage)", id, entry.MAC)
	case len(id) > maxBridgeID:
		r.fail("CNF-003", "the subnet id %q is longer than %d characters and cannot be part of a bridge's name", id, maxBridgeID)
	case strings.ContainsAny(id, "/.: \t"):
		// The kernel refuses '/', ':' and white space in a name
		// (dev_valid_name), and a '.' would make ifupdown take it for a VLAN.
		r.fail("CNF-003", "the subnet id %q has a character that cannot be part of a bridge's name", id)
	case r.role[nic.Name] != nil:
		r.fail("CNF-007", "the NIC %s is given to two entries, one of them the bridge br@%s", entry.MAC, id)
	default:
		r.used = append(r.used, id)
		r.role[nic.Name] = &role{entry: entry, bridge: "br@" + id, bridgeOnly: true}
	}
}

// dhcp gives the NIC of the lease DHCPv4 when no entry has an IP.
func (r *resolver) dhcp() {
	if r.addressed() {
		return
	}
	pick := func(wanted func(NIC) bool) bool {
		for _, nic := range r.nics {
			if !wanted(nic) {
				continue
			}
			if r.role[nic.Name] == nil {
				r.role[nic.Name] = &role{}
			}
			r.role[nic.Name].dhcp = true
			return true
		}
		return false
	}
	if pick(func(nic NIC) bool { return nic.Lease }) ||
		pick(func(nic NIC) bool { return nic.Carrier && r.role[nic.Name] == nil }) ||
		pick(func(nic NIC) bool { return nic.Carrier }) {
		return
	}
	r.fail("CNF-006", "no entry has an IP address and no NIC has a link to ask for one: %s", r.found())
}

// findTrunk takes every NIC with carrier that nothing else claims.
func (r *resolver) findTrunk() {
	for _, nic := range r.nics {
		if nic.Carrier && r.role[nic.Name] == nil {
			r.trunk.nics = append(r.trunk.nics, nic)
		}
	}
	if bonded := len(r.trunk.nics) > 1; len(r.trunk.nics) > 0 {
		for _, nic := range r.trunk.nics {
			r.role[nic.Name] = &role{bonded: bonded, trunk: !bonded}
		}
		return
	}
	for i := range r.spec.Entries { // in the order of the file
		for _, nic := range r.nics {
			if use := r.role[nic.Name]; use != nil && use.entry == &r.spec.Entries[i] && use.trunk {
				r.trunk.nics, r.trunk.declared = []NIC{nic}, true
				return
			}
		}
	}
}

// onTrunk finds or adds a VLAN.
func (r *resolver) onTrunk(id uint16) *vlan {
	for i := range r.vlans {
		if r.vlans[i].id == id {
			return &r.vlans[i]
		}
	}
	r.vlans = append(r.vlans, vlan{id: id})
	return &r.vlans[len(r.vlans)-1]
}

// vlanEntries settles the entries that have an IP and no MAC.
func (r *resolver) vlanEntries() {
	for _, entry := range r.spec.Entries {
		if !entry.IP.IsValid() || !entry.MAC.IsZero() {
			continue
		}
		subnet := r.subnetOf(entry)
		if subnet == nil {
			r.fail("CNF-002", "no subnet holds the IP address %s", entry.IP)
			continue
		}
		r.used = append(r.used, subnet.ID)
		if len(r.trunk.nics) == 0 {
			r.fail("CNF-004", "the address %s has no MAC address and belongs on a VLAN, but no NIC is left as its trunk: %s", entry.IP, r.found())
			continue
		}
		on := r.onTrunk(subnet.VlanID)
		on.addresses = append(on.addresses, netip.PrefixFrom(entry.IP, subnet.Prefix.Bits()))
		on.gateways = append(on.gateways, r.routes(subnet)...)
	}
	if r.preferred != nil && !r.routed && len(r.errs) == 0 {
		r.fail("CNF-005", "the default route is to go through the subnet %q, but no entry has an address in it", r.preferred.ID)
	}
}

// spareSubnets bridges each managed VLAN that no entry uses.
func (r *resolver) spareSubnets() {
	if len(r.trunk.nics) == 0 {
		return
	}
	for _, subnet := range r.spec.Subnets {
		if !subnet.Manage || subnet.VlanID == 0 || slices.Contains(r.used, subnet.ID) {
			continue
		}
		on := r.onTrunk(subnet.VlanID)
		if len(on.addresses) > 0 {
			continue // another subnet on this VLAN has the machine's address
		}
		on.bridge = fmt.Sprintf("br%d", subnet.VlanID)
	}
}

// config writes down what was settled, parents and ports first.
func (r *resolver) config() Config {
	c := Config{Hostname: r.spec.Hostname, Interfaces: []Interface{}}
	if r.preferred != nil {
		c.Domain, c.DNS = r.preferred.Domain, r.preferred.DNS
		if c.Domain != "" {
			c.Search = []string{c.Domain}
		}
	}
	var bond, vlans, bridges []Interface
	var bondMAC MAC
	names := map[string]string{} // the NIC's name in the installer → the installed system's
	for _, nic := range r.nics {
		use := r.role[nic.Name]
		if use == nil {
			continue
		}
		i := Interface{
			Name: fmt.Sprintf("lan%d", len(names)), Kind: Ethernet, NIC: nic.Name,
			MAC: cmp.Or(nic.PermanentMAC, nic.MAC), PermanentMAC: nic.PermanentMAC,
		}
		names[nic.Name] = i.Name
		upper := &i
		switch {
		case use.bridge != "":
			i.Master = use.bridge
			bridges = append(bridges, newBridge(use.bridge, i))
			upper = &bridges[len(bridges)-1]
		case use.bonded:
			i.Master = bondName
			if bond == nil {
				bondMAC = i.MAC
				bond = []Interface{{
					Name: bondName, Kind: Bond, MAC: bondMAC, MTU: bondMTU,
					// 100 ms is the link check that bonding.rst recommends;
					// without one a dead port would stay in use.
					Bond: &BondOptions{Mode: "802.3ad", HashPolicy: "layer3+4", LACPRate: "slow", MIIMonMillis: 100},
				}}
			}
			bond[0].Ports = append(bond[0].Ports, i.Name)
		}
		upper.Addresses, upper.DHCP4, upper.AcceptRA = use.addresses, use.dhcp, use.dhcp
		r.setRoute(&c, upper, use.gateways)
		c.Interfaces = append(c.Interfaces, i)
	}
	if len(r.trunk.nics) > 0 {
		parent := names[r.trunk.nics[0].Name]
		mac := cmp.Or(r.trunk.nics[0].PermanentMAC, r.trunk.nics[0].MAC)
		if bond != nil {
			parent, mac = bondName, bondMAC
		}
		for _, v := range r.vlans {
			if v.id == 0 { // untagged: the trunk has the address itself
				trunk := r.untagged(bond, bridges, c.Interfaces, parent)
				trunk.Addresses = append(slices.Clone(trunk.Addresses), v.addresses...)
				r.setRoute(&c, trunk, v.gateways)
				continue
			}
			i := Interface{
				Name: fmt.Sprintf("%s.%d", parent, v.id), Kind: VLAN, Parent: parent, VLANID: v.id,
				Addresses: v.addresses, Master: v.bridge,
			}
			r.setRoute(&c, &i, v.gateways)
			vlans = append(vlans, i)
			if v.bridge != "" {
				i.MAC = mac
				bridges = append(bridges, newBridge(v.bridge, i))
			}
		}
	}
	c.Interfaces = slices.Concat(c.Interfaces, bond, vlans, bridges)
	seen := map[string]bool{}
	for _, i := range c.Interfaces {
		if seen[i.Name] {
			r.fail("CNF-007", "two interfaces would have the name %s: give the managed subnets different VlanIds", i.Name)
		}
		seen[i.Name] = true
	}
	return c
}

// untagged is the interface that has the trunk's own address.
func (r *resolver) untagged(bond, bridges, nics []Interface, parent string) *Interface {
	if bond != nil {
		return &bond[0]
	}
	var trunk *Interface
	for i := range nics {
		if nics[i].Name == parent {
			trunk = &nics[i]
		}
	}
	for i := range bridges { // a port has no address of its own
		if bridges[i].Name == trunk.Master {
			return &bridges[i]
		}
	}
	return trunk
}

// setRoute writes the default route; that of the other family is a route of
// its own.
func (r *resolver) setRoute(c *Config, i *Interface, gateways []netip.Addr) {
	for _, gateway := range gateways {
		if gateway.Is4() == r.preferred.Gateway.Is4() {
			i.Gateway, i.DNS, i.Search = gateway, c.DNS, c.Search
			continue
		}
		i.Routes = append(i.Routes, Route{To: netip.PrefixFrom(unspecified(gateway), 0), Via: gateway})
	}
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// newBridge has the MAC address of its port. Left to themselves, the kernel
// would take the lowest of the ports and udev a made-up one
// (systemd.link(5), MACAddressPolicy=), and leases and neighbours would change.
func newBridge(name string, port Interface) Interface {
	return Interface{
		Name: name, Kind: Bridge, MAC: port.MAC, Ports: []string{port.Name},
		// Without STP the kernel forwards at once and the delay has no meaning
		// (br_make_forwarding); ifupdown's bridge hooks waited for it.
		Bridge: &BridgeOptions{},
	}
}
