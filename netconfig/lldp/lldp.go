// Package lldp hears what the switches at the other ends of the cables say of
// themselves (LLDP, IEEE 802.1AB). It only listens, and what it hears is for
// people to read: anybody on the link may have said it.
package lldp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"unicode"

	"github.com/firstlight/firstlight/netconfig"
)

// The types of IEEE 802.1AB, 8.4, that are read.
const (
	typeEnd = iota
	typeChassis
	typePort
	typeTTL
	typePortDescription
	typeSystemName
	typeSystemDescription
	typeCapabilities
	typeManagement
	typeOrganisation = 127
)

// Subtypes of organisations: 802.1 (annex D) and 802.3 (annex F).
const (
	portVLAN    = 0x0080c201
	vlanName    = 0x0080c203
	aggregation = 0x0080c207
	oldAggreg   = 0x00120f03
	maxFrame    = 0x00120f04
)

// Parse reads an LLDP data unit, from the first type on. A switch that leaves
// sends a time to live of 0: gone is true then. Types that it does not know are
// skipped, as the standard asks.
func Parse(b []byte) (n netconfig.Neighbour, gone bool, err error) {
	for want := typeChassis; ; want++ {
		if len(b) < 2 {
			return netconfig.Neighbour{}, false, errors.New("an LLDP frame without an end")
		}
		head := binary.BigEndian.Uint16(b)
		kind, length := int(head>>9), int(head&0x1ff)
		if len(b) < 2+length {
			return netconfig.Neighbour{}, false, errors.New("an LLDP frame that is cut short")
		}
		value := b[2 : 2+length]
		b = b[2+length:]
		// The first three stand in this order.
		if want <= typeTTL && kind != want {
			return netconfig.Neighbour{}, false, fmt.Errorf("an LLDP frame with type %d where %d belongs", kind, want)
		}
		switch kind {
		case typeEnd:
			return n, gone, nil
		case typeTTL:
			if length < 2 {
				return netconfig.Neighbour{}, false, errors.New("an LLDP frame without a time to live")
			}
			gone = binary.BigEndian.Uint16(value) == 0
		default:
			read(&n, kind, value)
		}
		if kind == typeChassis && n.Chassis == "" || kind == typePort && n.Port == "" {
			return netconfig.Neighbour{}, false, errors.New("an LLDP frame that does not say whose it is")
		}
	}
}

func read(n *netconfig.Neighbour, kind int, value []byte) {
	switch kind {
	case typeChassis:
		const macOf, addressOf = 4, 5
		n.Chassis = id(value, macOf, addressOf)
	case typePort:
		const macOf, addressOf = 3, 4
		n.Port = id(value, macOf, addressOf)
	case typePortDescription:
		n.Description = text(value)
	case typeSystemName:
		n.System = text(value)
	case typeManagement:
		if len(value) > 1 && len(value) >= 1+int(value[0]) && value[0] > 1 {
			if a := address(value[1 : 1+int(value[0])]); a.IsValid() && !n.Management.IsValid() {
				n.Management = a
			}
		}
	case typeOrganisation:
		if len(value) >= 4 {
			organisation(n, binary.BigEndian.Uint32(value), value[4:])
		}
	}
}

func organisation(n *netconfig.Neighbour, what uint32, value []byte) {
	switch {
	case what == portVLAN && len(value) >= 2:
		n.PortVLAN = vlan(value)
	case what == vlanName && len(value) >= 3:
		named := netconfig.NamedVLAN{ID: vlan(value), Name: text(value[3:min(len(value), 3+int(value[2]))])}
		const most = 4094 // of which there can be no more
		if named.ID != 0 && len(n.VLANs) < most {
			n.VLANs = append(n.VLANs, named)
		}
	case (what == aggregation || what == oldAggreg) && len(value) >= 1:
		const enabled = 2
		n.Aggregated = value[0]&enabled != 0
	case what == maxFrame && len(value) >= 2:
		n.MaxFrame = int(binary.BigEndian.Uint16(value))
	}
}

// vlan is an id, 0 where it is none.
func vlan(value []byte) uint16 {
	if id := binary.BigEndian.Uint16(value); id < 4095 {
		return id
	}
	return 0
}

// id is a chassis's or port's: a MAC address, a network address, or a text.
func id(value []byte, macOf, addressOf byte) string {
	if len(value) < 2 {
		return ""
	}
	subtype, rest := value[0], value[1:]
	switch {
	case subtype == macOf && len(rest) == 6:
		return net.HardwareAddr(rest).String()
	case subtype == addressOf && address(rest).IsValid():
		return address(rest).String()
	}
	return text(rest)
}

// address has the family's number (IANA address family numbers) before it.
func address(value []byte) netip.Addr {
	const ipv4, ipv6 = 1, 2
	if len(value) == 5 && value[0] == ipv4 || len(value) == 17 && value[0] == ipv6 {
		a, _ := netip.AddrFromSlice(value[1:])
		return a
	}
	return netip.Addr{}
}

// text is what may be shown on a console: no control characters.
func text(value []byte) string {
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || !unicode.IsPrint(c) {
			return -1
		}
		return c
	}, strings.ToValidUTF8(string(value), "")))
}
