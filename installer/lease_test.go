package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/storage"
)

// An installer whose configuration came with its medium sits on the bond and
// the VLAN that the new system will have, without its bridges.
func TestBeneath(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	mac := func(n byte) netconfig.MAC { return netconfig.MAC{2, 0, 0, 0, 0, n} }
	nic := func(n byte) netconfig.NIC {
		return netconfig.NIC{Name: "eth" + string('0'+rune(n)), MAC: mac(n), PermanentMAC: mac(n), Carrier: true}
	}
	subnet := netconfig.Subnet{ID: "prod", Gateway: addr("10.1.0.1"), Prefix: prefix("10.1.0.0/24"), VlanID: 120}
	describe := func(all []netconfig.Interface) (out []string) {
		for _, i := range all {
			text := i.Name + " " + string(i.Kind)
			for _, p := range append(slices.Clone(i.Ports), i.Parent, i.Master) {
				if p != "" {
					text += " " + p
				}
			}
			for _, a := range i.Addresses {
				text += " " + a.String()
			}
			out = append(out, text)
		}
		return out
	}
	for _, test := range []struct {
		name  string
		entry netconfig.Entry
		nics  []netconfig.NIC
		alter func(*netconfig.Subnet)
		want  []string
	}{
		{"a NIC", netconfig.Entry{IP: addr("10.1.0.2"), MAC: mac(1)}, []netconfig.NIC{nic(1)}, nil, []string{"eth1 ethernet 10.1.0.2/24"}},
		{"a bridge over a NIC", netconfig.Entry{IP: addr("10.1.0.2"), MAC: mac(1)}, []netconfig.NIC{nic(1)},
			func(s *netconfig.Subnet) { s.Manage = true }, []string{"eth1 ethernet 10.1.0.2/24"}},
		{"a VLAN", netconfig.Entry{IP: addr("10.1.0.2")}, []netconfig.NIC{nic(1)}, nil,
			[]string{"eth1 ethernet", "lan0.120 vlan eth1 10.1.0.2/24"}},
		{"a VLAN of a bond", netconfig.Entry{IP: addr("10.1.0.2")}, []netconfig.NIC{nic(1), nic(2)}, nil,
			[]string{"eth1 ethernet bond0", "eth2 ethernet bond0", "bond0 bond eth1 eth2", "bond0.120 vlan bond0 10.1.0.2/24"}},
	} {
		s := subnet
		if test.alter != nil {
			test.alter(&s)
		}
		c, err := netconfig.Resolve(netconfig.Spec{Entries: []netconfig.Entry{test.entry}, Subnets: []netconfig.Subnet{s}}, test.nics)
		if err != nil {
			t.Fatal(err)
		}
		n := slices.IndexFunc(c.Interfaces, func(i netconfig.Interface) bool { return len(i.Addresses) > 0 })
		got := beneath(c, c.Interfaces[n])
		if diff := cmp.Diff(test.want, describe(got)); diff != "" {
			t.Errorf("%s: %s", test.name, diff)
		}
		if top := got[len(got)-1]; top.Gateway != addr("10.1.0.1") {
			t.Errorf("%s: gateway %v", test.name, top.Gateway)
		}
	}
}

// What a server has said it will say again; only silence may end.
func TestMayWorkLater(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{netconfig.NewError(dhcp.CodeNoLease, "no lease"), true},
		{netconfig.NewError(fetch.CodeNoAnswer, "silent"), true},
		{netconfig.NewError("CFG-101", "no config.json"), false},
		{errors.New("something else"), false},
	} {
		if got := mayWorkLater(test.err); got != test.want {
			t.Errorf("%v: %v", test.err, got)
		}
	}
	if got := oneLine(errors.Join(errors.New("a"), errors.New("b"))); strings.Contains(got, "\n") {
		t.Errorf("%q", got)
	}
}

// An image server that does not answer is a reason to try another lease, where
// there is one; an only one is kept, and what is wrong is said later.
func TestCheckSource(t *testing.T) {
	for _, test := range []struct {
		name    string
		rival   func(context.Context) bool
		refused bool
	}{
		{"no lease was searched for", nil, false},
		{"an only lease", func(context.Context) bool { return false }, false},
		{"another lease", func(context.Context) bool { return true }, true},
	} {
		i, log := testInstallation(t, "-imageServerHostname=127.0.0.1:1")
		i.env.trust = trustIn(t.TempDir())
		if err := i.checkSource(t.Context(), attempt{rival: test.rival}); (err != nil) != test.refused {
			t.Errorf("%s: %v\n%s", test.name, err, log)
		}
	}
}

// What needs no image server is not refused because none is named.
func TestCheckSourceOfAWipe(t *testing.T) {
	for name, ask := range map[string]config.Install{"wipe": {Wipe: storage.EraseDiscard}, "rescue": {Rescue: true}} {
		i, log := testInstallation(t)
		i.env.trust = trustIn(t.TempDir())
		i.config.Install = ask
		if err := i.checkSource(t.Context(), attempt{rival: func(context.Context) bool { return true }}); err != nil {
			t.Errorf("%s: %v\n%s", name, err, log)
		}
	}
}
