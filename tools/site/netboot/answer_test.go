package netboot

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/tools/site"
)

var machineMAC = netconfig.MAC{0x52, 0x54, 0, 0, 0, 1}

// newSite is a site with the machine web1, whose address is 192.0.2.50.
func newSite(t *testing.T) *site.Site {
	t.Helper()
	s, err := site.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"config.json": `{"Machine": {"Hostname": "web1", "HostMacAddress": "52:54:00:00:00:01", "HostIpAddress": "192.0.2.50"},
			"Subnets": [{"Id": "lan", "IpGateway": "192.0.2.1", "IpMask": "255.255.255.0"}]}`,
		"storage-layout.json": `{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/"}]}`, "imagename": "debian/12\n",
	} {
		file := filepath.Join(s.Dir(), "machines", "web1", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func install(t *testing.T, s *site.Site) {
	t.Helper()
	if err := s.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(site.Identity{MACs: []netconfig.MAC{machineMAC}}, "boot-1", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Told("web1", progress.Snapshot{Format: 1, Phases: []progress.PhaseStatus{{Phase: progress.Finish, State: progress.Done}}}); err != nil {
		t.Fatal(err)
	}
}

type seenBooting struct{ notes []string }

// newServer has every file to boot, unless media says otherwise.
func newServer(t *testing.T, s *site.Site, mode Mode, media func(arch, file string) bool) (*Server, *seenBooting) {
	t.Helper()
	if media == nil {
		media = func(string, string) bool { return true }
	}
	seen := &seenBooting{}
	server, err := New(Options{
		Site: s, Mode: mode, Interface: "eth0", Address: netip.MustParseAddr("192.0.2.1"), HTTPPort: 8080, Medium: media,
		Subnets: []site.Subnet{{Network: netip.MustParsePrefix("192.0.2.0/24"), First: netip.MustParseAddr("192.0.2.100"), Last: netip.MustParseAddr("192.0.2.101"), Router: netip.MustParseAddr("192.0.2.254"), Lease: time.Hour}},
		Booting: func(_ site.Identity, note string) { seen.notes = append(seen.notes, note) },
		Rivals:  func() int { return 1 }, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return server, seen
}

func packet(t *testing.T, mac netconfig.MAC, kind dhcpv4.MessageType, options ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(net.HardwareAddr(mac[:])), dhcpv4.WithMessageType(kind)}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func pxe(arch iana.Arch) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) {
		class := "PXEClient:Arch:00000:UNDI:002001"
		if arch == iana.EFI_X86_64_HTTP || arch == iana.EFI_ARM64_HTTP {
			class = "HTTPClient:Arch:00016:UNDI:003001"
		}
		m.UpdateOption(dhcpv4.OptClassIdentifier(class))
		m.UpdateOption(dhcpv4.OptClientArch(arch))
	}
}

func ipxe(m *dhcpv4.DHCPv4) {
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))
}

// TestLoaders: what each kind of firmware is told to boot.
func TestLoaders(t *testing.T) {
	s := newSite(t)
	only := func(names ...string) func(string, string) bool {
		return func(arch, file string) bool {
			for _, n := range names {
				if n == arch+"/"+file {
					return true
				}
			}
			return false
		}
	}
	for name, c := range map[string]struct {
		options []dhcpv4.Modifier
		port    int
		kind    dhcpv4.MessageType
		media   func(string, string) bool
		file    string
		class   string
	}{
		"iPXE, BIOS":           {options: []dhcpv4.Modifier{pxe(iana.INTEL_X86PC), ipxe}, file: "http://192.0.2.1:8080/v1/ipxe/52-54-00-00-00-01?arch=amd64&uuid="},
		"iPXE, arm64":          {options: []dhcpv4.Modifier{pxe(iana.EFI_ARM64), ipxe}, file: "http://192.0.2.1:8080/v1/ipxe/52-54-00-00-00-01?arch=arm64&uuid="},
		"BIOS":                 {options: []dhcpv4.Modifier{pxe(iana.INTEL_X86PC)}, file: "undionly.kpxe"},
		"BIOS, pxelinux":       {options: []dhcpv4.Modifier{pxe(iana.INTEL_X86PC)}, media: only("amd64/lpxelinux.0"), file: "lpxelinux.0"},
		"UEFI HTTP":            {options: []dhcpv4.Modifier{pxe(iana.EFI_X86_64_HTTP)}, file: "http://192.0.2.1:8080/v1/efi/52-54-00-00-00-01/amd64/firstlight.efi", class: "HTTPClient"},
		"UEFI PXE, offer":      {options: []dhcpv4.Modifier{pxe(iana.EFI_X86_64)}, file: ""},
		"UEFI PXE, port 4011":  {options: []dhcpv4.Modifier{pxe(iana.EFI_X86_64)}, port: bootPort, kind: dhcpv4.MessageTypeRequest, file: "efi/52-54-00-00-00-01/amd64/firstlight.efi"},
		"UEFI PXE, type 9":     {options: []dhcpv4.Modifier{pxe(iana.EFI_BC)}, port: bootPort, kind: dhcpv4.MessageTypeRequest, file: "efi/52-54-00-00-00-01/amd64/firstlight.efi"},
		"UEFI PXE, arm64 4011": {options: []dhcpv4.Modifier{pxe(iana.EFI_ARM64)}, port: bootPort, kind: dhcpv4.MessageTypeRequest, file: "efi/52-54-00-00-00-01/arm64/firstlight.efi"},
	} {
		if c.port == 0 {
			c.port, c.kind = serverPort, dhcpv4.MessageTypeDiscover
		}
		if c.class == "" {
			c.class = "PXEClient"
		}
		server, seen := newServer(t, s, Proxy, c.media)
		answer := server.Answer(packet(t, machineMAC, c.kind, c.options...), c.port)
		if answer == nil {
			t.Errorf("%s: no answer", name)
			continue
		}
		if answer.BootFileNameOption() != c.file || answer.BootFileName != c.file || answer.ClassIdentifier() != c.class || !answer.YourIPAddr.IsUnspecified() || answer.ServerIPAddr.String() != "192.0.2.1" {
			t.Errorf("%s: %s", name, answer.Summary())
		}
		if len(seen.notes) == 0 {
			t.Errorf("%s: nobody was told that it boots", name)
		}
	}
}

// TestSilence: to whom a proxy says nothing.
func TestSilence(t *testing.T) {
	s := newSite(t)
	server, seen := newServer(t, s, Proxy, func(string, string) bool { return false })
	if answer := server.Answer(packet(t, machineMAC, dhcpv4.MessageTypeDiscover, pxe(iana.INTEL_X86PC)), serverPort); answer != nil || !strings.Contains(strings.Join(seen.notes, ""), "package ipxe or pxelinux") {
		t.Errorf("nothing to boot: %v, %q", answer, seen.notes)
	}
	server, _ = newServer(t, s, Proxy, nil)
	class := func(text string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptClassIdentifier(text)) }
	for name, m := range map[string]*dhcpv4.DHCPv4{
		"a laptop":         packet(t, machineMAC, dhcpv4.MessageTypeDiscover, class("MSFT 5.0")),
		"no class":         packet(t, machineMAC, dhcpv4.MessageTypeDiscover),
		"our installer":    packet(t, machineMAC, dhcpv4.MessageTypeDiscover, class(dhcp.VendorClass)),
		"a printer":        packet(t, machineMAC, dhcpv4.MessageTypeInform, class("udhcp 1.2")),
		"another's answer": packet(t, machineMAC, dhcpv4.MessageTypeOffer, pxe(iana.INTEL_X86PC), func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply }),
		"a 32-bit UEFI":    packet(t, machineMAC, dhcpv4.MessageTypeDiscover, pxe(iana.EFI_IA32)),
	} {
		if answer := server.Answer(m, serverPort); answer != nil {
			t.Errorf("%s is answered: %s", name, answer.Summary())
		}
	}
	install(t, s)
	for _, port := range []int{serverPort, bootPort} {
		for _, kind := range []dhcpv4.MessageType{dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest} {
			for _, options := range [][]dhcpv4.Modifier{{pxe(iana.INTEL_X86PC)}, {pxe(iana.EFI_X86_64)}, {pxe(iana.EFI_X86_64_HTTP)}, {pxe(iana.INTEL_X86PC), ipxe}} {
				if answer := server.Answer(packet(t, machineMAC, kind, options...), port); answer != nil {
					t.Errorf("an installed machine is offered something to boot: %s", answer.Summary())
				}
			}
		}
	}
}

// TestIgnoringFirmware: what repeats its discovery and never goes on is told, with
// what to do; what goes on is not.
func TestIgnoringFirmware(t *testing.T) {
	s := newSite(t)
	server, seen := newServer(t, s, Proxy, nil)
	same := packet(t, machineMAC, dhcpv4.MessageTypeDiscover, pxe(iana.EFI_X86_64))
	for range ignoredAfter + 2 {
		server.Answer(same, serverPort)
	}
	told := 0
	for _, note := range seen.notes {
		if strings.Contains(note, "takes up no offer") && strings.Contains(note, "options 66 and 67") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times: %q", told, seen.notes)
	}
	server, seen = newServer(t, s, Proxy, nil)
	server.Answer(same, serverPort)
	server.Answer(packet(t, machineMAC, dhcpv4.MessageTypeRequest, pxe(iana.EFI_X86_64)), serverPort) // it takes up the other server's
	for range ignoredAfter + 2 {
		server.Answer(same, serverPort)
	}
	if strings.Contains(strings.Join(seen.notes, " "), "takes up no offer") {
		t.Errorf("it has gone on: %q", seen.notes)
	}
}

// TestFull is the exchange of RFC 2131 with pool and reservation.
func TestFull(t *testing.T) {
	s := newSite(t)
	server, _ := newServer(t, s, Full, nil)
	other := func(n byte) netconfig.MAC { return netconfig.MAC{0x52, 0x54, 0, 0, 9, n} }
	lease := func(mac netconfig.MAC, want string) {
		t.Helper()
		offer := server.Answer(packet(t, mac, dhcpv4.MessageTypeDiscover), serverPort)
		if offer == nil || offer.YourIPAddr.String() != want {
			t.Fatalf("%s is offered %v, want %s", mac, offer, want)
		}
		ack := server.Answer(packet(t, mac, dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{192, 0, 2, 1}))), serverPort)
		if ack == nil || ack.MessageType() != dhcpv4.MessageTypeAck || ack.YourIPAddr.String() != want || ack.IPAddressLeaseTime(0) != time.Hour || ack.Router()[0].String() != "192.0.2.254" {
			t.Fatalf("%s is given %v", mac, ack)
		}
	}
	lease(machineMAC, "192.0.2.50") // reserved by config.json
	lease(other(1), "192.0.2.100")
	lease(other(2), "192.0.2.101")
	lease(other(1), "192.0.2.100") // the same again
	if offer := server.Answer(packet(t, other(3), dhcpv4.MessageTypeDiscover), serverPort); offer != nil {
		t.Errorf("the pool is used up, and there is %s", offer.YourIPAddr)
	}
	// What was given is known after a restart.
	server, _ = newServer(t, s, Full, nil)
	if offer := server.Answer(packet(t, other(3), dhcpv4.MessageTypeDiscover), serverPort); offer != nil {
		t.Errorf("after a restart %s is given twice", offer.YourIPAddr)
	}
	// Another's address is refused, another server's client left alone.
	nak := server.Answer(packet(t, other(3), dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{192, 0, 2, 100}))), serverPort)
	if nak == nil || nak.MessageType() != dhcpv4.MessageTypeNak {
		t.Errorf("another's address: %v", nak)
	}
	if a := server.Answer(packet(t, other(3), dhcpv4.MessageTypeRequest, dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{192, 0, 2, 9}))), serverPort); a != nil {
		t.Errorf("the client of another server is answered: %v", a)
	}
	server.Answer(packet(t, other(2), dhcpv4.MessageTypeRelease, dhcpv4.WithClientIP(net.IP{192, 0, 2, 101})), serverPort)
	lease(other(3), "192.0.2.101")
	// Somebody else uses it: it is left alone.
	server.Answer(packet(t, other(3), dhcpv4.MessageTypeDecline, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{192, 0, 2, 101}))), serverPort)
	if offer := server.Answer(packet(t, other(3), dhcpv4.MessageTypeDiscover), serverPort); offer != nil {
		t.Errorf("an address that somebody uses is offered: %s", offer.YourIPAddr)
	}
	// A machine that boots gets both in one answer; when it is installed, the
	// address alone.
	boot := server.Answer(packet(t, machineMAC, dhcpv4.MessageTypeDiscover, pxe(iana.EFI_X86_64)), serverPort)
	if boot == nil || boot.YourIPAddr.String() != "192.0.2.50" || !strings.HasPrefix(boot.BootFileName, "efi/") {
		t.Errorf("a machine that boots: %v", boot)
	}
	install(t, s)
	boot = server.Answer(packet(t, machineMAC, dhcpv4.MessageTypeDiscover, pxe(iana.EFI_X86_64)), serverPort)
	if boot == nil || boot.YourIPAddr.String() != "192.0.2.50" || boot.BootFileName != "" || boot.BootFileNameOption() != "" {
		t.Errorf("an installed machine: %v", boot)
	}
}

// TestPoolOverEverything: a pool that is drawn over the whole network gives nobody
// the addresses of router, name server, this server, or of all.
func TestPoolOverEverything(t *testing.T) {
	server, _ := newServer(t, newSite(t), Full, nil)
	subnet := &server.leases.subnets[0]
	subnet.Network = netip.MustParsePrefix("192.0.2.0/29")
	subnet.First, subnet.Last = netip.MustParseAddr("192.0.2.0"), netip.MustParseAddr("192.0.2.7")
	subnet.Router, subnet.DNS = netip.MustParseAddr("192.0.2.2"), []netip.Addr{netip.MustParseAddr("192.0.2.3")}
	for n, want := range []string{"192.0.2.4", "192.0.2.5", "192.0.2.6", ""} {
		offer := server.Answer(packet(t, netconfig.MAC{0x52, 0x54, 0, 0, 9, byte(n)}, dhcpv4.MessageTypeDiscover, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{192, 0, 2, 2}))), serverPort)
		if got := ""; offer != nil {
			if got = offer.YourIPAddr.String(); got != want {
				t.Errorf("offered %s, want %q", got, want)
			}
		} else if want != "" {
			t.Errorf("nothing is offered, want %s", want)
		}
	}
}

// TestOnlyItsOwnLease: a machine gives up what it has, and nothing of others; who
// only asks keeps what it has.
func TestOnlyItsOwnLease(t *testing.T) {
	server, _ := newServer(t, newSite(t), Full, nil)
	now := time.Now()
	server.Now = func() time.Time { return now }
	server.leases.now = server.Now
	holder, other := netconfig.MAC{0x52, 0x54, 0, 0, 9, 1}, netconfig.MAC{0x52, 0x54, 0, 0, 9, 2}
	hundred := dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{192, 0, 2, 100}))
	renewed := func() bool {
		ack := server.Answer(packet(t, holder, dhcpv4.MessageTypeRequest, hundred), serverPort)
		return ack != nil && ack.MessageType() == dhcpv4.MessageTypeAck
	}
	if !renewed() {
		t.Fatal("no lease")
	}
	server.Answer(packet(t, other, dhcpv4.MessageTypeDecline, hundred), serverPort)
	server.Answer(packet(t, other, dhcpv4.MessageTypeDecline, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.IP{203, 0, 113, 1}))), serverPort)
	if !renewed() || len(server.leases.given) != 1 {
		t.Errorf("another's word has cost a lease, or is kept: %v", server.leases.given)
	}
	server.Answer(packet(t, holder, dhcpv4.MessageTypeDiscover), serverPort)
	now = now.Add(30 * time.Minute) // of an hour
	if offer := server.Answer(packet(t, other, dhcpv4.MessageTypeDiscover, hundred), serverPort); offer == nil || offer.YourIPAddr.String() != "192.0.2.101" {
		t.Errorf("an address with a lease is given to another: %v", offer)
	}
}

func TestRelay(t *testing.T) {
	server, _ := newServer(t, newSite(t), Relay, nil)
	if a := server.Answer(packet(t, machineMAC, dhcpv4.MessageTypeDiscover, pxe(iana.INTEL_X86PC)), serverPort); a != nil {
		t.Errorf("what no relay has passed on is answered: %v", a)
	}
	if a := server.Answer(packet(t, machineMAC, dhcpv4.MessageTypeDiscover, dhcpv4.WithRelay(net.IP{192, 0, 2, 254})), serverPort); a == nil || a.YourIPAddr.String() != "192.0.2.50" || a.GatewayIPAddr.String() != "192.0.2.254" {
		t.Errorf("relayed: %v", a)
	}
	if a := server.Answer(packet(t, machineMAC, dhcpv4.MessageTypeDiscover, dhcpv4.WithRelay(net.IP{198, 51, 100, 1})), serverPort); a != nil {
		t.Errorf("from a network that we know nothing of: %v", a)
	}
}

func TestChoose(t *testing.T) {
	rival := []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	for _, c := range []struct {
		wanted Mode
		rivals []netip.Addr
		mode   Mode
		code   string
	}{
		{Auto, rival, Proxy, ""}, {Auto, nil, Proxy, ""}, {Proxy, nil, Proxy, ""}, {Proxy, rival, Proxy, ""},
		{Full, nil, Full, ""}, {Full, rival, Off, CodeRival}, {Relay, rival, Relay, ""}, {Off, rival, Off, ""},
	} {
		mode, _, err := Choose(c.wanted, c.rivals, "eth0")
		code := ""
		if err != nil {
			code = progress.Code(err)
		}
		if mode != c.mode || code != c.code {
			t.Errorf("%s with %d others: %s, %v", c.wanted, len(c.rivals), mode, err)
		}
	}
}

// TestConfigurationByTFTP: which names stand for files of a machine.
func TestConfigurationByTFTP(t *testing.T) {
	server := &TFTP{Site: newSite(t), Log: slog.New(slog.DiscardHandler), Config: func(who site.Identity, file string, _, _ netip.Addr) ([]byte, error) {
		return []byte(who.String() + " " + file), nil
	}}
	for name, want := range map[string]string{
		"52-54-00-00-00-01/config.json":           "52:54:00:00:00:01 config.json",
		`\52-54-00-00-00-01\steps\cable.sh`:       "52:54:00:00:00:01 steps/cable.sh",
		"52-54-00-00-00-01/machine.yaml":          "",
		"52-54-00-00-00-01/steps/../machine.yaml": "",
		"52-54-00-00-00-01/x/config.json":         "",
		"52-54-00-00-00-01/x/steps/cable.sh":      "",
		"../../etc/passwd":                        "",
		"no-such-serial/config.json":              "",
	} {
		content, _, err := server.open(name, netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("192.0.2.1"))
		if err != nil {
			if want != "" {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if got, err := io.ReadAll(content); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}
