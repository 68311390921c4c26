package dhcp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
)

const inNamespace = "FIRSTLIGHT_TEST_NETNS"

// inside runs the calling test again in a process of its own, in a new network
// namespace "…-client" that is joined by two veth pairs (eth0–s0, eth1–s1) to
// another, "…-server". It is true in that process. So no packet of a test ever
// leaves the namespaces, whatever thread of Go sends it.
func inside(t *testing.T) (server string, yes bool) {
	t.Helper()
	if server := os.Getenv(inNamespace); server != "" {
		return server, true
	}
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root")
	}
	t.Parallel() // in a process and in namespaces of its own
	client := fmt.Sprintf("fl-%d-%s-client", os.Getpid(), t.Name())
	server = fmt.Sprintf("fl-%d-%s-server", os.Getpid(), t.Name())
	for _, name := range []string{client, server} {
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() {
			// A child that timed out leaves its dnsmasq behind.
			for pid := range strings.FieldsSeq(run(t, "ip", "netns", "pids", name)) {
				run(t, "kill", "-KILL", pid)
			}
			run(t, "ip", "netns", "del", name)
		})
	}
	for i := range 2 {
		c, s := fmt.Sprintf("eth%d", i), fmt.Sprintf("s%d", i)
		run(t, "ip", "-n", client, "link", "add", c, "address", fmt.Sprintf("52:54:00:00:00:0%d", i), "type", "veth", "peer", "name", s, "netns", server)
		run(t, "ip", "-n", client, "link", "set", c, "up")
		run(t, "ip", "-n", server, "link", "set", s, "up")
		run(t, "ip", "-n", server, "address", "add", fmt.Sprintf("10.77.%d.1/24", i), "dev", s)
	}
	cmd := exec.Command("ip", "netns", "exec", client, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inNamespace+"="+server)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v", err)
	}
	return "", false
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dnsmasq starts a DHCP server in the server's namespace and returns its stop.
func dnsmasq(t *testing.T, server string, args ...string) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("ip", append([]string{"netns", "exec", server, "dnsmasq", "--keep-in-foreground", "--port=0",
		"--conf-file=/dev/null", "--user=root", "--log-facility=-", "--no-ping", "--leasefile-ro", "--dhcp-authoritative",
		"--pid-file=" + filepath.Join(dir, "pid")}, args...)...)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()         // killed: its status says nothing
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("dnsmasq: %s", log.String())
		}
	})
	return stop
}

func options(t *testing.T) dhcp.Options {
	return dhcp.Options{FirstWait: 500 * time.Millisecond, Deadline: 20 * time.Second, Report: func(text string) { t.Log(text) }}
}

func v4(names ...string) []dhcp.Asked {
	var asked []dhcp.Asked
	for _, name := range names {
		asked = append(asked, dhcp.Asked{Interface: name, V4: true})
	}
	return asked
}

func TestAcquireReadsEveryOption(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	dnsmasq(t, server, "--interface=s1", "--dhcp-range=10.77.1.50,10.77.1.60,255.255.255.0,1h",
		"--dhcp-option=option:router,10.77.1.1", "--dhcp-option=option:dns-server,10.77.1.1,9.9.9.9",
		"--dhcp-option=option:domain-name,lab.example", "--dhcp-option=option:ntp-server,10.77.1.4",
		"--dhcp-option=66,tftp.lab.example", "--dhcp-option=67,boot.ipxe", "--dhcp-option=150,10.77.1.5",
		"--dhcp-option=26,1400", "--dhcp-option=119,a.example,b.example",
		"--dhcp-host=52:54:00:00:00:01,10.77.1.55,hyper7",
		"--dhcp-vendorclass=set:fl,"+dhcp.VendorClass, "--dhcp-option=tag:fl,121,10.9.0.0/16,10.77.1.9,0.0.0.0/0,10.77.1.2")
	lease, err := dhcp.Acquire(t.Context(), v4("eth0", "eth1"), options(t))
	if err != nil {
		t.Fatal(err)
	}
	if lease.Obtained.IsZero() || !strings.Contains(lease.Summary, "Interface MTU") {
		t.Errorf("lease %+v", lease)
	}
	data, err := json.Marshal(lease)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "obtained")
	delete(got, "summary")
	want := map[string]any{
		"interface": "eth1", "mac": "52:54:00:00:00:01", "address": "10.77.1.55/24",
		"routes": []any{
			map[string]any{"to": "10.9.0.0/16", "via": "10.77.1.9"},
			map[string]any{"to": "0.0.0.0/0", "via": "10.77.1.2"}, // not option 3, see RFC 3442
		},
		"dns": []any{"10.77.1.1", "9.9.9.9"}, "domain": "lab.example", "search": []any{"a.example", "b.example"},
		"hostName": "hyper7", "ntp": []any{"10.77.1.4"}, "mtu": 1400.0, "server": "10.77.1.1", "siaddr": "10.77.1.1",
		"tftp66": "tftp.lab.example", "tftp150": []any{"10.77.1.5"}, "bootFile": "boot.ipxe",
		"seconds": 3600.0, "renewSeconds": 1800.0, "rebindSeconds": 3150.0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lease (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"10.77.1.1", "tftp.lab.example", "10.77.1.5"}, lease.TFTPServers()); diff != "" {
		t.Error(diff)
	}
	if got := run(t, "ip", "-4", "-br", "address", "show", "dev", "eth1"); strings.Contains(got, "10.77") {
		t.Errorf("Acquire configured the interface: %s", got)
	}
}

func TestAcquirePrefersTheNICBootedFrom(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	dnsmasq(t, server, "--interface=s0,s1", "--dhcp-range=10.77.0.50,10.77.0.60,1h", "--dhcp-range=10.77.1.50,10.77.1.60,1h")
	for i, mac := range []string{"52:54:00:00:00:00", "52:54:00:00:00:01"} {
		o := options(t)
		o.Prefer, _ = netconfig.ParseMAC(mac) // checked below
		lease, err := dhcp.Acquire(t.Context(), v4("eth0", "eth1"), o)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("eth%d", i); lease.Interface != want || lease.MAC.String() != mac {
			t.Errorf("got %s (%s), want %s", lease.Interface, lease.MAC, want)
		}
	}
	// One that has no server must not hold up the other for ever.
	o := options(t)
	o.Prefer, o.Grace = netconfig.MAC{0x52, 0x54, 0, 0, 0, 1}, time.Second
	run(t, "ip", "netns", "exec", server, "ip", "link", "set", "s1", "down")
	lease, err := dhcp.Acquire(t.Context(), v4("eth0", "eth1"), o)
	if err != nil || lease.Interface != "eth0" {
		t.Errorf("got %s, %v", lease.Interface, err)
	}
}

func TestAcquireWaitsForALateServer(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	var lease dhcp.Lease
	var err error
	done := make(chan struct{})
	go func() {
		lease, err = dhcp.Acquire(t.Context(), v4("eth0"), options(t))
		close(done)
	}()
	time.Sleep(1500 * time.Millisecond) // three times the first wait
	dnsmasq(t, server, "--interface=s0", "--dhcp-range=10.77.0.50,10.77.0.60,1h")
	<-done
	if err != nil || lease.Router() != netip.MustParseAddr("10.77.0.1") {
		t.Errorf("got %+v, %v", lease, err)
	}
}

func TestAcquireWithoutAServer(t *testing.T) {
	_, yes := inside(t)
	if !yes {
		return
	}
	o := options(t)
	o.Deadline = 2 * time.Second
	start := time.Now()
	_, err := dhcp.Acquire(t.Context(), v4("eth0", "eth1", "nosuch"), o)
	var coded *netconfig.Error
	if !errors.As(err, &coded) || coded.Code() != "NET-003" {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"eth0", "no answer", "nosuch"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v says nothing of %q", err, want)
		}
	}
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := dhcp.Acquire(ctx, v4("eth0"), options(t)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the end of ctx: %v", err)
	}
}

func TestAcquireWithoutInterfaces(t *testing.T) {
	_, err := dhcp.Acquire(t.Context(), nil, dhcp.Options{})
	var coded *netconfig.Error
	if !errors.As(err, &coded) || coded.Code() != "NET-001" {
		t.Errorf("got %v", err)
	}
}

// A lease is renewed at T1, and replaced when it ran out meanwhile.
func TestKeep(t *testing.T) {
	server, yes := inside(t)
	if !yes {
		return
	}
	args := []string{"--interface=s0", "--dhcp-range=10.77.0.50,10.77.0.60,2m"}
	stop := dnsmasq(t, server, args...)
	lease := leased(t)
	if lease.Renew != 60 { // dnsmasq knows no shorter one
		t.Fatalf("T1 is %d s", lease.Renew)
	}
	lease.Obtained = lease.Obtained.Add(-59 * time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var times atomic.Int32
	err := dhcp.Keep(ctx, lease, options(t), func(next dhcp.Lease) error {
		if next.Address != lease.Address || !next.Obtained.After(lease.Obtained) {
			t.Errorf("renewed to %+v", next)
		}
		times.Add(1)
		cancel()
		return nil
	})
	if err != nil || times.Load() != 1 {
		t.Errorf("renewed %d times, %v", times.Load(), err)
	}
	// Now as if it ran out long ago, at a server that has another range.
	stop()
	args[1] = "--dhcp-range=10.77.0.80,10.77.0.90,2m"
	dnsmasq(t, server, args...)
	lease.Obtained = time.Now().Add(-time.Hour)
	ctx, cancel = context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	var other netip.Addr
	err = dhcp.Keep(ctx, lease, options(t), func(next dhcp.Lease) error {
		other = next.Address.Addr()
		cancel()
		return nil
	})
	if err != nil || other.Less(netip.MustParseAddr("10.77.0.80")) {
		t.Errorf("got %v, %v", other, err)
	}
	stopKeeping := errors.New("cannot configure")
	if err := dhcp.Keep(t.Context(), lease, options(t), func(dhcp.Lease) error { return stopKeeping }); !errors.Is(err, stopKeeping) {
		t.Errorf("got %v", err)
	}
}

func TestTFTPServersAreNotRepeated(t *testing.T) {
	lease := dhcp.Lease{
		Next: netip.MustParseAddr("0.0.0.0"), TFTPName: "10.0.0.1",
		TFTP150: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")},
	}
	if got := lease.TFTPServers(); !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2"}) {
		t.Errorf("got %q", got)
	}
}
