// Package dhcp gets leases for the installer and keeps one of them: by DHCPv4,
// by DHCPv6, or an address that router advertisements let the kernel make. All
// interfaces are asked at once, every server's offer counts, and who uses the
// package chooses. It never configures an interface, which is netconfig/link's
// part; it sends on packet sockets, before an interface has an address.
package dhcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

// VendorClass is option 60 of every request, so that a server can tell the
// installer from firmware (PXEClient, HTTPClient) and from an installed system.
const VendorClass = "firstlight-installer"

// Options change how a Search and Keep ask; the zero value is usable.
type Options struct {
	// Prefer is the MAC address of the NIC that the machine booted from
	// (BOOTIF). Its offers come first when they arrive within Grace of another.
	Prefer netconfig.MAC
	// Grace is how long to wait for the preferred NIC, and for IPv4, once
	// there is an offer of another kind; 0 means 5 s.
	Grace time.Duration
	// Deadline is how long to wait for a first offer, and for that of an
	// interface that has none; 0 means 120 s.
	Deadline time.Duration
	// Settle is how long, from the beginning, to wait for further offers when
	// all that came were of no use; 0 means 10 s.
	Settle time.Duration
	// FirstWait is the time to wait for the first answer; 0 means 2 s. It
	// doubles up to 16 s, with a jitter of a quarter.
	FirstWait time.Duration
	// HostName is option 12, where the machine has a name already.
	HostName string
	// Report is told what happens, a line at a time; it may be nil. It is
	// called from several goroutines, one call at a time.
	Report func(text string)
}

// CodeNoLease is the code of a lease that could not be had.
const CodeNoLease = "NET-003"

const (
	defaultDeadline  = 120 * time.Second
	defaultGrace     = 5 * time.Second
	defaultSettle    = 10 * time.Second
	defaultFirstWait = 2 * time.Second
	maxWait          = 16 * time.Second
)

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, otherwise time.Duration) {
		if *d == 0 {
			*d = otherwise
		}
	}
	set(&o.Deadline, defaultDeadline)
	set(&o.Grace, defaultGrace)
	set(&o.Settle, defaultSettle)
	set(&o.FirstWait, defaultFirstWait)
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

// Acquire asks on the interfaces and returns the first lease that can be had.
// The interfaces must be up and should have carrier. Errors are
// *netconfig.Error: NET-001 without any interface, NET-003 when no lease came
// in time; when ctx ends first, its error.
func Acquire(ctx context.Context, interfaces []Asked, options Options) (Lease, error) {
	if len(interfaces) == 0 {
		return Lease{}, netconfig.NewError("NET-001", "no network interface with a link to ask for an address")
	}
	search := Begin(ctx, func() ([]Asked, error) { return interfaces, nil }, options)
	defer search.Close()
	for {
		offer, err := search.Next(ctx)
		if err != nil {
			return Lease{}, err
		}
		lease, err := search.Take(ctx, offer)
		if err == nil {
			return lease, nil
		}
		search.options.Report(err.Error())
		search.Failed(offer, err, true)
	}
}

// hardware is the interface's index and MAC address.
func hardware(name string) (*net.Interface, netconfig.MAC, error) {
	hw, err := net.InterfaceByName(name)
	if err != nil {
		return nil, netconfig.MAC{}, fmt.Errorf("opening %s: %w", name, err)
	}
	if len(hw.HardwareAddr) != len(netconfig.MAC{}) {
		return nil, netconfig.MAC{}, fmt.Errorf("%s is not an Ethernet interface", name)
	}
	return hw, netconfig.MAC(hw.HardwareAddr), nil
}

// errNoAnswer says that nobody answered in time.
var errNoAnswer = errors.New("no answer")

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
