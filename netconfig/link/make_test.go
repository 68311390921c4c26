package link_test

import (
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/link"
)

// A bridge over a NIC that is found by its MAC address and renamed, with
// addresses and routes of both families; twice, as a restart of the installer
// does it. Bonds and VLANs are not in the kernel that tests run on: they are
// tried in machines of their own.
func TestMakeABridge(t *testing.T) {
	if !inside(t) {
		return
	}
	run(t, "ip", "link", "add", "name", "eth7", "address", "52:54:00:00:00:07", "type", "veth", "peer", "name", "peer7")
	run(t, "ip", "link", "set", "peer7", "up")
	mac := netconfig.MAC{0x52, 0x54, 0, 0, 0, 7}
	via := netip.MustParseAddr
	c := netconfig.Config{Interfaces: []netconfig.Interface{
		{Name: "lan0", Kind: netconfig.Ethernet, NIC: "lan0", PermanentMAC: mac, Master: "br0", MTU: 1400},
		{Name: "br0", Kind: netconfig.Bridge, Ports: []string{"lan0"}, Bridge: &netconfig.BridgeOptions{},
			Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.1.2/24"), netip.MustParsePrefix("2001:db8::2/64")},
			Gateway:   via("192.168.1.1"),
			Routes: []netconfig.Route{
				{To: netip.MustParsePrefix("::/0"), Via: via("2001:db8::1")},
				{To: netip.MustParsePrefix("10.0.0.0/8"), Via: via("192.168.1.254")},
				{To: netip.MustParsePrefix("192.0.2.0/24")},
			}},
	}}
	for range 2 {
		if err := link.Make(c); err != nil {
			t.Fatal(err)
		}
	}
	state := run(t, "ip", "-d", "address") + run(t, "ip", "route") + run(t, "ip", "-6", "route")
	for _, want := range []string{
		"lan0@peer7", "mtu 1400", "master br0", "forward_delay 0 ", "192.168.1.2/24", "2001:db8::2/64",
		"default via 192.168.1.1 dev br0 proto static", "default via 2001:db8::1 dev br0", "10.0.0.0/8 via 192.168.1.254", "192.0.2.0/24 dev br0",
	} {
		if !strings.Contains(state, want) {
			t.Errorf("no %q in\n%s", want, state)
		}
	}
	c.Interfaces[0].PermanentMAC[5]++
	var coded *netconfig.Error
	if err := link.Make(c); !errors.As(err, &coded) || coded.Code() != "NET-006" || !strings.Contains(err.Error(), "52:54:00:00:00:07") {
		t.Errorf("a NIC that is not there: %v", err)
	}
	if exec.Command("ip", "link", "show", "br0").Run() != nil {
		t.Error("br0 is gone")
	}
}
