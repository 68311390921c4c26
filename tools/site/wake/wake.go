// Package wake switches machines on over the network: Wake-on-LAN, as network
// cards have had it since AMD's Magic Packet. Whether a machine listens while it
// is off is a matter of its firmware's settings; nobody answers.
package wake

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

// Code is that of every Error: no packet could be sent (docs/errors.md).
const Code = "SRV-077"

// Error is a machine that could not be called.
type Error struct{ text string }

func (e *Error) Error() string { return e.text }

// Code is the constant Code.
func (*Error) Code() string { return Code }

// Network is an interface with its IPv4 network.
type Network struct {
	Interface string
	Prefix    netip.Prefix // address and length
}

// Broadcast is the address that reaches all machines of the network.
func (n Network) Broadcast() netip.Addr {
	address := n.Prefix.Addr().As4()
	for i := n.Prefix.Bits(); i < 32; i++ {
		address[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(address)
}

// Networks are those of this machine: of the interface with that name, or with
// an empty name of all that are up and can broadcast.
func Networks(name string) ([]Network, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, &Error{"looking for networks: " + err.Error()}
	}
	var all []Network
	seen := false
	for _, i := range interfaces {
		if name != "" && i.Name != name {
			continue
		}
		seen = true
		const wanted = net.FlagUp | net.FlagBroadcast
		if i.Flags&wanted != wanted || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, err := i.Addrs()
		if err != nil {
			return nil, &Error{fmt.Sprintf("looking for the addresses of %s: %v", i.Name, err)}
		}
		for _, a := range addresses {
			// Of a network of two there is no broadcast address (RFC 3021).
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Bits() < 31 {
				all = append(all, Network{i.Name, p})
			}
		}
	}
	switch {
	case !seen && name != "":
		return nil, &Error{fmt.Sprintf("there is no interface %s", name)}
	case len(all) == 0 && name != "":
		return nil, &Error{fmt.Sprintf("the interface %s is down, or has no IPv4 address", name)}
	case len(all) == 0:
		return nil, &Error{"no interface is up that has an IPv4 address"}
	}
	return all, nil
}

// times is how often a packet is sent: it may get lost, and nobody says so.
const times = 3

// port is where by custom nobody listens (discard): the card looks at the bytes.
const port = 9

// Call sends the magic packet of each address to all machines of a network.
func Call(ctx context.Context, n Network, macs []netconfig.MAC) error {
	if len(macs) == 0 {
		return &Error{"no MAC address of the machine is known"}
	}
	// Bound to the address of the interface: another one with the same network
	// is not meant. Go lets such sockets broadcast.
	socket, err := net.DialUDP("udp4", &net.UDPAddr{IP: n.Prefix.Addr().AsSlice()}, &net.UDPAddr{IP: n.Broadcast().AsSlice(), Port: port})
	if err != nil {
		return &Error{fmt.Sprintf("calling over %s: %v", n.Interface, err)}
	}
	defer socket.Close() // datagrams: what was written is gone
	for round := range times {
		if round > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(100 * time.Millisecond):
			}
		}
		for _, mac := range macs {
			if _, err := socket.Write(magic(mac)); err != nil {
				return &Error{fmt.Sprintf("calling over %s: %v", n.Interface, err)}
			}
		}
	}
	return nil
}

// magic is six bytes of ones, and the address sixteen times.
func magic(mac netconfig.MAC) []byte {
	return append(bytes.Repeat([]byte{0xff}, 6), bytes.Repeat(mac[:], 16)...)
}
