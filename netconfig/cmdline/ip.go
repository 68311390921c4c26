package cmdline

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
)

// ip= has three forms: ip=<how>, ip=<interface>:<how>[:…], and
// ip=<address>:<peer>:<gateway>:<mask>:<host name>:<interface>:<how>[:…].
func (p *parser) ip(value string) error {
	fields, err := split(value)
	if err != nil {
		return err
	}
	switch len(fields) {
	case 0, 1:
		switch value {
		case "dhcp", "on", "any", "single-dhcp":
			p.everywhere = true
			return nil
		case "none", "off", "":
			return nil // nobody asks for an address: as if nothing were said
		}
		return fmt.Errorf("%q is not a way to get an address: have dhcp; others need an interface", value)
	case 2, 3, 4, 5, 6, 7, 8, 9:
		if isAddress(fields[0]) && len(fields) < 6 {
			return errors.New("a static address is address:peer:gateway:mask:host:interface:none")
		}
		if !isAddress(fields[0]) && fields[0] != "" {
			return p.ipOf(fields)
		}
	}
	return p.static(fields)
}

// split cuts at colons outside of brackets, which are taken away: IPv6
// addresses stand in them.
func split(value string) ([]string, error) {
	var fields []string
	var field strings.Builder
	inside := false
	for _, c := range value {
		switch {
		case c == '[' && !inside:
			inside = true
		case c == ']' && inside:
			inside = false
		case c == ':' && !inside:
			fields = append(fields, field.String())
			field.Reset()
		default:
			field.WriteRune(c)
		}
	}
	if inside {
		return nil, errors.New("a bracket is not closed")
	}
	return append(fields, field.String()), nil
}

func isAddress(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

// ipOf is <interface>:<how>[:<mtu>[:<MAC>]].
func (p *parser) ipOf(fields []string) error {
	i, err := p.get(fields[0])
	if err != nil {
		return err
	}
	if err := how(i, fields[1]); err != nil {
		return err
	}
	return p.rest(i, fields[2:])
}

// static is <address>:<peer>:<gateway>:<mask>:<host>:<interface>:<how>[:…].
func (p *parser) static(fields []string) error {
	if len(fields) < 6 {
		return errors.New("a static address is address:peer:gateway:mask:host:interface:none")
	}
	if fields[1] != "" {
		return errors.New("a peer address is not supported: leave it empty")
	}
	if fields[5] == "" {
		return errors.New("it names no interface")
	}
	i, err := p.get(fields[5])
	if err != nil {
		return err
	}
	if len(fields) > 6 {
		if err := how(i, fields[6]); err != nil {
			return err
		}
	}
	if fields[0] == "" {
		if !i.DHCP4 && !i.AcceptRA {
			return errors.New("it has neither an address nor dhcp")
		}
	} else {
		prefix, err := prefixOf(fields[0], fields[3])
		if err != nil {
			return err
		}
		i.Addresses = append(i.Addresses, prefix)
	}
	if fields[2] != "" {
		gateway, err := address(fields[2])
		if err != nil {
			return err
		}
		to := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if gateway.Is4() {
			to = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		p.routes = append(p.routes, pendingRoute{netconfig.Route{To: to, Via: gateway}, i.Name})
	}
	if host := fields[4]; host != "" {
		p.network.Config.Hostname = host
	}
	if len(fields) > 7 {
		return p.rest(p.find(fields[5]), fields[7:])
	}
	return nil
}

// how sets the way in which an interface gets its address.
func how(i *netconfig.Interface, text string) error {
	switch text {
	case "", "none", "off":
	case "dhcp", "on", "any", "single-dhcp":
		i.DHCP4 = true
	case "auto6", "dhcp6": // the router says which of the two
		i.AcceptRA = true
	case "link6":
	case "either6":
		i.DHCP4, i.AcceptRA = true, true
	default: // ibft
		return fmt.Errorf("%q is not a way to get an address here: have none, dhcp, auto6, dhcp6, either6", text)
	}
	return nil
}

// rest is [<mtu>][:<MAC>] or [<dns1>][:<dns2>].
func (p *parser) rest(i *netconfig.Interface, fields []string) error {
	if len(fields) > 0 && isAddress(fields[0]) {
		if len(fields) > 2 {
			return errors.New("it has more than two name servers: use nameserver=")
		}
		for _, server := range fields {
			if server != "" {
				if err := p.nameServer(server); err != nil {
					return err
				}
			}
		}
		return nil
	}
	var err error
	if len(fields) > 0 {
		if i.MTU, err = mtu(fields[0]); err != nil {
			return err
		}
	}
	switch {
	case len(fields) <= 1:
		return nil
	case len(fields) != 2 && len(fields) != 7: // a MAC has colons itself
		return fmt.Errorf("%q is not [mtu][:MAC]", strings.Join(fields, ":"))
	}
	i.MAC, err = netconfig.ParseMAC(strings.Join(fields[1:], ":"))
	return err
}

// rd.route=<net>/<bits>:<gateway>[:<interface>]
func (p *parser) route(value string) error {
	fields, err := split(value)
	if err != nil {
		return err
	}
	if len(fields) < 2 || len(fields) > 3 {
		return errors.New("it is not network/bits:gateway[:interface]")
	}
	to, err := netip.ParsePrefix(fields[0])
	if err != nil {
		return fmt.Errorf("%q is not a network such as 10.0.0.0/8", fields[0])
	}
	r := pendingRoute{Route: netconfig.Route{To: to.Masked()}}
	if fields[1] != "" {
		if r.Via, err = address(fields[1]); err != nil {
			return err
		}
		if r.Via.Is4() != to.Addr().Is4() {
			return fmt.Errorf("the gateway %s is of another family than %s", r.Via, to)
		}
	}
	if len(fields) == 3 {
		r.on = fields[2]
	}
	if r.on == "" && !r.Via.IsValid() {
		return errors.New("it has neither a gateway nor an interface")
	}
	p.routes = append(p.routes, r)
	return nil
}

func address(text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%.60q is not the address of a machine", text)
	}
	return a.Unmap(), nil
}

// prefixOf joins an address with its mask, 255.255.255.0 or 24. Without a mask
// it is the whole address's, as dracut has it for IPv6 only: for IPv4 the class
// is gone for long.
func prefixOf(ip, mask string) (netip.Prefix, error) {
	a, err := address(ip)
	if err != nil {
		return netip.Prefix{}, err
	}
	if mask == "" {
		if a.Is4() {
			return netip.Prefix{}, fmt.Errorf("%s has no mask", a)
		}
		return netip.PrefixFrom(a, 64), nil
	}
	if bits, err := number(mask, 1, a.BitLen()); err == nil {
		return netip.PrefixFrom(a, bits), nil
	}
	m, err := netip.ParseAddr(mask)
	if err != nil || !m.Is4() || !a.Is4() {
		return netip.Prefix{}, fmt.Errorf("%q is not a mask such as 255.255.255.0 or 24", mask)
	}
	bits, ended := 0, false
	for _, b := range m.AsSlice() {
		for shift := 7; shift >= 0; shift-- {
			one := b>>shift&1 == 1
			if one && ended {
				return netip.Prefix{}, fmt.Errorf("the mask %s has a hole", mask)
			}
			if one {
				bits++
			}
			ended = ended || !one
		}
	}
	if bits == 0 {
		return netip.Prefix{}, fmt.Errorf("the mask %s holds every address there is", mask)
	}
	return netip.PrefixFrom(a, bits), nil
}

// mtu is 0 for an empty text.
func mtu(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	const least, most = 68, 65535 // RFC 791
	n, err := number(text, least, most)
	if err != nil {
		return 0, fmt.Errorf("the MTU: %w", err)
	}
	return n, nil
}

func number(text string, least, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most || strings.HasPrefix(text, "+") {
		return 0, fmt.Errorf("%.20q is not a number from %d to %d", text, least, most)
	}
	return n, nil
}
