package serve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/pin/tftp/v3"

	"github.com/firstlight/firstlight/tools/pki"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/netboot"
	"github.com/firstlight/firstlight/tools/site/server"
)

// Environment variables of the processes that these tests start: the name of the
// other namespace, and what a machine there does.
const (
	inNamespace = "FIRSTLIGHT_TEST_LAN"
	asMachine   = "FIRSTLIGHT_TEST_MACHINE"
)

// inside runs the calling test again in a process of its own, in a network
// namespace with the interface lan0 (10.77.0.1), which is joined to two others,
// with a machine (10.77.0.3) and a router (10.77.0.4): eth0 there. It is true in
// that process. No packet of these tests leaves the namespaces.
func inside(t *testing.T) (lan string, yes bool) {
	t.Helper()
	if lan := os.Getenv(inNamespace); lan != "" {
		return lan, true
	}
	if os.Getuid() != 0 {
		t.Fatal("network namespaces need root")
	}
	t.Parallel() // in a process and in namespaces of its own
	own, lan := fmt.Sprintf("fl-%d-%s-site", os.Getpid(), t.Name()), fmt.Sprintf("fl-%d-%s-lan", os.Getpid(), t.Name())
	for _, name := range []string{own, lan, router(lan)} {
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() {
			for pid := range strings.FieldsSeq(run(t, "ip", "netns", "pids", name)) {
				run(t, "kill", "-KILL", pid)
			}
			run(t, "ip", "netns", "del", name)
		})
		run(t, "ip", "-n", name, "link", "set", "lo", "up")
	}
	run(t, "ip", "-n", own, "link", "add", "lan0", "type", "bridge")
	run(t, "ip", "-n", own, "link", "set", "lan0", "up")
	run(t, "ip", "-n", own, "address", "add", "10.77.0.1/24", "dev", "lan0")
	for n, name := range []string{lan, router(lan)} {
		port := fmt.Sprintf("port%d", n)
		run(t, "ip", "-n", own, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
		run(t, "ip", "-n", own, "link", "set", port, "master", "lan0", "up")
		run(t, "ip", "-n", name, "link", "set", "eth0", "address", fmt.Sprintf("52:54:00:00:00:0%d", n+1), "up")
		run(t, "ip", "-n", name, "address", "add", fmt.Sprintf("10.77.0.%d/24", n+3), "dev", "eth0")
	}
	cmd := exec.Command("ip", "netns", "exec", own, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=90s")
	cmd.Env = append(os.Environ(), inNamespace+"="+lan)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in the namespace: %v", err)
	}
	return "", false
}

// router is the namespace of the router of a network.
func router(lan string) string { return strings.TrimSuffix(lan, "lan") + "router" }

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dnsmasq is the DHCP server that is there already, in a namespace.
func dnsmasq(t *testing.T, namespace string, args ...string) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", namespace, "dnsmasq", "--keep-in-foreground", "--port=0",
		"--conf-file=/dev/null", "--user=root", "--log-facility=-", "--no-ping", "--leasefile-ro", "--dhcp-authoritative",
		"--pid-file=" + filepath.Join(t.TempDir(), "pid"), "--dhcp-range=10.77.0.100,10.77.0.150,1h"}, args...)...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()
	})
}

// serving is a site that is served by this process.
type serving struct {
	t    *testing.T
	site *site.Site
	lan  string
}

// serve starts a site; its boot media are small files.
func serve(t *testing.T, lan string, mode netboot.Mode, change func(*Options)) *serving {
	t.Helper()
	s, err := site.Open(t.TempDir(), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	o := Options{
		Site: s, Interface: "lan0", DHCP: mode, HTTP: ":8080", TFTP: true, Version: "test", Now: time.Now, Retry: time.Second,
		Log:   slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Ready: func(net.Addr) { close(ready) },
		MakeMedia: func(_ context.Context, dir string, _ Addresses) ([]server.Notice, error) {
			for _, name := range []string{netboot.UKI, netboot.BIOSIPXE, "vmlinuz", "initramfs"} {
				if err := os.MkdirAll(filepath.Join(dir, "amd64"), 0o755); err != nil {
					return nil, err
				}
				if err := os.WriteFile(filepath.Join(dir, "amd64", name), []byte(strings.Repeat("this is "+name+"\n", 1000)), 0o644); err != nil {
					return nil, err
				}
			}
			return nil, nil
		},
	}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, o) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serving ended: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Fatal("it is not ready")
	}
	return &serving{t, s, lan}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// machine has a machine on the network do something, and returns what it says.
func (s *serving) machine(what string, args ...string) string {
	s.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", s.lan, os.Args[0], "-test.run=^TestMachine$", "-test.v=false", "-test.timeout=40s"}, args...)...)
	cmd.Env = append(os.Environ(), asMachine+"="+what, "FIRSTLIGHT_TEST_SITE="+s.site.Dir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("a machine that does %q: %v\n%s", what, err, out)
	}
	_, said, _ := strings.Cut(string(out), "SAYS ")
	said, _, _ = strings.Cut(said, "\nPASS")
	return said
}

// eventually waits for something that takes a while.
func (s *serving) eventually(what string, is func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(25 * time.Second); !is(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("after 25 s: not %s", what)
		}
	}
}

// TestMachine is a machine on the network; it runs in a process that another test
// has started.
func TestMachine(t *testing.T) {
	what, argument, _ := strings.Cut(os.Getenv(asMachine), " ")
	switch what {
	case "": // the tests as a whole
	case "discover":
		fmt.Printf("SAYS %s\n", discover(t, argument))
	case "boot-server":
		fmt.Printf("SAYS %s\n", askBootServer(t))
	case "tftp":
		fmt.Printf("SAYS %s\n", fetchTFTP(t, argument))
	case "get":
		fmt.Printf("SAYS %s\n", get(t, argument))
	}
}

// discover asks for an address as firmware does, and says who offers what.
func discover(t *testing.T, class string) string {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	client, err := nclient4.New("eth0", nclient4.WithTimeout(time.Second), nclient4.WithRetry(1))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	m, err := dhcpv4.NewDiscovery(mac, dhcpv4.WithOption(dhcpv4.OptClassIdentifier(class)), dhcpv4.WithOption(dhcpv4.OptClientArch(iana.INTEL_X86PC)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	offers := map[string]string{}
	_, _ = client.SendAndRead(ctx, nclient4.DefaultServers, m, func(o *dhcpv4.DHCPv4) bool { // it ends by its time
		if o.MessageType() == dhcpv4.MessageTypeOffer {
			offers[o.ServerIdentifier().String()] = fmt.Sprintf("address %v, file %q", !o.YourIPAddr.IsUnspecified(), o.BootFileName)
		}
		return false
	})
	text, err := json.Marshal(offers)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// askBootServer asks port 4011 as a UEFI machine with an address does.
func askBootServer(t *testing.T) string {
	conn, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 4011})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m, err := dhcpv4.New(dhcpv4.WithHwAddr(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}), dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithClientIP(net.IPv4(10, 77, 0, 3)),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003016")), dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(m.ToBytes()); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := dhcpv4.FromBytes(b[:n])
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %s", answer.MessageType(), answer.BootFileName)
}

func fetchTFTP(t *testing.T, file string) string {
	client, err := tftp.NewClient("10.77.0.1:69")
	if err != nil {
		t.Fatal(err)
	}
	transfer, err := client.Receive(file, "octet")
	if err != nil {
		return "error: " + err.Error()
	}
	var b strings.Builder
	if _, err := transfer.WriteTo(&b); err != nil {
		return "error: " + err.Error()
	}
	return b.String()
}

// get asks the site over TLS, believing its CA only.
func get(t *testing.T, url string) string {
	ca, err := os.ReadFile(filepath.Join(pki.Directory(os.Getenv("FIRSTLIGHT_TEST_SITE")), pki.CAFile))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	answer, err := client.Get(url)
	if err != nil {
		return "error: " + err.Error()
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", answer.StatusCode, body)
}

// TestBesideADHCPServer: one command next to a router with DHCP. Each packet goes
// over a wire, to and from a server and clients that are not ours.
func TestBesideADHCPServer(t *testing.T) {
	lan, yes := inside(t)
	if !yes {
		return
	}
	dnsmasq(t, router(lan), "--interface=eth0", "--bind-interfaces")
	s := serve(t, lan, netboot.Auto, nil)
	page := func() string { return s.machine("get https://10.77.0.1:8080/") }
	const both = `{"10.77.0.1":"address false, file \"undionly.kpxe\"","10.77.0.4":"address true, file \"\""}`
	var offers string
	s.eventually("offered by both servers", func() bool { // a switch learns first
		offers = s.machine("discover PXEClient:Arch:00000:UNDI:002001")
		return offers == both
	})
	if got := s.machine("discover MSFT 5.0"); strings.Contains(got, "10.77.0.1") {
		t.Errorf("a laptop is offered something: %s", got)
	}
	if got, want := s.machine("boot-server"), "ACK efi/52-54-00-00-00-01/amd64/firstlight.efi"; got != want {
		t.Errorf("port 4011: %q, want %q", got, want)
	}
	for file, want := range map[string]string{
		"undionly.kpxe": "this is undionly.kpxe\n", "/efi/52-54-00-00-00-01/amd64/firstlight.efi": "this is firstlight.efi\n",
		"pxelinux.cfg/01-52-54-00-00-00-01": "KERNEL http://10.77.0.1:8080/boot/amd64/vmlinuz\n",
		"52-54-00-00-00-01/config.json":     "error: ", "../site.yaml": "error: ", "etc/passwd": "error: ",
	} {
		if got := s.machine("tftp " + file); !strings.Contains(got, want) {
			t.Errorf("TFTP %s: %.200q, want %q in it", file, got, want)
		}
	}
	if got := page(); !strings.HasPrefix(got, "200 ") || !strings.Contains(got, "52-54-00-00-00-01") {
		t.Errorf("the page over TLS: %.300s", got)
	}
	// An address that is new is in the certificate by itself.
	run(t, "ip", "address", "add", "10.78.0.1/24", "dev", "lan0")
	run(t, "ip", "-n", lan, "route", "add", "10.78.0.0/24", "dev", "eth0")
	s.eventually("a certificate for the new address", func() bool {
		return strings.HasPrefix(s.machine("get https://10.78.0.1:8080/healthz"), "200 ok")
	})
	// The installer's files, one by one, for the machine that has the address.
	for name, text := range map[string]string{
		"config.json": `{"Machine": {"Hostname": "web1", "HostMacAddress": "52:54:00:00:00:01"}}`, "imagename": "debian/12\n",
		"storage-layout.json": `{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/"}]}`,
	} {
		file := filepath.Join(s.site.Dir(), "machines", "web1", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.site.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"52-54-00-00-00-01/config.json": `"Hostname": "web1"`, "52-54-00-00-00-01/imagename": "debian/12\n",
		"imagename": "debian/12\n", "siteserver": "https://10.77.0.1:8080\n", "imageserver": "10.77.0.1:6971\n",
	} {
		if file != "52-54-00-00-00-01/config.json" {
			continue
		}
		if got := s.machine("tftp " + file); !strings.Contains(got, want) {
			t.Errorf("TFTP %s: %q", file, got)
		}
	}
	for file, want := range map[string]string{
		"52-54-00-00-00-01/imagename": "debian/12\n", "imagename": "debian/12\n", "siteserver": "https://10.77.0.1:8080\n", "imageserver": "10.77.0.1:6971\n",
		"52-54-00-00-00-01/tools-imagename": "error: code: 1",
	} {
		if got := s.machine("tftp " + file); !strings.Contains(got, want) {
			t.Errorf("TFTP %s: %q, want %q", file, got, want)
		}
	}
}

// TestFullIsRefusedBesideAnother: two servers never hand out addresses.
func TestFullIsRefusedBesideAnother(t *testing.T) {
	lan, yes := inside(t)
	if !yes {
		return
	}
	dnsmasq(t, router(lan), "--interface=eth0", "--bind-interfaces")
	s := serve(t, lan, netboot.Full, nil)
	s.eventually("said on the page", func() bool {
		got := s.machine("get https://10.77.0.1:8080/")
		return strings.Contains(got, "10.77.0.4 hands out addresses on lan0 already") && strings.Contains(got, "--dhcp proxy")
	})
	if got := s.machine("discover PXEClient:Arch:00000:UNDI:002001"); strings.Contains(got, "10.77.0.1") {
		t.Errorf("it offers something all the same: %s", got)
	}
}

// TestFull: the network's only DHCP server, and what has a port is named.
func TestFull(t *testing.T) {
	lan, yes := inside(t)
	if !yes {
		return
	}
	// Something else has the port of TFTP.
	blocked, err := net.ListenUDP("udp", &net.UDPAddr{Port: 69})
	if err != nil {
		t.Fatal(err)
	}
	defer blocked.Close()
	s := serve(t, lan, netboot.Full, func(o *Options) {
		o.RivalInterval = time.Second
		settings := "format: 1\nsubnets:\n- {network: 10.77.0.0/24, pool: 10.77.0.50-10.77.0.60, router: 10.77.0.1}\n"
		if err := os.WriteFile(filepath.Join(o.Site.Dir(), "site.yaml"), []byte(settings), 0o644); err != nil {
			t.Fatal(err)
		}
	})
	s.eventually("an address and a file", func() bool {
		return s.machine("discover PXEClient:Arch:00000:UNDI:002001") == `{"10.77.0.1":"address true, file \"undionly.kpxe\""}`
	})
	if got := s.machine("discover MSFT 5.0"); got != `{"10.77.0.1":"address true, file \"\""}` {
		t.Errorf("a laptop: %s", got)
	}
	if got := s.machine("get https://10.77.0.1:8080/"); !strings.Contains(got, "UDP port 69 (TFTP) is taken by serve.test, process") {
		t.Errorf("the page does not say who has port 69:\n%s", got)
	}
	// A router that was off when it was looked for others.
	dnsmasq(t, router(lan), "--interface=eth0", "--bind-interfaces")
	s.eventually("the only one no more", func() bool {
		return strings.Contains(s.machine("get https://10.77.0.1:8080/"), "10.77.0.4 hands out addresses on lan0 already")
	})
}

// TestAddressComesLater: a server that gets its own address by DHCP may start
// before it has one.
func TestAddressComesLater(t *testing.T) {
	lan, yes := inside(t)
	if !yes {
		return
	}
	dnsmasq(t, router(lan), "--interface=eth0", "--bind-interfaces")
	run(t, "ip", "address", "del", "10.77.0.1/24", "dev", "lan0")
	notices := make(chan string, 100)
	s := serve(t, lan, netboot.Auto, func(o *Options) {
		o.Interface = ""
		o.Log = slog.New(slog.NewTextHandler(lineWriter(notices), nil))
	})
	select {
	case line := <-notices:
		for !strings.Contains(line, "no interface has an IPv4 address yet") {
			line = <-notices
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not say that it has no address")
	}
	run(t, "ip", "address", "add", "10.77.0.9/24", "dev", "lan0")
	s.eventually("an offer of the server with its address", func() bool {
		return strings.Contains(s.machine("discover PXEClient:Arch:00000:UNDI:002001"), `"10.77.0.9":"address false, file \"undionly.kpxe\""`)
	})
	if got := s.machine("get https://10.77.0.9:8080/healthz"); !strings.HasPrefix(got, "200 ok") {
		t.Errorf("over TLS: %s", got)
	}
}

// lineWriter sends what is logged, as long as there is room.
type lineWriter chan string

func (w lineWriter) Write(b []byte) (int, error) {
	select {
	case w <- string(b):
	default:
	}
	return len(b), nil
}
