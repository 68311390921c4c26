package prove

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/netconfig"
)

// trial is one Run: what it has made of the ports, and how that is undone.
type trial struct {
	Options
	outer    *netlink.Handle // in the installer's own namespace, from any thread
	hardware []net.HardwareAddr
	bonds    []*bond
	own      *connection    // of the installer's own port, where that will join a bond
	undo     []func() error // in the order of doing
}

// bond is one that a segment needs.
type bond struct {
	name    string
	ports   []string // all that it will have
	joined  []string // those that it has now
	own     bool     // the installer's own port is to join
	made    bool     // by us; otherwise it is the installer's
	options netconfig.BondOptions
}

// prefix begins the names of all interfaces that are made here.
const prefix = "prove"

func newTrial(o Options) (*trial, error) {
	outer, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, netconfig.NewError(CodeSetUp, "speaking to the kernel: %w", err)
	}
	t := &trial{Options: o, outer: outer}
	t.undo = append(t.undo, func() error { outer.Close(); return nil })
	links, err := outer.LinkList()
	if err != nil {
		return nil, netconfig.NewError(CodeSetUp, "listing the network interfaces: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		if strings.HasPrefix(a.Name, prefix) && l.Type() == "bond" {
			// An installer that was ended in the middle has left it.
			if err := outer.LinkDel(l); err != nil {
				return nil, netconfig.NewError(CodeSetUp, "removing an old %s: %w", a.Name, err)
			}
			continue
		}
		t.hardware = append(t.hardware, a.HardwareAddr)
		if len(a.PermHWAddr) == 6 {
			t.hardware = append(t.hardware, a.PermHWAddr)
		}
	}
	return t, nil
}

// isOurs says that a hardware address is one of this machine's.
func (t *trial) isOurs(hw net.HardwareAddr) bool {
	return slices.ContainsFunc(t.hardware, func(own net.HardwareAddr) bool { return bytes.Equal(own, hw) })
}

// putBack undoes everything, the last first.
func (t *trial) putBack() error {
	var errs []error
	for _, undo := range slices.Backward(t.undo) {
		errs = append(errs, undo())
	}
	t.undo = nil
	if err := errors.Join(errs...); err != nil {
		return netconfig.NewError(CodePutBack, "putting the ports back as they were: %w", err)
	}
	return nil
}

// bondOf is the one of a segment's ports, nil where they have none.
func (t *trial) bondOf(s netconfig.Segment) *bond {
	for _, b := range t.bonds {
		if slices.Equal(b.ports, s.Ports) && s.Bond != nil {
			return b
		}
	}
	return nil
}

// base is the interface that a segment lies on, before its VLAN.
func (t *trial) base(s netconfig.Segment) string {
	if b := t.bondOf(s); b != nil {
		return b.name
	}
	return s.Ports[0]
}

// ownVLAN is the installer's own interface for a VLAN of base, empty where it
// has none.
func (t *trial) ownVLAN(base string, id uint16) string {
	links, err := t.outer.LinkList()
	if err != nil {
		return "" // making one says what is wrong
	}
	for _, l := range links {
		vlan, ok := l.(*netlink.Vlan)
		if !ok || vlan.VlanId != int(id) {
			continue
		}
		if parent, err := t.outer.LinkByIndex(vlan.ParentIndex); err == nil && parent.Attrs().Name == base {
			return vlan.Name
		}
	}
	return ""
}

// wait is how long an answer on a segment may take.
func (t *trial) wait(s netconfig.Segment) time.Duration {
	if b := t.bondOf(s); b != nil && b.made {
		return t.Bounced
	}
	return t.Wait
}

// prepare makes the bond of a segment, or lets its port carry larger packets.
func (t *trial) prepare(_ context.Context, s netconfig.Segment) error {
	if s.Bond != nil {
		if t.bondOf(s) != nil {
			return nil
		}
		b, err := t.findBond(s)
		if err == nil && b == nil {
			b, err = t.makeBond(s)
		}
		if err != nil {
			return setUp(s, err)
		}
		t.bonds = append(t.bonds, b)
		return nil
	}
	port, err := t.outer.LinkByName(s.Ports[0])
	if err != nil {
		return setUp(s, fmt.Errorf("finding %s: %w", s.Ports[0], err))
	}
	if master := port.Attrs().MasterIndex; master != 0 {
		return setUp(s, fmt.Errorf("%s is a port of the installer's own bond or bridge", s.Ports[0]))
	}
	old := port.Attrs().MTU
	if s.MTU <= old || s.Ports[0] == t.Own {
		return nil
	}
	if err := t.outer.LinkSetMTU(port, s.MTU); err != nil {
		return setUp(s, fmt.Errorf("%s does not take packets of %d bytes: %w", s.Ports[0], s.MTU, err))
	}
	t.undo = append(t.undo, func() error { return t.outer.LinkSetMTU(port, old) })
	return nil
}

// findBond is the installer's own bond, where it has these ports already.
func (t *trial) findBond(s netconfig.Segment) (*bond, error) {
	masters := map[int]bool{}
	for _, name := range s.Ports {
		port, err := t.outer.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("finding %s: %w", name, err)
		}
		masters[port.Attrs().MasterIndex] = true
	}
	if len(masters) > 1 {
		return nil, fmt.Errorf("some of %s are ports of the installer's own bond, others are not", strings.Join(s.Ports, ", "))
	}
	for index := range masters {
		if index == 0 {
			return nil, nil
		}
		master, err := t.outer.LinkByIndex(index)
		if err != nil {
			return nil, err
		}
		if master.Type() != "bond" {
			return nil, fmt.Errorf("%s are ports of the %s %s", strings.Join(s.Ports, ", "), master.Type(), master.Attrs().Name)
		}
		return &bond{name: master.Attrs().Name, ports: s.Ports, joined: s.Ports, options: *s.Bond}, nil
	}
	return nil, nil
}

// makeBond joins all ports but the installer's own.
func (t *trial) makeBond(s netconfig.Segment) (*bond, error) {
	b := &bond{name: fmt.Sprintf("%s%d", prefix, len(t.bonds)), ports: s.Ports, made: true, options: *s.Bond}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = b.name
	device := netlink.NewLinkBond(attrs)
	device.Mode = netlink.StringToBondMode(s.Bond.Mode)
	device.Miimon = max(s.Bond.MIIMonMillis, 1)
	if s.Bond.HashPolicy != "" {
		device.XmitHashPolicy = netlink.StringToBondXmitHashPolicy(s.Bond.HashPolicy)
	}
	if s.Bond.Mode == lacp {
		device.LacpRate = netlink.BOND_LACP_RATE_FAST // what takes long is only the waiting
	}
	if err := t.outer.LinkAdd(device); err != nil {
		return nil, fmt.Errorf("making a bond: %w", err)
	}
	t.undo = append(t.undo, func() error { return t.outer.LinkDel(device) })
	// The bond itself speaks in namespaces only: routers shall not give the
	// installer another way out. A kernel without IPv6 has no such file.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+b.name+"/disable_ipv6", []byte("1"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	master, err := t.outer.LinkByName(b.name)
	if err != nil {
		return nil, err
	}
	for _, name := range s.Ports {
		before, err := t.connection(name)
		if err != nil {
			return nil, fmt.Errorf("looking at %s: %w", name, err)
		}
		if name == t.Own {
			b.own, t.own = true, before
			continue
		}
		// The kernel command line may have given it addresses too. They come
		// back once the bond has let it go.
		t.undo = slices.Insert(t.undo, len(t.undo)-1, func() error {
			err := t.reconnect(*before)
			if given := before.given(); err == nil && len(given) > 0 {
				t.Report(fmt.Sprintf("%s has %s again", name, strings.Join(given, ", ")))
			}
			return err
		})
		if err := t.enslave(before.port, master); err != nil {
			return nil, err
		}
		b.joined = append(b.joined, name)
	}
	if len(b.joined) == 0 {
		return nil, fmt.Errorf("%s is the only port", t.Own)
	}
	if s.MTU != 0 {
		if err := t.outer.LinkSetMTU(master, s.MTU); err != nil {
			return nil, fmt.Errorf("the ports %s do not take packets of %d bytes: %w", strings.Join(b.joined, ", "), s.MTU, err)
		}
	}
	if err := t.outer.LinkSetUp(master); err != nil {
		return nil, fmt.Errorf("raising the bond: %w", err)
	}
	return b, nil
}

// enslave makes a port one of master's; the kernel wants it down before
// (Documentation/networking/bonding.rst).
func (t *trial) enslave(port, master netlink.Link) error {
	if err := t.outer.LinkSetDown(port); err != nil {
		return fmt.Errorf("taking %s down: %w", port.Attrs().Name, err)
	}
	if err := t.outer.LinkSetMaster(port, master); err != nil {
		return fmt.Errorf("adding %s to the bond: %w", port.Attrs().Name, err)
	}
	return nil
}

// lacp is the mode of a bond that speaks it with the switch (IEEE 802.1AX).
const lacp = "802.3ad"

// checkPartner waits until the switch speaks LACP on every port of the bond,
// and says the same on all of them.
func (t *trial) checkPartner(ctx context.Context, b *bond) error {
	if b.options.Mode != lacp {
		return nil
	}
	var why error
	for end := time.Now().Add(t.Bounced); ; pause(ctx, 200*time.Millisecond) {
		if why = t.partner(b.joined); why == nil {
			t.Report(fmt.Sprintf("the switch speaks LACP on %s", strings.Join(b.joined, ", ")))
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			return netconfig.NewError(CodeLACP, "%w within %v", why, t.Bounced)
		}
	}
}

// partner is nil once all ports collect and distribute in one aggregation.
func (t *trial) partner(ports []string) error {
	const exchanging = 0x10 | 0x20 // collecting, distributing: IEEE 802.1AX, 6.4.2.3
	var silent []string
	groups := map[uint16][]string{}
	for _, name := range ports {
		port, err := t.outer.LinkByName(name)
		if err != nil {
			return err
		}
		slave, ok := port.Attrs().Slave.(*netlink.BondSlave)
		if !ok {
			return fmt.Errorf("%s is no port of a bond", name)
		}
		if slave.AdPartnerOperPortState&exchanging != exchanging {
			silent = append(silent, name)
			continue
		}
		groups[slave.AggregatorId] = append(groups[slave.AggregatorId], name)
	}
	if len(silent) > 0 {
		return fmt.Errorf("no LACP partner on %s", strings.Join(silent, ", "))
	}
	if len(groups) > 1 {
		var list []string
		for _, names := range groups {
			list = append(list, strings.Join(names, ", "))
		}
		slices.Sort(list)
		return fmt.Errorf("the ports of the bond lead to different switches: %s", strings.Join(list, " and "))
	}
	return nil
}

// connection is what the kernel forgets of a port that goes down, or joins a
// bond.
type connection struct {
	port      netlink.Link
	mtu       int
	addresses []netlink.Addr
	routes    []netlink.Route
}

// join lets the installer's own port into the bond, for JoinLimit at most, and
// out again.
func (t *trial) join(ctx context.Context, b *bond) (err error) {
	if b.options.Mode != lacp {
		return nil // any port that has a link will do
	}
	own := *t.own
	master, err := t.outer.LinkByName(b.name)
	if err != nil {
		return netconfig.NewError(CodeSetUp, "finding the bond: %w", err)
	}
	t.Announce(true, t.Own)
	defer func() {
		err = errors.Join(err, t.reconnect(own))
		t.Announce(false, t.Own)
	}()
	const back = 3 * time.Second // for coming back
	limited, cancel := context.WithTimeout(ctx, JoinLimit-back)
	defer cancel()
	if err := t.enslave(own.port, master); err != nil {
		return netconfig.NewError(CodeSetUp, "%w", err)
	}
	all := append(slices.Clone(b.joined), t.Own)
	for {
		why := t.partner(all)
		if why == nil {
			t.Report(fmt.Sprintf("the switch speaks LACP on %s as well", t.Own))
			return nil
		}
		if limited.Err() != nil {
			return errors.Join(netconfig.NewError(CodeLACP, "%w within %v", why, JoinLimit-back), ctx.Err())
		}
		pause(limited, 100*time.Millisecond)
	}
}

func (t *trial) connection(name string) (*connection, error) {
	port, err := t.outer.LinkByName(name)
	if err != nil {
		return nil, err
	}
	c := &connection{port: port, mtu: port.Attrs().MTU}
	if c.addresses, err = t.outer.AddrList(port, netlink.FAMILY_ALL); err != nil {
		return nil, err
	}
	all, err := t.outer.RouteList(port, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, route := range all {
		// The kernel's own come with the addresses, and the routers' by
		// themselves.
		if route.Protocol != unix.RTPROT_KERNEL && route.Protocol != unix.RTPROT_RA {
			c.routes = append(c.routes, route)
		}
	}
	return c, nil
}

// reconnect makes the port what it was, as far as that goes whatever fails.
func (t *trial) reconnect(c connection) error {
	name := c.port.Attrs().Name
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, netconfig.NewError(CodePutBack, "%s: %s: %w", name, what, err))
		}
	}
	note("leaving the bond", t.outer.LinkSetNoMaster(c.port))
	note("setting its MTU", t.outer.LinkSetMTU(c.port, c.mtu))
	note("raising it", t.outer.LinkSetUp(c.port))
	for _, a := range c.addresses {
		if remade(a) {
			continue
		}
		a.Flags &^= unix.IFA_F_TENTATIVE
		note("giving it its address "+a.IPNet.String(), t.outer.AddrReplace(c.port, &a))
	}
	for _, direct := range []bool{true, false} { // gateways are reached through routes to the link itself
		for _, route := range c.routes {
			if (route.Gw == nil) != direct {
				continue
			}
			note(fmt.Sprintf("giving it its route to %v", route.Dst), t.outer.RouteReplace(&route))
		}
	}
	return errors.Join(errs...)
}

// given are the addresses that somebody gave the port.
func (c connection) given() (list []string) {
	for _, a := range c.addresses {
		if !remade(a) {
			list = append(list, a.IPNet.String())
		}
	}
	return list
}

// remade is true of addresses that the kernel makes itself: its own of the link,
// and those with a router's prefix.
func remade(a netlink.Addr) bool {
	if a.IP.To4() != nil {
		return false
	}
	bits, of := a.Mask.Size()
	forEver := a.ValidLft == 0 || uint32(a.ValidLft) == math.MaxUint32
	return a.IP.IsLinkLocalUnicast() || bits < of && !forEver
}

// awaitConnection waits until a gateway of IPv4 answers on the installer's own
// port, where that was to join a bond: a switch that has spoken LACP on the other
// ports may have let it fall silent, and takes a while to change its mind.
func (t *trial) awaitConnection(ctx context.Context) error {
	if t.own == nil {
		return nil
	}
	n := slices.IndexFunc(t.own.routes, func(r netlink.Route) bool { return r.Gw.To4() != nil })
	if n < 0 {
		return nil
	}
	gateway, _ := netip.AddrFromSlice(t.own.routes[n].Gw.To4()) // four bytes
	conn, err := openARP(t.Own)
	if err != nil {
		return netconfig.NewError(CodePutBack, "%w", err)
	}
	defer conn.close()
	if _, err := conn.resolve(ctx, orNobody(t.OwnAddress), gateway, t.Back); err != nil {
		return netconfig.NewError(CodePutBack, "the gateway %s does not answer on %s any more: %w", gateway, t.Own, err)
	}
	return nil
}

// orNobody is an address of IPv4, that of nobody where it is none.
func orNobody(a netip.Addr) netip.Addr {
	if a.Is4() {
		return a
	}
	return netip.IPv4Unspecified()
}
