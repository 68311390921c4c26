package prove

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/netconfig"
)

// namespace is a network namespace with one interface. It belongs to one thread
// and is gone, with all in it, when that ends.
type namespace struct {
	trial  *trial
	fd     int
	device string
}

// inside calls run on a thread in a network namespace of its own. Everything
// that run opens, package netlink's requests included, is in that namespace.
func (t *trial) inside(run func(*namespace) error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with this goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return netconfig.NewError(CodeSetUp, "making a network namespace: %w", err)
			}
			fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return netconfig.NewError(CodeSetUp, "opening a network namespace: %w", err)
			}
			defer unix.Close(fd) // only read from
			n := &namespace{trial: t, fd: fd}
			defer n.empty()
			return run(n)
		}()
	}()
	return <-done
}

// empty removes the interface, which would go with the namespace too, but later.
func (n *namespace) empty() {
	if link, err := netlink.LinkByName(n.device); n.device != "" && err == nil {
		_ = netlink.LinkDel(link) // see above
	}
}

// takeVLAN makes the segment's VLAN of the interface base, which stays outside.
func (n *namespace) takeVLAN(base string, s netconfig.Segment) error {
	return n.take(base, s.MTU, func(attrs netlink.LinkAttrs) netlink.Link {
		return &netlink.Vlan{LinkAttrs: attrs, VlanId: int(s.VLANID), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	})
}

// takeIPVLAN makes a second interface of base, with the same hardware address:
// a switch that counts addresses sees no other one. The kernel gives it what is
// for its IP addresses (Documentation/networking/ipvlan.rst).
func (n *namespace) takeIPVLAN(base string, s netconfig.Segment) error {
	return n.take(base, s.MTU, func(attrs netlink.LinkAttrs) netlink.Link {
		return &netlink.IPVlan{LinkAttrs: attrs, Mode: netlink.IPVLAN_MODE_L2}
	})
}

func (n *namespace) take(base string, mtu int, as func(netlink.LinkAttrs) netlink.Link) error {
	parent, err := n.trial.outer.LinkByName(base)
	if err != nil {
		return fmt.Errorf("finding %s: %w", base, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = prefix
	attrs.ParentIndex = parent.Attrs().Index
	attrs.Namespace = netlink.NsFd(n.fd)
	attrs.MTU = parent.Attrs().MTU
	if mtu != 0 {
		attrs.MTU = min(mtu, attrs.MTU)
	}
	link := as(attrs)
	if err := n.trial.outer.LinkAdd(link); err != nil {
		return fmt.Errorf("making a %s of %s: %w", link.Type(), base, err)
	}
	n.device = prefix
	// Routers shall not add what the configuration does not have.
	for _, name := range []string{"all", "default", prefix} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_ra", []byte("0"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	for _, name := range []string{"lo", prefix} {
		inner, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(inner); err != nil {
			return fmt.Errorf("raising %s: %w", name, err)
		}
	}
	return nil
}

// address gives the interface the machine's addresses. Of IPv6 the kernel says
// whether somebody else has one (RFC 4862, 5.4).
func (n *namespace) address(ctx context.Context, s netconfig.Segment) error {
	link, err := netlink.LinkByName(n.device)
	if err != nil {
		return setUp(s, err)
	}
	for _, a := range s.Addresses {
		address := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if err := netlink.AddrReplace(link, address); err != nil {
			return setUp(s, fmt.Errorf("adding the address %s: %w", a, err))
		}
	}
	const limit = 5 * time.Second
	for end := time.Now().Add(limit); ; pause(ctx, 100*time.Millisecond) {
		waiting, err := n.tentative(link, s)
		if err != nil || !waiting {
			return err
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return setUp(s, errors.Join(errors.New("the kernel does not let the addresses be used"), ctx.Err()))
		}
	}
}

// tentative is true while the kernel looks for duplicates.
func (n *namespace) tentative(link netlink.Link, s netconfig.Segment) (bool, error) {
	have, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return false, setUp(s, err)
	}
	waiting := false
	for _, a := range have {
		address, _ := netip.AddrFromSlice(a.IP)
		ours := slices.ContainsFunc(s.Addresses, func(p netip.Prefix) bool { return p.Addr() == address })
		if a.Flags&unix.IFA_F_DADFAILED != 0 && ours {
			return false, netconfig.NewError(CodeDuplicate, "the address %s is in use by another machine %s", address, s.Where())
		}
		waiting = waiting || ours && a.Flags&unix.IFA_F_TENTATIVE != 0
	}
	return waiting, nil
}

// routes adds those of the installed system that begin here.
func (n *namespace) routes(s netconfig.Segment) error {
	link, err := netlink.LinkByName(n.device)
	if err != nil {
		return err
	}
	for _, r := range s.Routes {
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{IP: r.To.Addr().AsSlice(), Mask: net.CIDRMask(r.To.Bits(), r.To.Addr().BitLen())}}
		if r.Via.IsValid() {
			route.Gw = r.Via.AsSlice()
			if !slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return a.Contains(r.Via) }) {
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
