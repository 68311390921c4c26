package dhcp

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// errRefused says that a server does not renew a lease: its address must not be
// used any more.
var errRefused = errors.New("the server refuses to renew it")

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
		for err != nil && ctx.Err() == nil {
			o.Report(fmt.Sprintf("%s: the lease of %s ended: %v; asking for another", lease.Interface, lease.Address, err))
			next, err = Acquire(ctx, []Asked{{Interface: lease.Interface, V4: !lease.V6(), V6: lease.V6()}}, options)
		}
		if ctx.Err() != nil {
			return nil
		}
		lease = next
		if err := changed(lease); err != nil {
			return err
		}
	}
}

// leastWait is before each renewal: a server that gives a lease for no time, or
// wants it renewed at once, is not asked again and again without a pause.
const leastWait = time.Second

// renew waits for T1 and then asks, ever more often (RFC 2131, 4.4.5: half of
// what remains, at least a minute; here less, for short leases), until the
// lease ends or the server refuses.
func renew(ctx context.Context, lease Lease, o Options) (Lease, error) {
	end, _ := lease.Expires()
	wait := max(time.Until(lease.Obtained.Add(lease.Renew.Duration())), leastWait)
	for {
		if !sleep(ctx, wait) {
			return Lease{}, ctx.Err()
		}
		if time.Until(end) <= 0 {
			return Lease{}, errors.New("the server did not renew it")
		}
		once := renew4
		if lease.V6() {
			once = renew6
		}
		next, err := once(ctx, lease, o)
		if err == nil {
			return next, nil
		}
		if errors.Is(err, errRefused) {
			return Lease{}, err
		}
		o.Report(fmt.Sprintf("%s: renewing: %v", lease.Interface, err))
		wait = min(max(time.Until(end)/2, time.Second), max(time.Until(end), 0))
	}
}
