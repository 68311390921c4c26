// Package ifupdown renders a netconfig.Config as the files of Debian's
// ifupdown: /etc/network/interfaces, /etc/resolv.conf, and the systemd.link
// files that pin the names of the NICs. It decides nothing.
//
// # Names
//
// The installer sees eth0 where the installed system's udev may choose ens3 or
// enp0s3, so a name must be pinned to the permanent MAC address. Two ways are
// documented. "rename /mac/52:54:00:12:34:56=lan0" of interfaces(5) matches the
// current address of every interface: a bond and each of its ports, a bridge
// and its port, a VLAN and its parent all have the same one, so a second ifup
// renames the wrong interface or fails. A systemd.link(5) file matches
// PermanentMACAddress= and Type=ether, which only the NIC has. udev applies it
// on the coldplug "add" event of the real root, also to a NIC that the
// initrd's udev, which knows nothing of the file, already called ens3: without
// NamePolicy=keep a NIC is renamed "even if it has been renamed already"
// (systemd.net-naming-scheme(7), v240), and networking.service starts after
// "udevadm settle" (ifupdown-pre.service). So .link files it is; the name that
// udev would have chosen stays as an alternative name for people.
//
// # Bonds, VLANs and bridges
//
// They are made by ip(8) in pre-up lines, because ifupdown depends on iproute2,
// whereas ifenslave, vlan and bridge-utils may be absent from an image. No
// option that these packages' hooks look for is used, so their presence changes
// nothing. A VLAN needs no line: ifupdown itself makes "bond0.100" over "bond0"
// (interfaces(5), VLAN INTERFACES).
package ifupdown

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
)

// Render gives the files, in the order of their paths as written here. It
// never fails: a Config from netconfig.Resolve is valid by construction. The
// resolver is told only when name servers are known; with DHCP the DHCP client
// tells it.
func Render(c netconfig.Config, r netconfig.Resolver) []netconfig.File {
	files := []netconfig.File{{Path: "/etc/network/interfaces", Mode: 0o644, Data: interfaces(c)}}
	return slices.Concat(files, netconfig.LinkFiles(c), netconfig.ResolverFiles(c, r))
}

func interfaces(c netconfig.Config) []byte {
	var b strings.Builder
	b.WriteString(netconfig.Header)
	b.WriteString("# See interfaces(5). The names lan0, lan1, ... are pinned to the NICs by\n" +
		"# /etc/systemd/network/10-firstlight-*.link.\n\n")
	b.WriteString("auto lo\niface lo inet loopback\n")
	for _, i := range c.Interfaces {
		stanzas(&b, i)
	}
	return []byte(b.String())
}

// stanzas writes one interface. What makes it goes with the first stanza: the
// others only add addresses.
func stanzas(b *strings.Builder, i netconfig.Interface) {
	fmt.Fprintf(b, "\nauto %s\n", i.Name)
	first := true
	stanza := func(family, method string, lines ...string) {
		fmt.Fprintf(b, "iface %s %s %s\n", i.Name, family, method)
		if first {
			lines = append(making(i), lines...)
		}
		first = false
		for _, line := range lines {
			fmt.Fprintf(b, "\t%s\n", line)
		}
	}
	gateways := i.Gateways()
	for _, address := range i.Addresses {
		lines := []string{"address " + address.String()}
		gateways = slices.DeleteFunc(gateways, func(gateway netip.Addr) bool {
			fits := gateway.Is4() == address.Addr().Is4()
			if fits {
				lines = append(lines, "gateway "+gateway.String())
			}
			return fits
		})
		family := "inet6"
		if address.Addr().Is4() {
			family = "inet"
		} else {
			// ifup waits 6 s for duplicate address detection and calls the
			// interface failed where that has not ended: on every bond whose
			// switch takes its time for LACP. The installer has looked for
			// duplicates before (netconfig/prove).
			lines = append(lines, "dad-attempts 0")
		}
		stanza(family, "static", lines...)
	}
	if i.DHCP4 {
		stanza("inet", "dhcp")
	}
	if i.AcceptRA {
		stanza("inet6", "auto") // accept_ra is 2: also on a machine that forwards
	}
	if first {
		stanza("inet", "manual")
	}
	for _, route := range i.Routes {
		if !route.IsDefault() {
			fmt.Fprintf(b, "\tup ip route replace %s%s dev %s\n", route.To, via(route), i.Name)
		}
	}
}

func via(route netconfig.Route) string {
	if !route.Via.IsValid() {
		return ""
	}
	return " via " + route.Via.String()
}

// making is the lines that bring the interface into being. Each may run again
// over what is there already, so that ifup after a failed ifup works.
func making(i netconfig.Interface) []string {
	var lines []string
	preUp := func(format string, args ...any) { lines = append(lines, "pre-up "+fmt.Sprintf(format, args...)) }
	switch i.Kind {
	case netconfig.Bond:
		// Loading the bonding module may itself make a bond0 (its max_bonds is
		// 1 by default), and "ip link add" then finds it there.
		preUp("ip link show dev %[1]s >/dev/null 2>&1 || ip link add name %[1]s type bond || ip link show dev %[1]s", i.Name)
		// The mode can be set only while the bond has no port and is down.
		preUp("ip link set dev %s down", i.Name)
		for _, port := range i.Ports {
			preUp("ip link set dev %s nomaster down", port)
		}
		preUp("ip link set dev %s type bond mode %s miimon %d%s", i.Name, i.Bond.Mode, i.Bond.MIIMonMillis, modeOptions(*i.Bond))
		if !i.MAC.IsZero() {
			preUp("ip link set dev %s address %s", i.Name, i.MAC)
		}
		for _, port := range i.Ports {
			preUp("ip link set dev %s master %s", port, i.Name)
		}
		if i.Bond.Primary != "" { // a port by then
			preUp("ip link set dev %s type bond primary %s", i.Name, i.Bond.Primary)
		}
	case netconfig.Bridge:
		preUp("ip link show dev %[1]s >/dev/null 2>&1 || ip link add name %[1]s type bridge", i.Name)
		stp := 0
		if i.Bridge.STP {
			stp = 1
		}
		filtering := ""
		if i.Bridge.VLANAware { // else unsaid: a kernel may be built without it
			filtering = " vlan_filtering 1"
		}
		const centi = 100 // ip-link(8) takes hundredths of a second
		preUp("ip link set dev %s type bridge stp_state %d forward_delay %d%s",
			i.Name, stp, centi*i.Bridge.ForwardDelaySeconds, filtering)
		if !i.MAC.IsZero() {
			preUp("ip link set dev %s address %s", i.Name, i.MAC)
		}
		for _, port := range i.Ports {
			preUp("ip link set dev %s master %s up", port, i.Name)
			if i.Bridge.VLANAware { // all VLANs; untagged frames are in VLAN 1
				preUp("bridge vlan add dev %s vid 2-4094", port)
			}
		}
	}
	if i.MTU != 0 {
		// With the option "mtu" a NIC that refuses jumbo frames would fail the
		// bond, and all VLANs with it: better slow than out of reach.
		preUp("ip link set dev %s mtu %d || true", i.Name, i.MTU)
	}
	lines = append(lines, quiet(i)...)
	if i.Kind == netconfig.Bond || i.Kind == netconfig.Bridge {
		lines = append(lines, "post-down ip link del dev "+i.Name)
	}
	return lines
}

// quiet keeps the kernel from making IPv6 addresses and routes that nobody
// wants, where it speaks IPv6: by itself it gives every interface a link-local
// address, by which guests would reach the host through a bridge, and believes
// every router (Documentation/networking/ip-sysctl.rst).
func quiet(i netconfig.Interface) []string {
	var name, value string
	switch {
	case i.AcceptRA:
		return nil
	case len(i.Addresses) > 0 || i.DHCP4:
		name, value = "accept_ra", "0"
	default:
		name, value = "disable_ipv6", "1"
	}
	file := "/proc/sys/net/ipv6/conf/" + i.Name + "/" + name
	return []string{fmt.Sprintf("pre-up ! test -e %s || echo %s >%s", file, value, file)}
}

// modeOptions are the options that the bond's mode has.
func modeOptions(o netconfig.BondOptions) string {
	text := ""
	if o.LACPRate != "" {
		text += " lacp_rate " + o.LACPRate
	}
	if o.HashPolicy != "" {
		text += " xmit_hash_policy " + o.HashPolicy
	}
	return text
}
