// Package networkd renders a netconfig.Config as the files of systemd-networkd:
// systemd.netdev(5) for what is to be made, systemd.network(5) for how each
// interface is used, systemd.link(5) for the names of the NICs, and the
// resolver's file. It decides nothing.
//
// Interfaces without an address of their own are never waited for at boot
// (RequiredForOnline=no): a trunk whose switch port is down must not hold up a
// machine that can be reached through another NIC.
package networkd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
)

const directory = "/etc/systemd/network/10-firstlight-"

// Render gives the files: for each interface in order its .netdev and .network,
// then the .link files, then the resolver's. It never fails: a Config from
// netconfig.Resolve is valid by construction. With netconfig.Resolved the name
// servers stand with their links and systemd-networkd hands them on; else they
// are written to /etc/resolv.conf.
func Render(c netconfig.Config, r netconfig.Resolver) []netconfig.File {
	var files []netconfig.File
	for _, i := range c.Interfaces {
		if text := netdev(i); text != "" {
			files = append(files, file(i.Name+".netdev", text))
		}
		files = append(files, file(i.Name+".network", network(c, i, r)))
	}
	files = append(files, netconfig.LinkFiles(c)...)
	if r == netconfig.ResolvConf || !onALink(c) {
		files = append(files, netconfig.ResolverFiles(c, r)...)
	}
	return files
}

func file(name, text string) netconfig.File {
	return netconfig.File{Path: directory + name, Mode: 0o644, Data: []byte(netconfig.Header + text)}
}

// onALink says that the Config's name servers stand at an interface too.
func onALink(c netconfig.Config) bool {
	return slices.ContainsFunc(c.Interfaces, func(i netconfig.Interface) bool { return len(i.DNS) > 0 })
}

// section is one section of a unit file in the making.
type section struct {
	name  string
	lines []string
}

func (s *section) set(key, format string, args ...any) {
	s.lines = append(s.lines, key+"="+fmt.Sprintf(format, args...))
}

// unit writes the sections that have lines.
func unit(sections ...section) string {
	var parts []string
	for _, s := range sections {
		if len(s.lines) > 0 {
			parts = append(parts, "["+s.name+"]\n"+strings.Join(s.lines, "\n")+"\n")
		}
	}
	return strings.Join(parts, "\n")
}

// netdev is empty for a NIC, which nobody has to make.
func netdev(i netconfig.Interface) string {
	if i.Kind == netconfig.Ethernet {
		return ""
	}
	device := section{name: "NetDev"}
	device.set("Name", "%s", i.Name)
	device.set("Kind", "%s", i.Kind)
	if !i.MAC.IsZero() {
		device.set("MACAddress", "%s", i.MAC)
	}
	if i.MTU != 0 {
		device.set("MTUBytes", "%d", i.MTU)
	}
	var own section
	switch i.Kind {
	case netconfig.Bond:
		own.name = "Bond"
		own.set("Mode", "%s", i.Bond.Mode)
		own.set("MIIMonitorSec", "%dms", i.Bond.MIIMonMillis)
		if i.Bond.LACPRate != "" {
			own.set("LACPTransmitRate", "%s", i.Bond.LACPRate)
		}
		if i.Bond.HashPolicy != "" {
			own.set("TransmitHashPolicy", "%s", i.Bond.HashPolicy)
		}
	case netconfig.VLAN:
		own.name = "VLAN"
		own.set("Id", "%d", i.VLANID)
	case netconfig.Bridge:
		own.name = "Bridge"
		own.set("STP", "%s", yes(i.Bridge.STP))
		own.set("ForwardDelaySec", "%d", i.Bridge.ForwardDelaySeconds)
		if i.Bridge.VLANAware {
			own.set("VLANFiltering", "yes")
		}
	}
	return unit(device, own)
}

func network(c netconfig.Config, i netconfig.Interface, r netconfig.Resolver) string {
	match, link, net := section{name: "Match"}, section{name: "Link"}, section{name: "Network"}
	match.set("Name", "%s", i.Name)
	if i.Kind == netconfig.Ethernet && i.MTU != 0 {
		link.set("MTUBytes", "%d", i.MTU)
	}
	addressed := len(i.Addresses) > 0 || i.DHCP4 || i.AcceptRA
	if !addressed {
		link.set("RequiredForOnline", "no")
	}
	var vlans section
	if i.Master != "" {
		master := find(c, i.Master)
		switch master.Kind {
		case netconfig.Bond:
			net.set("Bond", "%s", i.Master)
			if master.Bond.Primary == i.Name {
				net.set("PrimarySlave", "yes")
			}
		case netconfig.Bridge:
			net.set("Bridge", "%s", i.Master)
			if master.Bridge.VLANAware { // untagged frames are in the kernel's default VLAN 1
				vlans.name = "BridgeVLAN"
				vlans.set("VLAN", "2-4094")
			}
		}
	}
	for _, upper := range c.Interfaces {
		if upper.Parent == i.Name {
			net.set("VLAN", "%s", upper.Name)
		}
	}
	switch {
	case i.DHCP4:
		net.set("DHCP", "ipv4")
	case addressed:
		net.set("DHCP", "no")
	}
	if !addressed {
		// Else a bridge for guests and every trunk would have a link-local
		// address, and so be reachable from there.
		net.set("LinkLocalAddressing", "no")
	}
	net.set("IPv6AcceptRA", "%s", yes(i.AcceptRA))
	for _, address := range i.Addresses {
		net.set("Address", "%s", address)
	}
	for _, gateway := range i.Gateways() {
		net.set("Gateway", "%s", gateway)
	}
	if r == netconfig.Resolved {
		for _, server := range i.DNS {
			net.set("DNS", "%s", server)
		}
		if len(i.Search) > 0 {
			net.set("Domains", "%s", strings.Join(i.Search, " "))
		}
	}
	if i.Kind != netconfig.Ethernet && addressed {
		// The address must be there for programs that listen on it, also
		// before the first port has a link.
		net.set("ConfigureWithoutCarrier", "yes")
	}
	sections := []section{match, link, net}
	for _, route := range i.Routes {
		if route.IsDefault() {
			continue
		}
		s := section{name: "Route"}
		s.set("Destination", "%s", route.To)
		if route.Via.IsValid() {
			s.set("Gateway", "%s", route.Via)
		}
		sections = append(sections, s)
	}
	return unit(append(sections, vlans)...)
}

// find is the interface called name, which a valid Config has.
func find(c netconfig.Config, name string) netconfig.Interface {
	n := slices.IndexFunc(c.Interfaces, func(i netconfig.Interface) bool { return i.Name == name })
	return c.Interfaces[n]
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
