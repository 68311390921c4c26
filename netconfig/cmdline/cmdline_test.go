package cmdline_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/cmdline"
)

// words splits a line at blanks.
func words(line string) []cmdline.Argument {
	var out []cmdline.Argument
	for _, word := range strings.Fields(line) {
		name, value, _ := strings.Cut(word, "=")
		out = append(out, cmdline.Argument{Name: name, Value: value})
	}
	return out
}

func TestParse(t *testing.T) {
	tests := []struct{ line, want string }{
		{"quiet console=ttyS0 ip=dhcp BOOTIF=01-52-54-00-12-34-56", `{"interfaces":null}`},
		{"ifname=lan0:52:54:00:12:34:56", `{"interfaces":null}`},
		{"ip=eth1:dhcp:1400", `{"interfaces":[{"name":"eth1","kind":"ethernet","nic":"eth1","mtu":1400,"dhcp4":true}]}`},
		{"ip=192.168.1.2::192.168.1.1:255.255.255.0:hyper0:eth0:none nameserver=192.168.1.53",
			`{"hostname":"hyper0","interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0","addresses":["192.168.1.2/24"],"gateway":"192.168.1.1"}],"dns":["192.168.1.53"]}`},
		{"ip=[2001:db8::2]::[2001:db8::1]:64::eth0:none nameserver=[2001:db8::53]",
			`{"interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0","addresses":["2001:db8::2/64"],"gateway":"2001:db8::1"}],"dns":["2001:db8::53"]}`},
		{"ip=10.0.0.2:::24::eth0:none rd.route=10.9.0.0/16:10.0.0.254 ip=eth0:auto6",
			`{"interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0","acceptRA":true,"addresses":["10.0.0.2/24"],"routes":[{"to":"10.9.0.0/16","via":"10.0.0.254"}]}]}`},
		{"ip=10.0.0.2::10.0.0.1:24::eth0:none:10.0.0.53:10.0.0.54",
			`{"interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0","addresses":["10.0.0.2/24"],"gateway":"10.0.0.1"}],"dns":["10.0.0.53","10.0.0.54"]}`},
		{"ip=bond0.120:dhcp vlan=bond0.120:bond0 bond=bond0:lan0,lan1:mode=802.3ad,miimon=50,lacp_rate=1,xmit_hash_policy=layer3+4:9000 ifname=lan0:52:54:00:00:00:01",
			`{"interfaces":[{"name":"lan0","kind":"ethernet","nic":"lan0","permanentMAC":"52:54:00:00:00:01","master":"bond0"},{"name":"lan1","kind":"ethernet","nic":"lan1","master":"bond0"},` +
				`{"name":"bond0","kind":"bond","mtu":9000,"ports":["lan0","lan1"],"bond":{"mode":"802.3ad","hashPolicy":"layer3+4","lacpRate":"fast","miimonMillis":50}},` +
				`{"name":"bond0.120","kind":"vlan","parent":"bond0","vlanID":120,"dhcp4":true}]}`},
		{"bond=bond0:eth0,eth1:mode=active-backup,primary=eth0 ip=dhcp",
			`{"interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0","master":"bond0"},{"name":"eth1","kind":"ethernet","nic":"eth1","master":"bond0"},` +
				`{"name":"bond0","kind":"bond","ports":["eth0","eth1"],"bond":{"mode":"active-backup","miimonMillis":100,"primary":"eth0"},"dhcp4":true}]}`},
		{"bridge=br0:eth0 ip=br0:dhcp",
			`{"interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0","master":"br0"},{"name":"br0","kind":"bridge","ports":["eth0"],"bridge":{"stp":false,"forwardDelaySeconds":0,"vlanAware":false},"dhcp4":true}]}`},
		{"vlan=vlan0005:eth0 ip=vlan0005:dhcp",
			`{"interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0"},{"name":"vlan0005","kind":"vlan","parent":"eth0","vlanID":5,"dhcp4":true}]}`},
		{"ip=eth0:dhcp:1400:52:54:00:12:34:56",
			`{"interfaces":[{"name":"eth0","kind":"ethernet","nic":"eth0","mac":"52:54:00:12:34:56","mtu":1400,"dhcp4":true}]}`},
	}
	for _, test := range tests {
		got, err := cmdline.Parse(words(test.line))
		if err != nil {
			t.Errorf("%s: %v", test.line, err)
			continue
		}
		data, err := json.Marshal(got.Config)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, string(data)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.line, diff)
		}
	}
	got, err := cmdline.Parse(words("BOOTIF=01-52-54-00-12-34-56"))
	if err != nil || got.BootIF.String() != "52:54:00:12:34:56" || got.Asked() {
		t.Errorf("BOOTIF: %+v, %v", got, err)
	}
}

func TestMistakes(t *testing.T) {
	for line, want := range map[string]string{
		"ip=bogus":                          "not a way",
		"ip=eth0:ibft":                      "have none, dhcp",
		"ip=10.0.0.2":                       "not a way",
		"ip=10.0.0.2::10.0.0.1:::eth0:none": "no mask",
		"ip=10.0.0.2::10.0.0.1:255.0.255.0::eth0:none": "hole",
		"ip=10.0.0.2::10.0.0.1:24:::none":              "names no interface",
		"ip=10.0.0.2:10.0.0.3::24::eth0:none":          "peer",
		"ip=[2001:db8::1":                              "bracket",
		"ip=a/b:dhcp":                                  "name of an interface",
		"ip=eth0:dhcp:67":                              "MTU",
		"vlan=eth0.5000:eth0":                          "5000",
		"vlan=eth0":                                    "name:parent",
		"vlan=eth0.5:eth0.5":                           "own parent",
		"bond=bond0:eth0:mode=fast":                    "balance-rr",
		"bond=bond0:eth0:speed=1":                      "no bond option",
		"bond=bond0:eth0:primary=eth1":                 "no port",
		"bond=bond0:eth0:mode=1,lacp_rate=slow":        "802.3ad",
		"bond=bond0:eth0 bond=bond1:eth0":              "a port of bond0 already",
		"bond=bond0:eth0 ip=eth0:dhcp":                 "can have no address",
		"bridge=br0:br1 bridge=br1:br0 ip=br0:dhcp":    "circle",
		"team=team0:eth0":                              "bond=",
		"nameserver=x":                                 "address",
		"rd.route=10.0.0.0/8":                          "network/bits",
		"rd.route=10.0.0.0/8:10.0.0.1":                 "no interface for the route",
		"rd.route=10.0.0.0/8:[2001:db8::1]:eth0":       "family",
		"ifname=lan0:xx":                               "MAC",
		"BOOTIF=01-zz":                                 "",
	} {
		_, err := cmdline.Parse(words(line))
		if line == "BOOTIF=01-zz" && err == nil {
			t.Errorf("%s: no error", line)
			continue
		}
		var coded *netconfig.Error
		if !errors.As(err, &coded) || coded.Code() != cmdline.CodeSyntax || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %s with %q", line, err, cmdline.CodeSyntax, want)
		}
	}
	_, err := cmdline.Parse(words("ip=bogus nameserver=x"))
	if err == nil || !strings.Contains(err.Error(), "bogus") || !strings.Contains(err.Error(), "nameserver") {
		t.Errorf("not every mistake is told: %v", err)
	}
}

// FuzzParse: no line is a crash, and what is taken is a network that can be
// made: names that the kernel takes, parents and ports first.
func FuzzParse(f *testing.F) {
	for _, line := range []string{
		"ip=dhcp BOOTIF=01-52-54-00-12-34-56", "bond bridge vlan ip", "ip=[::1", "ip=::::h:eth0:dhcp:::", "ifname=a:52:54:00:00:00:01 ip=a:dhcp",
		"bond=bond0:lan0,lan1:mode=802.3ad:9000 vlan=bond0.120:bond0 bridge=br0:bond0.120 ip=br0:either6 nameserver=[::2] rd.route=[2001:db8::/32]:[fe80::1]:br0",
		"ip=192.168.1.2::192.168.1.1:255.255.255.0:hyper0:eth0:none:1400:52:54:00:12:34:56",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, err := cmdline.Parse(words(line))
		if err != nil {
			return
		}
		made := map[string]bool{}
		for _, i := range got.Config.Interfaces {
			if i.Name == "" || len(i.Name) > 15 || made[i.Name] {
				t.Errorf("%q: the interface %q", line, i.Name)
			}
			made[i.Name] = true
			for _, before := range i.Ports {
				if !made[before] {
					t.Errorf("%q: %s is made before its port %s", line, i.Name, before)
				}
			}
			if i.Parent != "" && !made[i.Parent] {
				t.Errorf("%q: %s is made before its parent", line, i.Name)
			}
			for _, a := range i.Addresses {
				if !a.IsValid() {
					t.Errorf("%q: %s has the address %s", line, i.Name, a)
				}
			}
		}
	})
}
