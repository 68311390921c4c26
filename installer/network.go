package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/cmdline"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/netconfig/link"
)

// commandLineNetwork is the network that the kernel's command line asks for,
// for the installer itself: a static address, a VLAN, a bond.
func (i *installation) commandLineNetwork() (cmdline.Network, error) {
	var arguments []cmdline.Argument
	for _, a := range i.opt.kernel {
		arguments = append(arguments, cmdline.Argument{Name: a.name, Value: a.value})
	}
	return cmdline.Parse(arguments)
}

// useCommandLine makes that network; asked is false when the command line says
// nothing of one.
func (i *installation) useCommandLine(ctx context.Context) (asked bool, err error) {
	wanted, err := i.commandLineNetwork()
	if err != nil || !wanted.Asked() {
		return false, err
	}
	if err := i.makeNetwork(ctx, wanted.Config); err != nil {
		return true, err
	}
	return true, i.nameMachine(wanted.Config)
}

// makeNetwork makes it, and asks for a lease where it says so.
func (i *installation) makeNetwork(ctx context.Context, wanted netconfig.Config) error {
	var names []string
	var asked []dhcp.Asked
	for _, one := range wanted.Interfaces {
		names = append(names, one.Name)
		if one.DHCP4 || one.AcceptRA {
			asked = append(asked, dhcp.Asked{Interface: one.Name, V4: one.DHCP4, V6: one.AcceptRA})
		}
	}
	i.model.Logf(progress.Config, "the kernel command line asks for %s", strings.Join(names, ", "))
	if err := link.Make(wanted); err != nil {
		return err
	}
	static, fixed := staticLease(wanted)
	if fixed {
		if err := i.rememberLease(static); err != nil {
			return err
		}
	}
	if len(asked) == 0 {
		return nil
	}
	lease, err := i.acquire(ctx, asked)
	if err != nil {
		return err
	}
	if err := i.useLease(ctx, lease); err != nil {
		return err
	}
	i.keepLease(lease)
	return nil
}

// staticLease is the first interface with a fixed address, that of the default
// route before others; ok is false when there is none.
func staticLease(c netconfig.Config) (lease dhcp.Lease, ok bool) {
	for _, one := range c.Interfaces {
		for _, address := range one.Addresses {
			if ok && !one.Gateway.IsValid() {
				continue
			}
			lease = dhcp.Lease{Interface: one.Name, MAC: one.MAC, Address: address, MTU: one.MTU, DNS: c.DNS, Search: c.Search, Duration: dhcp.Infinite}
			if one.Gateway.IsValid() {
				lease.Routes = []dhcp.Route{{To: everywhere(one.Gateway), Via: one.Gateway}}
			}
			for _, r := range one.Routes {
				lease.Routes = append(lease.Routes, dhcp.Route{To: r.To, Via: r.Via})
			}
			ok = true
			break
		}
	}
	return lease, ok
}

// everywhere is the network of the default route through gateway.
func everywhere(gateway netip.Addr) netip.Prefix {
	if gateway.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// nameMachine finds the NIC by whose MAC address the machine is known.
func (i *installation) nameMachine(wanted netconfig.Config) error {
	nics, err := link.List(i.env.sys)
	if err != nil {
		return err
	}
	name := wanted.Interfaces[len(wanted.Interfaces)-1].Name // what is made last lies on top
	if i.lease != nil {
		name = i.lease.Interface
	}
	i.nic, err = machineNIC(wanted, name, nics)
	return err
}

// machineNIC is the NIC below an interface that was made: the machine's name at
// a configuration server is the MAC address of a real one.
func machineNIC(wanted netconfig.Config, name string, nics []netconfig.NIC) (netconfig.NIC, error) {
	for range len(wanted.Interfaces) + 1 { // a valid Config has no circle
		for _, nic := range nics {
			if nic.Name == name {
				if !nic.PermanentMAC.IsZero() {
					nic.MAC = nic.PermanentMAC // a port has its bond's
				}
				return nic, nil
			}
		}
		for _, one := range wanted.Interfaces {
			if one.Name != name {
				continue
			}
			if one.Parent != "" {
				name = one.Parent
			} else if len(one.Ports) > 0 {
				name = one.Ports[0]
			}
			break
		}
	}
	return netconfig.NIC{}, fmt.Errorf("there is no network interface below %s", name)
}
