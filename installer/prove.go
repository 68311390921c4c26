package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig/prove"
)

// proveNetwork tries out the new system's network, where the plan says so.
func (i *installation) proveNetwork(ctx context.Context) error {
	if len(i.plan.Network.Prove) == 0 {
		return skip{"the new system's network is the installer's own, or need not be tried"}
	}
	if !i.env.inMemory {
		return skip{"this system runs from a disk: its network is left alone"}
	}
	warn := func(text string) { i.model.Warn(progress.Prove, text) }
	options := prove.Options{
		Segments: i.plan.Network.Prove, All: i.plan.Network.ProveAll,
		Report: func(text string) { i.model.Log(progress.Prove, text) }, Warn: warn, Announce: i.announceLeave,
	}
	if i.lease != nil {
		options.Own, options.OwnAddress = i.lease.Interface, i.lease.Address.Addr()
	}
	if address := i.servers.address(); address != "" { // else a medium has the image
		var err error
		if options.Server, err = resolveServer(ctx, address); err != nil {
			warn(fmt.Sprintf("the image server's address is not known any more: %v", err))
		}
	}
	i.model.Wait(progress.Prove, "answers on the new system's network")
	defer i.model.Wait(progress.Prove, "")
	return prove.Run(ctx, options)
}

// announceLeave says that the port with the installer's own connection, and so
// page and shells, goes away for a while or is back.
func (i *installation) announceLeave(leaves bool, port string) {
	if !leaves {
		i.model.Logf(progress.Prove, "%s is back", port)
		i.model.Wait(progress.Prove, "")
		return
	}
	text := fmt.Sprintf("%s joins its bond for at most %d s; this page and every shell pause so long", port, int(prove.JoinLimit.Seconds()))
	i.model.Log(progress.Prove, text)
	i.model.Wait(progress.Prove, text)
}

// resolveServer is the first address of host:port.
func resolveServer(ctx context.Context, address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addresses[0].Unmap(), uint16(number)), nil
}
