package lldp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/netconfig"
)

// tlv is one type with its value.
func tlv(kind int, value ...byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(kind<<9|len(value))), value...)
}

func joined(parts ...[]byte) (all []byte) {
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

// unit is what a data centre's switch sends.
func unit() []byte {
	return joined(
		tlv(typeChassis, 4, 0x52, 0x54, 0, 0, 0, 0x99),
		tlv(typePort, append([]byte{5}, "Ethernet1/7"...)...),
		tlv(typeTTL, 0, 120),
		tlv(typePortDescription, []byte("rack 7, host 3")...),
		tlv(typeSystemName, []byte("leaf1.example")...),
		tlv(typeSystemDescription, []byte("a switch")...),
		tlv(typeCapabilities, 0, 4, 0, 4),
		tlv(typeManagement, 5, 1, 10, 0, 0, 9, 2, 0, 0, 0, 1, 0),
		tlv(typeOrganisation, 0, 0x80, 0xc2, 1, 0, 10),
		tlv(typeOrganisation, append([]byte{0, 0x80, 0xc2, 3, 0, 120, 4}, "prod"...)...),
		tlv(typeOrganisation, append([]byte{0, 0x80, 0xc2, 3, 0, 100, 3}, "dev"...)...),
		tlv(typeOrganisation, 0, 0x80, 0xc2, 7, 3, 0, 0, 0, 5),
		tlv(typeOrganisation, 0, 0x12, 0x0f, 4, 0x24, 0x14),
		tlv(typeOrganisation, 1, 2, 3, 4, 5),
		tlv(typeEnd),
	)
}

func TestParse(t *testing.T) {
	got, gone, err := Parse(unit())
	if err != nil || gone {
		t.Fatal(gone, err)
	}
	want := netconfig.Neighbour{
		Chassis: "52:54:00:00:00:99", Port: "Ethernet1/7", Description: "rack 7, host 3", System: "leaf1.example",
		Management: netip.MustParseAddr("10.0.0.9"), PortVLAN: 10, VLANs: []netconfig.NamedVLAN{{ID: 120, Name: "prod"}, {ID: 100, Name: "dev"}},
		Aggregated: true, MaxFrame: 9236,
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if text := got.String(); text != "switch leaf1.example, port Ethernet1/7 (rack 7, host 3), untagged VLAN 10, VLANs 120 prod, 100 dev, aggregated" {
		t.Error(text)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, data := range map[string][]byte{
		"nothing":           nil,
		"no end":            unit()[:len(unit())-2],
		"cut short":         unit()[:20],
		"the wrong order":   joined(tlv(typePort, 5, 'x'), tlv(typeChassis, 7, 'x'), tlv(typeTTL, 0, 1), tlv(typeEnd)),
		"an empty chassis":  joined(tlv(typeChassis, 7), tlv(typePort, 5, 'x'), tlv(typeTTL, 0, 1), tlv(typeEnd)),
		"no time to live":   joined(tlv(typeChassis, 7, 'x'), tlv(typePort, 5, 'x'), tlv(typeTTL, 0), tlv(typeEnd)),
		"only control text": joined(tlv(typeChassis, 7, 1, 2), tlv(typePort, 5, 'x'), tlv(typeTTL, 0, 1), tlv(typeEnd)),
	} {
		if n, _, err := Parse(data); err == nil {
			t.Errorf("%s: read as %+v", name, n)
		}
	}
	leave := joined(tlv(typeChassis, 7, 'x'), tlv(typePort, 5, 'y'), tlv(typeTTL, 0, 0), tlv(typeEnd))
	if n, gone, err := Parse(leave); err != nil || !gone || n.Chassis != "x" {
		t.Errorf("leaving: %+v, %v, %v", n, gone, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(unit())
	f.Add(joined(tlv(typeChassis, 5, 1, 10, 0, 0, 1), tlv(typePort, 3, 1, 2, 3, 4, 5, 6), tlv(typeTTL, 0, 0), tlv(typeManagement, 17, 2, 0, 1), tlv(typeEnd)))
	f.Fuzz(func(t *testing.T, data []byte) {
		n, _, err := Parse(data)
		if err != nil {
			return
		}
		if n.Chassis == "" || n.Port == "" {
			t.Errorf("whose is it: %+v", n)
		}
		if strings.ContainsAny(n.String(), "\x1b\n\r\x00") {
			t.Errorf("control characters: %q", n.String())
		}
		for _, v := range n.VLANs {
			if v.ID == 0 || v.ID > 4094 {
				t.Errorf("VLAN %d", v.ID)
			}
		}
	})
}

const inNamespace = "FIRSTLIGHT_TEST_NETNS"

// A frame on a cable is heard, on an interface that came late.
func TestListen(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		if os.Getuid() != 0 {
			t.Fatal("network namespaces need root")
		}
		name := fmt.Sprintf("fl-lldp-%d", os.Getpid())
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
		cmd := exec.Command("ip", "netns", "exec", name, os.Args[0], "-test.run=^TestListen$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), inNamespace+"="+name)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestListen") {
			t.Errorf("in the namespace: %v\n%s", err, out)
		}
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	time.AfterFunc(500*time.Millisecond, func() {
		run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far0")
		run(t, "ip", "link", "set", "eth0", "up")
		run(t, "ip", "link", "set", "far0", "up")
		frame := filepath.Join(t.TempDir(), "frame")
		data := joined([]byte{0x01, 0x80, 0xc2, 0, 0, 0x0e, 0x52, 0x54, 0, 0, 0, 0x99, 0x88, 0xcc}, unit())
		if err := os.WriteFile(frame, data, 0o600); err != nil {
			t.Error(err)
		}
		for ctx.Err() == nil {
			run(t, "socat", "-u", "OPEN:"+frame, "INTERFACE:far0")
			time.Sleep(500 * time.Millisecond)
		}
	})
	err := Listen(ctx, func() ([]string, error) { return []string{"eth0"}, nil }, func(name string, n netconfig.Neighbour, gone bool) {
		if name != "eth0" || n.System != "leaf1.example" || gone {
			t.Errorf("%s: %+v, %v", name, n, gone)
		}
		cancel()
	})
	if err != nil {
		t.Error(err)
	}
	if context.Cause(ctx) != context.Canceled {
		t.Error("nothing was heard")
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
