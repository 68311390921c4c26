package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/netswitch"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/renderer"
)

// networkRoot is the root file-system whose only network program is that of
// the renderer.
func networkRoot(t *testing.T, name string) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join(checkout, "build", "network", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + ".stamp"); err != nil {
		t.Fatalf("%v (make roots makes it)", err)
	}
	return root
}

// resolverOf is what the image's attributes would say of these roots.
func resolverOf(name string) netconfig.Resolver {
	if name == "networkd" {
		return netconfig.Resolved
	}
	return netconfig.ResolvConf
}

// switchImage is what all switches boot, built by the first test that needs it.
var switchImage struct {
	once sync.Once
	path string
	err  error
}

// startSwitch starts a switch that ends with the test; dir is short.
func startSwitch(ctx context.Context, t *testing.T, dir string, n netswitch.Network) *netswitch.Switch {
	t.Helper()
	switchImage.once.Do(func() {
		switchImage.path = filepath.Join(site.Dir, "boot", "netswitch")
		switchImage.err = netswitch.Build(ctx, checkout, site.Products.KernelDir, switchImage.path)
	})
	if switchImage.err != nil {
		t.Fatal(switchImage.err)
	}
	accel, _ := probe.Accel(ctx)
	s, err := netswitch.Start(ctx, netswitch.Options{
		Kernel: site.Kernel(), Image: switchImage.path, Dir: dir, Log: filepath.Join(dir, "switch.log"), Accel: accel, Network: n,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the switch said:\n%s", s.Console(30))
		}
		s.Stop()
	})
	return s
}

// shortDir is a directory for sockets; it is gone after the test.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "net-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// networkConfig is one of the networks that the renderers' own tests have.
func networkConfig(t *testing.T, name string) netconfig.Config {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(checkout, "netconfig", "testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var c netconfig.Config
	if err := json.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// rendered starts a machine whose root has what the renderer wrote, between it
// and the network that the configuration belongs in, and compares what becomes
// of it with the model: from inside, and from outside.
func rendered(t *testing.T, program, name string) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	config := networkConfig(t, name)
	render, ok := renderer.Named(program)
	if !ok {
		t.Fatalf("there is no renderer %s", program)
	}
	files := append(render(config, resolverOf(program)), netconfig.Identity(config)...)
	dir := shortDir(t)
	disk, err := lab.MakeRootDisk(ctx, networkRoot(t, program), files, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := lanFor(config)
	s := startSwitch(ctx, t, dir, l.network)
	accel, _ := probe.Accel(ctx)
	lines := keepLines(t)
	c := qemu.Config{
		Dir: filepath.Join(dir, "m"), Accel: accel, MemoryMiB: 512, Kernel: disk.Kernel, Initrd: disk.Initrd,
		CommandLine: "console=ttyS0,115200 root=/dev/vda rw quiet", Disks: []qemu.Disk{{Path: disk.Path}},
		Net: qemu.Net{Absent: true}, Shell: true, Lines: lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true,
	}
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for n, mac := range l.macs {
		c.Cables = append(c.Cables, s.Cable(n, mac.String()))
	}
	start := time.Now()
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	booted, stop := context.WithTimeout(ctx, 8*time.Minute)
	defer stop()
	shell, err := lab.OpenShell(booted, filepath.Join(c.Dir, qemu.ShellSocket))
	if err != nil {
		t.Fatalf("%v\n%s", err, m.Tail(40))
	}
	defer shell.Close()
	t.Logf("shell after %s", time.Since(start).Round(time.Second))
	settle(ctx, t, shell, config, program == "netplan") // whose root has no systemd-resolved
	outside(ctx, t, s, shell, l)
	t.Logf("done after %s", time.Since(start).Round(time.Second))
}

// settle waits until the machine's network is what the model says, and fails
// with all differences when it does not become so.
func settle(ctx context.Context, t *testing.T, shell *lab.Shell, config netconfig.Config, deaf bool) {
	t.Helper()
	for end := time.Now().Add(settling); ; time.Sleep(2 * time.Second) {
		state, err := readNetwork(ctx, shell)
		if err != nil {
			t.Fatal(err)
		}
		state.deaf = deaf
		differences := state.against(config)
		if len(differences) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("after %s:\n%s\n%s", settling, strings.Join(differences, "\n"), diagnose(ctx, shell))
			return
		}
	}
}

// diagnose is what a person would look at.
func diagnose(ctx context.Context, shell *lab.Shell) string {
	out, err := shell.Run(ctx, "grep -E 'Slave|MII|Aggregator ID|Partner Mac' /proc/net/bonding/* 2>/dev/null; ip -br address; ip route; ip -6 route; networkctl --no-pager 2>/dev/null; nmcli device 2>/dev/null; journalctl -b --no-pager -u 'networking' -u 'systemd-networkd*' -u NetworkManager -u systemd-udevd -u 'ifup@*' | tail -n 120")
	if err != nil {
		return err.Error()
	}
	return out
}

// outside looks at the machine from the switch's stations.
func outside(ctx context.Context, t *testing.T, s *netswitch.Switch, shell *lab.Shell, l lan) {
	t.Helper()
	for _, g := range l.guests {
		if _, err := shell.Run(ctx, g.commands()); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range l.probes {
		a, err := s.Until(ctx, time.Minute, p.Probe)
		if err != nil {
			t.Error(err)
			continue
		}
		if !p.mac.IsZero() && a.MAC != p.mac.String() {
			t.Errorf("%s is at %s, not at %s", p.Target, a.MAC, p.mac)
		}
	}
	if t.Failed() {
		state, err := s.State(ctx)
		t.Logf("the switch saw %v, %v", fmt.Sprintf("%+v", state), err)
	}
}

// TestNetworkRenderer: one program and one network of each kind; the long series
// has all of them.
func TestNetworkRenderer(t *testing.T) {
	t.Run("networkmanager", func(t *testing.T) { rendered(t, "networkmanager", "active-backup") })
}
