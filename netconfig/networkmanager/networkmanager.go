// Package networkmanager renders a netconfig.Config as the keyfiles of
// NetworkManager (nm-settings-keyfile(5)), one connection an interface, and the
// systemd.link(5) files that pin the names of the NICs. It decides nothing.
//
// NetworkManager tells the image's resolver by itself, systemd-resolved as well
// as /etc/resolv.conf: the name servers stand in the connections.
package networkmanager

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
)

// Render gives the files: a keyfile of mode 0600 (NetworkManager refuses
// others) for each interface in order, two files of NetworkManager.conf(5), the
// .link files. It never fails: a Config from netconfig.Resolve is valid by
// construction. NetworkManager finds the resolver itself, so the second
// argument does not matter.
func Render(c netconfig.Config, _ netconfig.Resolver) []netconfig.File {
	var files []netconfig.File
	for _, i := range withNameServers(c).Interfaces {
		files = append(files, netconfig.File{
			Path: "/etc/NetworkManager/system-connections/" + i.Name + ".nmconnection",
			Mode: 0o600,
			Data: []byte(netconfig.Header + keyfile(c, i)),
		})
	}
	files = append(files,
		netconfig.File{
			Path: "/etc/NetworkManager/conf.d/90-firstlight.conf", Mode: 0o644,
			// Else every NIC without a connection of its own asks for a lease.
			Data: []byte(netconfig.Header + "[main]\nno-auto-default=*\n"),
		},
		netconfig.File{
			// Some distributions have a file of this name in /usr/lib, by which
			// NetworkManager leaves all wired interfaces to netplan.
			Path: "/etc/NetworkManager/conf.d/10-globally-managed-devices.conf", Mode: 0o644,
			Data: []byte(netconfig.Header + "# Empty: NetworkManager manages every interface.\n"),
		})
	return append(files, netconfig.LinkFiles(c)...)
}

// withNameServers puts name servers that belong to no link with the first
// interface that has an address: a connection is the only place for them.
func withNameServers(c netconfig.Config) netconfig.Config {
	if slices.ContainsFunc(c.Interfaces, func(i netconfig.Interface) bool { return len(i.DNS) > 0 }) {
		return c
	}
	c.Interfaces = slices.Clone(c.Interfaces)
	for n := range c.Interfaces {
		if i := &c.Interfaces[n]; len(i.Addresses) > 0 {
			i.DNS, i.Search = c.DNS, c.Search
			break
		}
	}
	return c
}

// group is one group of a keyfile in the making.
type group struct {
	name  string
	lines []string
}

func (g *group) set(key, format string, args ...any) {
	g.lines = append(g.lines, key+"="+fmt.Sprintf(format, args...))
}

func keyfile(c netconfig.Config, i netconfig.Interface) string {
	connection := group{name: "connection"}
	connection.set("id", "%s", i.Name)
	connection.set("uuid", "%s", uuid(i.Name))
	connection.set("type", "%s", i.Kind)
	connection.set("interface-name", "%s", i.Name)
	groups := []group{{}, hardware(i), own(i)} // the first is for connection
	if i.Master == "" {
		groups = append(groups, family(i, true), family(i, false))
	} else {
		n := slices.IndexFunc(c.Interfaces, func(m netconfig.Interface) bool { return m.Name == i.Master })
		master := c.Interfaces[n]
		connection.set("master", "%s", master.Name)
		connection.set("slave-type", "%s", master.Kind)
		if master.Bridge != nil && master.Bridge.VLANAware {
			port := group{name: "bridge-port"}
			port.set("vlans", "2-4094")
			groups = append(groups, port)
		}
	}
	groups[0] = connection
	var parts []string
	for _, g := range groups {
		if len(g.lines) > 0 {
			parts = append(parts, "["+g.name+"]\n"+strings.Join(g.lines, "\n")+"\n")
		}
	}
	return strings.Join(parts, "\n")
}

// hardware is what the link layer has. NICs keep their own MAC address.
func hardware(i netconfig.Interface) group {
	g := group{name: "ethernet"}
	if i.Kind != netconfig.Ethernet && !i.MAC.IsZero() {
		g.set("cloned-mac-address", "%s", i.MAC)
	}
	if i.MTU != 0 {
		g.set("mtu", "%d", i.MTU)
	}
	return g
}

// own is what only interfaces of this kind have.
func own(i netconfig.Interface) group {
	g := group{name: string(i.Kind)}
	switch i.Kind {
	case netconfig.Bond:
		g.set("mode", "%s", i.Bond.Mode)
		g.set("miimon", "%d", i.Bond.MIIMonMillis)
		if i.Bond.LACPRate != "" {
			g.set("lacp_rate", "%s", i.Bond.LACPRate)
		}
		if i.Bond.HashPolicy != "" {
			g.set("xmit_hash_policy", "%s", i.Bond.HashPolicy)
		}
		if i.Bond.Primary != "" {
			g.set("primary", "%s", i.Bond.Primary)
		}
	case netconfig.VLAN:
		g.set("flags", "1") // reorder headers, the kernel's own default
		g.set("id", "%d", i.VLANID)
		g.set("parent", "%s", i.Parent)
	case netconfig.Bridge:
		g.set("stp", "%t", i.Bridge.STP)
		g.set("forward-delay", "%d", i.Bridge.ForwardDelaySeconds)
		if i.Bridge.VLANAware {
			g.set("vlan-filtering", "true")
		}
	}
	return g
}

// family is the group ipv4 or ipv6.
func family(i netconfig.Interface, v4 bool) group {
	g := group{name: "ipv6"}
	automatic := i.AcceptRA
	if v4 {
		g.name, automatic = "ipv4", i.DHCP4
	}
	ours := func(a netip.Addr) bool { return a.Is4() == v4 }
	addresses := slices.DeleteFunc(slices.Clone(i.Addresses), func(p netip.Prefix) bool { return !ours(p.Addr()) })
	switch {
	case automatic:
		g.set("method", "auto")
	case len(addresses) > 0:
		g.set("method", "manual")
	default:
		g.set("method", "disabled")
		return g
	}
	for n, a := range addresses {
		g.set(fmt.Sprintf("address%d", n+1), "%s", a)
	}
	for _, gateway := range i.Gateways() {
		if ours(gateway) {
			g.set("gateway", "%s", gateway)
		}
	}
	routes := 0
	for _, r := range i.Routes {
		if r.IsDefault() || !ours(r.To.Addr()) {
			continue
		}
		routes++
		value := r.To.String()
		if r.Via.IsValid() {
			value += "," + r.Via.String()
		}
		g.set(fmt.Sprintf("route%d", routes), "%s", value)
	}
	var servers strings.Builder
	for _, a := range i.DNS {
		if ours(a) {
			servers.WriteString(a.String() + ";")
		}
	}
	if servers.Len() > 0 {
		g.set("dns", "%s", servers.String())
		if len(i.Search) > 0 {
			g.set("dns-search", "%s;", strings.Join(i.Search, ";"))
		}
	}
	return g
}

// uuid is the connection's, the same for the same name: of version 8 (RFC
// 9562, 5.8). It must be unique on its machine only.
func uuid(name string) string {
	sum := sha256.Sum256([]byte("firstlight network connection " + name))
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
