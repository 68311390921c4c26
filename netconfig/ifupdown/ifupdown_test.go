package ifupdown_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/ifupdown"
	"github.com/firstlight/firstlight/netconfig/netconfigtest"
)

func TestRenderGolden(t *testing.T) { netconfigtest.Golden(t, ifupdown.Render) }

// interfacesFile writes /etc/network/interfaces of a Config to a temporary file.
func interfacesFile(t *testing.T, config netconfig.Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "interfaces")
	if err := os.WriteFile(path, ifupdown.Render(config, netconfig.ResolvConf)[0].Data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Debian's own ifquery must read the file as it was meant.
func TestIfqueryReadsIt(t *testing.T) {
	for name, config := range netconfigtest.Configs(t) {
		t.Run(name, func(t *testing.T) {
			path := interfacesFile(t, config)
			want := []string{"lo"}
			for _, i := range config.Interfaces {
				want = append(want, i.Name)
			}
			got := strings.Fields(run(t, "ifquery", "-i", path, "--list"))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("ifquery --list (-want +got):\n%s", diff)
			}
			for _, i := range config.Interfaces {
				settings := run(t, "ifquery", "-i", path, i.Name)
				for _, address := range i.Addresses {
					if !strings.Contains(settings, "address: "+address.Addr().String()+"\n") {
						t.Errorf("%s lacks %s:\n%s", i.Name, address, settings)
					}
				}
				if i.Gateway.IsValid() && !strings.Contains(settings, "gateway: "+i.Gateway.String()) {
					t.Errorf("%s lacks its gateway %s:\n%s", i.Name, i.Gateway, settings)
				}
			}
		})
	}
}

// ifup says which commands it would run; the VLANs are its own.
func TestIfupWouldRun(t *testing.T) {
	path := interfacesFile(t, netconfigtest.Configs(t)["two-trunk-nics"])
	out := run(t, "ifup", "-n", "-v", "-a", "--no-scripts", "-i", path, "--state-dir", t.TempDir())
	last := 0
	for _, want := range []string{
		"ip addr add 192.168.1.2/255.255.255.0",
		"ip route add default via 192.168.1.1",
		"ip link add name bond0 type bond",
		"ip link set dev bond0 type bond mode 802.3ad miimon 100 lacp_rate slow xmit_hash_policy layer3+4",
		"ip link set dev lan1 master bond0",
		"ip link set dev lan2 master bond0",
		"ip link set dev bond0 mtu 9000",
		"ip link add link bond0 name bond0.100 type vlan id 100",
		"ip link add name br100 type bridge",
		"ip link set dev bond0.100 master br100 up",
	} {
		at := strings.Index(out[last:], want)
		if at < 0 {
			t.Fatalf("ifup would not run %q after what stands before it:\n%s", want, out)
		}
		last += at
	}
}

// netns makes a network namespace of the test's own and runs commands in it.
func netns(t *testing.T) func(args ...string) string {
	t.Helper()
	name := fmt.Sprintf("fl-ifupdown-%d", os.Getpid())
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
	return func(args ...string) string {
		t.Helper()
		return run(t, "ip", append([]string{"netns", "exec", name}, args...)...)
	}
}

// The bridge, its address, port and default route, by the real ifup and ifdown.
func TestIfupMakesTheBridge(t *testing.T) {
	config := netconfigtest.Configs(t)["managed-host-subnet"]
	config.Interfaces = []netconfig.Interface{config.Interfaces[0], config.Interfaces[3]} // lan0 and br100
	path, state := interfacesFile(t, config), t.TempDir()
	in := netns(t)
	in("ip", "link", "add", "name", "lan0", "address", config.Interfaces[0].MAC.String(), "type", "veth", "peer", "name", "peer0")
	in("ip", "link", "set", "peer0", "up")
	up := []string{"ifup", "-a", "--no-scripts", "-i", path, "--state-dir", state}
	in(up...)
	in(append(up, "--force")...) // again over what is there
	if got := in("ip", "-br", "address", "show", "dev", "br100"); !strings.Contains(got, "192.168.100.9/24") {
		t.Errorf("br100 has %s", got)
	}
	link := in("ip", "-d", "link", "show", "dev", "br100")
	for _, want := range []string{config.Interfaces[1].MAC.String(), "forward_delay 0 ", "stp_state 0", "UP"} {
		if !strings.Contains(link, want) {
			t.Errorf("br100 is without %q:\n%s", want, link)
		}
	}
	if got := in("ip", "link", "show", "master", "br100"); !strings.Contains(got, "lan0") || !strings.Contains(got, "state UP") {
		t.Errorf("ports of br100: %s", got)
	}
	if got := in("ip", "-6", "address", "show", "dev", "lan0"); got != "" {
		t.Errorf("the port of the bridge has an address: %s", got)
	}
	if got := in("cat", "/proc/sys/net/ipv6/conf/br100/accept_ra"); got != "0\n" {
		t.Errorf("the bridge believes routers: accept_ra is %s", got)
	}
	if got := in("ip", "route", "show", "default"); !strings.Contains(got, "via 192.168.100.1 dev br100") {
		t.Errorf("default route: %s", got)
	}
	in("ifdown", "-a", "--no-scripts", "-i", path, "--state-dir", state)
	if got := in("ip", "-br", "link"); strings.Contains(got, "br100") {
		t.Errorf("ifdown left the bridge:\n%s", got)
	}
}

// A bond whose switch has not spoken LACP yet has no carrier: its addresses are
// there all the same, with their default routes, and nothing has failed.
func TestIfupWithoutCarrier(t *testing.T) {
	config := netconfigtest.Configs(t)["two-addresses-on-a-nic"]
	path := interfacesFile(t, config)
	in := netns(t)
	in("ip", "link", "add", "name", "lan0", "type", "veth", "peer", "name", "peer0") // its peer stays down
	in("ifup", "-a", "--no-scripts", "-i", path, "--state-dir", t.TempDir())
	addresses, routes := in("ip", "address", "show", "dev", "lan0"), in("ip", "-6", "route", "show", "default")
	if !strings.Contains(addresses, "NO-CARRIER") || !strings.Contains(addresses, "2001:db8::9/64") || !strings.Contains(routes, "via 2001:db8::1") {
		t.Errorf("lan0: %s\nroutes: %s", addresses, routes)
	}
}

func TestResolvConfKeepsAllServers(t *testing.T) {
	config := netconfigtest.Configs(t)["one-nic"]
	config.DNS = append(config.DNS, config.DNS...)
	files := ifupdown.Render(config, netconfig.ResolvConf)
	got := string(files[len(files)-1].Data)
	want := "# Written by the Firstlight installer from config.json.\nsearch hypervisors.company.com\n" +
		"nameserver 192.168.1.53\nnameserver 8.8.8.8\nnameserver 192.168.1.53\n" +
		"# The resolver uses three name servers at most.\n# nameserver 8.8.8.8\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
