package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/netconfig"
)

// linkState is one interface as ip(8) of the machine shows it.
type linkState struct {
	Name      string `json:"ifname"`
	Parent    string `json:"link"`
	Address   string `json:"address"`
	Permanent string `json:"permaddr"`
	MTU       int    `json:"mtu"`
	Master    string `json:"master"`
	State     string `json:"operstate"`
	Info      struct {
		Kind string `json:"info_kind"`
		Data struct {
			ID           uint16 `json:"id"`
			Mode         string `json:"mode"`
			MIIMon       int    `json:"miimon"`
			HashPolicy   string `json:"xmit_hash_policy"`
			LACPRate     string `json:"ad_lacp_rate"`
			Primary      string `json:"primary"`
			Active       string `json:"active_slave"`
			STP          int    `json:"stp_state"`
			ForwardDelay int    `json:"forward_delay"` // hundredths of a second
			VLANs        int    `json:"vlan_filtering"`
			AD           struct {
				Ports   int    `json:"num_ports"`
				Partner string `json:"partner_mac"`
			} `json:"ad_info"`
		} `json:"info_data"`
	} `json:"linkinfo"`
	Addresses []struct {
		Local netip.Addr `json:"local"`
		Bits  int        `json:"prefixlen"`
		Scope string     `json:"scope"`
	} `json:"addr_info"`
}

// routeState is one route of the machine.
type routeState struct {
	To       string     `json:"dst"`
	Via      netip.Addr `json:"gateway"`
	Dev      string     `json:"dev"`
	Protocol string     `json:"protocol"`
}

// portState is the VLANs of one port of a bridge.
type portState struct {
	Name  string `json:"ifname"`
	VLANs []struct {
		First uint16   `json:"vlan"`
		Last  uint16   `json:"vlanEnd"`
		Flags []string `json:"flags"`
	} `json:"vlans"`
}

// networkState is what has become of a machine's network.
type networkState struct {
	hostname string
	links    map[string]linkState
	ports    []portState
	routes   []routeState
	resolv   string // /etc/resolv.conf
	resolved string // resolvectl, where there is one
	failed   string // units
	// deaf says that the machine's programs hear of no name server that came by
	// DHCP, of which the plan warns.
	deaf bool
}

// readNetwork asks the machine.
func readNetwork(ctx context.Context, shell *lab.Shell) (networkState, error) {
	s := networkState{links: map[string]linkState{}}
	ask := func(into *string, command string) error {
		out, err := shell.Run(ctx, command)
		*into = strings.TrimSpace(out)
		return err
	}
	var links, ports, routes4, routes6 string
	for _, q := range []struct {
		into    *string
		command string
	}{
		{&s.hostname, "hostname"},
		{&links, "ip -j -d address show"},
		{&ports, "bridge -j -compressvlans vlan show"},
		{&routes4, "ip -j -4 route show"},
		{&routes6, "ip -j -6 route show"},
		{&s.resolv, "cat /etc/resolv.conf || true"},
		{&s.resolved, "if systemctl -q is-active systemd-resolved; then resolvectl dns; resolvectl domain; fi"},
		{&s.failed, "systemctl list-units --failed --plain --no-legend"},
	} {
		if err := ask(q.into, q.command); err != nil {
			return s, err
		}
	}
	var list []linkState
	if err := json.Unmarshal([]byte(links), &list); err != nil {
		return s, fmt.Errorf("reading %q: %w", links, err)
	}
	for _, l := range list {
		s.links[l.Name] = l
	}
	if err := json.Unmarshal([]byte(ports), &s.ports); err != nil {
		return s, fmt.Errorf("reading %q: %w", ports, err)
	}
	for _, text := range []string{routes4, routes6} {
		var some []routeState
		if text == "" {
			continue
		}
		if err := json.Unmarshal([]byte(text), &some); err != nil {
			return s, fmt.Errorf("reading %q: %w", text, err)
		}
		s.routes = append(s.routes, some...)
	}
	return s, nil
}

// against compares the state with the model, and names all differences.
func (s networkState) against(c netconfig.Config) []string {
	var all []string
	wrong := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if c.Hostname != "" && s.hostname != c.Hostname {
		wrong("the host is called %q, not %q", s.hostname, c.Hostname)
	}
	if s.failed != "" {
		wrong("units have failed: %s", s.failed)
	}
	for _, want := range c.Interfaces {
		got, there := s.links[want.Name]
		if !there {
			wrong("there is no %s", want.Name)
			continue
		}
		for _, text := range linkAgainst(got, want, c) {
			wrong("%s: %s", want.Name, text)
		}
		if want.Kind == netconfig.VLAN && want.MTU == 0 && got.MTU != s.links[want.Parent].MTU {
			wrong("%s: the MTU is %d, its parent's is %d", want.Name, got.MTU, s.links[want.Parent].MTU)
		}
	}
	all = append(append(all, s.portsAgainst(c)...), s.routesAgainst(c)...)
	return append(all, s.resolverAgainst(c)...)
}

// linkAgainst compares one interface.
func linkAgainst(got linkState, want netconfig.Interface, c netconfig.Config) []string {
	var all []string
	same := func(what string, got, want any) {
		if got != want {
			all = append(all, fmt.Sprintf("%s is %v, not %v", what, got, want))
		}
	}
	data := got.Info.Data
	kind := string(want.Kind)
	if want.Kind == netconfig.Ethernet {
		kind = ""
	}
	same("the kind", got.Info.Kind, kind)
	same("the state", got.State, "UP")
	same("the master", got.Master, want.Master)
	if !want.MAC.IsZero() {
		mac := want.MAC
		if n := slices.IndexFunc(c.Interfaces, func(m netconfig.Interface) bool { return m.Name == want.Master && m.Kind == netconfig.Bond }); n >= 0 {
			if got.Permanent != "" { // shown where it differs from the current one
				same("the permanent MAC address", got.Permanent, mac.String())
			}
			mac = c.Interfaces[n].MAC
		}
		same("the MAC address", got.Address, mac.String())
	}
	if want.MTU != 0 {
		same("the MTU", got.MTU, want.MTU)
	}
	switch want.Kind {
	case netconfig.VLAN:
		same("the VLAN", data.ID, want.VLANID)
		same("the parent", got.Parent, want.Parent)
	case netconfig.Bond:
		same("the mode", data.Mode, want.Bond.Mode)
		same("miimon", data.MIIMon, want.Bond.MIIMonMillis)
		same("the primary", data.Primary, want.Bond.Primary)
		if want.Bond.Mode == "802.3ad" {
			same("the hash policy", data.HashPolicy, want.Bond.HashPolicy)
			same("the LACP rate", data.LACPRate, want.Bond.LACPRate)
			same("the number of aggregated ports", data.AD.Ports, len(want.Ports))
			if data.AD.Partner == "" || data.AD.Partner == "00:00:00:00:00:00" {
				all = append(all, "there is no LACP partner")
			}
		} else {
			same("the active port", data.Active, want.Bond.Primary)
		}
	case netconfig.Bridge:
		same("STP", data.STP != 0, want.Bridge.STP)
		if want.Bridge.STP { // else it has no meaning, and NetworkManager leaves the kernel's
			same("the forward delay", data.ForwardDelay, 100*want.Bridge.ForwardDelaySeconds)
		}
		same("VLAN filtering", data.VLANs != 0, want.Bridge.VLANAware)
	}
	var global []netip.Prefix
	for _, a := range got.Addresses {
		if a.Scope == "global" {
			global = append(global, netip.PrefixFrom(a.Local, a.Bits))
		}
		if a.Scope == "link" && want.Master != "" {
			all = append(all, fmt.Sprintf("a port has the address %s", a.Local))
		}
	}
	if want.DHCP4 != slices.ContainsFunc(global, func(p netip.Prefix) bool {
		return p.Addr().Is4() && !slices.Contains(want.Addresses, p)
	}) {
		all = append(all, fmt.Sprintf("DHCPv4 is wanted: %t, the addresses are %v", want.DHCP4, global))
	}
	if want.AcceptRA != slices.ContainsFunc(global, func(p netip.Prefix) bool {
		return p.Addr().Is6() && !slices.Contains(want.Addresses, p)
	}) {
		all = append(all, fmt.Sprintf("router advertisements are wanted: %t, the addresses are %v", want.AcceptRA, global))
	}
	for _, a := range want.Addresses {
		if !slices.Contains(global, a) {
			all = append(all, fmt.Sprintf("it has %v, not %s", global, a))
		}
	}
	return all
}

// portsAgainst looks at the ports of bridges that know VLANs: each carries all
// VLANs with tags, and untagged frames are in the first.
func (s networkState) portsAgainst(c netconfig.Config) []string {
	var all []string
	for _, bridge := range c.Interfaces {
		if bridge.Bridge == nil || !bridge.Bridge.VLANAware {
			continue
		}
		for _, name := range bridge.Ports {
			tagged, untagged := false, false
			for _, p := range s.ports {
				for _, v := range p.VLANs {
					if p.Name == name {
						tagged = tagged || v.First <= 2 && v.Last == 4094
						untagged = untagged || v.First == 1 && slices.Contains(v.Flags, "PVID")
					}
				}
			}
			if !tagged || !untagged {
				all = append(all, fmt.Sprintf("%s does not carry all VLANs into %s: %+v", name, bridge.Name, s.ports))
			}
		}
	}
	return all
}

// routesAgainst compares the routes: those that are wanted are there, and there
// is no other default route.
func (s networkState) routesAgainst(c netconfig.Config) []string {
	var all []string
	leased := false
	for _, i := range c.Interfaces {
		leased = leased || i.DHCP4 || i.AcceptRA
		has := func(to string, via netip.Addr) {
			if !slices.ContainsFunc(s.routes, func(r routeState) bool { return r.To == to && r.Via == via && r.Dev == i.Name }) {
				all = append(all, fmt.Sprintf("there is no route to %s via %v on %s: %+v", to, via, i.Name, s.routes))
			}
		}
		for _, gateway := range i.Gateways() {
			has("default", gateway)
		}
		for _, r := range i.Routes {
			if r.IsDefault() {
				continue
			}
			to := r.To.String()
			if r.To.IsSingleIP() { // ip(8) shows no prefix length then
				to = r.To.Addr().String()
			}
			has(to, r.Via)
		}
		if i.DHCP4 {
			has("default", netip.MustParseAddr("192.168.77.1"))
		}
	}
	for _, r := range s.routes {
		wanted := slices.ContainsFunc(c.Interfaces, func(i netconfig.Interface) bool { return slices.Contains(i.Gateways(), r.Via) })
		if r.To == "default" && !wanted && !leased {
			all = append(all, fmt.Sprintf("there is a default route that nobody wants: %+v", r))
		}
	}
	return all
}

// resolverAgainst looks for the name servers and search domains where programs
// of the machine look.
func (s networkState) resolverAgainst(c netconfig.Config) []string {
	var all []string
	where := s.resolv
	if s.resolved != "" {
		where = s.resolved
		if !strings.Contains(s.resolv, "127.0.0.53") {
			all = append(all, "resolv.conf does not lead to systemd-resolved: "+s.resolv)
		}
	}
	words := strings.Fields(where)
	servers := c.DNS
	if !s.deaf && slices.ContainsFunc(c.Interfaces, func(i netconfig.Interface) bool { return i.DHCP4 }) {
		servers = append(slices.Clone(servers), netip.MustParseAddr("192.168.77.53"))
	}
	for _, server := range servers {
		if !slices.Contains(words, server.String()) {
			all = append(all, fmt.Sprintf("no program would ask the name server %s: %q", server, where))
		}
	}
	for _, domain := range c.Search {
		if !slices.Contains(words, domain) {
			all = append(all, fmt.Sprintf("no program would search the domain %s: %q", domain, where))
		}
	}
	return all
}
