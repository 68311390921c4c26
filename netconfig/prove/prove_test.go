package prove

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

const inNamespace = "FIRSTLIGHT_TEST_NETNS"

// inside runs the calling test again in a process of its own, in a network
// namespace whose eth0 is joined to s0 of another, which is returned; yes is
// true in that process. VLANs and bonds are not in the kernel that tests run
// on: they are tried in machines of their own (hack/e2e).
func inside(t *testing.T) (far string, yes bool) {
	t.Helper()
	if far := os.Getenv(inNamespace); far != "" {
		return far, true
	}
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root")
	}
	t.Parallel() // in a process and in namespaces of its own
	near := fmt.Sprintf("fl-%d-%s-near", os.Getpid(), t.Name())
	far = fmt.Sprintf("fl-%d-%s-far", os.Getpid(), t.Name())
	for _, name := range []string{near, far} {
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() {
			for pid := range strings.FieldsSeq(run(t, "ip", "netns", "pids", name)) {
				run(t, "kill", "-KILL", pid) // what a child that timed out has left
			}
			run(t, "ip", "netns", "del", name)
		})
		run(t, "ip", "-n", name, "link", "set", "lo", "up")
	}
	run(t, "ip", "-n", near, "link", "add", "eth0", "address", "52:54:00:00:00:01", "type", "veth", "peer", "name", "s0", "address", "52:54:00:00:00:99", "netns", far)
	run(t, "ip", "-n", near, "link", "set", "eth0", "up")
	run(t, "ip", "-n", far, "link", "set", "s0", "up")
	run(t, "ip", "-n", far, "address", "add", "10.77.0.1/24", "dev", "s0")
	run(t, "ip", "-n", far, "address", "add", "fd77::1/64", "dev", "s0", "nodad")
	cmd := exec.Command("ip", "netns", "exec", near, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inNamespace+"="+far)
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

// serve starts a DNS server that knows nothing, and so refuses.
func serve(t *testing.T, far string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", far, "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts",
		"--conf-file=/dev/null", "--user=root", "--pid-file="+filepath.Join(t.TempDir(), "pid"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()         // killed: its status says nothing
	})
}

// listen accepts connections in the far namespace, as an image server would.
func listen(t *testing.T, far, port string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", far, "socat", "TCP-LISTEN:"+port+",fork,reuseaddr", "EXEC:true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // as in serve
		_ = cmd.Wait()
	})
}

// heard collects what a Run says.
type heard struct {
	mu             sync.Mutex
	reports, warns []string
}

func (h *heard) options(o Options) Options {
	o.Wait, o.Bounced, o.second = 2*time.Second, 2*time.Second, 200*time.Millisecond
	note := func(to *[]string) func(string) {
		return func(text string) {
			h.mu.Lock()
			defer h.mu.Unlock()
			*to = append(*to, text)
		}
	}
	o.Report, o.Warn, o.Announce = note(&h.reports), note(&h.warns), func(bool, string) {}
	return o
}

func code(err error) string {
	var coded *netconfig.Error
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}

// own is a segment on the installer's own port with its own address, which
// needs no sub-interface.
func own() netconfig.Segment {
	return netconfig.Segment{
		Ports: []string{"eth0"}, Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.0.5/24")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.77.0.1")}, DNS: []netip.Addr{netip.MustParseAddr("10.77.0.1")},
		Routes: []netconfig.Route{{To: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.77.0.1")}},
	}
}

func TestRun(t *testing.T) {
	far, yes := inside(t)
	if !yes {
		return
	}
	run(t, "ip", "address", "add", "10.77.0.5/24", "dev", "eth0")
	serve(t, far)
	listen(t, far, "6971")
	if err := askNameServer(t.Context(), netip.MustParseAddrPort("10.77.0.1:53"), 30*time.Second); err != nil {
		t.Fatalf("the name server does not start: %v", err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", "10.77.0.1:6971")
		if err == nil {
			_ = conn.Close() // it was only to see that it is there
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the image server does not start: %v", err)
		}
	}
	base := Options{Own: "eth0", OwnAddress: netip.MustParseAddr("10.77.0.5"), Server: netip.MustParseAddrPort("10.77.0.1:6971"), All: true}
	wrongGateway, otherDNS, bridged := own(), own(), netconfig.Segment{Ports: []string{"eth0"}, Gateways: own().Gateways}
	wrongGateway.Gateways = []netip.Addr{netip.MustParseAddr("10.77.0.254")}
	otherDNS.DNS = []netip.Addr{netip.MustParseAddr("10.77.0.53")}
	for _, test := range []struct {
		name    string
		segment netconfig.Segment
		change  func(*Options)
		prepare []string
		code    string
		says    string
		warns   string
	}{
		{name: "all is well", segment: own(), says: "gateway 10.77.0.1 (52:54:00:00:00:99) answers via eth0"},
		{name: "a network that is only bridged", segment: bridged, says: "gateway 10.77.0.1"},
		{name: "no gateway", segment: wrongGateway, code: CodeGateway, says: "no gateway 10.77.0.254 via eth0"},
		{name: "no name server", segment: otherDNS, code: CodeDNS, says: "10.77.0.53"},
		{name: "no name server, which need not be", segment: otherDNS, change: func(o *Options) { o.All = false }, warns: "CNF-033"},
		{name: "no image server", segment: own(), change: func(o *Options) { o.Server = netip.MustParseAddrPort("10.77.0.1:6972") }, code: CodeServer, says: "refused"},
		{name: "a port that is not there", segment: netconfig.Segment{Ports: []string{"eth9"}, Gateways: own().Gateways}, code: CodeSetUp, says: "eth9"},
		{name: "small packets only", segment: own(), prepare: []string{"s0", "mtu", "1400"}, code: CodeMTU, says: "packets of 1500 bytes do not reach 10.77.0.1"},
		{name: "ordinary packets only", segment: own(), prepare: []string{"s0", "mtu", "1500"}, change: func(o *Options) { run(t, "ip", "link", "set", "eth0", "mtu", "9000") }, code: CodeMTU, says: "those of 1500 do"},
		{name: "ordinary packets only, which will do", segment: own(), change: func(o *Options) { o.All = false }, warns: "CNF-035"},
		{name: "large packets", segment: own(), prepare: []string{"s0", "mtu", "9000"}, says: "packets of 9000 bytes reach 10.77.0.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var h heard
			o := base
			o.Segments = []netconfig.Segment{test.segment}
			if test.change != nil {
				test.change(&o)
			}
			if test.prepare != nil {
				run(t, "ip", append([]string{"-n", far, "link", "set"}, test.prepare...)...)
			}
			err := Run(t.Context(), h.options(o))
			if code(err) != test.code || err != nil && !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %s: %s", err, test.code, test.says)
			}
			if err == nil && !strings.Contains(strings.Join(h.reports, "\n"), test.says) {
				t.Errorf("reported %q", h.reports)
			}
			if test.warns == "" && len(h.warns) > 0 || !strings.Contains(strings.Join(h.warns, "\n"), test.warns) {
				t.Errorf("warned %q", h.warns)
			}
		})
	}
}

func TestDuplicateAddress(t *testing.T) {
	far, yes := inside(t)
	if !yes {
		return
	}
	run(t, "ip", "-n", far, "address", "add", "10.77.0.5/24", "dev", "s0")
	var h heard
	err := Run(t.Context(), h.options(Options{Segments: []netconfig.Segment{own()}, OwnAddress: netip.MustParseAddr("10.77.0.5")}))
	if code(err) != CodeDuplicate || !strings.Contains(err.Error(), "10.77.0.5 is in use by 52:54:00:00:00:99 via eth0") {
		t.Errorf("got %v", err)
	}
}

// Of IPv6 the kernel finds out.
func TestDuplicateAddressIPv6(t *testing.T) {
	_, yes := inside(t)
	if !yes {
		return
	}
	trial, err := newTrial(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := trial.putBack(); err != nil {
			t.Error(err)
		}
	}()
	n := &namespace{trial: trial, device: "eth0"} // which is in a namespace already
	segment := own()
	segment.Addresses = []netip.Prefix{netip.MustParsePrefix("fd77::5/64")}
	if err := n.address(t.Context(), segment); err != nil {
		t.Errorf("nobody has it: %v", err)
	}
	segment.Addresses = []netip.Prefix{netip.MustParsePrefix("fd77::1/64")}
	if err := n.address(t.Context(), segment); code(err) != CodeDuplicate || !strings.Contains(err.Error(), "fd77::1 is in use by another machine via eth0") {
		t.Errorf("got %v", err)
	}
}

// Somebody who looks for duplicates of the same address at the same time wants
// it as well (RFC 5227, 2.1.1).
func TestRivalForAnAddress(t *testing.T) {
	far, yes := inside(t)
	if !yes {
		return
	}
	conn, err := openARP("eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.close()
	frame := arpMessage{request: true, sender: netip.IPv4Unspecified(), target: netip.MustParseAddr("10.77.0.9"), hardware: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0x77}}
	if got, ok := decodeARP(frame.encode()); !ok || got.target != frame.target || !got.request || got.hardware.String() != frame.hardware.String() {
		t.Errorf("decoded %+v, %v", got, ok)
	}
	// The far end's kernel looks for its own address in the same way once it
	// gets it, but for IPv6 only: the frame is sent by hand.
	time.AfterFunc(time.Second, func() {
		file := filepath.Join(t.TempDir(), "frame")
		ether := append([]byte{255, 255, 255, 255, 255, 255, 0x52, 0x54, 0, 0, 0, 0x77, 8, 6}, frame.encode()...)
		if err := os.WriteFile(file, ether, 0o600); err != nil {
			t.Error(err)
		}
		run(t, "ip", "netns", "exec", far, "socat", "-u", "OPEN:"+file, "INTERFACE:s0")
	})
	other, err := conn.probe(t.Context(), frame.target, time.Second, func(net.HardwareAddr) bool { return false })
	if err != nil || other.String() != "52:54:00:00:00:77" {
		t.Errorf("the rival: %v, %v", other, err)
	}
	other, err = conn.probe(t.Context(), netip.MustParseAddr("10.77.0.10"), 100*time.Millisecond, func(net.HardwareAddr) bool { return false })
	if err != nil || other != nil {
		t.Errorf("nobody has it: %v, %v", other, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := conn.probe(ctx, netip.MustParseAddr("10.77.0.9"), time.Second, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// IPv6: the kernel asks for the neighbour, without and with an address.
func TestGatewayIPv6(t *testing.T) {
	_, yes := inside(t)
	if !yes {
		return
	}
	time.Sleep(2 * time.Second) // the kernel looks for duplicates of its own address first
	var h heard
	bridged := netconfig.Segment{Ports: []string{"eth0"}, Gateways: []netip.Addr{netip.MustParseAddr("fd77::1")}}
	if err := Run(t.Context(), h.options(Options{Segments: []netconfig.Segment{bridged}})); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(h.reports, func(text string) bool { return strings.Contains(text, "fd77::1 (52:54:00:00:00:99)") }) {
		t.Errorf("reported %q", h.reports)
	}
	run(t, "ip", "address", "add", "fd77::5/64", "dev", "eth0", "nodad")
	addressed := netconfig.Segment{
		Ports: []string{"eth0"}, Addresses: []netip.Prefix{netip.MustParsePrefix("fd77::5/64")}, Gateways: bridged.Gateways,
		Routes: []netconfig.Route{{To: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fd77::1")}},
	}
	if err := Run(t.Context(), h.options(Options{Segments: []netconfig.Segment{addressed}, OwnAddress: netip.MustParseAddr("fd77::5"), All: true})); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(h.reports, func(text string) bool { return strings.Contains(text, "packets of 1500 bytes reach fd77::1") }) {
		t.Errorf("reported %q", h.reports)
	}
	// Nothing of it is left, and a route that was there is there still.
	run(t, "ip", "route", "add", "fd77::1/128", "via", "fe80::77", "dev", "eth0")
	if err := Run(t.Context(), h.options(Options{Segments: []netconfig.Segment{bridged}})); err != nil {
		t.Error(err)
	}
	if routes := run(t, "ip", "-6", "route"); strings.Count(routes, "fd77::1 ") != 1 || !strings.Contains(routes, "fd77::1 via fe80::77 ") {
		t.Errorf("routes %s", routes)
	}
	bridged.Gateways = []netip.Addr{netip.MustParseAddr("fd77::99")}
	if err := Run(t.Context(), h.options(Options{Segments: []netconfig.Segment{bridged}})); code(err) != CodeGateway || !strings.Contains(err.Error(), "fd77::99 via eth0") {
		t.Errorf("got %v", err)
	}
}

// What is on a thread in a namespace of its own sees nothing of the outside,
// and the outside nothing of it.
func TestInsideIsApart(t *testing.T) {
	_, yes := inside(t)
	if !yes {
		return
	}
	trial, err := newTrial(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := trial.putBack(); err != nil {
			t.Error(err)
		}
	}()
	var within []net.Interface
	if err := trial.inside(func(*namespace) (err error) {
		within, err = net.Interfaces()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	outside, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(within) != 1 || len(outside) != 2 {
		t.Errorf("inside %v, outside %v", within, outside)
	}
}

// Whatever a neighbour sends is an answer or is none.
func FuzzNeighbour(f *testing.F) {
	of := netip.MustParseAddr("fd77::1")
	answer, _ := solicitation(of, net.HardwareAddr{2, 0, 0, 0, 0, 1})
	answer[0], answer[24] = 136, 2
	f.Add(answer)
	f.Add(append(answer[:24:24], 14, 1, 0, 0, 0, 0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 2))
	f.Fuzz(func(t *testing.T, data []byte) {
		if hw := advertised(data, of); hw != nil && (len(hw) != 6 || data[0] != 136) {
			t.Errorf("%v of %x", hw, data)
		}
	})
}

func FuzzARP(f *testing.F) {
	f.Add(arpMessage{request: true, sender: netip.IPv4Unspecified(), target: netip.MustParseAddr("10.0.0.1"), hardware: make(net.HardwareAddr, 6)}.encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, ok := decodeARP(data); ok && (!m.sender.Is4() || !m.target.Is4() || len(m.hardware) != 6) {
			t.Errorf("%+v", m)
		}
	})
}
