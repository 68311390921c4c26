package plan

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
)

// The network is tried unless it is the installer's own lease, or where the
// site says otherwise; with -skipNetwork there is nothing to try.
func TestProof(t *testing.T) {
	yes, no := true, false
	for _, test := range []struct {
		name     string
		change   func(*config.Config, *inventory.Document)
		skip     []Skip
		segments int
		all      bool
	}{
		{"its own lease", func(*config.Config, *inventory.Document) {}, nil, 0, false},
		{"its own lease, and asked for", func(c *config.Config, _ *inventory.Document) { c.Install.ProveNetwork = &yes }, nil, 1, true},
		{"another address", func(_ *config.Config, m *inventory.Document) {
			m.NICs[0].Address = netip.MustParsePrefix("192.168.1.77/24")
		}, nil, 1, false},
		{"another address, and not wanted", func(c *config.Config, m *inventory.Document) {
			m.NICs[0].Address = netip.MustParsePrefix("192.168.1.77/24")
			c.Install.ProveNetwork = &no
		}, nil, 0, false},
		{"somebody else's network", func(c *config.Config, _ *inventory.Document) { c.Install.ProveNetwork = &yes }, []Skip{SkipNetwork}, 0, false},
	} {
		c, m := siteConfig(), machine()
		test.change(&c, &m)
		p, err := New(c, m, debian(t), test.skip...)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if len(p.Network.Prove) != test.segments || p.Network.ProveAll != test.all {
			t.Errorf("%s: %+v, all %v", test.name, p.Network.Prove, p.Network.ProveAll)
		}
		if said := strings.Contains(p.Text(), "before any change: via eth0"); said != (test.segments > 0) {
			t.Errorf("%s: the text says it: %v\n%s", test.name, said, p.Text())
		}
	}
}
