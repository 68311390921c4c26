package dhcp

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/firstlight/firstlight/netconfig"
)

// Asked is an interface on which leases are asked for, and by what.
type Asked struct {
	Interface string
	V4, V6    bool
}

// Both asks for leases of both families on each interface.
func Both(interfaces []string) []Asked {
	var asked []Asked
	for _, name := range interfaces {
		asked = append(asked, Asked{Interface: name, V4: true, V6: true})
	}
	return asked
}

// Offer is what one server (of IPv6: one router) offers on one interface. It
// has given nothing yet: see Search.Take.
type Offer struct {
	Interface string
	MAC       netconfig.MAC // of the interface
	V6        bool
	Server    netip.Addr // server identifier; of IPv6 the router's address
	// Address is what is offered; not valid where a router lets the machine
	// make its own.
	Address netip.Addr

	v4     *dhcpv4.DHCPv4
	router advertisement
	v6     *dhcpv6.Message // advertise of a DHCPv6 server; nil where none is asked
}

// String names the offer: "eth0: 10.0.0.5 from 10.0.0.1".
func (o Offer) String() string {
	what := "an address of its own"
	if o.Address.IsValid() {
		what = o.Address.String()
	}
	return fmt.Sprintf("%s: %s from %s", o.Interface, what, o.Server)
}

// key tells offers apart.
type key struct {
	name   string
	server netip.Addr
	v6     bool
}

// candidate is an offer and what became of it.
type candidate struct {
	Offer
	at       time.Time // it came, or was tried
	attempts int
	useless  bool // tried in vain, and not to be tried again
	given    bool // handed out and not yet said to have failed
}

// Search asks for leases on many interfaces at once, until it is closed. Its
// methods are safe for use by several goroutines.
type Search struct {
	options Options
	asked   func() ([]Asked, error)
	begun   time.Time
	end     context.CancelFunc
	running sync.WaitGroup

	mu         sync.Mutex
	changed    chan struct{} // closed, and another one made, at each change
	candidates map[key]*candidate
	interfaces map[string]*asking
	failures   []error // of offers that were tried
}

// asking is one interface that is being asked on.
type asking struct {
	Asked
	mac  netconfig.MAC
	last error // of the last request
	n    int   // requests

	crowded bool // more servers than count, which was said
}

// mostOffers is of how many servers (of IPv6: routers) the offers on one
// interface count, the first that came. Each is tried, which takes time, and
// kept; without a bound somebody who makes up a server for every answer could
// hold the machine up for ever. No network has as many that are meant.
const mostOffers = 16

// watchInterval is how often a Search looks for interfaces that have got a
// link since.
const watchInterval = 250 * time.Millisecond

// Begin starts to ask on the interfaces that asked returns, which is called
// again and again: an interface that gets its link late is asked on from then
// on. No link is ever taken down. The Search ends with ctx, or when it is
// closed, which must be done in any case.
func Begin(ctx context.Context, asked func() ([]Asked, error), options Options) *Search {
	ctx, end := context.WithCancel(ctx)
	s := &Search{
		options: options.withDefaults(), asked: asked, begun: time.Now(), end: end,
		changed: make(chan struct{}), candidates: map[key]*candidate{}, interfaces: map[string]*asking{},
	}
	s.look(ctx)
	s.running.Go(func() {
		for sleep(ctx, watchInterval) {
			s.look(ctx)
		}
	})
	return s
}

// Close ends the asking; when it returns, every socket is closed.
func (s *Search) Close() {
	s.end()
	s.running.Wait()
}

// look begins to ask on interfaces that are new.
func (s *Search) look(ctx context.Context) {
	all, err := s.asked()
	if err != nil {
		return // the kernel refuses a list now and then; it is asked again at once
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range all {
		if s.interfaces[one.Interface] != nil {
			continue
		}
		a := &asking{Asked: one, last: errNoAnswer}
		if _, mac, err := hardware(one.Interface); err == nil {
			a.mac = mac
		}
		s.interfaces[one.Interface] = a
		s.tell()
		if one.V4 {
			s.running.Go(func() { s.repeat(ctx, a, s.discover4, true) })
		}
		if one.V6 {
			s.running.Go(func() { s.repeat(ctx, a, s.discover6, !one.V4) })
		}
	}
}

// repeat asks with growing pauses until ctx ends. Where both families are asked
// for, only one of them says aloud that nobody answers.
func (s *Search) repeat(ctx context.Context, a *asking, once func(context.Context, string, time.Duration) error, aloud bool) {
	for wait := s.options.FirstWait; ctx.Err() == nil; wait = min(2*wait, maxWait) {
		window := jitter(wait)
		until := time.Now().Add(window)
		err := once(ctx, a.Interface, window)
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		if aloud {
			a.n++
			a.last = err
		}
		answered := slices.ContainsFunc(slices.Collect(maps.Values(s.candidates)), func(c *candidate) bool { return c.Interface == a.Interface })
		s.mu.Unlock()
		if err != nil && !answered && aloud {
			s.options.Report(fmt.Sprintf("%s: %v", a.Interface, err))
		}
		// A broken link or a refusal comes back at once.
		sleep(ctx, time.Until(until))
	}
}

// tell wakes whoever waits in Next. The mutex is held.
func (s *Search) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// add notes an offer. One that came before is replaced, for servers forget.
func (s *Search) add(o Offer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{o.Interface, o.Server, o.V6}
	if old := s.candidates[k]; old != nil {
		old.Offer = o
		return
	}
	if n := s.offered(o.Interface, o.V6); n >= mostOffers {
		if a := s.interfaces[o.Interface]; a != nil && !a.crowded {
			a.crowded = true
			s.options.Report(fmt.Sprintf("%s: more than %d servers offer something; only the first ones count", o.Interface, mostOffers))
		}
		return
	}
	s.candidates[k] = &candidate{Offer: o, at: time.Now()}
	s.tell()
}

// Next waits for the best offer that is not tried yet: the preferred NIC's
// before others, IPv4 before IPv6, and of equal ones the first that came.
// Offers that failed and may be tried again come after all others. The error
// is a *netconfig.Error with code NET-003 when nobody offered anything within
// the Deadline, and otherwise, when there is nothing left to try, those of the
// offers that failed, joined.
func (s *Search) Next(ctx context.Context) (Offer, error) {
	for {
		s.mu.Lock()
		best, wait := s.choose(time.Now())
		changed := s.changed
		if best != nil && wait <= 0 {
			best.attempts++
			best.given = true
			offer := best.Offer
			s.mu.Unlock()
			return offer, nil
		}
		s.mu.Unlock()
		if best == nil && wait <= 0 {
			return Offer{}, s.nothing()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return Offer{}, fmt.Errorf("asking for an address: %w", context.Cause(ctx))
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// choose is the best offer and how long it is still to be held back for a
// better one; without any, how long one is to be waited for. The mutex is held.
func (s *Search) choose(now time.Time) (best *candidate, wait time.Duration) {
	deadline := s.begun.Add(s.options.Deadline)
	late := now.After(deadline)
	for _, c := range s.candidates {
		if c.useless || c.given || late && c.attempts > 0 {
			continue
		}
		if best == nil || s.before(c, best) {
			best = c
		}
	}
	if best == nil {
		return nil, s.patienceEnd(deadline).Sub(now)
	}
	const pause = 3 * time.Second // before another try
	hold := now
	switch {
	case late:
	case best.attempts > 0:
		if hold = best.at.Add(pause); hold.After(deadline) {
			hold = deadline
		}
	case s.betterMayCome(best):
		hold = best.at.Add(s.options.Grace)
	}
	return best, hold.Sub(now)
}

func (s *Search) before(a, b *candidate) bool {
	if a.attempts != b.attempts {
		return a.attempts < b.attempts
	}
	if p := s.options.Prefer; !p.IsZero() && (a.MAC == p) != (b.MAC == p) {
		return a.MAC == p
	}
	if a.V6 != b.V6 {
		return b.V6
	}
	return a.at.Before(b.at)
}

// betterMayCome says that the preferred NIC is being asked on and has offered
// nothing, or that only IPv6 has been offered.
func (s *Search) betterMayCome(best *candidate) bool {
	for _, a := range s.interfaces {
		if !s.options.Prefer.IsZero() && a.mac == s.options.Prefer && best.MAC != s.options.Prefer && s.offered(a.Interface, a.V6 && !a.V4) == 0 {
			return true
		}
		if best.V6 && a.V4 && s.offered(a.Interface, false) == 0 {
			return true
		}
	}
	return false
}

// offered is how many servers have offered something on an interface.
func (s *Search) offered(name string, v6 bool) (servers int) {
	for k := range s.candidates {
		if k.name == name && k.v6 == v6 {
			servers++
		}
	}
	return servers
}

// patienceEnd is when no further offer is waited for.
func (s *Search) patienceEnd(deadline time.Time) time.Time {
	if len(s.candidates) == 0 {
		return deadline
	}
	for _, c := range s.candidates {
		if c.given {
			return deadline
		}
	}
	for _, a := range s.interfaces {
		if s.offered(a.Interface, false)+s.offered(a.Interface, true) == 0 {
			return deadline
		}
	}
	return s.begun.Add(s.options.Settle)
}

// Failed says that an offer was of no use, and why; with again it may be tried
// once more, after all others.
func (s *Search) Failed(o Offer, why error, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.candidates[key{o.Interface, o.Server, o.V6}]; c != nil {
		c.at, c.given, c.useless = time.Now(), false, !again
	}
	s.failures = append(s.failures, why)
	s.tell()
}

// Waiting says how many offers besides the one that was handed out last wait
// to be tried.
func (s *Search) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.candidates {
		if c.attempts == 0 && !c.useless {
			n++
		}
	}
	return n
}

// Another waits for an offer that is not tried yet, besides the one that was
// handed out, for as long as offers are waited for where all were of no use
// (Options.Settle). It is false when none has come.
func (s *Search) Another(ctx context.Context) bool {
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if s.Waiting() > 0 {
			return true
		}
		timer := time.NewTimer(time.Until(s.begun.Add(s.options.Settle)))
		select {
		case <-changed:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
			return s.Waiting() > 0
		}
	}
}

// nothing is the error of a search that came to nothing.
func (s *Search) nothing() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failures) > 0 {
		return errors.Join(s.failures...)
	}
	var list []string
	for _, name := range slices.Sorted(maps.Keys(s.interfaces)) {
		list = append(list, fmt.Sprintf("%s: %d requests, last: %v", name, s.interfaces[name].n, s.interfaces[name].last))
	}
	if len(list) == 0 {
		return netconfig.NewError("NET-001", "no network interface with a link to ask for an address")
	}
	return netconfig.NewError(CodeNoLease, "no DHCP server gave an address within %v: %s", s.options.Deadline, strings.Join(list, "; "))
}

// Take accepts an offer, and returns the lease that came of it. Give it back
// with Release if it is of no use.
func (s *Search) Take(ctx context.Context, o Offer) (Lease, error) {
	var lease Lease
	var err error
	if o.V6 {
		lease, err = take6(ctx, o)
	} else {
		lease, err = take4(ctx, o, s.options)
	}
	if err != nil {
		return Lease{}, netconfig.NewError(CodeNoLease, "%s: %w", o, err)
	}
	s.options.Report(fmt.Sprintf("%s: lease of %s from %s", lease.Interface, lease.Address, lease.Server))
	return lease, nil
}

// Release gives a lease back that is not used. A server that does not hear of
// it frees the address when the lease ends.
func Release(lease Lease) {
	switch {
	case lease.from != nil:
		release4(lease)
	case lease.from6 != nil:
		release6(lease)
	}
}
