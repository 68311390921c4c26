// Package netplan renders a netconfig.Config as one file of netplan(5), the
// systemd.link(5) files that pin the names of the NICs, and the resolver's
// file. It decides nothing.
//
// The names are pinned by .link files and not by "set-name": that matches the
// current MAC address, which a bond and its ports share. netplan then has
// systemd-networkd do the work, which is in every image that has netplan.
//
// netplan has no word for a bridge that knows VLANs. For such a bridge drop-ins
// are added to the files that netplan makes, which systemd-networkd reads as
// well.
package netplan

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
)

// Path is where the file lies: after all others, so that it has the last word.
// It is for root's eyes only; netplan warns of others.
const Path = "/etc/netplan/99-firstlight.yaml"

// Render gives the files: netplan's, the .link files, drop-ins, the resolver's.
// It never fails: a Config from netconfig.Resolve is valid by construction.
// With netconfig.Resolved the name servers stand with their links; else they
// are written to /etc/resolv.conf.
func Render(c netconfig.Config, r netconfig.Resolver) []netconfig.File {
	y := new(writer)
	y.b.WriteString(netconfig.Header)
	y.line(0, "network:")
	y.line(1, "version: 2")
	y.line(1, "renderer: networkd")
	for _, kind := range []struct {
		kind netconfig.Kind
		key  string
	}{{netconfig.Ethernet, "ethernets"}, {netconfig.Bond, "bonds"}, {netconfig.VLAN, "vlans"}, {netconfig.Bridge, "bridges"}} {
		first := true
		for _, i := range c.Interfaces {
			if i.Kind != kind.kind {
				continue
			}
			if first {
				y.line(1, "%s:", kind.key)
				first = false
			}
			y.device(i, r)
		}
	}
	files := []netconfig.File{{Path: Path, Mode: 0o600, Data: y.b.Bytes()}}
	files = append(files, netconfig.LinkFiles(c)...)
	files = append(files, vlanAware(c)...)
	onALink := slices.ContainsFunc(c.Interfaces, func(i netconfig.Interface) bool { return len(i.DNS) > 0 })
	if r == netconfig.ResolvConf || !onALink {
		files = append(files, netconfig.ResolverFiles(c, r)...)
	}
	return files
}

// writer writes YAML, two blanks a level.
type writer struct{ b bytes.Buffer }

func (y *writer) line(level int, format string, args ...any) {
	y.b.WriteString(strings.Repeat("  ", level))
	fmt.Fprintf(&y.b, format, args...)
	y.b.WriteByte('\n')
}

// list writes strings in quotes: an IPv6 address has colons, a subnet's name
// can be a number.
func (y *writer) list(level int, key string, values []string) {
	if len(values) == 0 {
		return
	}
	for n, v := range values {
		values[n] = fmt.Sprintf("%q", v)
	}
	y.line(level, "%s: [%s]", key, strings.Join(values, ", "))
}

func (y *writer) device(i netconfig.Interface, r netconfig.Resolver) {
	y.line(2, "%q:", i.Name)
	y.line(3, "dhcp4: %t", i.DHCP4)
	y.line(3, "dhcp6: false")
	y.line(3, "accept-ra: %t", i.AcceptRA)
	addressed := len(i.Addresses) > 0 || i.DHCP4 || i.AcceptRA
	if !addressed {
		// A trunk whose switch port is down must not hold up the start, and
		// guests must not reach a bridge by a link-local address.
		y.line(3, "optional: true")
		y.line(3, "link-local: []")
	}
	if i.Kind != netconfig.Ethernet && !i.MAC.IsZero() {
		y.line(3, "macaddress: %q", i.MAC)
	}
	if i.MTU != 0 {
		y.line(3, "mtu: %d", i.MTU)
	}
	switch i.Kind {
	case netconfig.VLAN:
		y.line(3, "id: %d", i.VLANID)
		y.line(3, "link: %q", i.Parent)
	case netconfig.Bond:
		y.list(3, "interfaces", slices.Clone(i.Ports))
		y.line(3, "parameters:")
		y.line(4, "mode: %q", i.Bond.Mode)
		y.line(4, "mii-monitor-interval: %d", i.Bond.MIIMonMillis) // milliseconds
		if i.Bond.LACPRate != "" {
			y.line(4, "lacp-rate: %q", i.Bond.LACPRate)
		}
		if i.Bond.HashPolicy != "" {
			y.line(4, "transmit-hash-policy: %q", i.Bond.HashPolicy)
		}
		if i.Bond.Primary != "" {
			y.line(4, "primary: %q", i.Bond.Primary)
		}
	case netconfig.Bridge:
		y.list(3, "interfaces", slices.Clone(i.Ports))
		y.line(3, "parameters:")
		y.line(4, "stp: %t", i.Bridge.STP)
		// "15" would be 15 s too, but a bare 0 is left out by netplan.
		y.line(4, "forward-delay: %q", fmt.Sprintf("%ds", i.Bridge.ForwardDelaySeconds))
	}
	var addresses []string
	for _, a := range i.Addresses {
		addresses = append(addresses, a.String())
	}
	y.list(3, "addresses", addresses)
	y.routes(i)
	if r == netconfig.Resolved && len(i.DNS) > 0 {
		var servers []string
		for _, a := range i.DNS {
			servers = append(servers, a.String())
		}
		y.line(3, "nameservers:")
		y.list(4, "addresses", servers)
		y.list(4, "search", slices.Clone(i.Search))
	}
}

func (y *writer) routes(i netconfig.Interface) {
	type route struct{ to, via string }
	var routes []route
	for _, gateway := range i.Gateways() {
		to := "::/0" // "default" is for netplan 0.103 and later
		if gateway.Is4() {
			to = "0.0.0.0/0"
		}
		routes = append(routes, route{to, gateway.String()})
	}
	for _, r := range i.Routes {
		switch {
		case r.IsDefault():
		case r.Via.IsValid():
			routes = append(routes, route{r.To.String(), r.Via.String()})
		default:
			routes = append(routes, route{r.To.String(), ""})
		}
	}
	if len(routes) == 0 {
		return
	}
	y.line(3, "routes:")
	for _, r := range routes {
		y.line(4, "- to: %q", r.to)
		if r.via == "" {
			y.line(5, "scope: link")
			continue
		}
		y.line(5, "via: %q", r.via)
	}
}

// vlanAware adds to what netplan writes for systemd-networkd: drop-ins in /etc
// count for files in /run, see systemd.netdev(5).
func vlanAware(c netconfig.Config) []netconfig.File {
	var files []netconfig.File
	dropIn := func(unit, text string) {
		files = append(files, netconfig.File{
			Path: "/etc/systemd/network/10-netplan-" + unit + ".d/10-firstlight.conf",
			Mode: 0o644, Data: []byte(netconfig.Header + text),
		})
	}
	for _, i := range c.Interfaces {
		if i.Kind != netconfig.Bridge || !i.Bridge.VLANAware {
			continue
		}
		dropIn(i.Name+".netdev", "[Bridge]\nVLANFiltering=yes\n")
		for _, port := range i.Ports {
			dropIn(port+".network", "[BridgeVLAN]\nVLAN=2-4094\n")
		}
	}
	return files
}
