// Package cmdline reads the network that the kernel's command line asks for, in
// the syntax of dracut.cmdline(7): ip=, ifname=, bond=, vlan=, bridge=,
// nameserver=, rd.route=, BOOTIF=. It is the installer's own network, not the
// installed system's.
//
// It is pure, and it never guesses: what it does not understand is an error
// with code NET-030, because an installer with half of its network cannot be
// reached to be told so.
package cmdline

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
)

// CodeSyntax is the code of every error of this package.
const CodeSyntax = "NET-030"

// Argument is one word of the kernel's command line, at the first "=".
type Argument struct{ Name, Value string }

// Network is what the command line asks for.
type Network struct {
	// Config is the network to make. It is empty (Asked is false) when every
	// NIC is to ask for a lease, or nothing is said. An interface's NIC is the
	// kernel's name, and its PermanentMAC is set where ifname= gives one: then
	// the NIC with that address is meant, whatever it is called.
	Config netconfig.Config
	// BootIF is the NIC that the machine booted from; zero when not said.
	BootIF netconfig.MAC
	// Everywhere says that a lease is wanted on any NIC (ip=dhcp), and nothing
	// else.
	Everywhere bool
}

// Asked says whether there is a network to make.
func (n Network) Asked() bool { return len(n.Config.Interfaces) > 0 }

// Parse reads the arguments; those that are not of the network are skipped. All
// mistakes are returned, joined, each a *netconfig.Error with code NET-030.
func Parse(arguments []Argument) (Network, error) {
	p := &parser{}
	for _, a := range arguments {
		var err error
		switch a.Name {
		case "ifname":
			err = p.ifname(a.Value)
		case "bond":
			err = p.bond(a.Value)
		case "bridge":
			err = p.bridge(a.Value)
		case "vlan":
			err = p.vlan(a.Value)
		case "nameserver":
			err = p.nameServer(a.Value)
		case "BOOTIF":
			err = p.bootIF(a.Value)
		case "team":
			err = errors.New("teams are not supported: use bond=")
		}
		p.failed(a, err)
	}
	// ip= and rd.route= speak of interfaces that the others may make later in
	// the line.
	for _, a := range arguments {
		var err error
		switch a.Name {
		case "ip":
			err = p.ip(a.Value)
		case "rd.route":
			err = p.route(a.Value)
		}
		p.failed(a, err)
	}
	p.finish()
	if err := errors.Join(p.errs...); err != nil {
		return Network{}, err
	}
	return p.network, nil
}

type parser struct {
	network    Network
	interfaces []netconfig.Interface
	routes     []pendingRoute
	dns        []netip.Addr
	everywhere bool // ip=dhcp: a lease on any NIC
	errs       []error
}

type pendingRoute struct {
	netconfig.Route
	on string // the interface, or empty
}

func (p *parser) failed(a Argument, err error) {
	if err != nil {
		p.errs = append(p.errs, netconfig.NewError(CodeSyntax, "kernel command line: %s=%.200q: %w", a.Name, a.Value, err))
	}
}

// get finds or adds the interface called name.
func (p *parser) get(name string) (*netconfig.Interface, error) {
	if i := p.find(name); i != nil {
		return i, nil
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	p.interfaces = append(p.interfaces, netconfig.Interface{Name: name, Kind: netconfig.Ethernet, NIC: name})
	return &p.interfaces[len(p.interfaces)-1], nil
}

func (p *parser) find(name string) *netconfig.Interface {
	n := slices.IndexFunc(p.interfaces, func(i netconfig.Interface) bool { return i.Name == name })
	if n < 0 {
		return nil
	}
	return &p.interfaces[n]
}

// make turns an interface into what is made of others.
func (p *parser) make(name string, kind netconfig.Kind) (*netconfig.Interface, error) {
	i, err := p.get(name)
	if err != nil {
		return nil, err
	}
	if i.Kind != netconfig.Ethernet || !i.PermanentMAC.IsZero() {
		return nil, fmt.Errorf("%s is a %s already", name, i.Kind)
	}
	i.Kind, i.NIC = kind, ""
	return i, nil
}

// enslave makes the ports of master, which is a name because adding interfaces
// moves them.
func (p *parser) enslave(master string, ports string) error {
	for _, name := range strings.Split(ports, ",") {
		if name == master {
			return fmt.Errorf("%s cannot be a port of itself", name)
		}
		port, err := p.get(name)
		if err != nil {
			return err
		}
		if port.Master != "" {
			return fmt.Errorf("%s is a port of %s already", name, port.Master)
		}
		port.Master = master
		m := p.find(master)
		m.Ports = append(m.Ports, name)
	}
	return nil
}

// checkName is the kernel's rule, dev_valid_name.
func checkName(name string) error {
	const most = 15 // IFNAMSIZ less the NUL
	if name == "" || name == "." || name == ".." || len(name) > most || strings.ContainsAny(name, "/: \t\n\v\f\r\x00") {
		return fmt.Errorf("%.40q cannot be the name of an interface", name)
	}
	return nil
}

// ifname=<interface>:<MAC>
func (p *parser) ifname(value string) error {
	name, address, _ := strings.Cut(value, ":")
	mac, err := netconfig.ParseMAC(address)
	if err != nil || mac.IsZero() {
		return fmt.Errorf("%q is not a MAC address", address)
	}
	i, err := p.get(name)
	if err != nil {
		return err
	}
	if i.Kind != netconfig.Ethernet {
		return fmt.Errorf("%s is a %s already", name, i.Kind)
	}
	i.PermanentMAC = mac
	return nil
}

// BOOTIF=01-52-54-00-12-34-56; the first byte is the hardware type, 1 for
// Ethernet (RFC 1700).
func (p *parser) bootIF(value string) error {
	address := value
	if len(value) > len("52-54-00-12-34-56") {
		kind, rest, _ := strings.Cut(value, "-")
		if kind != "01" {
			return nil // not Ethernet: no NIC of ours
		}
		address = rest
	}
	mac, err := netconfig.ParseMAC(address)
	if err != nil {
		return err
	}
	p.network.BootIF = mac
	return nil
}

// bond=<name>[:<ports>[:<options>[:<mtu>]]]; options are separated by commas,
// and inside one a list by semicolons.
func (p *parser) bond(value string) error {
	parts := strings.Split(value, ":")
	if len(parts) > 4 {
		return errors.New("it has more than name:ports:options:mtu")
	}
	parts = append(parts, make([]string, 4-len(parts))...)
	name, ports := parts[0], parts[1]
	if name == "" {
		name = "bond0"
	}
	if ports == "" {
		ports = "eth0,eth1"
	}
	if _, err := p.make(name, netconfig.Bond); err != nil {
		return err
	}
	options, err := bondOptions(parts[2])
	if err != nil {
		return err
	}
	if err := p.enslave(name, ports); err != nil {
		return err
	}
	bond := p.find(name)
	bond.Bond = options
	if options.Primary != "" && !slices.Contains(bond.Ports, options.Primary) {
		return fmt.Errorf("the primary %s is no port of %s", options.Primary, name)
	}
	bond.MTU, err = mtu(parts[3])
	return err
}

func bondOptions(text string) (*netconfig.BondOptions, error) {
	// dracut's default is balance-rr; without a link check a dead port would
	// stay in use.
	o := &netconfig.BondOptions{Mode: "balance-rr", MIIMonMillis: 100}
	if text == "" {
		return o, nil
	}
	modes := []string{"balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"}
	for _, option := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(option, "=")
		pick := func(from ...string) (string, error) {
			// The kernel takes numbers as well, in this order.
			if n, err := strconv.Atoi(value); err == nil && n >= 0 && n < len(from) {
				return from[n], nil
			}
			if !slices.Contains(from, value) {
				return "", fmt.Errorf("the bond option %s is %q: have %s", key, value, strings.Join(from, ", "))
			}
			return value, nil
		}
		var err error
		switch key {
		case "mode":
			o.Mode, err = pick(modes...)
		case "lacp_rate":
			o.LACPRate, err = pick("slow", "fast")
		case "xmit_hash_policy":
			o.HashPolicy, err = pick("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac")
		case "primary":
			o.Primary, err = value, checkName(value)
		case "miimon":
			const most = 60_000
			o.MIIMonMillis, err = number(value, 1, most)
		default:
			err = fmt.Errorf("there is no bond option %q here: have mode, miimon, lacp_rate, xmit_hash_policy, primary", key)
		}
		if err != nil {
			return nil, err
		}
	}
	if o.LACPRate != "" && o.Mode != "802.3ad" {
		return nil, fmt.Errorf("lacp_rate belongs to mode 802.3ad, not %s", o.Mode)
	}
	return o, nil
}

// bridge=<name>:<ports>
func (p *parser) bridge(value string) error {
	name, ports, _ := strings.Cut(value, ":")
	if name == "" {
		name = "br0"
	}
	if ports == "" {
		ports = "eth0"
	}
	bridge, err := p.make(name, netconfig.Bridge)
	if err != nil {
		return err
	}
	bridge.Bridge = &netconfig.BridgeOptions{}
	return p.enslave(name, ports)
}

// vlan=<name>:<parent>; the name ends with the id: vlan5, vlan0005, eth0.5,
// eth0.0005.
func (p *parser) vlan(value string) error {
	name, parent, ok := strings.Cut(value, ":")
	if !ok || parent == "" {
		return errors.New("it is not name:parent, such as eth0.120:eth0")
	}
	digits := name
	if n := strings.LastIndexByte(name, '.'); n >= 0 {
		digits = name[n+1:]
	} else {
		digits = strings.TrimPrefix(name, "vlan")
	}
	const most = 4094
	id, err := number(digits, 1, most)
	if err != nil {
		return fmt.Errorf("the name %q does not end with the VLAN's id, as in eth0.120 or vlan120: %w", name, err)
	}
	if name == parent {
		return fmt.Errorf("%s cannot be its own parent", name)
	}
	if _, err := p.get(parent); err != nil {
		return err
	}
	vlan, err := p.make(name, netconfig.VLAN)
	if err != nil {
		return err
	}
	vlan.Parent, vlan.VLANID = parent, uint16(id)
	return nil
}

func (p *parser) nameServer(value string) error {
	a, err := address(strings.Trim(value, "[]"))
	if err != nil {
		return err
	}
	if !slices.Contains(p.dns, a) {
		p.dns = append(p.dns, a)
	}
	return nil
}

// finish places routes and name servers, and puts the interfaces in the order
// in which they must be made.
func (p *parser) finish() {
	for _, r := range p.routes {
		i := p.outward(r)
		switch {
		case i == nil:
			p.errs = append(p.errs, netconfig.NewError(CodeSyntax, "kernel command line: no interface for the route to %s: name it, or give one an address in the gateway's network", r.To))
		case r.IsDefault() && !i.Gateway.IsValid():
			i.Gateway = r.Via
		case r.IsDefault() && i.Gateway == r.Via: // said twice
		case r.IsDefault() && i.Gateway.Is4() == r.Via.Is4():
			p.errs = append(p.errs, netconfig.NewError(CodeSyntax, "kernel command line: %s has two gateways, %s and %s", i.Name, i.Gateway, r.Via))
		default:
			i.Routes = append(i.Routes, r.Route)
		}
	}
	if p.everywhere && len(p.interfaces) > 0 && !slices.ContainsFunc(p.interfaces, addressed) {
		// "bond=… ip=dhcp": the lease is asked for on what is on top.
		for n := range p.interfaces {
			top := &p.interfaces[n]
			carries := slices.ContainsFunc(p.interfaces, func(i netconfig.Interface) bool { return i.Parent == top.Name })
			top.DHCP4 = top.Master == "" && !carries
		}
	}
	for _, i := range p.interfaces {
		if i.Master != "" && addressed(i) {
			p.errs = append(p.errs, netconfig.NewError(CodeSyntax, "kernel command line: %s is a port of %s and can have no address: give it to %s", i.Name, i.Master, i.Master))
		}
	}
	ordered, ok := order(p.interfaces)
	if !ok {
		p.errs = append(p.errs, netconfig.NewError(CodeSyntax, "kernel command line: the interfaces are made of each other in a circle"))
	}
	if !slices.ContainsFunc(ordered, func(i netconfig.Interface) bool { return addressed(i) }) {
		ordered = nil // such as ifname= alone: nothing to make
	}
	p.network.Config.Interfaces, p.network.Config.DNS = ordered, p.dns
	p.network.Everywhere = p.everywhere && len(ordered) == 0
}

func addressed(i netconfig.Interface) bool { return len(i.Addresses) > 0 || i.DHCP4 || i.AcceptRA }

// outward is the interface that a route goes through.
func (p *parser) outward(r pendingRoute) *netconfig.Interface {
	if r.on != "" {
		return p.find(r.on)
	}
	for n := range p.interfaces {
		if slices.ContainsFunc(p.interfaces[n].Addresses, func(a netip.Prefix) bool { return a.Contains(r.Via) }) {
			return &p.interfaces[n]
		}
	}
	return nil
}

// order puts ports and parents before what is made of them; ok is false when
// that cannot be.
func order(interfaces []netconfig.Interface) (ordered []netconfig.Interface, ok bool) {
	done := map[string]bool{}
	for len(ordered) < len(interfaces) {
		before := len(ordered)
		for _, i := range interfaces {
			ready := !done[i.Name] && (i.Parent == "" || done[i.Parent]) &&
				!slices.ContainsFunc(i.Ports, func(port string) bool { return !done[port] })
			if ready {
				done[i.Name] = true
				ordered = append(ordered, i)
			}
		}
		if len(ordered) == before {
			return nil, false
		}
	}
	return ordered, true
}
