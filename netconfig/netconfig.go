// Package netconfig decides what the network of the installed system looks
// like: a Spec (what config.json wants) and the NICs of the machine (what was
// found) become one Config, from which the renderers below this package write
// the files of ifupdown, systemd-networkd and others.
//
// It is pure: it reads no file, asks no kernel and never looks at the network
// of the machine it runs on, so a plan made on a laptop equals the one made on
// the machine.
package netconfig

import (
	"encoding"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// MAC is an EUI-48 address. The zero MAC means "none". It is comparable, and
// its text form is six lower-case pairs of hex digits joined by colons.
type MAC [6]byte

var (
	_ encoding.TextMarshaler   = MAC{}
	_ encoding.TextUnmarshaler = (*MAC)(nil)
)

// ParseMAC reads an EUI-48 address in any form net.ParseMAC takes. The empty
// string is the zero MAC.
func ParseMAC(s string) (MAC, error) {
	if s == "" {
		return MAC{}, nil
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is not a MAC address such as 52:54:00:12:34:56", s)
	}
	return MAC(hw), nil
}

// IsZero says that there is no address.
func (m MAC) IsZero() bool { return m == MAC{} }

// String is the colon form, or the empty string for the zero MAC.
func (m MAC) String() string {
	if m.IsZero() {
		return ""
	}
	return net.HardwareAddr(m[:]).String()
}

// MarshalText is String.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is ParseMAC.
func (m *MAC) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMAC(string(text))
	return err
}

// Spec is the network that config.json asks for.
type Spec struct {
	// Hostname is Machine.Hostname: one label, or a fully qualified name.
	Hostname string
	// Entries are the machine's own entry (HostIpAddress, HostMacAddress, …)
	// first, then SecondaryNetworkEntries in the order of the file. The first
	// is there even when all of its fields are empty.
	Entries []Entry
	// GatewaySubnetID names the subnet of the default route and of DNS; empty
	// means the one of the first entry that has an IP.
	GatewaySubnetID string
	// Subnets are in the order of the file.
	Subnets []Subnet
}

// Entry is one network entry of the machine.
type Entry struct {
	Hostname  string     // informative
	IP        netip.Addr // the zero Addr when there is none
	MAC       MAC        // the zero MAC when there is none
	SubnetID  string     // needed for an entry that has a MAC only
	VlanTrunk bool       // the NIC also carries the VLANs
}

// Subnet is one entry of Subnets.
type Subnet struct {
	ID      string
	Gateway netip.Addr   // IpGateway, the zero Addr when there is none
	Prefix  netip.Prefix // the network: IpGateway and IpMask, host bits cleared
	Domain  string       // DomainName
	DNS     []netip.Addr // DomainNameServers
	Manage  bool         // the machine bridges this subnet for its guests
	VlanID  uint16       // 1…4094, or 0 for untagged
}

// NIC is one Ethernet interface as found on the machine.
type NIC struct {
	Name         string `json:"name"` // the kernel's name in the installer
	MAC          MAC    `json:"mac"`
	PermanentMAC MAC    `json:"permanentMAC,omitzero"` // burnt in; zero when the driver knows none
	Driver       string `json:"driver,omitempty"`      // such as virtio_net
	PCI          string `json:"pci,omitempty"`         // such as 0000:00:03.0
	Carrier      bool   `json:"carrier"`               // there is a link
	SpeedMbps    int    `json:"speedMbps,omitempty"`   // 0 when unknown
	MTU          int    `json:"mtu,omitempty"`         // bytes
	Lease        bool   `json:"lease,omitempty"`       // the installer's DHCP lease came in here
	// Address is the installer's own, of the lease.
	Address netip.Prefix `json:"address,omitzero"`
	// Neighbour is what the switch says of itself; nil where nothing was heard.
	Neighbour *Neighbour `json:"neighbour,omitempty"`
	Counters  *Counters  `json:"counters,omitempty"`
}

// Kind says what an Interface is made of.
type Kind string

// The kinds of Interface.
const (
	Ethernet Kind = "ethernet" // a NIC
	Bond     Kind = "bond"
	VLAN     Kind = "vlan"
	Bridge   Kind = "bridge"
)

// Config is the network of the installed system, complete: a renderer writes
// it down and decides nothing.
type Config struct {
	Hostname string `json:"hostname,omitempty"` // as given; may be fully qualified
	Domain   string `json:"domain,omitempty"`
	// Interfaces stand in the order in which they must be made: parents and
	// ports before what is made of them.
	Interfaces []Interface  `json:"interfaces"`
	DNS        []netip.Addr `json:"dns,omitempty"`
	Search     []string     `json:"search,omitempty"`
}

// Interface is one interface of the installed system.
type Interface struct {
	Name string `json:"name"` // in the installed system, at most 15 bytes
	Kind Kind   `json:"kind"`
	// NIC is the name that an Ethernet interface has in the installer.
	NIC string `json:"nic,omitempty"`
	// MAC of a NIC or of what is made of it; zero lets the kernel choose.
	MAC MAC `json:"mac,omitzero"`
	// PermanentMAC is what pins Name to the NIC, see systemd.link(5),
	// PermanentMACAddress=. Zero when the NIC has none; then MAC pins it.
	PermanentMAC MAC `json:"permanentMAC,omitzero"`
	// MTU in bytes; 0 leaves the kernel's (a VLAN takes its parent's).
	MTU int `json:"mtu,omitempty"`

	// Master is the bond or bridge that this interface is a port of.
	Master string `json:"master,omitempty"`
	// Parent and VLANID (1…4094) are set for a VLAN.
	Parent string `json:"parent,omitempty"`
	VLANID uint16 `json:"vlanID,omitempty"`
	// Ports of a Bond or Bridge.
	Ports []string `json:"ports,omitempty"`
	// Bond is set for a bond only.
	Bond *BondOptions `json:"bond,omitempty"`
	// Bridge is set for a bridge only.
	Bridge *BridgeOptions `json:"bridge,omitempty"`

	DHCP4 bool `json:"dhcp4,omitempty"`
	// AcceptRA asks for IPv6 router advertisements (RFC 4861); none is believed
	// without it. An interface without it and without any address has no
	// link-local address either.
	AcceptRA  bool           `json:"acceptRA,omitempty"`
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Gateway of the default route; the zero Addr on all but one interface.
	Gateway netip.Addr `json:"gateway,omitzero"`
	// Routes are those besides Gateway's, among them the default route of the
	// other address family where a machine has both.
	Routes []Route `json:"routes,omitempty"`
	// DNS and Search are those of this link, for the renderers that keep them
	// by link; they equal Config's on the link of the default route.
	DNS    []netip.Addr `json:"dns,omitempty"`
	Search []string     `json:"search,omitempty"`
}

// Gateways are the gateways of the interface's default routes, Gateway first,
// at most one of each address family.
func (i Interface) Gateways() []netip.Addr {
	var out []netip.Addr
	if i.Gateway.IsValid() {
		out = append(out, i.Gateway)
	}
	for _, route := range i.Routes {
		if route.IsDefault() {
			out = append(out, route.Via)
		}
	}
	return out
}

// Route is one static route.
type Route struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via,omitzero"` // the zero Addr: on the link itself
}

// IsDefault is true of 0.0.0.0/0 and ::/0 with a gateway.
func (r Route) IsDefault() bool { return r.To.IsValid() && r.To.Bits() == 0 && r.Via.IsValid() }

// BondOptions are those of the kernel's bonding driver
// (Documentation/networking/bonding.rst), spelt as there. HashPolicy and
// LACPRate are empty in modes that have none.
type BondOptions struct {
	Mode         string `json:"mode"`                 // 802.3ad, active-backup, …
	HashPolicy   string `json:"hashPolicy,omitempty"` // layer3+4
	LACPRate     string `json:"lacpRate,omitempty"`   // slow or fast
	MIIMonMillis int    `json:"miimonMillis"`         // link check, milliseconds
	Primary      string `json:"primary,omitempty"`    // port preferred in active-backup
}

// BridgeOptions are those of the kernel's bridge, see ip-link(8).
type BridgeOptions struct {
	STP                 bool `json:"stp"`
	ForwardDelaySeconds int  `json:"forwardDelaySeconds"`
	VLANAware           bool `json:"vlanAware"` // vlan_filtering
}

// File is one file of the installed system.
type File struct {
	Path string // absolute, in the installed system
	Mode uint32 // permission bits
	Data []byte
}

// Error is an error with a stable code (CNF-… for the installed system's
// network, NET-… for the installer's own).
type Error struct {
	code string
	err  error
}

// NewError formats an error with a code, as fmt.Errorf does.
func NewError(code, format string, args ...any) *Error {
	return &Error{code: code, err: fmt.Errorf(format, args...)}
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap gives the cause, which may be nil.
func (e *Error) Unwrap() error { return errors.Unwrap(e.err) }

// Code is the stable code, such as CNF-001.
func (e *Error) Code() string { return e.code }
