package wake

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/netconfig"
)

// inside runs f in a network of its own, with two cards and a cable between: all
// is sent over "here", "there" has the other end.
func inside(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread ends with its namespace: it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("a network namespace of its own (root is needed): %v", err)
			return
		}
		here := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "here"}, PeerName: "there"}
		if err := netlink.LinkAdd(here); err != nil {
			t.Error(err)
			return
		}
		for name, address := range map[string]string{"here": "192.0.2.5/26", "there": ""} {
			link, err := netlink.LinkByName(name)
			if err == nil && address != "" {
				parsed, _ := netlink.ParseAddr(address) // it is one
				err = netlink.AddrAdd(link, parsed)
			}
			if err = errors.Join(err, netlink.LinkSetUp(link)); err != nil {
				t.Error(err)
				return
			}
		}
		f()
	}()
	<-done
}

// listen opens the other end of the cable: all frames that come there.
func listen(t *testing.T) (fd int) {
	there, err := net.InterfaceByName("there")
	if err != nil {
		t.Fatal(err)
	}
	all := binary.BigEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	all = all<<8 | all>>8 // in the order of the network
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(all))
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: there.Index})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// What comes out of the cable is what a network card wakes up from.
func TestCall(t *testing.T) {
	inside(t, func() {
		fd := listen(t)
		defer unix.Close(fd)
		networks, err := Networks("")
		if err != nil || len(networks) != 1 || networks[0] != (Network{"here", netip.MustParsePrefix("192.0.2.5/26")}) {
			t.Errorf("%v, %v", networks, err)
			return
		}
		macs := []netconfig.MAC{{0x52, 0x54, 0, 1, 2, 3}, {0x52, 0x54, 0, 1, 2, 4}}
		if err := Call(t.Context(), networks[0], macs); err != nil {
			t.Error(err)
			return
		}
		seen := map[netconfig.MAC]int{}
		frame := make([]byte, 2000)
		deadline := time.Now().Add(10 * time.Second)
		for seen[macs[0]]+seen[macs[1]] < len(macs)*times && time.Now().Before(deadline) {
			n, err := unix.Read(fd, frame)
			if err != nil {
				t.Errorf("after %v: %v", seen, err)
				return
			}
			for _, mac := range macs {
				at := bytes.Index(frame[:n], magic(mac))
				if at < 0 {
					continue
				}
				seen[mac]++
				if !bytes.Equal(frame[:6], bytes.Repeat([]byte{0xff}, 6)) {
					t.Errorf("it went to % x only", frame[:6])
				}
				if to := netip.AddrFrom4([4]byte(frame[30:34])); to != netip.MustParseAddr("192.0.2.63") {
					t.Errorf("it went to %s", to)
				}
				if len(frame[at:n]) != 102 {
					t.Errorf("it has %d bytes", len(frame[at:n]))
				}
			}
		}
	})
}

func TestNoNetwork(t *testing.T) {
	inside(t, func() {
		for _, name := range []string{"lo", "there", "elsewhere"} {
			var coded *Error
			if networks, err := Networks(name); !errors.As(err, &coded) {
				t.Errorf("%s: %v, %v", name, networks, err)
			}
		}
		var coded *Error
		if err := Call(t.Context(), Network{"here", netip.MustParsePrefix("192.0.2.5/26")}, nil); !errors.As(err, &coded) {
			t.Errorf("%v", err)
		}
	})
}
