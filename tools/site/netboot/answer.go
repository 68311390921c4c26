package netboot

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/tools/site"
)

// The ports of RFC 2131 and of the Preboot Execution Environment, 2.1.
const (
	serverPort = 67
	clientPort = 68
	bootPort   = 4011
)

// client is what a packet says of its sender.
type client struct {
	who      site.Identity
	mac      netconfig.MAC
	firmware bool      // it boots from the network
	ipxe     bool      // by iPXE, which takes a script
	http     bool      // by UEFI HTTP boot, which takes a URL
	arch     iana.Arch // option 93 (RFC 4578, 2.1)
	ours     bool      // our installer, which has booted already
	class    string
}

// Options that iPXE sends (ipxe.org/howto/dhcpd), and the PXE client's UUID
// (RFC 4578, 2.3).
const (
	optionIPXE = dhcpv4.GenericOptionCode(175)
	optionGUID = dhcpv4.GenericOptionCode(97)
)

// classify reads a request.
func classify(m *dhcpv4.DHCPv4) (client, bool) {
	if m.OpCode != dhcpv4.OpcodeBootRequest || len(m.ClientHWAddr) != 6 {
		return client{}, false
	}
	c := client{mac: netconfig.MAC(m.ClientHWAddr), class: m.ClassIdentifier()}
	c.who.MACs = []netconfig.MAC{c.mac}
	if archs := m.ClientArch(); len(archs) > 0 {
		c.arch = archs[0]
	}
	c.http = strings.HasPrefix(c.class, "HTTPClient")
	c.ipxe = m.Options.Has(optionIPXE) || slices.Contains(m.UserClass(), "iPXE") || string(m.Options.Get(dhcpv4.OptionUserClassInformation)) == "iPXE"
	c.firmware = c.http || c.ipxe || strings.HasPrefix(c.class, "PXEClient")
	c.ours = c.class == dhcp.VendorClass
	if guid := m.Options.Get(optionGUID); len(guid) == 17 && guid[0] == 0 {
		c.who.UUID = uuidText(guid[1:])
	}
	c.who = c.who.Clean()
	return c, true
}

// uuidText is the text of a UUID as SMBIOS and PXE store it: the first three
// parts little-endian (SMBIOS 3.7, 7.2.1).
func uuidText(b []byte) string {
	return fmt.Sprintf("%02x%02x%02x%02x-%02x%02x-%02x%02x-%x-%x", b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8:10], b[10:16])
}

// goArch is what the machine runs, in Go's words; empty for what nothing is made
// for.
func (c client) goArch() string {
	switch c.arch {
	case iana.INTEL_X86PC, iana.EFI_X86_64, iana.EFI_BC, iana.EFI_X86_64_HTTP:
		return "amd64"
	case iana.EFI_ARM64, iana.EFI_ARM64_HTTP:
		return "arm64"
	}
	return ""
}

// String is for people.
func (c client) String() string {
	kind := "PXE"
	switch {
	case c.ipxe:
		kind = "iPXE"
	case c.http:
		kind = "HTTP boot"
	}
	return fmt.Sprintf("%s, %s", kind, c.arch)
}

// Files that machines boot, below the directory of their architecture.
const (
	UKI      = "firstlight.efi" // one EFI program with everything
	BIOSIPXE = "undionly.kpxe"  // of Debian's package ipxe
	PXELinux = "lpxelinux.0"    // of Debian's package pxelinux, with HTTP
)

// loader is the file, or URL, that a client boots; why it has none is for people.
func (s *Server) loader(c client) (file, why string) {
	arch, mac := c.goArch(), strings.ReplaceAll(c.mac.String(), ":", "-")
	web := fmt.Sprintf("http://%s", netip.AddrPortFrom(s.Address, uint16(s.HTTPPort)))
	if arch == "" {
		return "", fmt.Sprintf("nothing is made for machines of its kind (%s)", c.arch)
	}
	switch {
	case c.ipxe:
		return web + "/v1/ipxe/" + mac + "?arch=" + arch + "&uuid=" + c.who.UUID, ""
	case c.http && s.Medium(arch, UKI):
		return web + "/v1/efi/" + mac + "/" + arch + "/" + UKI, ""
	case c.arch != iana.INTEL_X86PC && !c.http && s.Medium(arch, UKI):
		return "efi/" + mac + "/" + arch + "/" + UKI, ""
	case c.arch != iana.INTEL_X86PC:
		return "", "UEFI boots an EFI program, and there is none: install Debian's package systemd-boot-efi where firstlight serve runs, and start that again"
	case s.Medium("amd64", BIOSIPXE):
		return BIOSIPXE, ""
	case s.Medium("amd64", PXELinux):
		return PXELinux, ""
	}
	return "", "its BIOS needs a first loader: install Debian's package ipxe or pxelinux where firstlight serve runs, and start that again"
}

// Answer is the answer to a request that came to a port, nil where there is none.
func (s *Server) Answer(m *dhcpv4.DHCPv4, port int) *dhcpv4.DHCPv4 {
	c, ok := classify(m)
	if !ok || s.Mode == Off {
		return nil
	}
	relayed := !m.GatewayIPAddr.IsUnspecified() && m.GatewayIPAddr != nil
	if s.Mode == Relay && !relayed && port == serverPort {
		return nil
	}
	kind := m.MessageType()
	if !c.firmware && !c.ours && kind == dhcpv4.MessageTypeRequest && s.NewSystem != nil {
		s.NewSystem(c.who, "it asked for a lease"+classNote(c.class))
	}
	boot, silent := s.bootFor(c)
	if s.Mode == Proxy {
		if silent || !c.firmware {
			return nil
		}
		return s.proxied(m, c, kind, port, boot)
	}
	if port == bootPort {
		return s.proxied(m, c, kind, port, boot)
	}
	answer := s.leased(m, c, kind)
	if answer != nil && !silent && c.firmware && answer.MessageType() != dhcpv4.MessageTypeNak {
		s.addBoot(answer, c, boot)
	}
	return answer
}

func classNote(class string) string {
	if class == "" {
		return ""
	}
	return fmt.Sprintf(" (%q)", class)
}

// bootFor is what a client boots. It is silent where the machine shall start its
// disk: firmware that is offered nothing goes on to the next device by itself.
func (s *Server) bootFor(c client) (file string, silent bool) {
	if !c.firmware {
		return "", true
	}
	m, err := s.Site.Find(c.who)
	if err != nil {
		s.Log.Warn("a machine is sent to its disk, for it is not clear which one it is", "mac", c.mac, "error", err)
		return "", true
	}
	if m != nil && m.Status.State == site.Installed {
		return "", true
	}
	file, why := s.loader(c)
	if why != "" {
		why = c.String() + ": " + why
	}
	if s.Booting != nil {
		note := c.String()
		if why != "" {
			note = why
		}
		s.Booting(c.who, note)
	}
	return file, file == ""
}

// proxied answers a client that has, or gets, its address from another server
// (Preboot Execution Environment 2.1, 2.2.4 and 2.3).
func (s *Server) proxied(m *dhcpv4.DHCPv4, c client, kind dhcpv4.MessageType, port int, boot string) *dhcpv4.DHCPv4 {
	var answer dhcpv4.MessageType
	switch {
	case port == serverPort && kind == dhcpv4.MessageTypeDiscover:
		answer = dhcpv4.MessageTypeOffer
		s.count(m, c)
	case port == bootPort && (kind == dhcpv4.MessageTypeRequest || kind == dhcpv4.MessageTypeInform):
		answer = dhcpv4.MessageTypeAck
		s.GoneOn(c.mac)
	case port == serverPort && kind == dhcpv4.MessageTypeRequest:
		s.GoneOn(c.mac) // it has taken up an offer of the other server's; that one answers
		return nil
	default:
		return nil
	}
	reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(answer), dhcpv4.WithServerIP(s.Address.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.Address.AsSlice())))
	if err != nil {
		s.Log.Warn("making an answer", "error", err)
		return nil
	}
	reply.YourIPAddr = net.IPv4zero
	s.addBoot(reply, c, boot)
	// UEFI ROMs differ in what they make of a file in the offer; all of them ask
	// port 4011 where there is none. BIOS ROMs and iPXE take it from the offer.
	if answer == dhcpv4.MessageTypeOffer && c.arch != iana.INTEL_X86PC && !c.ipxe && !c.http {
		reply.BootFileName = ""
		reply.Options.Del(dhcpv4.OptionBootfileName)
		reply.Options.Del(dhcpv4.OptionVendorSpecificInformation)
	}
	return reply
}

// addBoot says in an answer what to boot.
func (s *Server) addBoot(reply *dhcpv4.DHCPv4, c client, file string) {
	reply.ServerIPAddr = s.Address.AsSlice()
	class := "PXEClient"
	if c.http {
		class = "HTTPClient" // the firmware takes no other offer
	}
	reply.UpdateOption(dhcpv4.OptClassIdentifier(class))
	if !c.http && !c.ipxe {
		// PXE_DISCOVERY_CONTROL (6), bit 3: boot the file, ask for no boot server.
		reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, []byte{6, 1, 8, 255}))
	}
	reply.UpdateOption(dhcpv4.OptTFTPServerName(s.Address.String()))
	reply.UpdateOption(dhcpv4.OptBootFileName(file))
	if len(file) < 128 { // the size of the field
		reply.BootFileName = file
	}
}

// ignoredAfter is how many offers for one discovery are ignored by firmware that
// will never take one up: it repeats its discovery with the same number, while a
// machine that was heard asks on.
const ignoredAfter = 4

// count notices firmware that does not take up what it is offered.
func (s *Server) count(m *dhcpv4.DHCPv4, c client) {
	s.mu.Lock()
	a := s.asking[c.mac]
	if a == nil || a.transaction != m.TransactionID {
		if len(s.asking) > 10000 { // somebody invents addresses
			clear(s.asking)
		}
		a = &asking{transaction: m.TransactionID}
		s.asking[c.mac] = a
	}
	a.times++
	tell := a.times >= ignoredAfter && !a.goneOn && !a.told
	a.told = a.told || tell
	s.mu.Unlock()
	if !tell || s.Booting == nil {
		return
	}
	note := fmt.Sprintf("%s: its firmware takes up no offer (%d so far). ", c, a.times)
	if s.Rivals != nil && s.Rivals() == 0 {
		note += "No DHCP server gives it an address: start one, or firstlight serve --dhcp full"
	} else {
		note += fmt.Sprintf("Some ignore offers of a proxy: let your DHCP server name next server %s and the boot file (options 66 and 67), use --dhcp full, or boot from a USB stick (firstlight media usb)", s.Address)
	}
	s.Booting(c.who, note)
}
