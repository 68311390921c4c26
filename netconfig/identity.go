package netconfig

import (
	"fmt"
	"net/netip"
	"strings"
)

// Identity is the files that say who the machine is: /etc/hostname and
// /etc/hosts. They are apart from the interfaces because a custom network
// programme replaces those and not these. Without a host name, as when DHCP is
// to give one, there is no /etc/hostname.
func Identity(c Config) []File {
	var files []File
	name := strings.TrimSuffix(c.Hostname, ".")
	if name != "" {
		files = append(files, File{Path: "/etc/hostname", Mode: 0o644, Data: []byte(name + "\n")})
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n")
	if name != "" {
		// hostname(1) -f takes the first name of the line: the full one first.
		// 127.0.1.1 is Debian's address for a host without a fixed one
		// (Debian Reference, 5.1.1).
		address := netip.AddrFrom4([4]byte{127, 0, 1, 1})
		if fixed, ok := hostAddress(c); ok {
			address = fixed
		}
		short, _, qualified := strings.Cut(name, ".")
		full := name
		if !qualified && c.Domain != "" {
			full = name + "." + c.Domain
		}
		names := full
		if short != full {
			names += " " + short
		}
		fmt.Fprintf(&b, "%s\t%s\n", address, names)
	}
	b.WriteString("\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	return append(files, File{Path: "/etc/hosts", Mode: 0o644, Data: []byte(b.String())})
}

// hostAddress is the address that the host's name stands for: the one beside
// the default route, else the first.
func hostAddress(c Config) (netip.Addr, bool) {
	var first netip.Addr
	for _, i := range c.Interfaces {
		if len(i.Addresses) == 0 {
			continue
		}
		if i.Gateway.IsValid() {
			return i.Addresses[0].Addr(), true
		}
		if !first.IsValid() {
			first = i.Addresses[0].Addr()
		}
	}
	return first, first.IsValid()
}
