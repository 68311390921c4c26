package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/netconfig"
)

// Make brings the interfaces of a Config up in the installer, in their order:
// bonds, VLANs and bridges are made, addresses and routes added. What asks for
// a lease is only raised; dhcp.Acquire follows. It may be called again: what is
// there already is kept and completed. The error is a *netconfig.Error with
// code NET-005 (NET-006 for a NIC that is not there) and names the interface.
func Make(c netconfig.Config) error {
	for _, i := range c.Interfaces {
		if err := makeOne(c, i); err != nil {
			var coded *netconfig.Error
			if errors.As(err, &coded) {
				return err
			}
			return netconfig.NewError("NET-005", "making %s: %w", i.Name, err)
		}
	}
	return nil
}

const centiseconds = 100 // in a second: the unit of the kernel's bridge

func makeOne(c netconfig.Config, i netconfig.Interface) error {
	l, err := device(i)
	if err != nil {
		return err
	}
	if !i.MAC.IsZero() && l.Attrs().HardwareAddr.String() != i.MAC.String() {
		if err := netlink.LinkSetHardwareAddr(l, net.HardwareAddr(i.MAC[:])); err != nil {
			return fmt.Errorf("setting the MAC address %s: %w", i.MAC, err)
		}
	}
	if i.Kind == netconfig.Bridge {
		// A new port would only listen for 15 s; netlink's Bridge has no
		// field for it.
		file := "/sys/class/net/" + i.Name + "/bridge/forward_delay"
		if err := os.WriteFile(file, []byte(strconv.Itoa(centiseconds*i.Bridge.ForwardDelaySeconds)), 0o644); err != nil {
			return fmt.Errorf("setting the forward delay: %w", err)
		}
	}
	if err := enslave(l, i); err != nil {
		return err
	}
	if i.MTU != 0 && l.Attrs().MTU != i.MTU {
		if err := netlink.LinkSetMTU(l, i.MTU); err != nil {
			return fmt.Errorf("setting the MTU to %d: %w", i.MTU, err)
		}
	}
	// A port of a bond is raised by the bond, and must be down before.
	if !slices.ContainsFunc(c.Interfaces, func(m netconfig.Interface) bool { return m.Name == i.Master && m.Kind == netconfig.Bond }) {
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("raising it: %w", err)
		}
	}
	for _, a := range i.Addresses {
		// The address is used at once: nobody waits for duplicate address
		// detection here.
		address := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(l, address); err != nil {
			return fmt.Errorf("adding the address %s: %w", a, err)
		}
	}
	var all []netconfig.Route
	if i.Gateway.IsValid() {
		to := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if i.Gateway.Is4() {
			to = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		all = append(all, netconfig.Route{To: to, Via: i.Gateway})
	}
	for _, r := range append(all, i.Routes...) {
		route := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.To), Protocol: unix.RTPROT_STATIC}
		if r.Via.IsValid() {
			route.Gw = r.Via.AsSlice()
			if !slices.ContainsFunc(i.Addresses, func(a netip.Prefix) bool { return a.Contains(r.Via) }) {
				route.SetFlag(netlink.FLAG_ONLINK)
			}
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := netlink.RouteReplace(&route); err != nil {
			return fmt.Errorf("adding the route to %s: %w", r.To, err)
		}
	}
	return nil
}

// device finds the NIC, or finds or makes what is no NIC.
func device(i netconfig.Interface) (netlink.Link, error) {
	if i.Kind == netconfig.Ethernet {
		return nic(i)
	}
	l, err := netlink.LinkByName(i.Name)
	if err == nil {
		if l.Type() != string(i.Kind) {
			return nil, fmt.Errorf("it is a %s already", l.Type())
		}
		return l, nil
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = i.Name
	switch i.Kind {
	case netconfig.Bond:
		bond := netlink.NewLinkBond(attrs)
		bond.Mode = netlink.StringToBondMode(i.Bond.Mode)
		bond.Miimon = i.Bond.MIIMonMillis
		if i.Bond.HashPolicy != "" {
			bond.XmitHashPolicy = netlink.StringToBondXmitHashPolicy(i.Bond.HashPolicy)
		}
		if i.Bond.LACPRate != "" {
			bond.LacpRate = netlink.StringToBondLacpRate(i.Bond.LACPRate)
		}
		l = bond
	case netconfig.VLAN:
		parent, err := netlink.LinkByName(i.Parent)
		if err != nil {
			return nil, err
		}
		attrs.ParentIndex = parent.Attrs().Index
		l = &netlink.Vlan{LinkAttrs: attrs, VlanId: int(i.VLANID), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	case netconfig.Bridge:
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if i.Bridge.VLANAware {
			bridge.VlanFiltering = new(true)
		}
		l = bridge
	}
	if err := netlink.LinkAdd(l); err != nil && !errors.Is(err, syscall.EEXIST) {
		return nil, fmt.Errorf("adding a %s: %w", i.Kind, err)
	}
	return netlink.LinkByName(i.Name)
}

// nic is the NIC with the permanent MAC address, renamed where it is called
// otherwise; else the one of that name.
func nic(i netconfig.Interface) (netlink.Link, error) {
	links, err := ethernet()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		attrs := l.Attrs()
		switch {
		case i.PermanentMAC.IsZero():
			if attrs.Name == i.NIC {
				return l, nil
			}
			continue
		case len(attrs.PermHWAddr) > 0 && attrs.PermHWAddr.String() != i.PermanentMAC.String():
			continue
		case len(attrs.PermHWAddr) == 0 && attrs.HardwareAddr.String() != i.PermanentMAC.String():
			continue
		}
		if attrs.Name != i.Name {
			// Older kernels rename only what is down.
			if err := netlink.LinkSetDown(l); err != nil {
				return nil, fmt.Errorf("taking %s down: %w", attrs.Name, err)
			}
			if err := netlink.LinkSetName(l, i.Name); err != nil {
				return nil, fmt.Errorf("renaming %s: %w", attrs.Name, err)
			}
		}
		return netlink.LinkByName(i.Name)
	}
	var found []string
	for _, l := range links {
		found = append(found, fmt.Sprintf("%s (%s)", l.Attrs().Name, l.Attrs().HardwareAddr))
	}
	wanted := i.NIC
	if !i.PermanentMAC.IsZero() {
		wanted = i.PermanentMAC.String()
	}
	return nil, netconfig.NewError("NET-006", "this machine has no network interface %s; it has %v", wanted, found)
}

// enslave makes the ports of a bond or bridge.
func enslave(master netlink.Link, i netconfig.Interface) error {
	for _, name := range i.Ports {
		port, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if port.Attrs().MasterIndex == master.Attrs().Index {
			continue
		}
		if i.Kind == netconfig.Bond {
			if err := netlink.LinkSetDown(port); err != nil {
				return fmt.Errorf("taking the port %s down: %w", name, err)
			}
		}
		if err := netlink.LinkSetMaster(port, master); err != nil {
			return fmt.Errorf("adding the port %s: %w", name, err)
		}
	}
	if i.Bond == nil || i.Bond.Primary == "" {
		return nil
	}
	primary, err := netlink.LinkByName(i.Bond.Primary)
	if err != nil {
		return err
	}
	change := netlink.NewLinkBond(netlink.LinkAttrs{Name: i.Name, Index: master.Attrs().Index})
	change.Primary = primary.Attrs().Index
	if err := netlink.LinkModify(change); err != nil {
		return fmt.Errorf("making %s the primary port: %w", i.Bond.Primary, err)
	}
	return nil
}
