package netswitch_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/netswitch"
)

// The stations of one VLAN see each other, those of different ones do not; the
// switch has its LACP group, and knows of no partner.
func TestSwitch(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	image := filepath.Join(t.TempDir(), "initramfs")
	if err := netswitch.Build(ctx, "../..", "../../build/kernel/amd64", image); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sw") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	prefix := netip.MustParsePrefix
	s, err := netswitch.Start(ctx, netswitch.Options{
		Kernel: "../../build/kernel/amd64/vmlinuz", Image: image, Dir: dir, Log: filepath.Join(dir, "log"),
		Network: netswitch.Network{
			Ports: []netswitch.Port{{Untagged: 1, LossPercent: 5}, {Tagged: []uint16{100}, Group: "lag"}, {Tagged: []uint16{100}, Group: "lag"}},
			Stations: []netswitch.Station{
				{Name: "router", VLAN: 1, Addresses: []netip.Prefix{prefix("192.168.1.1/24"), prefix("2001:db8::1/64")},
					DHCP:  &netswitch.DHCP{Address: prefix("192.168.1.2/24"), Address6: netip.MustParseAddr("2001:db8::2")},
					RA:    &netswitch.RA{},
					Names: map[string]netip.Addr{"a.test": netip.MustParseAddr("192.168.1.9")}, Files: map[string][]byte{"x": []byte("y")}},
				{Name: "beside", VLAN: 1, Addresses: []netip.Prefix{prefix("192.168.1.3/24"), prefix("2001:db8::3/64")}},
				{Name: "other", VLAN: 100, Addresses: []netip.Prefix{prefix("192.168.1.4/24")}},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	for _, test := range []struct {
		probe netswitch.Probe
		want  bool
	}{
		{netswitch.Probe{Station: "beside", Kind: netswitch.ProbeARP, Target: "192.168.1.1"}, true},
		{netswitch.Probe{Station: "beside", Kind: netswitch.ProbePing, Target: "192.168.1.1", Size: 1500}, true},
		{netswitch.Probe{Station: "beside", Kind: netswitch.ProbePing, Target: "2001:db8::1"}, true},
		{netswitch.Probe{Station: "beside", Kind: netswitch.ProbePing, Target: "192.168.1.1", Size: 1501}, false},
		{netswitch.Probe{Station: "other", Kind: netswitch.ProbeARP, Target: "192.168.1.1"}, false},
		{netswitch.Probe{Station: "other", Kind: netswitch.ProbePing, Target: "192.168.1.1"}, false},
	} {
		if a, err := s.Probe(ctx, test.probe); err != nil || a.OK != test.want {
			t.Errorf("%+v: %+v, %v", test.probe, a, err)
		}
	}
	state, err := s.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(state.Ports) != 3 || !state.Ports[0].Carrier || !strings.Contains(state.Groups["lag"], "Partner Mac Address: 00:00:00:00:00:00") {
		t.Errorf("state: %+v", state)
	}
	if err := s.Plug(ctx, 0, false); err != nil {
		t.Fatal(err)
	}
	for {
		state, err := s.State(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !state.Ports[0].Carrier {
			break
		}
		time.Sleep(100 * time.Millisecond) // until ctx ends
	}
}
