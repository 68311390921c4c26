package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
)

func commandLine(t *testing.T, line string) netconfig.Config {
	t.Helper()
	i := &installation{opt: options{kernel: splitKernelCommandLine(line)}}
	network, err := i.commandLineNetwork()
	if err != nil {
		t.Fatal(err)
	}
	return network.Config
}

// The machine is known to the configuration server by a real NIC, whatever the
// installer's own network is made of.
func TestMachineNIC(t *testing.T) {
	first, second := netconfig.MAC{2, 0, 0, 0, 0, 1}, netconfig.MAC{2, 0, 0, 0, 0, 2}
	c := commandLine(t, "bond=bond0:eth1,eth0:mode=802.3ad vlan=bond0.120:bond0 ip=bond0.120:dhcp")
	nics := []netconfig.NIC{{Name: "eth0", MAC: first, PermanentMAC: first}, {Name: "eth1", MAC: first, PermanentMAC: second}}
	for _, name := range []string{"bond0.120", "bond0", "eth1"} {
		if nic, err := machineNIC(c, name, nics); err != nil || nic.Name != "eth1" || nic.MAC != second {
			t.Errorf("%s: %+v, %v", name, nic, err)
		}
	}
	if nic, err := machineNIC(c, "eth9", nics); err == nil {
		t.Errorf("eth9: %+v", nic)
	}
}

func TestStaticLease(t *testing.T) {
	c := commandLine(t, "ip=10.0.0.2:::24::eth0:none ip=10.1.0.2::10.1.0.1:24::eth1:none rd.route=10.9.0.0/16:10.1.0.9 nameserver=10.1.0.53")
	lease, ok := staticLease(c)
	var routes []string
	for _, r := range lease.Routes {
		routes = append(routes, r.To.String()+" "+r.Via.String())
	}
	if !ok || lease.Interface != "eth1" || lease.Address.String() != "10.1.0.2/24" || len(lease.DNS) != 1 {
		t.Errorf("%+v, %v", lease, ok)
	}
	if diff := cmp.Diff([]string{"0.0.0.0/0 10.1.0.1", "10.9.0.0/16 10.1.0.9"}, routes); diff != "" {
		t.Error(diff)
	}
	if _, ok := staticLease(commandLine(t, "ip=eth0:dhcp")); ok {
		t.Error("a lease without a fixed address")
	}
	i := &installation{opt: options{kernel: splitKernelCommandLine("ip=eth0:bogus")}}
	if _, err := i.commandLineNetwork(); err == nil || !strings.Contains(err.Error(), "bogus") {
		t.Errorf("a mistake: %v", err)
	}
}
