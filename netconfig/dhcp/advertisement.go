package dhcp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// advertisement is what a router says of its link (RFC 4861, 4.2; RFC 8106).
type advertisement struct {
	router   netip.Addr
	managed  bool          // addresses come by DHCPv6
	other    bool          // the rest comes by DHCPv6
	lifetime time.Duration // as a default router; 0: it is none
	prefixes []netip.Prefix
	dns      []netip.Addr
	search   []string
	mtu      int // bytes; 0 when not said
}

// The options of an advertisement that are read.
const (
	optionPrefix = 3
	optionMTU    = 5
	optionDNS    = 25
	optionSearch = 31
)

const routerAdvertisement = 134 // ICMPv6 type

// parseAdvertisement reads an ICMPv6 message from its type on. Options that it
// does not know are skipped, as RFC 4861 asks.
func parseAdvertisement(b []byte) (advertisement, error) {
	const head, unit = 16, 8
	if len(b) < head || b[0] != routerAdvertisement || b[1] != 0 {
		return advertisement{}, errors.New("not a router advertisement")
	}
	a := advertisement{managed: b[5]&0x80 != 0, other: b[5]&0x40 != 0, lifetime: seconds(uint32(binary.BigEndian.Uint16(b[6:])))}
	for b = b[head:]; len(b) > 0; {
		if len(b) < 2 || b[1] == 0 || len(b) < int(b[1])*unit {
			return advertisement{}, errors.New("a router advertisement with an option of a wrong length")
		}
		a.option(b[0], b[2:int(b[1])*unit])
		b = b[int(b[1])*unit:]
	}
	return a, nil
}

// option reads one option without its type and length; data is 6 bytes long, or
// more by a multiple of 8.
func (a *advertisement) option(kind byte, data []byte) {
	switch kind {
	case optionPrefix:
		const autonomous = 0x40
		if len(data) < 30 || data[1]&autonomous == 0 || data[0] > 128 || binary.BigEndian.Uint32(data[2:]) == 0 {
			return
		}
		if p := netip.PrefixFrom(netip.AddrFrom16([16]byte(data[14:30])), int(data[0])).Masked(); !slices.Contains(a.prefixes, p) {
			a.prefixes = append(a.prefixes, p)
		}
	case optionMTU:
		const least, most = 1280, 65535 // RFC 8200
		if mtu := int(binary.BigEndian.Uint32(data[2:6])); mtu >= least && mtu <= most {
			a.mtu = mtu
		}
	case optionDNS:
		if lifetime(data) == 0 {
			return
		}
		for rest := data[6:]; len(rest) >= 16; rest = rest[16:] {
			if server := netip.AddrFrom16([16]byte(rest)); !server.IsUnspecified() && !server.IsMulticast() {
				a.dns = append(a.dns, server)
			}
		}
	case optionSearch:
		if lifetime(data) != 0 {
			a.search = append(a.search, names(data[6:])...)
		}
	}
}

func lifetime(data []byte) uint32 { return binary.BigEndian.Uint32(data[2:6]) }

// names reads names in the form of RFC 1035, 3.1, without compression.
func names(b []byte) []string {
	var all []string
	var labels []string
	for len(b) > 0 {
		n := int(b[0])
		b = b[1:]
		if n == 0 {
			if len(labels) > 0 {
				all = append(all, strings.Join(labels, "."))
			}
			labels = nil
			continue
		}
		if n > 63 || n > len(b) || !plain(b[:n]) {
			return all
		}
		labels = append(labels, string(b[:n]))
		b = b[n:]
	}
	return all
}

// plain keeps what would mean something else out of resolv.conf.
func plain(label []byte) bool {
	return !slices.ContainsFunc(label, func(c byte) bool {
		return !(c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z')
	})
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }
