package link_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/netconfig/link"
)

const inNamespace = "FIRSTLIGHT_TEST_NETNS"

// inside runs the calling test again in a process of its own, in a new and
// empty network namespace; it is true in that process. A test that raises and
// flushes interfaces must never see the host's.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root")
	}
	name := fmt.Sprintf("fl-link-%d", os.Getpid())
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	cmd := exec.Command("ip", "netns", "exec", name, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), inNamespace+"="+name)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v", err)
	}
	return false
}

// elsewhere makes another namespace, where an interface stays down.
func elsewhere(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("fl-link-far-%d", os.Getpid())
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	return name
}

func run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func code(err error) string {
	var coded *netconfig.Error
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}

func TestUp(t *testing.T) {
	if !inside(t) {
		return
	}
	none := fstest.MapFS{}
	quick := link.Options{Deadline: 500 * time.Millisecond, Grace: 300 * time.Millisecond}
	if _, err := link.Up(t.Context(), none, quick); code(err) != "NET-001" {
		t.Errorf("without a NIC: %v", err)
	}
	run(t, "ip", "link", "add", "eth0", "address", "52:54:00:00:00:01", "type", "veth", "peer", "name", "far0", "netns", elsewhere(t))
	run(t, "ip", "link", "add", "br0", "type", "bridge") // not a NIC
	nics, err := link.Up(t.Context(), none, quick)
	if code(err) != "NET-002" || len(nics) != 1 || !strings.Contains(err.Error(), "eth0 (52:54:00:00:00:01)") {
		t.Errorf("without carrier: %+v, %v", nics, err)
	}
	if got := run(t, "ip", "link", "show", "eth0"); !strings.Contains(got, "UP>") {
		t.Errorf("not raised: %s", got)
	}
}

func TestUpWaitsForTheOthersOnlyShortly(t *testing.T) {
	if !inside(t) {
		return
	}
	for i := range 2 {
		n := fmt.Sprint(i)
		run(t, "ip", "link", "add", "eth"+n, "address", "52:54:00:00:00:0"+n, "type", "veth", "peer", "name", "far"+n)
	}
	// far0 and far1 are NICs to this namespace too; raised, they give carrier.
	start := time.Now()
	nics, err := link.Up(t.Context(), fstest.MapFS{}, link.Options{Deadline: 20 * time.Second})
	if err != nil || len(link.Linked(nics)) != 4 || time.Since(start) > 2*time.Second {
		t.Fatalf("%+v, %v after %v", nics, err, time.Since(start))
	}
	run(t, "ip", "link", "set", "far1", "netns", elsewhere(t)) // down there
	start = time.Now()
	nics, err = link.Up(t.Context(), fstest.MapFS{}, link.Options{Deadline: 20 * time.Second, Grace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("took %v, want the grace of a second", took)
	}
	if diff := cmp.Diff([]string{"far0", "eth0"}, link.Linked(nics)); diff != "" {
		t.Error(diff)
	}
}

func TestListReadsSysfs(t *testing.T) {
	if !inside(t) {
		return
	}
	run(t, "ip", "link", "add", "eth0", "address", "52:54:00:00:00:01", "type", "veth", "peer", "name", "far0")
	run(t, "ip", "link", "set", "eth0", "up")
	run(t, "ip", "link", "set", "far0", "up")
	symlink := func(to string) *fstest.MapFile {
		return &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte(to)}
	}
	const device = "devices/pci0000:00/0000:00:1c.0/0000:02:00.0/virtio0"
	nics, err := link.List(fstest.MapFS{
		"class/net/eth0":                       symlink("../../" + device + "/net/eth0"),
		device + "/net/eth0/speed":             {Data: []byte("10000\n")},
		device + "/net/eth0/device":            symlink("../.."),
		device + "/driver":                     symlink("../../../../../bus/virtio/drivers/virtio_net"),
		"bus/virtio/drivers/virtio_net/uevent": {},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := netconfig.NIC{
		Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0, 0, 1},
		Driver: "virtio_net", PCI: "0000:02:00.0", Carrier: true, SpeedMbps: 10000, MTU: 1500,
	}
	for _, nic := range nics {
		if nic.Name == "eth0" {
			want.PermanentMAC = nic.PermanentMAC // the kernel's, a veth may have one
			if diff := cmp.Diff(want, nic, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			return
		}
	}
	t.Errorf("no eth0 in %+v", nics)
}

func TestConfigure(t *testing.T) {
	if !inside(t) {
		return
	}
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	run(t, "ip", "link", "set", "far0", "up")
	addr, net := netip.MustParseAddr, netip.MustParsePrefix
	lease := dhcp.Lease{
		Interface: "eth0", Address: net("10.0.0.5/24"), MTU: 1400,
		Routes: []dhcp.Route{
			{To: net("0.0.0.0/0"), Via: addr("10.0.0.1")},
			{To: net("10.8.0.0/16"), Via: addr("10.0.0.2")},
			{To: net("10.9.0.0/16")},
		},
	}
	for range 2 { // again changes nothing
		if err := link.Configure(lease); err != nil {
			t.Fatal(err)
		}
	}
	if got := run(t, "ip", "-4", "-br", "address", "show", "dev", "eth0"); !strings.Contains(got, "10.0.0.5/24") {
		t.Errorf("address: %s", got)
	}
	if got := run(t, "ip", "link", "show", "dev", "eth0"); !strings.Contains(got, "mtu 1400") {
		t.Errorf("link: %s", got)
	}
	routes := run(t, "ip", "route")
	for _, want := range []string{"default via 10.0.0.1 dev eth0 proto dhcp", "10.8.0.0/16 via 10.0.0.2", "10.9.0.0/16 dev eth0 proto dhcp scope link"} {
		if !strings.Contains(routes, want) {
			t.Errorf("routes lack %q:\n%s", want, routes)
		}
	}
	// Another lease, of a cloud whose gateway is outside of the network.
	lease.Address, lease.Routes = net("10.1.0.7/32"), []dhcp.Route{{To: net("0.0.0.0/0"), Via: addr("10.1.0.1")}}
	if err := link.Configure(lease); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "ip", "-4", "-br", "address", "show", "dev", "eth0"); strings.Contains(got, "10.0.0.5") || !strings.Contains(got, "10.1.0.7/32") {
		t.Errorf("address: %s", got)
	}
	if diff := cmp.Diff("default via 10.1.0.1 dev eth0 proto dhcp onlink \n", run(t, "ip", "route")); diff != "" {
		t.Error(diff)
	}
	if err := link.Flush("eth0", 1500); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "ip", "-4", "address", "show", "dev", "eth0") + run(t, "ip", "route"); got != "" {
		t.Errorf("left after Flush: %s", got)
	}
	if got := run(t, "ip", "link", "show", "dev", "eth0"); !strings.Contains(got, "mtu 1500") {
		t.Errorf("the MTU of the lease is left after Flush: %s", got)
	}
	lease.Interface = "nosuch"
	if err := link.Configure(lease); code(err) != "NET-005" {
		t.Errorf("got %v", err)
	}
	if err := link.Flush("nosuch", 0); code(err) != "NET-005" {
		t.Errorf("got %v", err)
	}
}

func TestResolvConf(t *testing.T) {
	addr := netip.MustParseAddr
	lease := dhcp.Lease{DNS: []netip.Addr{addr("10.0.0.1"), addr("9.9.9.9")}, Domain: "lab.example"}
	if diff := cmp.Diff("search lab.example\nnameserver 10.0.0.1\nnameserver 9.9.9.9\n", string(link.ResolvConf(lease))); diff != "" {
		t.Error(diff)
	}
	lease.Search = []string{"a.example", "b.example"}
	if got := string(link.ResolvConf(lease)); !strings.HasPrefix(got, "search a.example b.example\n") {
		t.Errorf("got %q", got)
	}
	if got := link.ResolvConf(dhcp.Lease{Domain: "lab.example"}); got != nil {
		t.Errorf("without servers: %q", got)
	}
}

// A fixed address of IPv6 brings its routes; one of a DHCPv6 server only
// itself, and goes again.
func TestConfigureIPv6(t *testing.T) {
	if !inside(t) {
		return
	}
	run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
	run(t, "ip", "link", "set", "far0", "up")
	addr, net := netip.MustParseAddr, netip.MustParsePrefix
	fixed := dhcp.Lease{Interface: "eth0", Address: net("fd77::5/64"), Duration: dhcp.Infinite, Routes: []dhcp.Route{{To: net("::/0"), Via: addr("fd77::1")}}}
	for range 2 { // again changes nothing
		if err := link.Configure(fixed); err != nil {
			t.Fatal(err)
		}
	}
	if got := run(t, "ip", "-6", "route", "show", "default"); !strings.Contains(got, "default via fd77::1 dev eth0") {
		t.Errorf("routes: %s", got)
	}
	leased := dhcp.Lease{Interface: "eth0", Address: net("fd77::100/128"), Duration: 3600, Obtained: time.Now(), Server: addr("fe80::1"),
		Routes: []dhcp.Route{{To: net("::/0"), Via: addr("fe80::1")}}}
	if err := link.Configure(leased); err != nil {
		t.Fatal(err)
	}
	got := run(t, "ip", "-6", "address", "show", "dev", "eth0")
	if !strings.Contains(got, "fd77::100/128") || !strings.Contains(got, "valid_lft 3") {
		t.Errorf("addresses: %s", got)
	}
	if err := link.Flush("eth0", 1500); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "ip", "-6", "address", "show", "dev", "eth0"); strings.Contains(got, "fd77::100") {
		t.Errorf("left after Flush: %s", got)
	}
}
