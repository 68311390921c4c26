// Package dhcp gets an IPv4 lease for the installer and keeps it. It sends and
// receives on packet sockets, so it works before the interface has an address;
// it never configures an interface, which is netconfig/link's part.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/firstlight/firstlight/netconfig"
)

// VendorClass is option 60 of every request, so that a server can tell the
// installer from firmware (PXEClient, HTTPClient) and from an installed system.
const VendorClass = "firstlight-installer"

// Options change how Acquire and Keep ask; the zero value is usable.
type Options struct {
	// Prefer is the MAC address of the NIC that the machine booted from
	// (BOOTIF). Its lease is taken when it comes within Grace of the first.
	Prefer netconfig.MAC
	// Grace is how long to wait for the preferred NIC once another has a
	// lease; 0 means 5 s.
	Grace time.Duration
	// Deadline bounds the whole of Acquire; 0 means 120 s.
	Deadline time.Duration
	// FirstWait is the time to wait for the first answer; 0 means 2 s. It
	// doubles up to 16 s, with a jitter of a quarter.
	FirstWait time.Duration
	// HostName is option 12, where the machine has a name already.
	HostName string
	// Report is told what happens, a line at a time; it may be nil. It is
	// called from several goroutines, one call at a time.
	Report func(text string)
}

const (
	defaultDeadline  = 120 * time.Second
	defaultGrace     = 5 * time.Second
	defaultFirstWait = 2 * time.Second
	maxWait          = 16 * time.Second
)

func (o Options) withDefaults() Options {
	if o.Deadline == 0 {
		o.Deadline = defaultDeadline
	}
	if o.Grace == 0 {
		o.Grace = defaultGrace
	}
	if o.FirstWait == 0 {
		o.FirstWait = defaultFirstWait
	}
	report := o.Report
	var mu sync.Mutex
	o.Report = func(text string) {
		if report != nil {
			mu.Lock()
			defer mu.Unlock()
			report(text)
		}
	}
	return o
}

// result is what one interface came to.
type result struct {
	lease Lease
	err   error
}

// Acquire asks on every interface at once and returns the first lease. The
// interfaces must be up and should have carrier. Leases that come in on other
// interfaces meanwhile are given back. Errors are *netconfig.Error: NET-001
// without any interface, NET-003 when no lease came in time; when ctx ends
// first, its error.
func Acquire(ctx context.Context, interfaces []string, options Options) (Lease, error) {
	if len(interfaces) == 0 {
		return Lease{}, netconfig.NewError("NET-001", "no network interface with a link to ask for an address")
	}
	o := options.withDefaults()
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, o.Deadline)
	defer cancel()
	results := make(chan result, len(interfaces)) // room for all: nobody blocks
	var running sync.WaitGroup
	// The sockets are closed, and late leases given back, before this returns.
	defer running.Wait()
	defer cancel()
	preferred := false
	for _, name := range interfaces {
		if hw, err := net.InterfaceByName(name); err == nil && !o.Prefer.IsZero() && string(hw.HardwareAddr) == string(o.Prefer[:]) {
			preferred = true
		}
		running.Go(func() {
			lease, err := ask(ctx, name, o)
			results <- result{lease, err}
		})
	}
	var best *Lease
	var grace <-chan time.Time
	var failures []string
	for left := len(interfaces); left > 0; {
		select {
		case r := <-results:
			left--
			switch {
			case r.err != nil:
				failures = append(failures, r.err.Error())
			case best == nil:
				best = &r.lease
				if !preferred || r.lease.MAC == o.Prefer {
					left = 0
				} else if left > 0 {
					o.Report(fmt.Sprintf("%s has a lease; waiting %v for the NIC booted from, %s", r.lease.Interface, o.Grace, o.Prefer))
					grace = time.After(o.Grace)
				}
			case r.lease.MAC == o.Prefer:
				giveBack(*best)
				best, left = &r.lease, 0
			default:
				giveBack(r.lease)
			}
		case <-grace:
			left = 0
		}
	}
	cancel()
	running.Wait()
	close(results)
	for r := range results {
		if r.err == nil {
			giveBack(r.lease)
		}
	}
	if best != nil {
		return *best, nil
	}
	if err := parent.Err(); err != nil {
		return Lease{}, fmt.Errorf("asking for an address: %w", err)
	}
	return Lease{}, netconfig.NewError("NET-003", "no DHCP server gave an address within %v: %s", o.Deadline, strings.Join(failures, "; "))
}

// ask repeats discover and request on one interface until a lease or the end
// of ctx.
func ask(ctx context.Context, name string, o Options) (Lease, error) {
	wait := o.FirstWait
	last := errors.New("no answer")
	for tries := 1; ; tries++ {
		lease, err := askOnce(ctx, name, wait, o)
		if err == nil {
			o.Report(fmt.Sprintf("%s: lease of %s from %s", name, lease.Address, lease.Server))
			return lease, nil
		}
		if ctx.Err() != nil {
			return Lease{}, fmt.Errorf("%s: %d requests, last: %w", name, tries, last)
		}
		if errors.Is(err, nclient4.ErrNoResponse) {
			err = errors.New("no answer")
		} else if !sleep(ctx, jitter(wait)) { // a broken link or a refusal comes back at once
			return Lease{}, fmt.Errorf("%s: %d requests, last: %w", name, tries, err)
		}
		last = err
		o.Report(fmt.Sprintf("%s: %v", name, err))
		wait = min(2*wait, maxWait)
	}
}

// askOnce is one exchange of four messages, RFC 2131, 3.1.
func askOnce(ctx context.Context, name string, wait time.Duration, o Options) (Lease, error) {
	client, mac, err := open(name, wait)
	if err != nil {
		return Lease{}, err
	}
	defer client.Close() // a packet socket: nothing is lost when closing fails
	modifiers := o.modifiers()
	discover, err := dhcpv4.NewDiscovery(mac[:], modifiers...)
	if err != nil {
		return Lease{}, fmt.Errorf("making a DHCP discover: %w", err)
	}
	offer, err := client.SendAndRead(ctx, nclient4.DefaultServers, discover, func(m *dhcpv4.DHCPv4) bool {
		// A proxy server for PXE offers no address: not an offer to us.
		return m.MessageType() == dhcpv4.MessageTypeOffer && !m.YourIPAddr.IsUnspecified() && m.ServerIdentifier() != nil
	})
	if err != nil {
		return Lease{}, err
	}
	got, err := client.RequestFromOffer(ctx, offer, modifiers...)
	if err != nil {
		return Lease{}, fmt.Errorf("taking up the offer of %s: %w", offer.ServerIdentifier(), err)
	}
	lease, ok := newLease(name, mac, got)
	if !ok {
		return Lease{}, fmt.Errorf("%s acknowledged without an address", offer.ServerIdentifier())
	}
	return lease, nil
}

func open(name string, wait time.Duration) (*nclient4.Client, netconfig.MAC, error) {
	hw, err := net.InterfaceByName(name)
	if err != nil {
		return nil, netconfig.MAC{}, fmt.Errorf("opening %s: %w", name, err)
	}
	if len(hw.HardwareAddr) != len(netconfig.MAC{}) {
		return nil, netconfig.MAC{}, fmt.Errorf("%s is not an Ethernet interface", name)
	}
	client, err := nclient4.New(name, nclient4.WithTimeout(jitter(wait)), nclient4.WithRetry(1))
	if err != nil {
		return nil, netconfig.MAC{}, fmt.Errorf("opening %s: %w", name, err)
	}
	return client, netconfig.MAC(hw.HardwareAddr), nil
}

func (o Options) modifiers() []dhcpv4.Modifier {
	modifiers := []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(VendorClass)),
		dhcpv4.WithRequestedOptions(
			dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionHostName, dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU,
			dhcpv4.OptionNTPServers, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
			dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName,
			dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute,
			dhcpv4.OptionTFTPServerAddress),
	}
	if o.HostName != "" {
		modifiers = append(modifiers, dhcpv4.WithOption(dhcpv4.OptHostName(o.HostName)))
	}
	return modifiers
}

// giveBack releases a lease that is not used. A server that does not hear of
// it frees the address when the lease ends.
func giveBack(lease Lease) {
	client, _, err := open(lease.Interface, time.Second)
	if err != nil {
		return
	}
	defer client.Close()           // as in askOnce
	_ = client.Release(lease.from) // see above
}

// Keep renews the lease until ctx ends, and then returns nil. Each time the
// server answers, changed is called with the new lease; the caller configures
// the interface when it differs. When a lease ran out, Keep asks for another
// on the same interface for as long as it takes. An error is that of changed.
func Keep(ctx context.Context, lease Lease, options Options, changed func(Lease) error) error {
	o := options.withDefaults()
	for {
		if lease.Duration == Infinite {
			<-ctx.Done()
			return nil
		}
		next, err := renew(ctx, lease, o)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			o.Report(fmt.Sprintf("%s: the lease of %s ended: %v; asking for another", lease.Interface, lease.Address, err))
			if next, err = ask(ctx, lease.Interface, o); err != nil {
				return nil // only the end of ctx ends ask
			}
		}
		lease = next
		if err := changed(lease); err != nil {
			return err
		}
	}
}

// renew waits for T1 and then asks, ever more often (RFC 2131, 4.4.5: half of
// what remains, at least a minute; here less, for short leases), until the
// lease ends or the server refuses.
func renew(ctx context.Context, lease Lease, o Options) (Lease, error) {
	end, _ := lease.Expires()
	wait := time.Until(lease.Obtained.Add(lease.Renew.Duration()))
	for {
		if !sleep(ctx, wait) {
			return Lease{}, ctx.Err()
		}
		if time.Until(end) <= 0 {
			return Lease{}, errors.New("the server did not renew it")
		}
		next, err := renewOnce(ctx, lease, o)
		if err == nil {
			return next, nil
		}
		var refused *nclient4.ErrNak
		if errors.As(err, &refused) {
			return Lease{}, err
		}
		o.Report(fmt.Sprintf("%s: renewing: %v", lease.Interface, err))
		wait = min(max(time.Until(end)/2, time.Second), max(time.Until(end), 0))
	}
}

func renewOnce(ctx context.Context, lease Lease, o Options) (Lease, error) {
	client, mac, err := open(lease.Interface, o.FirstWait)
	if err != nil {
		return Lease{}, err
	}
	defer client.Close() // as in askOnce
	got, err := client.Renew(ctx, lease.from, o.modifiers()...)
	if err != nil {
		return Lease{}, err
	}
	next, ok := newLease(lease.Interface, mac, got)
	if !ok {
		return Lease{}, errors.New("acknowledged without an address")
	}
	return next.fill(lease), nil
}

// jitter spreads a time by up to a quarter each way, so that a rack that is
// switched on at once does not ask at once (RFC 2131, 4.1).
func jitter(d time.Duration) time.Duration {
	return d - d/4 + rand.N(d/2+1)
}

// sleep is false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
