// Package netswitch is an Ethernet switch for the network tests: a small
// virtual machine whose NICs are cables to the machine under test. Inside it
// Linux's bridge filters VLANs and Linux's bonding speaks LACP; a bridge of
// the host could do neither, because it never forwards LACP and the host's
// kernel may know no VLANs.
//
// A switch has ports, and stations: hosts of the network (routers, servers,
// rogues), each in a network namespace of the switch's kernel with one
// interface in one VLAN. A test asks stations to look at the machine from the
// outside. The types of this file are what test and switch say to each other,
// as JSON over HTTP through the switch's own uplink.
package netswitch

import (
	"net/netip"
	"time"
)

// ControlPort is the TCP port of the switch's control, and Ready the line on
// its console that says that it is there.
const (
	ControlPort = 80
	Ready       = "netswitch: ready"
)

// Network is what a switch is set up as.
type Network struct {
	Ports    []Port    `json:"ports"`
	Stations []Station `json:"stations"`
}

// Port is one port; the first belongs to the first cable.
type Port struct {
	// Untagged is the VLAN of frames without a tag; 0 drops them.
	Untagged uint16 `json:"untagged,omitempty"`
	// Tagged are the VLANs whose frames carry a tag.
	Tagged []uint16 `json:"tagged,omitempty"`
	// Group makes one LACP aggregation (802.3ad) of all ports with the same
	// name, with the VLANs of the first of them.
	Group string `json:"group,omitempty"`
	// Blocked has a carrier and forwards nothing, as a port that listens and
	// learns for its spanning tree.
	Blocked bool `json:"blocked,omitempty"`
	// LossPercent of the frames are lost, in each direction.
	LossPercent float32 `json:"lossPercent,omitempty"`
	// MTU in bytes; 0 is 9000. Longer frames are dropped without a word.
	MTU int `json:"mtu,omitempty"`
}

// Station is one host of the network.
type Station struct {
	// Name has at most 10 bytes.
	Name string `json:"name"`
	VLAN uint16 `json:"vlan"`
	MTU  int    `json:"mtu,omitempty"` // bytes; 0 is 1500
	// Addresses of its interface. A router advertises the networks of those
	// that are IPv6.
	Addresses []netip.Prefix `json:"addresses,omitempty"`
	// Relays are TCP services that this station seems to have and that lie
	// behind the switch's uplink, where 10.0.2.2 is the loopback of the host.
	// The address may be any: the station answers for it.
	Relays map[netip.AddrPort]netip.AddrPort `json:"relays,omitempty"`
	// Names are what its DNS server answers, on all of its addresses.
	Names map[string]netip.Addr `json:"names,omitempty"`
	// Files are what its TFTP server has.
	Files map[string][]byte `json:"files,omitempty"`
	DHCP  *DHCP             `json:"dhcp,omitempty"`
	RA    *RA               `json:"ra,omitempty"`
}

// DHCP is a DHCPv4 server, and with Address6 a DHCPv6 server.
type DHCP struct {
	Address    netip.Prefix  `json:"address,omitzero"`  // the one lease
	Address6   netip.Addr    `json:"address6,omitzero"` // the one IA_NA
	Router     netip.Addr    `json:"router,omitzero"`
	DNS        []netip.Addr  `json:"dns,omitempty"`
	Domain     string        `json:"domain,omitempty"`
	NextServer netip.Addr    `json:"nextServer,omitzero"` // siaddr, and option 66
	MTU        int           `json:"mtu,omitempty"`       // option 26
	Delay      time.Duration `json:"delay,omitempty"`     // before each answer
}

// RA is what a router advertises (RFC 4861) besides its prefixes.
type RA struct {
	Managed bool         `json:"managed,omitempty"` // addresses by DHCPv6
	Other   bool         `json:"other,omitempty"`   // the rest by DHCPv6
	DNS     []netip.Addr `json:"dns,omitempty"`     // RFC 8106
}

// The kinds of Probe.
const (
	ProbeARP  = "arp"  // who has the target? Answer.MAC
	ProbePing = "ping" // ICMP or ICMPv6 echo
	ProbeTCP  = "tcp"  // a connection to target, with a port
)

// Probe is a look at an address from a station.
type Probe struct {
	Station string        `json:"station"`
	Kind    string        `json:"kind"`
	Target  string        `json:"target"`
	Size    int           `json:"size,omitempty"` // bytes of a ping's IP packet; 0 is 84
	Wait    time.Duration `json:"wait,omitempty"` // for an answer; 0 is 1 s
}

// Answer is what came of a Probe.
type Answer struct {
	OK    bool   `json:"ok"`
	MAC   string `json:"mac,omitempty"`
	Error string `json:"error,omitempty"`
}

// State is what a switch saw.
type State struct {
	Ports []PortState `json:"ports"`
	// Groups are the LACP aggregations, as the kernel shows them
	// (/proc/net/bonding).
	Groups map[string]string `json:"groups,omitempty"`
	// Leases counts DHCP acknowledgements by station.
	Leases map[string]int `json:"leases,omitempty"`
	// Offers counts DHCP offers by station.
	Offers map[string]int `json:"offers,omitempty"`
}

// PortState is one port's.
type PortState struct {
	Carrier  bool   `json:"carrier"`
	Received uint64 `json:"received"` // frames
	Sent     uint64 `json:"sent"`
}
