// Guest is the one program of a netswitch's virtual machine, and its first
// process: it loads the kernel modules that lie beside it, brings up the uplink
// and then does what the test asks by HTTP. It is no program for a machine of
// flesh and blood: it mounts and configures whatever it runs on.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/netswitch"
)

// uplink is the NIC behind QEMU's NAT: the first, before the ports.
const uplink = "eth0"

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: this is the first program of a switch's virtual machine")
		os.Exit(2)
	}
	err := run()
	fmt.Printf("netswitch: FAILED: %v\n", err)
	// The first process must not end. Nothing is mounted that could be lost.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// run serves until something fails.
func run() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := raiseUplink(); err != nil {
		return err
	}
	s, err := newFabric()
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", netswitch.ControlPort))
	if err != nil {
		return err
	}
	fmt.Println(netswitch.Ready)
	return http.Serve(listener, s)
}

// loadModules inserts every file in dir, in the order of their names.
func loadModules(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		params := ""
		if strings.HasSuffix(file, "-bonding.ko") {
			params = "max_bonds=0"
		}
		err = unix.FinitModule(int(f.Fd()), params, 0)
		if err = errors.Join(err, f.Close()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("loading %s: %w", file, err)
		}
	}
	return nil
}

// raiseUplink gives the uplink the address that QEMU's NAT forwards to.
func raiseUplink() error {
	for _, name := range []string{"lo", uplink} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("raising %s: %w", name, err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("raising %s: %w", name, err)
		}
		if name == uplink {
			address, err := netlink.ParseAddr("10.0.2.15/24")
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, address); err != nil {
				return fmt.Errorf("raising %s: %w", name, err)
			}
		}
	}
	return nil
}

// ServeHTTP is the switch's control:
//
//	PUT  /network   sets up everything, once
//	PUT  /port/N    changes port N, from 0
//	POST /probe     lets a station look
//	GET  /state     what the switch saw
//	CONNECT A:P     a TCP connection from the station in the header Station
func (f *fabric) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var out any
	var err error
	var n int
	switch scanned, _ := fmt.Sscanf(r.URL.Path, "/port/%d", &n); {
	case r.Method == http.MethodConnect:
		f.tunnel(w, r)
		return
	case r.Method == http.MethodPut && r.URL.Path == "/network":
		var wanted netswitch.Network
		if err = read(r.Body, &wanted); err == nil {
			err = f.setUp(wanted)
		}
	case r.Method == http.MethodPut && scanned == 1:
		var port netswitch.Port
		if err = read(r.Body, &port); err == nil {
			err = f.changePort(n, port)
		}
	case r.Method == http.MethodPost && r.URL.Path == "/probe":
		var probe netswitch.Probe
		if err = read(r.Body, &probe); err == nil {
			out = f.probe(r.Context(), probe)
		}
	case r.Method == http.MethodGet && r.URL.Path == "/state":
		out, err = f.state()
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		fmt.Printf("netswitch: %s %s: %v\n", r.Method, r.URL.Path, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		fmt.Printf("netswitch: answering: %v\n", err)
	}
}

func read(r io.Reader, into any) error {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	return d.Decode(into)
}
