// Package prove tries out the network that an installed system will have, from
// the installer and before a disk is touched: it connects to each of its
// segments through sub-interfaces of the real ports (a VLAN, a second interface
// with an address of its own, a bond of the ports that the installer does not
// use itself) in network namespaces of their own, and asks what should be there.
//
// Whatever happens, the ports are left as they were found. The one port that
// carries the installer's own connection stays where it is; where it is to
// join a bond it does so last, and for JoinLimit at most.
package prove

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

// The codes of this package.
const (
	CodeGateway   = "CNF-030" // no answer from a gateway
	CodeDuplicate = "CNF-031" // somebody has the machine's address
	CodeLACP      = "CNF-032" // no partner, or not the same for all ports
	CodeDNS       = "CNF-033" // no name server answers
	CodeServer    = "CNF-034" // the image server cannot be reached
	CodeMTU       = "CNF-035" // large packets do not get through
	CodeSetUp     = "CNF-036" // the kernel cannot do it
	CodePutBack   = "CNF-037" // the installer's own connection did not come back
)

// JoinLimit is how long the installer's own port may be in a bond.
const JoinLimit = 20 * time.Second

const (
	defaultWait    = 10 * time.Second
	defaultBounced = 50 * time.Second // a spanning tree needs 30 s to let a port speak
	defaultBack    = 2 * time.Minute  // a switch falls back to ports without LACP after 90 s
)

// Options say what to try.
type Options struct {
	Segments []netconfig.Segment
	// Own is the port with the installer's connection, empty where there is
	// none, and OwnAddress its address.
	Own        string
	OwnAddress netip.Addr
	// Server is the image server; not valid: it is not asked.
	Server netip.AddrPort
	// All makes an error of everything that does not answer. Otherwise name
	// servers, the image server and packets of more than 1500 bytes are only
	// reported by Warn: an installed system can live without them.
	All bool
	// Wait is how long an answer is waited for, and Bounced the same where a
	// port has just been taken down and up; Back, where a switch that spoke LACP
	// on the other ports of the installer's own bond has let that one fall
	// silent. 0 means 10 s, 50 s and 2 min.
	Wait, Bounced, Back time.Duration
	// Report is told what answers, Warn what does not and need not, Announce
	// (true, then false) that the installer's own port leaves for a while.
	// They may be called from several goroutines.
	Report, Warn func(text string)
	Announce     func(leaves bool, port string)

	second time.Duration // of RFC 5227; tests have shorter ones
}

// Run tries the segments, all at once, and returns when the ports are as they
// were. Errors are *netconfig.Error, joined, CNF-030 to CNF-037.
func Run(ctx context.Context, o Options) error {
	if o.Wait == 0 {
		o.Wait = defaultWait
	}
	if o.Bounced == 0 {
		o.Bounced = defaultBounced
	}
	if o.Back == 0 {
		o.Back = defaultBack
	}
	if o.second == 0 {
		o.second = time.Second
	}
	t, err := newTrial(o)
	if err != nil {
		return err
	}
	err = t.run(ctx)
	// What was made is taken down also when ctx has ended.
	if err = errors.Join(err, t.putBack()); err != nil {
		return err
	}
	return t.awaitConnection(ctx)
}

// run makes the bonds, asks on every segment, and lets the installer's own port
// join its bond in the end.
func (t *trial) run(ctx context.Context) error {
	for _, s := range t.Segments {
		if err := t.prepare(ctx, s); err != nil {
			return err
		}
	}
	var all sync.WaitGroup
	errs := make([]error, len(t.Segments)+len(t.bonds))
	for n, s := range t.Segments {
		all.Go(func() { errs[n] = t.try(ctx, s) })
	}
	for n, b := range t.bonds {
		all.Go(func() { errs[len(t.Segments)+n] = t.checkPartner(ctx, b) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, b := range t.bonds {
		if b.own {
			if err := t.join(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

// try asks on one segment. Name servers, the image server and large packets
// need an address of the machine there.
func (t *trial) try(ctx context.Context, s netconfig.Segment) error {
	base := t.base(s)
	own := slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return a.Addr() == t.OwnAddress })
	tagged := s.VLANID != 0
	if vlan := t.ownVLAN(base, s.VLANID); tagged && vlan != "" {
		base, tagged = vlan, false // a port has each VLAN once
	}
	switch {
	case tagged:
		return t.inside(func(n *namespace) error {
			if err := n.takeVLAN(base, s); err != nil {
				return setUp(s, err)
			}
			return t.ask(ctx, s, n.device, n)
		})
	case own || len(s.Addresses) == 0:
		return t.ask(ctx, s, base, nil)
	}
	// The address is the machine's, the port the installer's: neighbours are
	// asked on the port itself, everything else through a second interface.
	found, err := t.neighbours(ctx, s, base)
	if err != nil {
		return err
	}
	return t.inside(func(n *namespace) error {
		if err := n.takeIPVLAN(base, s); err != nil {
			return setUp(s, err)
		}
		return t.askStack(ctx, s, n.device, n, found)
	})
}

func setUp(s netconfig.Segment, err error) error {
	return netconfig.NewError(CodeSetUp, "trying the network %s: %w", s.Where(), err)
}

// ask looks at the neighbours through device and then, where the machine has an
// address, further.
func (t *trial) ask(ctx context.Context, s netconfig.Segment, device string, n *namespace) error {
	found, err := t.neighbours(ctx, s, device)
	if err != nil {
		return err
	}
	return t.askStack(ctx, s, device, n, found)
}

// neighbours looks for duplicates of the machine's addresses and for the
// gateways of IPv4 with frames of its own: no address is needed for that. It
// returns the gateways that answered.
func (t *trial) neighbours(ctx context.Context, s netconfig.Segment, device string) ([]netip.Addr, error) {
	conn, err := openARP(device)
	if err != nil {
		return nil, setUp(s, err)
	}
	defer conn.close()
	var mine []netip.Addr
	for _, a := range s.Addresses {
		if a.Addr().Is4() {
			mine = append(mine, a.Addr())
		}
	}
	var errs []error
	// The gateways first: a port that was just raised may not speak for long,
	// and its silence would look like that of an address nobody has. They are
	// asked by nobody (RFC 5227 lets a question have no sender), for the
	// machine's address may yet be another's.
	answers := map[netip.Addr]error{}
	var found []netip.Addr
	ask := func(gateway, by netip.Addr, wait time.Duration) {
		hardware, err := conn.resolve(ctx, by, gateway, wait)
		switch {
		case err != nil:
		case t.isOurs(hardware):
			err = errors.New("it is this machine itself that answers")
		default:
			found = append(found, gateway)
			t.Report(fmt.Sprintf("gateway %s (%s) answers %s", gateway, hardware, s.Where()))
		}
		answers[gateway] = err
	}
	for _, gateway := range s.Gateways {
		if gateway.Is4() {
			ask(gateway, netip.IPv4Unspecified(), t.wait(s))
		}
	}
	for _, address := range mine {
		other, err := conn.probe(ctx, address, t.second, t.isOurs)
		switch {
		case err != nil:
			return nil, setUp(s, err)
		case other != nil:
			errs = append(errs, netconfig.NewError(CodeDuplicate, "the address %s is in use by %s %s", address, other, s.Where()))
		default:
			t.Report(fmt.Sprintf("nobody else has the address %s %s", address, s.Where()))
		}
	}
	for _, gateway := range s.Gateways {
		// There are some that answer nobody.
		if by := source(s, gateway); answers[gateway] != nil && by.IsValid() && len(errs) == 0 {
			ask(gateway, by, min(t.Wait, 3*t.second))
		}
		if err := answers[gateway]; err != nil {
			errs = append(errs, netconfig.NewError(CodeGateway, "no gateway %s %s: %w", gateway, s.Where(), err))
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return found, errors.Join(errs...)
}

// source is the machine's address in a gateway's network, not valid where it
// has none.
func source(s netconfig.Segment, gateway netip.Addr) netip.Addr {
	for _, a := range s.Addresses {
		if a.Contains(gateway) {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// askStack asks what needs an IP stack: gateways of IPv6, name servers, the
// image server, large packets. n is nil in the installer's own namespace.
func (t *trial) askStack(ctx context.Context, s netconfig.Segment, device string, n *namespace, found []netip.Addr) error {
	if n != nil {
		if err := n.address(ctx, s); err != nil {
			return err
		}
	}
	var errs []error
	for _, gateway := range s.Gateways {
		if !gateway.Is6() {
			continue
		}
		hardware, err := solicit(ctx, device, gateway, t.wait(s))
		if err != nil {
			errs = append(errs, netconfig.NewError(CodeGateway, "no gateway %s %s: %w", gateway, s.Where(), err))
			continue
		}
		found = append(found, gateway)
		t.Report(fmt.Sprintf("gateway %s (%s) answers %s", gateway, hardware, s.Where()))
	}
	if len(errs) > 0 || len(s.Addresses) == 0 {
		return errors.Join(errs...)
	}
	if n != nil {
		if err := n.routes(s); err != nil {
			return setUp(s, err)
		}
	}
	return errors.Join(t.askDNS(ctx, s), t.askServer(ctx, s), t.askMTU(ctx, s, device, found))
}

// missing is an error where everything has to answer, and a warning otherwise.
func (t *trial) missing(code, format string, args ...any) error {
	err := netconfig.NewError(code, format, args...)
	if t.All {
		return err
	}
	t.Warn(fmt.Sprintf("%s: %v", code, err))
	return nil
}

func (t *trial) askDNS(ctx context.Context, s netconfig.Segment) error {
	if len(s.DNS) == 0 {
		return nil
	}
	var errs []error
	for _, server := range s.DNS {
		err := askNameServer(ctx, netip.AddrPortFrom(server, 53), t.Wait)
		if err == nil {
			t.Report(fmt.Sprintf("name server %s answers %s", server, s.Where()))
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", server, err))
	}
	return t.missing(CodeDNS, "no name server answers %s: %w", s.Where(), errors.Join(errs...))
}

// askServer connects to the image server where the segment leads to it.
func (t *trial) askServer(ctx context.Context, s netconfig.Segment) error {
	if !t.Server.IsValid() || !leadsTo(s, t.Server.Addr()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.Wait)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", t.Server.String())
	if err != nil {
		return t.missing(CodeServer, "the image server %s cannot be reached %s: %w", t.Server, s.Where(), err)
	}
	_ = conn.Close() // nothing was said
	t.Report(fmt.Sprintf("the image server %s can be reached %s", t.Server, s.Where()))
	return nil
}

func leadsTo(s netconfig.Segment, to netip.Addr) bool {
	return slices.ContainsFunc(s.Addresses, func(a netip.Prefix) bool { return a.Contains(to) }) ||
		slices.ContainsFunc(s.Routes, func(r netconfig.Route) bool { return r.To.Contains(to) })
}

// ordinaryMTU is Ethernet's (RFC 894): without it nothing works, with more some
// things are faster.
const ordinaryMTU = 1500

// askMTU sends packets as large as the segment's links allow, which nobody on
// the way may take apart, to a gateway that answers small ones.
func (t *trial) askMTU(ctx context.Context, s netconfig.Segment, device string, gateways []netip.Addr) error {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return setUp(s, err)
	}
	for _, gateway := range gateways {
		if !source(s, gateway).IsValid() || !leadsTo(s, gateway) {
			continue
		}
		const small = 100
		if err := ping(ctx, gateway, small, t.Wait/2); err != nil {
			t.Report(fmt.Sprintf("%s answers no ping: how large packets may be %s is not known", gateway, s.Where()))
			continue
		}
		if err := ping(ctx, gateway, link.MTU, t.Wait/2); err == nil {
			t.Report(fmt.Sprintf("packets of %d bytes reach %s %s", link.MTU, gateway, s.Where()))
			continue
		}
		if link.MTU > ordinaryMTU && ping(ctx, gateway, ordinaryMTU, t.Wait/2) == nil {
			if err := t.missing(CodeMTU, "packets of %d bytes do not reach %s %s, those of %d do", link.MTU, gateway, s.Where(), ordinaryMTU); err != nil {
				return err
			}
			continue
		}
		return netconfig.NewError(CodeMTU, "packets of %d bytes do not reach %s %s, and small ones do", min(link.MTU, ordinaryMTU), gateway, s.Where())
	}
	return nil
}
