package netconfig

import (
	"fmt"
	"net/netip"
	"strings"
)

// Neighbour is what a switch says of itself at the other end of a cable
// (LLDP, IEEE 802.1AB). It is for people: nothing of it is authenticated.
type Neighbour struct {
	Chassis     string     `json:"chassis"` // its id, often a MAC address
	Port        string     `json:"port"`    // the port's id, often its name
	Description string     `json:"portDescription,omitempty"`
	System      string     `json:"system,omitempty"` // the switch's name
	Management  netip.Addr `json:"management,omitzero"`
	// PortVLAN is the VLAN of untagged frames; 0 when it is not said.
	PortVLAN uint16 `json:"portVLAN,omitempty"`
	// VLANs are those that the port names.
	VLANs []NamedVLAN `json:"vlans,omitempty"`
	// Aggregated says that the port is one of an aggregation (LACP).
	Aggregated bool `json:"aggregated,omitempty"`
	// MaxFrame is the longest frame in bytes; 0 when it is not said.
	MaxFrame int `json:"maxFrame,omitempty"`
}

// NamedVLAN is a VLAN and what a switch calls it.
type NamedVLAN struct {
	ID   uint16 `json:"id"`
	Name string `json:"name,omitempty"`
}

// String is one line: "switch sw1, port Eth1/7, VLAN 120 prod".
func (n Neighbour) String() string {
	name := n.System
	if name == "" {
		name = n.Chassis
	}
	text := fmt.Sprintf("switch %s, port %s", name, n.Port)
	if n.Description != "" && n.Description != n.Port {
		text += " (" + n.Description + ")"
	}
	if n.PortVLAN != 0 {
		text += fmt.Sprintf(", untagged VLAN %d", n.PortVLAN)
	}
	var vlans []string
	for _, v := range n.VLANs {
		vlans = append(vlans, strings.TrimSpace(fmt.Sprintf("%d %s", v.ID, v.Name)))
	}
	if len(vlans) > 0 {
		text += ", VLANs " + strings.Join(vlans, ", ")
	}
	if n.Aggregated {
		text += ", aggregated"
	}
	return text
}

// Counters are those of an interface since it came up (sysfs-class-net-statistics).
type Counters struct {
	ReceivedBytes   uint64 `json:"receivedBytes"`
	ReceivedPackets uint64 `json:"receivedPackets"`
	ReceiveErrors   uint64 `json:"receiveErrors,omitempty"`
	ReceiveDropped  uint64 `json:"receiveDropped,omitempty"`
	SentBytes       uint64 `json:"sentBytes"`
	SentPackets     uint64 `json:"sentPackets"`
	SendErrors      uint64 `json:"sendErrors,omitempty"`
	SendDropped     uint64 `json:"sendDropped,omitempty"`
}

// UnusableNIC is a network device that the machine has and the kernel cannot
// use.
type UnusableNIC struct {
	PCI    string `json:"pci"`              // such as 0000:03:00.0
	ID     string `json:"id"`               // vendor and device, such as 14e4:165f
	Driver string `json:"driver,omitempty"` // that took it and made no interface
}

// String says what is missing.
func (u UnusableNIC) String() string {
	if u.Driver == "" {
		return fmt.Sprintf("the network device %s [%s] has no driver in this boot medium", u.PCI, u.ID)
	}
	return fmt.Sprintf("the network device %s [%s] has the driver %s and no interface: its firmware may be missing from this boot medium", u.PCI, u.ID, u.Driver)
}
