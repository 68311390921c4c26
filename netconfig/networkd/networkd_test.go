package networkd_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/netconfigtest"
	"github.com/firstlight/firstlight/netconfig/networkd"
)

func TestRenderGolden(t *testing.T) { netconfigtest.Golden(t, networkd.Render) }

// The real systemd-networkd, in namespaces of its own: its network, its /run,
// its /etc/systemd/network. /sys is read-only, so it does not wait for udev
// (systemd's own habit in containers).
const start = `set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network:systemd-network /run/systemd/netif
mount --bind "$1/etc/systemd/network" /etc/systemd/network
mount -o ro -t sysfs sysfs /sys
ip link set lo up
for nic in lan0 lan1; do
	ip link add name $nic type veth peer name peer-$nic
	ip link set dev peer-$nic up
done
SYSTEMD_LOG_LEVEL=info timeout 20 /lib/systemd/systemd-networkd >"$1/log" 2>&1 &
daemon=$!
n=0
while [ $n -lt 100 ] && ! eval "$2" >/dev/null 2>&1; do n=$((n+1)); sleep 0.1; done
echo "== address"; ip -br address
echo "== route"; ip route; ip -6 route
echo "== link"; ip -d -o link
kill $daemon; wait $daemon || true
echo "== log"; cat "$1/log"
`

// daemon runs systemd-networkd until the shell command until succeeds, and
// returns what became of the interfaces, and the daemon's log.
func daemon(t *testing.T, config netconfig.Config, until string) (state, log string) {
	t.Helper()
	root := netconfigtest.Write(t, networkd.Render(config, netconfig.Resolved))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "unshare", "--net", "--mount", "sh", "-c", start, "sh", root, until).CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-networkd: %v\n%s", err, out)
	}
	state, log, _ = strings.Cut(string(out), "== log\n")
	return state, log
}

// systemd-networkd reads every file and knows every word in it. What this
// host's kernel cannot make (bonds, VLANs) is left to machines that can.
func TestNetworkdKnowsEveryWord(t *testing.T) {
	// All files of all networks at once would be one network: the names are
	// the same. One start reads one network.
	for _, name := range []string{"two-trunk-nics", "active-backup", "vlan-aware-bridge", "dhcp", "two-addresses-on-a-nic"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, log := daemon(t, netconfigtest.Configs(t)[name], `grep -q 'Enumeration completed' "$1/log"`)
			if !strings.Contains(log, "Enumeration completed") {
				t.Fatalf("systemd-networkd did not start:\n%s", log)
			}
			for line := range strings.Lines(log) {
				// "/etc/…: Unknown key", "Failed to parse", "ignoring"
				if strings.Contains(line, "Unknown device type") {
					continue // the kernel's word, for a bond or VLAN that this host cannot make
				}
				complaint := strings.Contains(line, "/etc/systemd/network/") && !strings.Contains(line, "Configuring with")
				for _, word := range []string{"gnoring", "nknown", "ailed to parse", "nvalid"} {
					complaint = complaint || strings.Contains(line, word)
				}
				if complaint {
					t.Errorf("systemd-networkd says: %s", line)
				}
			}
		})
	}
}

// What needs no bond and no VLAN is made by the daemon as it was meant.
func TestNetworkdMakesIt(t *testing.T) {
	tests := []struct {
		name, until string
		config      func(c *netconfig.Config)
		want        []string
	}{
		{"vlan-aware-bridge", "ip -6 route | grep default && ip link show master br0 | grep LOWER_UP", func(c *netconfig.Config) {
			c.Interfaces[2].Bridge.VLANAware = false // this host's kernel filters no VLANs
		}, []string{
			"br0", "2001:db8::2/64", "default via 2001:db8::1 dev br0", "stp_state 1", "forward_delay 400",
			"link/ether de:ad:be:ef:00:01", "master br0",
		}},
		{"managed-host-subnet", "ip route | grep default && ip link show master br100 | grep LOWER_UP", func(c *netconfig.Config) {
			c.Interfaces = []netconfig.Interface{c.Interfaces[0], c.Interfaces[3]} // lan0 and br100
		}, []string{"192.168.100.9/24", "default via 192.168.100.1 dev br100", "forward_delay 0 ", "stp_state 0", "master br100"}},
		{"two-addresses-on-a-nic", "ip -6 route | grep default && ip -br address | grep 192.168.1.2", nil, []string{
			"192.168.1.2/24", "2001:db8::9/64", "default via 192.168.1.1 dev lan0", "default via 2001:db8::1 dev lan0",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := netconfigtest.Configs(t)[test.name]
			if test.config != nil {
				test.config(&config)
			}
			state, log := daemon(t, config, test.until)
			for _, want := range test.want {
				if !strings.Contains(state, want) {
					t.Errorf("no %q in\n%s\n%s", want, state, log)
				}
			}
		})
	}
}
