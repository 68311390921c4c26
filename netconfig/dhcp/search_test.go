package dhcp_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
)

// neighbours joins n further namespaces to the client's eth0, each with a DHCP
// server's address 10.77.0.<10+i>, and returns their names.
func neighbours(t *testing.T, server string, n int) []string {
	t.Helper()
	run(t, "ip", "-n", server, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
	run(t, "ip", "-n", server, "address", "flush", "dev", "s0")
	run(t, "ip", "-n", server, "address", "add", "10.77.0.1/24", "dev", "br0")
	run(t, "ip", "-n", server, "link", "set", "s0", "master", "br0")
	run(t, "ip", "-n", server, "link", "set", "br0", "up")
	var names []string
	for i := range n {
		name := fmt.Sprintf("fl-dhcp-%d-n%d", os.Getpid(), i)
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
		port := fmt.Sprintf("n%d", i)
		run(t, "ip", "-n", server, "link", "add", port, "type", "veth", "peer", "name", "s0", "netns", name)
		run(t, "ip", "-n", server, "link", "set", port, "up", "master", "br0")
		run(t, "ip", "-n", name, "link", "set", "s0", "up")
		run(t, "ip", "-n", name, "address", "add", fmt.Sprintf("10.77.0.%d/24", 10+i), "dev", "s0")
		names = append(names, name)
	}
	return names
}

// Three servers that nobody wants are there first. Each costs a try, and none
// of them keeps the right one away.
func TestSearchGoesThroughEveryServer(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	for i, name := range neighbours(t, server, 3) {
		dnsmasq(t, name, "--interface=s0", fmt.Sprintf("--dhcp-range=10.77.0.%d0,10.77.0.%d9,1h", 5+i, 5+i))
	}
	o := options(t)
	o.Settle = 8 * time.Second
	search := dhcp.Begin(t.Context(), func() ([]dhcp.Asked, error) { return v4("eth0"), nil }, o)
	defer search.Close()
	right := netip.MustParseAddr("10.77.0.1")
	seen := map[netip.Addr]bool{}
	for {
		offer, err := search.Next(t.Context())
		if err != nil {
			t.Fatalf("after %v: %v", seen, err)
		}
		if seen[offer.Server] {
			t.Errorf("%s is tried twice", offer)
		}
		seen[offer.Server] = true
		lease, err := search.Take(t.Context(), offer)
		if err != nil || lease.Server != offer.Server {
			t.Fatalf("%+v, %v", lease, err)
		}
		if offer.Server == right {
			break
		}
		dhcp.Release(lease)
		search.Failed(offer, fmt.Errorf("%s is a rogue", offer.Server), false)
		if len(seen) == 1 { // the right one comes last of all
			dnsmasq(t, server, "--interface=br0", "--dhcp-range=10.77.0.80,10.77.0.89,1h")
		}
	}
	if len(seen) != 4 {
		t.Errorf("servers %v", seen)
	}
}

// When every offer was of no use, the errors of all come back, after a while in
// which others could have come.
func TestSearchEnds(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	dnsmasq(t, server, "--interface=s0", "--dhcp-range=10.77.0.50,10.77.0.60,1h")
	o := options(t)
	o.Settle, o.Deadline = 2*time.Second, 4*time.Second
	useless := errors.New("of no use")
	for _, test := range []struct {
		asked []dhcp.Asked
		again bool
		least time.Duration
	}{
		{v4("eth0"), false, o.Settle},
		{v4("eth0", "eth1"), false, o.Deadline}, // eth1 may yet offer something
		{v4("eth0"), true, o.Settle},
	} {
		start := time.Now()
		search := dhcp.Begin(t.Context(), func() ([]dhcp.Asked, error) { return test.asked, nil }, o)
		tries := 0
		for {
			offer, err := search.Next(t.Context())
			if err != nil {
				if !errors.Is(err, useless) {
					t.Errorf("got %v", err)
				}
				break
			}
			tries++
			search.Failed(offer, useless, test.again)
		}
		search.Close()
		if took := time.Since(start); took < test.least || test.again != (tries > 1) {
			t.Errorf("%+v: %d tries, %v", test, tries, took)
		}
	}
}

// An interface that gets its link while others are asked is asked on too.
func TestSearchLateLink(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	run(t, "ip", "netns", "exec", server, "ip", "link", "set", "s1", "down")
	search := dhcp.Begin(t.Context(), func() ([]dhcp.Asked, error) {
		var asked []dhcp.Asked
		for _, name := range []string{"eth0", "eth1"} {
			if hw, err := net.InterfaceByName(name); err == nil && hw.Flags&net.FlagRunning != 0 {
				asked = append(asked, v4(name)...)
			}
		}
		return asked, nil
	}, options(t))
	defer search.Close()
	time.AfterFunc(1500*time.Millisecond, func() { run(t, "ip", "netns", "exec", server, "ip", "link", "set", "s1", "up") })
	dnsmasq(t, server, "--interface=s1", "--bind-dynamic", "--dhcp-range=10.77.1.50,10.77.1.60,1h")
	offer, err := search.Next(t.Context())
	if err != nil || offer.Interface != "eth1" {
		t.Errorf("%s, %v", offer, err)
	}
}

func TestSearchEndsWithItsContext(t *testing.T) {
	_, yes := inside(t)
	if !yes {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	search := dhcp.Begin(ctx, func() ([]dhcp.Asked, error) { return dhcp.Both([]string{"eth0"}), nil }, options(t))
	defer search.Close()
	if _, err := search.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// routed gives the server's end of eth0 a prefix.
func routed(t *testing.T, server string) {
	run(t, "ip", "-n", server, "address", "add", "fd77::1/64", "dev", "s0", "nodad")
}

// A network without IPv4: the router's prefix, its name servers, and options
// by stateless DHCPv6.
func TestIPv6ByAdvertisement(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	routed(t, server)
	dnsmasq(t, server, "--interface=s0", "--enable-ra", "--dhcp-range=fd77::,ra-stateless,64,1h",
		"--dhcp-option=option6:dns-server,[fd77::53]", "--dhcp-option=option6:domain-search,lab.example",
		"--dhcp-option=option6:bootfile-url,tftp://[fd77::5]/boot", "--dhcp-option=option6:ntp-server,[fd77::4]")
	o := options(t)
	o.Grace = 500 * time.Millisecond // nobody will answer by IPv4
	lease, err := dhcp.Acquire(t.Context(), dhcp.Both([]string{"eth0"}), o)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr
	if !lease.V6() || !lease.Auto || !netip.MustParsePrefix("fd77::/64").Contains(lease.Address.Addr()) || lease.Duration != dhcp.Infinite {
		t.Errorf("lease %+v", lease)
	}
	if !lease.Router().IsLinkLocalUnicast() {
		t.Errorf("router %v", lease.Router())
	}
	if diff := cmp.Diff([]any{[]netip.Addr{addr("fd77::53")}, []string{"lab.example"}, []netip.Addr{addr("fd77::4")}, []string{"fd77::5"}},
		[]any{lease.DNS, lease.Search, lease.NTP, lease.TFTPServers()}, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// Addresses by DHCPv6, renewed.
func TestIPv6ByDHCP(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	routed(t, server)
	dnsmasq(t, server, "--interface=s0", "--enable-ra", "--dhcp-range=fd77::100,fd77::1ff,64,2m", "--dhcp-option=option6:dns-server,[fd77::53]")
	o := options(t)
	lease, err := dhcp.Acquire(t.Context(), []dhcp.Asked{{Interface: "eth0", V6: true}}, o)
	if err != nil {
		t.Fatal(err)
	}
	if lease.Auto || lease.Address.Bits() != 128 || !netip.MustParsePrefix("fd77::100/120").Contains(lease.Address.Addr()) || len(lease.DNS) != 1 {
		t.Errorf("lease %+v", lease)
	}
	if lease.Duration != 120 || lease.Renew == 0 || lease.Renew >= lease.Rebind {
		t.Errorf("times %d, %d, %d", lease.Renew, lease.Rebind, lease.Duration)
	}
	for _, late := range []dhcp.Seconds{lease.Renew, lease.Rebind} {
		old := lease
		old.Obtained = old.Obtained.Add(-late.Duration())
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		var times atomic.Int32
		err = dhcp.Keep(ctx, old, o, func(next dhcp.Lease) error {
			if next.Address != lease.Address || !next.Obtained.After(lease.Obtained) {
				t.Errorf("renewed to %+v", next)
			}
			times.Add(1)
			cancel()
			return nil
		})
		cancel()
		if err != nil || times.Load() != 1 {
			t.Errorf("after %d s renewed %d times, %v", late, times.Load(), err)
		}
	}
	dhcp.Release(lease)
}

func TestIPv6WithoutARouter(t *testing.T) {
	_, yes := inside(t)
	if !yes {
		return
	}
	o := options(t)
	o.Deadline = 2 * time.Second
	_, err := dhcp.Acquire(t.Context(), dhcp.Both([]string{"eth0"}), o)
	var coded *netconfig.Error
	if !errors.As(err, &coded) || coded.Code() != "NET-003" || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("got %v", err)
	}
}
