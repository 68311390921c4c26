package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/netconfig/link"
)

// attempt is one try at getting the configuration.
type attempt struct {
	others bool // there are others to try: none of them is waited for very long
	// rival waits for another lease that may be the one that is meant, and says
	// whether there is one; nil where no lease was searched for.
	rival func(context.Context) bool
}

// hurriedPatience is how long a silent server is asked for a file while there
// are others to ask.
const hurriedPatience = 15 * time.Second

// patience is for one file; 0 is what the source thinks right.
func (a attempt) patience() time.Duration {
	if a.others {
		return hurriedPatience
	}
	return 0
}

// configure connects the machine and calls use, which needs the network. On a
// system that runs from a disk the network is somebody else's: it is used as it
// is. What the kernel command line asks for is made. Otherwise the leases that
// are offered are tried in turn until use is content with one.
func (i *installation) configure(ctx context.Context, use func(context.Context, attempt) error) error {
	if !i.env.inMemory {
		if err := i.useNetworkAsItIs(); err != nil {
			return err
		}
		return use(ctx, attempt{})
	}
	asked, err := i.useCommandLine(ctx)
	if err != nil {
		return err
	}
	if asked {
		return use(ctx, attempt{})
	}
	return i.search(ctx, i.dhcpOptions(), use)
}

// search tries one lease after the other. DHCP servers that nobody wants on a
// network can so make an attempt fail, and take time.
func (i *installation) search(ctx context.Context, options dhcp.Options, use func(context.Context, attempt) error) error {
	i.model.Log(progress.Config, "asking for a lease on every NIC with a link")
	i.model.Wait(progress.Config, "a DHCP server's answer")
	defer i.model.Wait(progress.Config, "")
	search := dhcp.Begin(ctx, i.linked, options)
	defer search.Close()
	var last *dhcp.Lease // of those that were of no use
	for tried := 0; ; tried++ {
		offer, err := search.Next(ctx)
		if err != nil {
			i.stayReachable(ctx, last)
			return err
		}
		lease, err := search.Take(ctx, offer)
		if err == nil {
			i.model.Wait(progress.Config, "")
			rival := search.Another
			if tried > 0 {
				rival = func(context.Context) bool { return true } // one of those that may be tried again
			}
			if err = i.tryLease(ctx, lease, attempt{others: search.Waiting() > 0, rival: rival}, use); err == nil {
				i.keepLease(lease)
				return nil
			}
			// One by which people reach a machine, if there was any.
			if last == nil || lease.Address.Addr().Is4() || !last.Address.Addr().Is4() {
				last = &lease
			}
		}
		if ctx.Err() != nil {
			return err
		}
		i.model.Wait(progress.Config, "another DHCP server's answer")
		i.model.Warn(progress.Config, fmt.Sprintf("the lease that %s offers is of no use: %s", offer.Server, oneLine(err)))
		search.Failed(offer, fmt.Errorf("through %s: %w", offer, err), mayWorkLater(err))
	}
}

// stayReachable takes the last lease up again when no other comes: the page has
// to say what is wrong to somebody.
func (i *installation) stayReachable(ctx context.Context, lease *dhcp.Lease) {
	if lease == nil || ctx.Err() != nil {
		return
	}
	if err := i.useLease(ctx, *lease); err != nil {
		i.model.Warn(progress.Config, "the status page cannot be reached: "+oneLine(err))
	}
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// mayWorkLater is true of a lease that could not be had, and of servers that
// were silent: what a server has said, it will say again.
func mayWorkLater(err error) bool {
	code := progress.Code(err)
	return code == dhcp.CodeNoLease || code == fetch.CodeNoAnswer || code == report.CodeSite
}

// tryLease uses a lease, and takes it back where that comes to nothing, with all
// that it did to the machine: whoever offered it may have wanted just that.
func (i *installation) tryLease(ctx context.Context, lease dhcp.Lease, attempt attempt, use func(context.Context, attempt) error) error {
	mtu := 0
	if hardware, err := net.InterfaceByName(lease.Interface); err == nil {
		mtu = hardware.MTU
	}
	takeTimeBack := i.rememberTime()
	err := i.useLease(ctx, lease)
	if err == nil {
		if err = use(ctx, attempt); err == nil {
			return nil
		}
	}
	i.lease, i.nic, i.servers = nil, netconfig.NIC{}, nil // what it named is forgotten with it
	i.published.lease.Store(nil)
	i.model.Describe(func(f *progress.Facts) { f.Page = "" })
	if leaving := errors.Join(link.Flush(lease.Interface, mtu), removeIfThere(resolvConf), takeTimeBack()); leaving != nil {
		err = errors.Join(err, leaving)
	}
	dhcp.Release(lease)
	return err
}

// resolvConf is the installer's own.
const resolvConf = "/etc/resolv.conf"

func removeIfThere(file string) error {
	if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// checkSource says whether a configuration that came through a lease is this
// machine's, and from whom it should be: it names a NIC of this machine, and an
// image server that can be reached and, where the boot medium has a CA, is the
// site's. Whoever answered first may not be the one who should have. Where only
// one has answered, later phases say what is wrong with it.
func (i *installation) checkSource(ctx context.Context, attempt attempt) error {
	if attempt.rival == nil {
		return nil
	}
	err := i.askSource(ctx)
	if err != nil && !attempt.rival(ctx) {
		return ctx.Err()
	}
	return err
}

func (i *installation) askSource(ctx context.Context) error {
	nics, err := link.List(i.env.sys)
	if err != nil {
		return err
	}
	if err := i.config.Network.NamesOneOf(nics); err != nil {
		return err
	}
	if !i.config.Installs() {
		return nil // a wipe or a rescue needs no image server
	}
	if len(i.imageServerAddresses()) == 0 {
		if _, carried, err := i.imageOnMedium(ctx, i.config.Image); carried || err != nil {
			return nil // nor does this; what is wrong with a medium is no lease's fault
		}
	}
	return i.connect(ctx, progress.Config)
}

// leaseAndConfigure asks for a lease and uses it until the installation ends.
func (i *installation) leaseAndConfigure(ctx context.Context) error {
	return i.configure(ctx, func(context.Context, attempt) error { return nil })
}

// useNetworkAsItIs takes the first NIC with a link for the machine's name at
// the configuration server.
func (i *installation) useNetworkAsItIs() error {
	i.model.Log(progress.Config, "this system runs from a disk: its network is used as it is, no DHCP lease is asked for")
	nics, err := link.List(i.env.sys)
	if err != nil {
		return err
	}
	for _, nic := range nics {
		if nic.Carrier {
			i.nic = nic
			return nil
		}
	}
	return nil
}

// linked are the NICs with a link, now.
func (i *installation) linked() ([]dhcp.Asked, error) {
	nics, err := link.List(i.env.sys)
	return dhcp.Both(link.Linked(nics)), err
}

// askForLease asks on every NIC with a link at once, and changes nothing.
func (i *installation) askForLease(ctx context.Context) (dhcp.Lease, error) {
	asked, err := i.linked()
	if err != nil {
		return dhcp.Lease{}, err
	}
	return i.acquire(ctx, asked)
}

func (i *installation) acquire(ctx context.Context, asked []dhcp.Asked) (dhcp.Lease, error) {
	var names []string
	for _, one := range asked {
		names = append(names, one.Interface)
	}
	i.model.Logf(progress.Config, "asking for a lease on %s", strings.Join(names, ", "))
	i.model.Wait(progress.Config, "a DHCP server's answer")
	defer i.model.Wait(progress.Config, "")
	return dhcp.Acquire(ctx, asked, i.dhcpOptions())
}

func (i *installation) dhcpOptions() dhcp.Options {
	return dhcp.Options{
		Prefer: bootInterface(i.opt.kernel),
		Report: func(text string) { i.model.Log(progress.Config, text) },
	}
}

// bootInterface is the MAC address in BOOTIF=01-aa-bb-…, which PXELINUX and
// iPXE hand over; zero where it is not there. The first byte is the hardware
// type (RFC 1700: 1 is Ethernet).
func bootInterface(kernel kernelArguments) netconfig.MAC {
	_, address, _ := strings.Cut(kernel.value("BOOTIF"), "-")
	mac, err := netconfig.ParseMAC(address)
	if err != nil {
		return netconfig.MAC{}
	}
	return mac
}

// useLease gives the interface its address, the installer its name servers and,
// where there is a time server, its time.
func (i *installation) useLease(ctx context.Context, lease dhcp.Lease) error {
	if err := link.Configure(lease); err != nil {
		return err
	}
	if err := i.rememberLease(lease); err != nil {
		return err
	}
	i.askTime(ctx, lease.NTP)
	return nil
}

// rememberLease is useLease for addresses that the interface has already.
func (i *installation) rememberLease(lease dhcp.Lease) error {
	if data := link.ResolvConf(lease); data != nil {
		if err := os.WriteFile(resolvConf, data, 0o644); err != nil {
			return fmt.Errorf("writing %s: %w", resolvConf, err)
		}
	}
	short := lease
	short.Summary = "" // it has many lines
	i.debugf(progress.Config, "lease: %+v", short)
	i.lease, i.nic = &lease, netconfig.NIC{Name: lease.Interface, MAC: lease.MAC}
	i.published.lease.Store(&lease)
	page := net.JoinHostPort(lease.Address.Addr().String(), fmt.Sprint(i.opt.port))
	i.model.Describe(func(f *progress.Facts) { f.Page = "http://" + page + "/" })
	i.model.Logf(progress.Config, "%s has the address %s; the status page is http://%s/", lease.Interface, lease.Address, page)
	return nil
}

// keepLease renews the lease until the installation ends.
func (i *installation) keepLease(lease dhcp.Lease) {
	i.opened.run("the DHCP lease", func(ctx context.Context) error {
		return dhcp.Keep(ctx, lease, i.dhcpOptions(), func(renewed dhcp.Lease) error { return link.Configure(renewed) })
	})
}

// useConfiguredAddress gives the machine the address that config.json has for
// it, where no lease was asked for and no address is there yet; what the kernel
// command line asks for goes before it. A configuration without an address that
// came on a volume asks for a lease, first on the NIC that it names.
func (i *installation) useConfiguredAddress(ctx context.Context) error {
	if !i.env.inMemory {
		return i.useNetworkAsItIs()
	}
	if asked, err := i.useCommandLine(ctx); asked || err != nil {
		return err
	}
	nics, err := link.List(i.env.sys)
	if err != nil {
		return err
	}
	resolved, err := netconfig.Resolve(i.config.Network, nics)
	if err != nil {
		return err
	}
	if wanted, ok := outward(resolved); ok {
		i.model.Log(progress.Config, "config.json has the machine's address: no DHCP lease is asked for")
		return i.useConfigured(ctx, resolved, wanted)
	}
	if i.configDir == i.opt.tftpDirectory && !i.asksForLease() {
		i.model.Log(progress.Config, "config.json names no address for an interface of this machine: the network is used as it is, no DHCP lease is asked for")
		return nil
	}
	options := i.dhcpOptions()
	for _, entry := range i.config.Network.Entries {
		if options.Prefer.IsZero() {
			options.Prefer = entry.MAC
		}
	}
	return i.search(ctx, options, func(context.Context, attempt) error { return nil })
}

// outward is the interface of the default route, or the first that has an
// address; ok is false where none has.
func outward(c netconfig.Config) (wanted netconfig.Interface, ok bool) {
	for _, one := range c.Interfaces {
		if len(one.Addresses) > 0 && (!ok || one.Gateway.IsValid() && !wanted.Gateway.IsValid()) {
			wanted, ok = one, true
		}
	}
	return wanted, ok
}

// asksForLease says that the kernel command line wants a lease on any NIC.
func (i *installation) asksForLease() bool {
	network, err := i.commandLineNetwork()
	return err == nil && network.Everywhere // what is wrong with it was reported
}

// useConfigured gives an interface of the new system to the installer: a NIC
// gets its address; a bond or a VLAN is made as it will be, with all below it,
// but no bridge, for which the installer has no guests.
func (i *installation) useConfigured(ctx context.Context, all netconfig.Config, wanted netconfig.Interface) error {
	below := netconfig.Config{DNS: all.DNS, Search: all.Search, Interfaces: beneath(all, wanted)}
	if len(below.Interfaces) > 1 {
		if err := link.Make(below); err != nil {
			return err
		}
		lease, _ := staticLease(below)
		if err := i.rememberLease(lease); err != nil {
			return err
		}
		return i.nameMachine(below)
	}
	name := below.Interfaces[0].NIC
	lease := dhcp.Lease{
		Interface: name, MAC: wanted.MAC, Address: wanted.Addresses[0], MTU: wanted.MTU,
		DNS: wanted.DNS, Search: wanted.Search, Duration: dhcp.Infinite,
	}
	if wanted.Gateway.IsValid() {
		lease.Routes = []dhcp.Route{{To: everywhere(wanted.Gateway), Via: wanted.Gateway}}
	}
	return i.useLease(ctx, lease)
}

// beneath is what an interface is made of, in the order of making, with itself
// last. A bridge is left out: what it would have lies on its port. The names
// are the installer's own.
func beneath(all netconfig.Config, top netconfig.Interface) []netconfig.Interface {
	find := func(name string) netconfig.Interface {
		n := slices.IndexFunc(all.Interfaces, func(one netconfig.Interface) bool { return one.Name == name })
		return all.Interfaces[n] // Resolve names nothing that is not there
	}
	if top.Kind == netconfig.Bridge {
		port := find(top.Ports[0])
		port.Addresses, port.Gateway, port.Routes, port.DNS, port.Search = top.Addresses, top.Gateway, top.Routes, top.DNS, top.Search
		top = port
	}
	top.Master = ""
	var out []netconfig.Interface
	switch top.Kind {
	case netconfig.Ethernet:
		top.Name, top.PermanentMAC, top.MAC = top.NIC, netconfig.MAC{}, netconfig.MAC{}
	case netconfig.VLAN:
		parent := find(top.Parent)
		parent.Addresses, parent.Gateway, parent.Routes = nil, netip.Addr{}, nil
		out = beneath(all, parent)
		top.Parent = out[len(out)-1].Name
	case netconfig.Bond:
		ports := top.Ports
		top.Ports = nil
		for _, name := range ports {
			port := beneath(all, find(name))[0]
			port.Master = top.Name
			out = append(out, port)
			top.Ports = append(top.Ports, port.Name)
		}
	}
	return append(out, top)
}
