package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/netswitch"
)

// nic is the name of every station's interface, in its own namespace.
const nic = "nic"

// station is one host of the network.
type station struct {
	netswitch.Station
	space netns.NsHandle
	mac   net.HardwareAddr
	index int // of its interface, in its namespace
}

// newStation makes the namespace, the cable to the bridge and the services.
func (f *fabric) newStation(wanted netswitch.Station) (*station, error) {
	s := &station{Station: wanted}
	cable := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "x" + wanted.Name}
	cable.Name, cable.MTU = "s"+wanted.Name, mtu(wanted.MTU)
	if err := netlink.LinkAdd(cable); err != nil {
		return nil, err
	}
	if err := quiet(cable.Name); err != nil {
		return nil, err
	}
	if err := f.join(cable, netswitch.Port{Untagged: wanted.VLAN, MTU: wanted.MTU}); err != nil {
		return nil, err
	}
	peer, err := netlink.LinkByName(cable.PeerName)
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine, or stays outside
	outside, err := netns.Get()
	if err != nil {
		return nil, err
	}
	if s.space, err = netns.New(); err != nil {
		return nil, err
	}
	if err := netns.Set(outside); err != nil {
		return nil, err
	}
	runtime.UnlockOSThread()
	if err := netlink.LinkSetNsFd(peer, int(s.space)); err != nil {
		return nil, err
	}
	if err := s.inside(func() error { return s.address(cable.PeerName) }); err != nil {
		return nil, err
	}
	return s, s.serve(f)
}

// inside runs do in the station's namespace. Sockets that it opens stay there.
func (s *station) inside(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine: none other runs in this namespace
		if err := netns.Set(s.space); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return <-result
}

// address names and configures the interface, in the namespace.
func (s *station) address(peer string) error {
	link, err := netlink.LinkByName(peer)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, nic); err != nil {
		return err
	}
	size := s.MTU
	if size == 0 {
		size = 1500
	}
	if err := netlink.LinkSetMTU(link, size); err != nil {
		return err
	}
	s.mac, s.index = link.Attrs().HardwareAddr, link.Attrs().Index
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, up := range []netlink.Link{loopback, link} {
		if err := netlink.LinkSetUp(up); err != nil {
			return err
		}
	}
	add := func(to netlink.Link, p netip.Prefix) error {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		a.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(to, a); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("adding %s: %w", p, err)
		}
		return nil
	}
	for _, p := range s.Addresses {
		if err := add(link, p); err != nil {
			return err
		}
	}
	for at := range s.Relays {
		if err := add(loopback, netip.PrefixFrom(at.Addr(), at.Addr().BitLen())); err != nil {
			return err
		}
	}
	for _, setting := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile(filepath.Join("/proc/sys/net", setting), []byte("1"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// serve starts what the station has, each until the switch ends.
func (s *station) serve(f *fabric) error {
	for at, behind := range s.Relays {
		var listener net.Listener
		err := s.inside(func() (err error) {
			listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
			return err
		})
		if err != nil {
			return err
		}
		go s.report("relay", func() error { return relay(listener, behind) })
	}
	type service struct {
		name  string
		there bool
		start func(*fabric) (run func() error, err error)
	}
	for _, service := range []service{
		{"dns", s.Names != nil, s.dns},
		{"tftp", s.Files != nil, s.tftp},
		{"dhcp", s.DHCP != nil && s.DHCP.Address.IsValid(), s.dhcp4},
		{"dhcp6", s.DHCP != nil && s.DHCP.Address6.IsValid(), s.dhcp6},
		{"router", s.RA != nil, s.router},
	} {
		if !service.there {
			continue
		}
		var run func() error
		err := s.inside(func() (err error) {
			run, err = service.start(f)
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", service.name, err)
		}
		go s.report(service.name, run)
	}
	return nil
}

// report says on the console how a service ended: it should not have.
func (s *station) report(service string, run func() error) {
	fmt.Printf("netswitch: %s: %s ended: %v\n", s.Name, service, run())
}

// relay hands connections on to a service behind the uplink.
func relay(listener net.Listener, behind netip.AddrPort) error {
	for {
		client, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			server, err := net.DialTimeout("tcp", behind.String(), 10*time.Second)
			if err != nil {
				fmt.Printf("netswitch: relaying to %s: %v\n", behind, err)
				_ = client.Close() // it sees a connection that ends at once
				return
			}
			join(client, server)
		}()
	}
}

// join copies both ways until either end goes; the other then sees it.
func join(a, b net.Conn) {
	go func() {
		_, _ = io.Copy(a, b)
		_ = a.Close()
	}()
	_, _ = io.Copy(b, a)
	_ = b.Close()
}

// tunnel connects the test to an address as seen from a station.
func (f *fabric) tunnel(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	s := f.stations[r.Header.Get("Station")]
	f.mu.Unlock()
	if s == nil {
		http.Error(w, "there is no such station", http.StatusNotFound)
		return
	}
	var server net.Conn
	err := s.inside(func() (err error) {
		server, err = net.DialTimeout("tcp", r.Host, 5*time.Second)
		return err
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = server.Close()
		return
	}
	if _, err := client.Write([]byte("HTTP/1.1 200 Connected\r\n\r\n")); err != nil {
		_ = server.Close()
	}
	if n := buffered.Reader.Buffered(); n > 0 { // what came along with the request
		early, _ := buffered.Reader.Peek(n)
		if _, err := server.Write(early); err != nil {
			_ = server.Close()
		}
	}
	join(client, server)
}
