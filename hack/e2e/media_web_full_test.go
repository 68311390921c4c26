//go:build full

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/firstlight/firstlight/hack/child"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestMediaHTTPBoot: a UEFI firmware gets the UKI by HTTP, as its DHCP server
// says; the installer then asks that network for its configuration.
func TestMediaHTTPBoot(t *testing.T) {
	files, err := site.NewConfig("192.0.2.1:6971")
	if err != nil {
		t.Fatal(err)
	}
	directory := writeFiles(t, files)
	if err := os.Rename(makeBootable(t, "uki", "--append", "installer.dryRun"), filepath.Join(directory, "firstlight.efi")); err != nil {
		t.Fatal(err)
	}
	space := fmt.Sprintf("fl-media-%d", os.Getpid())
	address := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	address("netns", "add", space)
	t.Cleanup(func() { address("netns", "delete", space) })
	address("-n", space, "tuntap", "add", "tap0", "mode", "tap")
	address("-n", space, "address", "add", "192.0.2.1/24", "dev", "tap0")
	address("-n", space, "link", "set", "tap0", "up")

	requests := make(chan string, 100)
	listener := listenIn(t, space, "192.0.2.1:80")
	web := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case requests <- r.Method + " " + r.URL.Path:
		default:
		}
		http.FileServer(http.Dir(directory)).ServeHTTP(w, r)
	})}
	go func() { _ = web.Serve(listener) }() // it ends with Close
	t.Cleanup(func() { web.Close() })

	dnsmasq, err := child.Start(exec.Command("ip", "netns", "exec", space, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0",
		"--interface=tap0", "--bind-interfaces", "--dhcp-range=192.0.2.100,192.0.2.150,1h", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"),
		"--dhcp-vendorclass=set:http,HTTPClient", "--dhcp-option-force=tag:http,60,HTTPClient", "--dhcp-boot=tag:http,http://192.0.2.1/firstlight.efi",
		"--enable-tftp", "--tftp-root="+directory), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dnsmasq.Stop(time.Second) })

	c := mediumMachine(t, true, []string{
		"-netdev", "tap,id=lan,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=lan,mac=52:54:00:12:34:56,bootindex=0",
		// Only what is tested: PXE would be tried before.
		"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no", "-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no",
	})
	c.Namespace, c.Net = space, qemu.Net{Absent: true}
	lines := keepLines(t)
	m := powerOn(t, c, lines)
	await(t, m, 6*time.Minute, regexp.MustCompile(`config: fetching from tftp://192\.0\.2\.1|`+failedLine.String()))
	says(t, m, "config: fetching from tftp://192.0.2.1")
	select {
	case first := <-requests:
		t.Logf("the firmware asked: %s", first)
	default:
		t.Error("nothing was asked of the web server")
	}
	untouched(t, m)
}

// listenIn listens in a network namespace.
func listenIn(t *testing.T, space, address string) net.Listener {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	there, err := netns.GetFromName(space)
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := netns.Set(there); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", address)
	if back := netns.Set(own); back != nil {
		t.Fatal(back) // the thread is of no use to anybody else
	}
	if err != nil {
		t.Fatal(err)
	}
	return listener
}
