// Package netboot gets machines to their first loader: DHCP beside a site's own
// DHCP server (proxy), in its place (full) or behind relays, and TFTP. It never
// hands out an address unless it was asked to, and then to everybody; what to boot
// it says to nobody but those who boot from the network, and to no machine that is
// installed.
package netboot

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/site"
)

// Mode is what is done about DHCP.
type Mode string

// The modes.
const (
	Auto  Mode = "auto"  // Proxy, after it was looked whether there is a DHCP server
	Proxy Mode = "proxy" // next to a DHCP server: where to boot from, and no address
	Full  Mode = "full"  // the network's only DHCP server: addresses too
	Relay Mode = "relay" // as Full, for requests that relays pass on, and only for those
	Off   Mode = "off"
)

// Modes lists every mode.
func Modes() []Mode { return []Mode{Auto, Proxy, Full, Relay, Off} }

// The codes of this package; docs/errors.md explains each.
const (
	CodePort    = "SRV-050" // a port is taken, or not ours to open
	CodeRival   = "SRV-051" // another DHCP server answers here
	CodeNoPool  = "SRV-052" // no addresses to hand out
	CodeNetwork = "SRV-053" // which network is not clear
)

// Error is an error with a stable code.
type Error struct {
	code, text string
	err        error
}

func (e *Error) Error() string {
	if e.err == nil {
		return e.text
	}
	return e.text + ": " + e.err.Error()
}

// Code is the stable code, SRV-05x.
func (e *Error) Code() string { return e.code }

// Unwrap is the cause, which may be nil.
func (e *Error) Unwrap() error { return e.err }

func fail(code, format string, args ...any) error {
	return &Error{code: code, text: fmt.Sprintf(format, args...)}
}

// Options are what a Server works with.
type Options struct {
	Site *site.Site
	Mode Mode // not Auto: Choose turns that into another
	// Interface is where machines are, Address this server's address there.
	Interface string
	Address   netip.Addr
	HTTPPort  int
	// Medium says whether there is such a file for machines to boot: amd64,
	// firstlight.efi.
	Medium func(arch, file string) bool
	// Subnets are those that addresses come from.
	Subnets []site.Subnet
	// Booting and NewSystem are told what the packets of a machine show: that it
	// boots from the network, and by which firmware; that an operating system of
	// its own asks for a lease.
	Booting   func(who site.Identity, firmware string)
	NewSystem func(who site.Identity, how string)
	// Ready is called when the ports are open; it may be nil.
	Ready func()
	// Rivals says how many other DHCP servers have answered.
	Rivals func() int
	Log    *slog.Logger
	Now    func() time.Time
}

// Server answers DHCP on one interface.
type Server struct {
	Options
	leases *leases
	mu     sync.Mutex
	asking map[netconfig.MAC]*asking
}

// asking is a machine that asks for an address and what to boot.
type asking struct {
	transaction dhcpv4.TransactionID
	times       int  // discovers of that transaction that were answered
	goneOn      bool // it has taken up what was offered
	told        bool
}

// New is a Server; Answer is what it does.
func New(o Options) (*Server, error) {
	s := &Server{Options: o, asking: make(map[netconfig.MAC]*asking)}
	if o.Mode == Full || o.Mode == Relay {
		var err error
		if s.leases, err = openLeases(o.Site, o.Subnets, o.Address, o.Now); err != nil {
			return nil, err
		}
		if o.Mode == Full && s.leases.subnetOf(o.Address) == nil {
			return nil, fail(CodeNoPool, "%s is in none of the subnets of site.yaml, so there are no addresses to hand out", o.Address)
		}
	}
	return s, nil
}

// GoneOn notes that a machine has done what follows an offer: asked for its
// loader, its script, its kernel.
func (s *Server) GoneOn(mac netconfig.MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.asking[mac]; a != nil {
		a.goneOn = true
	}
}

// addressOn is the IPv4 address of an interface with its network.
func addressOn(name string) (netip.Prefix, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Prefix{}, &Error{CodeNetwork, fmt.Sprintf("there is no interface %q", name), err}
	}
	addresses, err := i.Addrs()
	if err != nil {
		return netip.Prefix{}, &Error{CodeNetwork, "reading the addresses of " + name, err}
	}
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLinkLocalUnicast() {
			return p, nil
		}
	}
	return netip.Prefix{}, fail(CodeNetwork, "%s has no IPv4 address", name)
}

// Network is where machines are: an interface and this server's address on it.
type Network struct {
	Interface string
	Address   netip.Prefix
}

// FindNetwork is the interface of that name, or where none is named, the only one
// that machines could be on: it is up, has an IPv4 address, and is no loopback.
// Where there are several somebody has to say which: what is right on one of them
// may hurt on another.
func FindNetwork(name string) (Network, error) {
	if name != "" {
		address, err := addressOn(name)
		return Network{name, address}, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return Network{}, &Error{CodeNetwork, "listing the interfaces", err}
	}
	var found []Network
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagBroadcast == 0 {
			continue
		}
		if address, err := addressOn(i.Name); err == nil {
			found = append(found, Network{i.Name, address})
		}
	}
	switch len(found) {
	case 0:
		return Network{}, fail(CodeNetwork, "no interface has an IPv4 address yet")
	case 1:
		return found[0], nil
	}
	text := ""
	for _, n := range found {
		text += fmt.Sprintf(" %s (%s)", n.Interface, n.Address)
	}
	return Network{}, fail(CodeNetwork, "several interfaces have an address:%s; say on which the machines are: --interface NAME", text)
}
