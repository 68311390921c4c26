package netconfig

import (
	"fmt"
	"net/netip"
	"strings"
)

// Header is the first line of every file that a renderer writes.
const Header = "# Written by the Firstlight installer from config.json.\n"

// Resolver says how the programs of an image find their name servers.
type Resolver string

// The resolvers that the renderers know. The zero Resolver is ResolvConf.
const (
	ResolvConf Resolver = ""         // /etc/resolv.conf is a file
	Resolved   Resolver = "resolved" // systemd-resolved(8), which owns that name
)

// LinkFiles pins the names of the NICs, one systemd.link(5) file each. udev
// reads them, whichever program then configures the interfaces.
//
// PermanentMACAddress= is what only the NIC itself has: a bond, its ports, a
// VLAN and its parent share their current address. Without NamePolicy=keep a
// NIC is renamed even if the initrd's udev has named it already
// (systemd.net-naming-scheme(7), v240). The name that udev would have chosen
// stays as an alternative name for people.
func LinkFiles(c Config) []File {
	var files []File
	for _, i := range c.Interfaces {
		if i.Kind != Ethernet {
			continue
		}
		match := "PermanentMACAddress=" + i.PermanentMAC.String()
		if i.PermanentMAC.IsZero() {
			match = "MACAddress=" + i.MAC.String()
		}
		files = append(files, File{
			Path: "/etc/systemd/network/10-firstlight-" + i.Name + ".link",
			Mode: 0o644,
			Data: []byte(Header + "[Match]\n" + match + "\nType=ether\n\n" +
				"[Link]\nName=" + i.Name + "\nAlternativeNamesPolicy=database onboard slot path\n"),
		})
	}
	return files
}

// ResolverFiles tells the image's resolver the name servers of the Config; nil
// when there are none, because then DHCP brings them.
func ResolverFiles(c Config, r Resolver) []File {
	switch {
	case len(c.DNS) == 0:
		return nil
	case r == Resolved:
		return []File{resolvedConf(c)}
	}
	return []File{resolvConf(c)}
}

// resolvedConf is a drop-in of resolved.conf(5), for network programs that do
// not speak to systemd-resolved themselves.
func resolvedConf(c Config) File {
	var b strings.Builder
	fmt.Fprintf(&b, "%s[Resolve]\nDNS=%s\n", Header, joinAddrs(c.DNS))
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "Domains=%s\n", strings.Join(c.Search, " "))
	}
	return File{Path: "/etc/systemd/resolved.conf.d/10-firstlight.conf", Mode: 0o644, Data: []byte(b.String())}
}

// resolvConf writes resolv.conf(5). glibc reads the first three name servers
// only; the others are kept as a comment rather than lost.
func resolvConf(c Config) File {
	var b strings.Builder
	b.WriteString(Header)
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Search, " "))
	}
	const maxNameServers = 3 // MAXNS, resolv.conf(5)
	for n, server := range c.DNS {
		if n == maxNameServers {
			b.WriteString("# The resolver uses three name servers at most.\n")
		}
		if n >= maxNameServers {
			b.WriteString("# ")
		}
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	return File{Path: "/etc/resolv.conf", Mode: 0o644, Data: []byte(b.String())}
}

func joinAddrs(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}
