package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/netswitch"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/trust"
)

// scenario is one network that a machine finds itself on. The installer makes
// its plan there, which takes all of the network that an installation takes
// but time, and stops.
type scenario struct {
	// ports are one without a tag by default.
	ports []netswitch.Port
	// unplugged are the ports whose cable is out when the machine starts.
	unplugged []int
	// host is the number of the NIC that config.json names.
	host int
	// v6 is a network and a configuration with IPv6 only.
	v6 bool
	// change changes the network: s is the station that serves all.
	change func(x *scene, s *netswitch.Station)
	// options are further words on the kernel's command line.
	options string
	// meanwhile happens from the installer's first line on.
	meanwhile func(ctx context.Context, x *scene) error
	// says are lines that must be on the console, as regular expressions.
	says []string
	// installs a system to where that is seen to be there, instead of a plan: a
	// small one, or with a tag, which a small one's kernel cannot have, the lab's.
	installs bool
	// tag is the VLAN that config.json has the machine in; 0: none.
	tag uint16
	// limit is how long it may take; 0 is five minutes.
	limit time.Duration
}

// scene is a scenario while it is played.
type scene struct {
	network netswitch.Network
	files   map[string][]byte
	server  *lab.Server
	sw      *netswitch.Switch
	machine *qemu.Machine
	disk    string // the machine's
	medium  string // its initramfs; empty: the site's
	options string
	t       *testing.T
}

// The network of the scenarios: an address of the machine's own, and one that
// is leased to the installer.
var (
	sceneRouter  = netip.MustParsePrefix("192.168.1.1/24")
	sceneLease   = netip.MustParsePrefix("192.168.1.77/24")
	sceneRouter6 = netip.MustParsePrefix("2001:db8:1::1/64")
	sceneLease6  = netip.MustParseAddr("2001:db8:1::77")
)

// sceneMAC is that of the machine's NIC n.
func sceneMAC(n int) string { return fmt.Sprintf("de:ad:be:ef:00:%02x", n+1) }

// carrier plugs both ends of a cable in or out.
func (x *scene) carrier(ctx context.Context, port int, in bool) error {
	if err := x.sw.Plug(ctx, port, in); err != nil {
		return err
	}
	return x.machine.Plug(ctx, port, in)
}

// sceneConfig is the machine's configuration.
func sceneConfig(t *testing.T, sc scenario, server *lab.Server) map[string][]byte {
	t.Helper()
	at := lab.InGuest(server.Port)
	machine := map[string]any{"Hostname": lab.Hostname, "HostIpAddress": "192.168.1.2", "HostMacAddress": sceneMAC(sc.host)}
	subnet := map[string]any{"Id": "lan", "IpGateway": sceneRouter.Addr(), "IpMask": "255.255.255.0", "DomainName": lab.Domain, "DomainNameServers": []string{sceneRouter.Addr().String()}}
	if sc.v6 {
		at = fmt.Sprintf("[%s]:%d", sceneRouter6.Addr(), server.Port)
		machine["HostIpAddress"] = "2001:db8:1::2"
		subnet["IpGateway"], subnet["IpMask"], subnet["DomainNameServers"] = sceneRouter6.Addr(), "ffff:ffff:ffff:ffff::", []string{sceneRouter6.Addr().String()}
	}
	if sc.tag != 0 {
		subnet["VlanId"] = sc.tag
		delete(machine, "HostMacAddress") // the machine is on a VLAN of its trunk
	}
	files, err := site.NewConfig(at)
	if err != nil {
		t.Fatal(err)
	}
	files["config.json"], err = json.Marshal(map[string]any{"Machine": machine, "Subnets": []any{subnet}})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// play plays it.
func (sc scenario) play(t *testing.T) {
	t.Parallel()
	if sc.limit == 0 {
		sc.limit = 5 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), sc.limit+10*time.Minute)
	defer cancel()
	x := &scene{t: t, options: "installer.dryRun " + sc.options, disk: filepath.Join(t.TempDir(), "disk.raw")}
	ends := regexp.MustCompile(`plan: dry run: stopping here|` + failedLine.String())
	if sc.installs {
		x.options, ends = sc.options, handedOver
	}
	if sc.installs && sc.tag == 0 {
		x.serveSmall(sc)
	} else {
		x.server = serve(t, site, copyStore(t), sceneCertificate(t)...)
		x.files = sceneConfig(t, sc, x.server)
	}
	x.network.Ports = sc.ports
	if x.network.Ports == nil {
		x.network.Ports = []netswitch.Port{{Untagged: 1}}
	}
	x.network.Stations = []netswitch.Station{x.router(sc)}
	if sc.change != nil {
		sc.change(x, &x.network.Stations[0])
	}
	dir := shortDir(t)
	x.sw = startSwitch(ctx, t, dir, x.network)
	lines := keepLines(t)
	m := x.start(ctx, t, dir, lines, sc)
	defer m.Kill()

	started, stop := context.WithTimeout(ctx, 5*time.Minute)
	defer stop()
	if _, err := m.WaitFor(started, regexp.MustCompile(`(?m)^\[ *\d+\.\d{3}\] clock: |links: `)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	failed := make(chan error, 1)
	go func() {
		if sc.meanwhile == nil {
			failed <- nil
			return
		}
		failed <- sc.meanwhile(ctx, x)
	}()
	limited, stop := context.WithTimeout(ctx, sc.limit)
	defer stop()
	found, err := m.WaitFor(limited, ends)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s; after %s", strings.TrimSpace(found[0]), time.Since(start).Round(time.Second))
	if strings.Contains(found[0], "FAILED") {
		t.Error("the installer failed")
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	for _, say := range sc.says {
		if !regexp.MustCompile(say).MatchString(m.Text()) {
			t.Errorf("the console does not say %q", say)
		}
	}
	state, err := x.sw.State(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("leases %v, offers %v, ports %+v", state.Leases, state.Offers, state.Ports)
	if sc.installs && !t.Failed() {
		x.seeInstalled(ctx, sc)
	}
}

// seeInstalled waits until the installed system is there.
func (x *scene) seeInstalled(ctx context.Context, sc scenario) {
	t := x.t
	t.Helper()
	if sc.tag != 0 {
		if _, err := x.sw.Until(ctx, 5*time.Minute, netswitch.Probe{Station: "router", Kind: netswitch.ProbePing, Target: "192.168.1.2"}); err != nil {
			t.Error(err)
		}
		return
	}
	if err := x.machine.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if edition, wrong := bootSmall(t, 5*time.Minute, qemu.Disk{Path: x.disk}); edition != "new" || wrong != "" {
		t.Errorf("the disk boots the edition %q; wrong with it is %q", edition, wrong)
	}
}

// serveSmall serves a small system, and the configuration that wants it.
func (x *scene) serveSmall(sc scenario) {
	x.t.Helper()
	roots, err := smalls()
	if err != nil {
		x.t.Fatal(err)
	}
	x.server = serve(x.t, site, filepath.Join(x.t.TempDir(), "store"), sceneCertificate(x.t)...)
	if err := site.Add(x.t.Context(), x.server, "small/new", roots["new"]); err != nil {
		x.t.Fatal(err)
	}
	x.files = sceneConfig(x.t, sc, x.server)
	x.files["imagename"] = []byte("small/new\n")
	x.files["storage-layout.json"] = []byte(`{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 268435456}],
		"ExtraMountPointsBasename": "/data/", "UseKexec": false}`)
}

// start starts the machine, with the cables as they are in the beginning.
func (x *scene) start(ctx context.Context, t *testing.T, dir string, lines *keptLines, sc scenario) *qemu.Machine {
	t.Helper()
	if err := qemu.CreateDisk(x.disk, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(ctx)
	medium := cmp.Or(x.medium, site.Initramfs())
	c := qemu.Config{
		Dir: filepath.Join(dir, "m"), Accel: accel, MemoryMiB: 1024, Kernel: site.Kernel(), Initrd: medium,
		CommandLine: lab.CommandLine + " " + strings.TrimSpace(x.options), Net: qemu.Net{Absent: true},
		Disks: []qemu.Disk{{Path: x.disk}}, Lines: lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true,
	}
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for n := range x.network.Ports {
		c.Cables = append(c.Cables, x.sw.Cable(n, sceneMAC(n)))
	}
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	x.machine = m
	for _, n := range sc.unplugged {
		if err := x.carrier(ctx, n, false); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

// sceneCertificate is a certificate for the image server that holds for its
// IPv6 address as well.
func sceneCertificate(t *testing.T) []string {
	t.Helper()
	const name = "scene-server"
	sceneKeys.Lock()
	defer sceneKeys.Unlock()
	if _, err := os.Stat(site.Secret(name + ".pem")); err != nil {
		if err := site.Issue(t.Context(), name, "127.0.0.1", "localhost", "10.0.2.2", sceneRouter6.Addr().String()); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"--tls-cert", site.Secret(name + ".pem"), "--tls-key", site.Secret(name + "-key.pem")}
}

// router is the station that serves all: addresses, configuration, names, and
// the image server behind it.
func (x *scene) router(sc scenario) netswitch.Station {
	behind := netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), uint16(x.server.Port))
	s := netswitch.Station{
		Name: "router", VLAN: 1, Files: maps.Clone(x.files),
		Names: map[string]netip.Addr{lab.Hostname + "." + lab.Domain: netip.MustParseAddr("192.168.1.2")},
	}
	if sc.v6 {
		s.Addresses = []netip.Prefix{sceneRouter6}
		s.Relays = map[netip.AddrPort]netip.AddrPort{netip.AddrPortFrom(sceneRouter6.Addr(), behind.Port()): behind}
		s.DHCP = &netswitch.DHCP{Address6: sceneLease6, DNS: []netip.Addr{sceneRouter6.Addr()}}
		s.RA = &netswitch.RA{Managed: true, Other: true}
		return s
	}
	s.Addresses = []netip.Prefix{sceneRouter}
	s.Relays = map[netip.AddrPort]netip.AddrPort{behind: behind}
	s.DHCP = &netswitch.DHCP{Address: sceneLease, Router: sceneRouter.Addr(), NextServer: sceneRouter.Addr(), DNS: []netip.Addr{sceneRouter.Addr()}}
	return s
}

// lossy is a port that loses that share of the frames, in each direction.
func lossy(percent float32) []netswitch.Port {
	return []netswitch.Port{{Untagged: 1, LossPercent: percent}}
}

// scenarios are all of them; quick are those of make test.
func scenarios() map[string]scenario {
	const static = "ip=192.168.1.2::192.168.1.1:255.255.255.0::"
	return map[string]scenario{
		"one NIC": {says: []string{`eth0 has the address 192\.168\.1\.77/24`, `links: eth0: switch netswitch, port port0, untagged VLAN 1`}},
		"two NICs": {
			ports: []netswitch.Port{{Untagged: 1}, {Untagged: 50}}, says: []string{`eth0 has the address 192\.168\.1\.77/24`},
		},
		"four NICs, served on the last": {
			ports: []netswitch.Port{{Untagged: 50}, {Untagged: 51}, {Untagged: 52}, {Untagged: 1}}, host: 3,
			says: []string{`eth3 has the address 192\.168\.1\.77/24`},
		},
		"four NICs, one with a link": {
			ports: []netswitch.Port{{Untagged: 1}, {Untagged: 1}, {Untagged: 1}, {Untagged: 1}}, unplugged: []int{0, 1, 3}, host: 2,
			says: []string{`eth2 has the address 192\.168\.1\.77/24`},
		},
		"a link that flaps": {
			meanwhile: func(ctx context.Context, x *scene) error {
				for range 6 {
					for _, in := range []bool{false, true} {
						if err := x.carrier(ctx, 0, in); err != nil {
							return err
						}
						time.Sleep(1500 * time.Millisecond)
					}
				}
				return nil
			},
		},
		"carrier after 60 s": {
			unplugged: []int{0}, limit: 8 * time.Minute,
			meanwhile: func(ctx context.Context, x *scene) error {
				time.Sleep(time.Minute)
				return x.carrier(ctx, 0, true)
			},
		},
		"forwarding after 60 s": { // a port of a switch with the old spanning tree
			ports: []netswitch.Port{{Untagged: 1, Blocked: true}}, limit: 8 * time.Minute,
			meanwhile: func(ctx context.Context, x *scene) error {
				time.Sleep(time.Minute)
				return x.sw.SetPort(ctx, 0, netswitch.Port{Untagged: 1})
			},
		},
		"three rogue DHCP servers answer first": {change: rogues, says: []string{`\] plan: plan `}, limit: 8 * time.Minute},
		"three rogue DHCP servers and a trust key": {change: rogueFiles, limit: 8 * time.Minute, says: []string{
			`192\.168\.60\.1 offers is of no use: bundle\.json is missing`, `192\.168\.61\.1 offers is of no use: the signature`,
			`the bundle of machine, sequence 1, is signed by`, `\] plan: plan `,
		}},
		"IPv6 only": {v6: true, options: "installer.tftpServerHostname=[" + sceneRouter6.Addr().String() + "]"},
		"tagged, with a fixed address": {
			ports:   []netswitch.Port{{Untagged: 50, Tagged: []uint16{1}}},
			options: "vlan=eth0.1:eth0 " + static + "eth0.1:none tftpserver=192.168.1.1",
			says:    []string{`eth0\.1 has the address 192\.168\.1\.2/24`},
		},
		"tagged, with a lease": {
			ports:   []netswitch.Port{{Untagged: 50, Tagged: []uint16{1}}},
			options: "vlan=eth0.1:eth0 ip=eth0.1:dhcp", says: []string{`eth0\.1 has the address 192\.168\.1\.77/24`},
		},
		"on a bond": {
			ports:   []netswitch.Port{{Untagged: 1, Group: "lag"}, {Untagged: 1, Group: "lag"}},
			options: "bond=bond0:eth0,eth1:mode=802.3ad,miimon=100,lacp_rate=fast ip=bond0:dhcp", says: []string{`bond0 has the address 192\.168\.1\.77/24`},
		},
		"tagged on a bond": {
			ports:   []netswitch.Port{{Tagged: []uint16{1}, Group: "lag"}, {Tagged: []uint16{1}, Group: "lag"}},
			options: "bond=bond0:eth0,eth1:mode=802.3ad,miimon=100,lacp_rate=fast vlan=bond0.1:bond0 " + static + "bond0.1:none tftpserver=192.168.1.1",
			says:    []string{`bond0\.1 has the address 192\.168\.1\.2/24`},
		},
		"loss of 1 %":  {ports: lossy(1)},
		"loss of 5 %":  {ports: lossy(5), limit: 8 * time.Minute},
		"loss of 20 %": {ports: lossy(20), limit: 12 * time.Minute},
		"MTU 576": {
			ports: []netswitch.Port{{Untagged: 1, MTU: 576}}, limit: 8 * time.Minute,
			change: func(_ *scene, s *netswitch.Station) { s.MTU, s.DHCP.MTU = 576, 576 },
		},
		"MTU 9000": {change: func(_ *scene, s *netswitch.Station) { s.MTU, s.DHCP.MTU = 9000, 9000 }},
	}
}

// quickScenarios are those of make test: one of each kind.
func quickScenarios() []string {
	return []string{"four NICs, served on the last", "three rogue DHCP servers answer first", "tagged, with a fixed address"}
}

// rogues are three servers that answer at once, while the real one takes its
// time. They lease addresses of a network of their own, and claim to be the
// server with the configuration; only the certificate tells it from them.
func rogues(x *scene, s *netswitch.Station) {
	s.DHCP.Delay = 2 * time.Second
	port := x.serveConfig(x.files)
	at := netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), port)
	s.Relays[at] = at
	x.options += fmt.Sprintf(" installer.configurationBaseUrl=https://%s/machine", at)
	for n := range byte(3) {
		r := rogue(n)
		if n > 0 { // the first has nothing there, the others what they made themselves
			r.Relays = map[netip.AddrPort]netip.AddrPort{at: netip.AddrPortFrom(at.Addr(), x.serveRogue())}
		}
		x.network.Stations = append(x.network.Stations, r)
	}
}

// rogue is a server that nobody wants, with a network of its own.
func rogue(n byte) netswitch.Station {
	own := netip.AddrFrom4([4]byte{192, 168, 60 + n, 1})
	return netswitch.Station{
		Name: fmt.Sprintf("rogue%d", n), VLAN: 1, Addresses: []netip.Prefix{netip.PrefixFrom(own, 24)}, Files: map[string][]byte{},
		DHCP: &netswitch.DHCP{Address: netip.PrefixFrom(own.Next(), 24), Router: own, NextServer: own, DNS: []netip.Addr{own}},
	}
}

// rogueFiles are three servers that answer at once a machine whose medium has a
// trust key: with an unsigned configuration, with a signed one that they have
// changed, and with none. The real one comes after them.
func rogueFiles(x *scene, s *netswitch.Station) {
	x.t.Helper()
	dir := x.t.TempDir()
	machine := filepath.Join(dir, "machine")
	if err := os.Mkdir(machine, 0o755); err != nil {
		x.t.Fatal(err)
	}
	for name, data := range x.files {
		if err := os.WriteFile(filepath.Join(machine, name), data, 0o644); err != nil {
			x.t.Fatal(err)
		}
	}
	x.medium = filepath.Join(dir, "initramfs")
	if err := site.MakeMedium(x.t.Context(), x.medium, "--trust", site.Secret("signers/signer.pub")); err != nil {
		x.t.Fatal(err)
	}
	if err := site.Sign(x.t.Context(), x.server, machine); err != nil {
		x.t.Fatal(err)
	}
	unsigned, changed := rogue(0), rogue(1)
	unsigned.Files = maps.Clone(x.files)
	s.Files = map[string][]byte{}
	for _, name := range []string{trust.BundleFile, trust.SignatureFile} {
		s.Files[name] = readFile(x.t, filepath.Join(machine, name))
		changed.Files[name] = s.Files[name]
	}
	changed.Files[trust.BundleFile] = bytes.Replace(s.Files[trust.BundleFile], []byte("sha256:"), []byte("sha256:0"), 1)
	s.DHCP.Delay = 2 * time.Second
	x.network.Stations = append(x.network.Stations, unsigned, changed, rogue(2))
}

// TestNetworkScenario: the installer gets to its plan on networks of all kinds;
// the long series has all of them.
func TestNetworkScenario(t *testing.T) {
	for _, name := range quickScenarios() {
		t.Run(strings.ReplaceAll(name, " ", "-"), scenarios()[name].play)
	}
}

// longScenarios are the others.
func longScenarios() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(scenarios())), func(name string) bool { return slices.Contains(quickScenarios(), name) })
}
