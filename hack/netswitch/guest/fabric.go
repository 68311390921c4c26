package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/netswitch"
)

const (
	bridgeName = "sw"
	jumbo      = 9000 // bytes: MTU of everything that is not told otherwise
)

// fabric is the switch: a bridge that filters VLANs, its ports, and the
// stations.
type fabric struct {
	mu       sync.Mutex
	bridge   netlink.Link
	ports    []netswitch.Port
	stations map[string]*station
	leases   map[string]int
	offers   map[string]int
}

func newFabric() (*fabric, error) {
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name, bridge.MTU = bridgeName, jumbo
	on, none := true, uint16(0)
	bridge.VlanFiltering, bridge.VlanDefaultPVID = &on, &none
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("making the bridge: %w", err)
	}
	if err := quiet(bridgeName); err != nil {
		return nil, err
	}
	return &fabric{bridge: bridge, stations: map[string]*station{}, leases: map[string]int{}, offers: map[string]int{}}, netlink.LinkSetUp(bridge)
}

// quiet keeps the kernel from speaking IPv6 on an interface of the switch. With
// an MTU below 1280 it does not anyway.
func quiet(name string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"), []byte("1"), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// nicName is that of the NIC of port n: the ports come after the uplink.
func nicName(n int) string { return fmt.Sprintf("eth%d", n+1) }

// setUp makes everything.
func (f *fabric) setUp(wanted netswitch.Network) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ports != nil {
		return fmt.Errorf("the switch is set up already")
	}
	f.ports = slices.Clone(wanted.Ports)
	groups := map[string]netlink.Link{}
	for n, port := range f.ports {
		if err := f.addPort(n, port, groups); err != nil {
			return fmt.Errorf("port %d: %w", n, err)
		}
	}
	for _, s := range wanted.Stations {
		made, err := f.newStation(s)
		if err != nil {
			return fmt.Errorf("station %s: %w", s.Name, err)
		}
		f.stations[s.Name] = made
	}
	for n := range f.ports {
		go f.announce(n)
	}
	return nil
}

// addPort joins a NIC to the bridge, or to its group, which joins the bridge.
func (f *fabric) addPort(n int, port netswitch.Port, groups map[string]netlink.Link) error {
	nic, err := netlink.LinkByName(nicName(n))
	if err != nil {
		return err
	}
	if err := quiet(nicName(n)); err != nil {
		return err
	}
	if port.Group == "" {
		if err := f.join(nic, port); err != nil {
			return err
		}
		return f.shape(nic, port)
	}
	group, there := groups[port.Group]
	if !there {
		bond := netlink.NewLinkBond(netlink.NewLinkAttrs())
		bond.Name, bond.Mode, bond.Miimon = port.Group, netlink.BOND_MODE_802_3AD, 100
		bond.LacpRate, bond.XmitHashPolicy = netlink.BOND_LACP_RATE_FAST, netlink.BOND_XMIT_HASH_POLICY_LAYER3_4
		if err := netlink.LinkAdd(bond); err != nil {
			return err
		}
		if err := quiet(port.Group); err != nil {
			return err
		}
		group, groups[port.Group] = bond, bond
		if err := f.join(bond, port); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetDown(nic); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(nic, group); err != nil {
		return err
	}
	return f.shape(nic, port)
}

// join makes a link a port of the bridge, in the port's VLANs.
func (f *fabric) join(link netlink.Link, port netswitch.Port) error {
	if err := netlink.LinkSetMTU(link, mtu(port.MTU)); err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(link, f.bridge); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	return f.vlans(link, port)
}

// vlans sets the VLANs of a port of the bridge, in place of those that it had.
func (f *fabric) vlans(link netlink.Link, port netswitch.Port) error {
	all, err := netlink.BridgeVlanList()
	if err != nil {
		return err
	}
	for _, had := range all[int32(link.Attrs().Index)] {
		if err := netlink.BridgeVlanDel(link, had.Vid, false, false, false, true); err != nil {
			return err
		}
	}
	if v := port.Untagged; v != 0 {
		if err := netlink.BridgeVlanAdd(link, v, true, true, false, true); err != nil {
			return err
		}
	}
	for _, v := range port.Tagged {
		if err := netlink.BridgeVlanAdd(link, v, false, false, false, true); err != nil {
			return err
		}
	}
	return nil
}

// shape is what a port does to each frame, whatever its VLAN.
func (f *fabric) shape(nic netlink.Link, port netswitch.Port) error {
	if err := netlink.LinkSetMTU(nic, mtu(port.MTU)); err != nil {
		return err
	}
	if err := lose(nic, port.LossPercent); err != nil {
		return fmt.Errorf("losing frames: %w", err)
	}
	if port.Blocked {
		// The virtual machine at the other end of the cable sees a carrier all
		// the same: that is the emulator's.
		return netlink.LinkSetDown(nic)
	}
	return netlink.LinkSetUp(nic)
}

func mtu(wanted int) int {
	if wanted == 0 {
		return jumbo
	}
	return wanted
}

// changePort sets a port anew. Its group stays.
func (f *fabric) changePort(n int, port netswitch.Port) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < 0 || n >= len(f.ports) || port.Group != f.ports[n].Group {
		return fmt.Errorf("there is no port %d in the group %q", n, port.Group)
	}
	f.ports[n] = port
	nic, err := netlink.LinkByName(nicName(n))
	if err != nil {
		return err
	}
	inBridge := nic
	if port.Group != "" {
		if inBridge, err = netlink.LinkByName(port.Group); err != nil {
			return err
		}
	}
	if err := f.vlans(inBridge, port); err != nil {
		return err
	}
	return f.shape(nic, port)
}

// lose drops a share of the frames, going out by netem (tc-netem(8)) on the
// NIC and coming in by netem on an ifb that they are led through.
func lose(nic netlink.Link, percent float32) error {
	name := "ifb" + nic.Attrs().Name
	if old, err := netlink.LinkByName(name); err == nil {
		if err := netlink.LinkDel(old); err != nil {
			return err
		}
	}
	qdiscs, err := netlink.QdiscList(nic)
	if err != nil {
		return err
	}
	for _, q := range qdiscs {
		if q.Type() == "netem" || q.Type() == "ingress" {
			if err := netlink.QdiscDel(q); err != nil {
				return err
			}
		}
	}
	if percent == 0 {
		return nil
	}
	detour := &netlink.Ifb{LinkAttrs: netlink.NewLinkAttrs()}
	detour.Name, detour.MTU = name, jumbo
	if err := netlink.LinkAdd(detour); err != nil {
		return err
	}
	if err := quiet(name); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(detour); err != nil {
		return err
	}
	for _, link := range []netlink.Link{nic, detour} {
		attrs := netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
		if err := netlink.QdiscAdd(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{Loss: percent, Limit: 1000})); err != nil {
			return err
		}
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: nic.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := netlink.QdiscAdd(ingress); err != nil {
		return err
	}
	return netlink.FilterAdd(&netlink.MatchAll{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: nic.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{netlink.NewMirredAction(detour.Attrs().Index)},
	})
}

// state is what the switch saw so far.
func (f *fabric) state() (netswitch.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := netswitch.State{Leases: map[string]int{}, Offers: map[string]int{}, Groups: map[string]string{}}
	for name, n := range f.leases {
		s.Leases[name] = n
	}
	for name, n := range f.offers {
		s.Offers[name] = n
	}
	for n, port := range f.ports {
		link, err := netlink.LinkByName(nicName(n))
		if err != nil {
			return s, err
		}
		a := link.Attrs()
		one := netswitch.PortState{Carrier: a.RawFlags&unix.IFF_RUNNING != 0}
		if a.Statistics != nil {
			one.Received, one.Sent = a.Statistics.RxPackets, a.Statistics.TxPackets
		}
		s.Ports = append(s.Ports, one)
		if port.Group != "" {
			text, err := os.ReadFile(filepath.Join("/proc/thread-self/net/bonding", port.Group))
			if err != nil {
				return s, err
			}
			s.Groups[port.Group] = string(text)
		}
	}
	return s, nil
}

// count adds one to a station's number.
func (f *fabric) count(of map[string]int, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	of[name]++
}
