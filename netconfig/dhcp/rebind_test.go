package dhcp_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/netconfig/dhcp"
)

// keepOnce keeps a lease, whose T1 and T2 come soon, until it has been renewed
// once, and returns what came of that.
func keepOnce(t *testing.T, lease dhcp.Lease) (renewed dhcp.Lease, log string) {
	t.Helper()
	lease.Renew, lease.Rebind, lease.Duration = 1, 2, 6 // servers know none as short
	lease.Obtained = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var said strings.Builder
	o := options(t)
	o.Report = func(text string) { said.WriteString(text + "\n") }
	err := dhcp.Keep(ctx, lease, o, func(next dhcp.Lease) error {
		renewed = next
		cancel()
		return nil
	})
	if err != nil || !renewed.Address.IsValid() {
		t.Fatalf("%v; not renewed:\n%s", err, said.String())
	}
	return renewed, said.String()
}

// leased is a lease whose address the interface has, as it has in use.
func leased(t *testing.T) dhcp.Lease {
	t.Helper()
	lease, err := dhcp.Acquire(t.Context(), v4("eth0"), options(t))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "ip", "address", "add", lease.Address.String(), "dev", "eth0")
	return lease
}

// A server that hears nothing but broadcasts is not heard at T1, and renews the
// lease at T2.
func TestRebindWithTheSameServer(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	dnsmasq(t, server, "--interface=s0", "--dhcp-range=10.77.0.50,10.77.0.60,2m")
	lease := leased(t)
	// At T1, to the server's own address.
	if next, said := keepOnce(t, lease); next.Address != lease.Address || said != "" {
		t.Errorf("%+v\n%s", next, said)
	}
	run(t, "ip", "neigh", "replace", "10.77.0.1", "lladdr", "52:54:00:00:00:77", "dev", "eth0", "nud", "permanent")
	next, said := keepOnce(t, lease)
	if next.Address != lease.Address || !strings.Contains(said, "renewing: ") || strings.Contains(said, "asking for another") {
		t.Errorf("%+v\n%s", next, said)
	}
}

// The server is gone: at T2 another one that knows the lease renews it, and is
// from then on the one to be asked.
func TestRebindWithAnotherServer(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	second := neighbours(t, server, 1)[0]
	args := []string{"--dhcp-range=10.77.0.50,10.77.0.60,255.255.255.0,2m"}
	stop := dnsmasq(t, server, append(args, "--interface=br0")...)
	lease := leased(t)
	stop()
	dnsmasq(t, second, append(args, "--interface=s0")...)
	next, said := keepOnce(t, lease)
	if other := netip.MustParseAddr("10.77.0.10"); next.Address != lease.Address || lease.Server == other || next.Server != other {
		t.Errorf("%+v, before %+v", next, lease)
	}
	if !strings.Contains(said, "renewing: ") || strings.Contains(said, "asking for another") {
		t.Errorf("nobody else was to answer at T1:\n%s", said)
	}
	if again, _ := keepOnce(t, next); again.Server != next.Server {
		t.Errorf("%+v", again)
	}
}

// Somebody who makes up a server for every answer holds nobody up for ever.
func TestSearchCountsItsServers(t *testing.T) {
	s := dhcp.Begin(t.Context(), func() ([]dhcp.Asked, error) { return nil, nil }, dhcp.Options{})
	defer s.Close()
	for n := range 500 {
		dhcp.AddOffer(s, dhcp.Offer{Interface: "eth0", Server: netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", n/250, n%250))})
	}
	dhcp.AddOffer(s, dhcp.Offer{Interface: "eth1", Server: netip.MustParseAddr("10.1.0.1")})
	if n := s.Waiting(); n != 17 {
		t.Errorf("%d offers are to be tried", n)
	}
	if !s.Another(t.Context()) {
		t.Error("there are others")
	}
}

// An only offer has no rival once others have been waited for.
func TestSearchHasNoOther(t *testing.T) {
	s := dhcp.Begin(t.Context(), func() ([]dhcp.Asked, error) { return nil, nil }, dhcp.Options{Settle: 300 * time.Millisecond})
	defer s.Close()
	offer := dhcp.Offer{Interface: "eth0", Server: netip.MustParseAddr("10.0.0.1")}
	dhcp.AddOffer(s, offer)
	begun := time.Now()
	if got, err := s.Next(t.Context()); err != nil || got.Server != offer.Server {
		t.Fatalf("%v, %v", got, err)
	}
	if s.Another(t.Context()) || time.Since(begun) < 200*time.Millisecond {
		t.Errorf("another after %v", time.Since(begun))
	}
	offer.Server = offer.Server.Next()
	dhcp.AddOffer(s, offer)
	if !s.Another(t.Context()) {
		t.Error("there is another")
	}
}
