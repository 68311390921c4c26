package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/child"
	"github.com/firstlight/firstlight/hack/qemu"
)

// servedMAC is the address of the machine of these tests, servedID its name until
// it is given one.
const (
	servedMAC = "52:54:00:12:34:56"
	servedID  = "52-54-00-12-34-56"
)

// served is a site that `firstlight serve` serves, in network namespaces: its own,
// with a bridge lan0 (10.99.0.1) and taps for machines, and one of a router that
// hands out addresses with dnsmasq, and knows nothing of booting.
type served struct {
	t     *testing.T
	dir   string
	space string
	proc  *child.Child
	log   string
}

// newServed makes the networks and starts the server. Nothing of it leaves the
// namespaces.
func newServed(t *testing.T, taps int, flags ...string) *served {
	t.Helper()
	s := &served{t: t, dir: filepath.Join(t.TempDir(), "site"), space: fmt.Sprintf("fl-serve-%d", os.Getpid())}
	router := s.space + "-router"
	for _, name := range []string{s.space, router} {
		s.ip("netns", "add", name)
		t.Cleanup(func() { s.ip("netns", "delete", name) })
		s.ip("-n", name, "link", "set", "lo", "up")
	}
	s.ip("-n", s.space, "link", "add", "lan0", "type", "bridge")
	s.ip("-n", s.space, "link", "set", "lan0", "up")
	s.ip("-n", s.space, "address", "add", "10.99.0.1/24", "dev", "lan0")
	s.ip("-n", s.space, "link", "add", "uplink", "type", "veth", "peer", "name", "lan", "netns", router)
	s.ip("-n", s.space, "link", "set", "uplink", "master", "lan0", "up")
	s.ip("-n", router, "address", "add", "10.99.0.2/24", "dev", "lan")
	s.ip("-n", router, "link", "set", "lan", "up")
	for n := range taps {
		tap := fmt.Sprintf("tap%d", n)
		s.ip("-n", s.space, "tuntap", "add", tap, "mode", "tap")
		s.ip("-n", s.space, "link", "set", tap, "master", "lan0", "up")
	}
	dnsmasq, err := child.Start(exec.Command("ip", "netns", "exec", router, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0",
		"--interface=lan", "--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--dhcp-range=10.99.0.100,10.99.0.150,1h",
		"--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases")), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dnsmasq.Stop(time.Second) })
	s.start(flags...)
	return s
}

func (s *served) ip(args ...string) {
	s.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}

// start starts the server, and returns when machines can boot.
func (s *served) start(flags ...string) {
	s.t.Helper()
	s.log = filepath.Join(s.t.TempDir(), "serve.log")
	log, err := os.Create(s.log)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close() // the server has it
	p := site.Products
	cmd := exec.Command("ip", append([]string{"netns", "exec", s.space, p.Firstlight, "serve", "--site", s.dir,
		"--base", p.Initramfs, "--kernel", p.KernelDir}, flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := child.Start(cmd, false)
	if err != nil {
		s.t.Fatal(err)
	}
	s.proc = proc
	s.t.Cleanup(func() {
		proc.Stop(10 * time.Second)
		if said, err := os.ReadFile(s.log); err == nil && s.t.Failed() {
			s.t.Logf("the server said:\n%s", said)
		}
	})
	s.eventually(time.Minute, "able to boot machines", func() bool {
		said, err := os.ReadFile(s.log)
		_, media := os.Stat(filepath.Join(s.dir, "state", "boot", "amd64", "firstlight.iso"))
		return err == nil && bytes.Contains(said, []byte("msg=DHCP")) && media == nil
	})
}

func (s *served) eventually(limit time.Duration, what string, is func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(limit); !is(); time.Sleep(200 * time.Millisecond) {
		select {
		case <-s.proc.Done():
			s.t.Fatalf("the server has ended")
		default:
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("after %s: not %s", limit, what)
		}
	}
}

// firstlight is the operator's command, on the server's own machine.
func (s *served) firstlight(args ...string) string {
	s.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", s.space, site.Products.Firstlight, "--site", s.dir}, args...)...)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("firstlight %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out.String()
}

// headline is where a machine stands.
func (s *served) headline(name string) string {
	s.t.Helper()
	var lines []struct{ Name, Headline string }
	if err := json.Unmarshal([]byte(s.firstlight("machine", "list", "--json")), &lines); err != nil {
		s.t.Fatal(err)
	}
	for _, l := range lines {
		if l.Name == name {
			return l.Headline
		}
	}
	return ""
}

// machine has an empty disk, and boots from the network first.
func (s *served) machine(t *testing.T, n int) qemu.Config {
	t.Helper()
	c := mediumMachine(t, false, []string{
		"-netdev", fmt.Sprintf("tap,id=lan,ifname=tap%d,script=no,downscript=no", n),
		"-device", fmt.Sprintf("virtio-net-pci,netdev=lan,mac=52:54:00:12:34:%02x,bootindex=0", 0x56+n),
	})
	c.Namespace, c.Net = s.space, qemu.Net{Absent: true}
	return c
}

var waitsForName = regexp.MustCompile(`config: waiting for the site server: nobody has said what it shall be`)

// TestServeUnknownMachine: the homelab. One command beside a router that does
// DHCP; a machine that nobody knows boots from the network by BIOS, says what it
// is, waits, and not a byte of its disk is written.
func TestServeUnknownMachine(t *testing.T) {
	s := newServed(t, 1)
	lines := keepLines(t)
	m := powerOn(t, s.machine(t, 0), lines)
	await(t, m, 3*time.Minute, waitsForName)
	s.eventually(time.Minute, "known with its disk", func() bool {
		return strings.Contains(s.firstlight("machine", "show", servedID), "/dev/vda")
	})
	if got := s.headline(servedID); got != "waiting" {
		t.Errorf("it is %q", got)
	}
	untouched(t, m)
}
