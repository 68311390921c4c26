package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/netswitch"
)

// announce says by LLDP (IEEE 802.1AB) on a port which port it is, every five
// seconds until the switch ends.
func (f *fabric) announce(n int) {
	for ; ; time.Sleep(5 * time.Second) {
		f.mu.Lock()
		port := f.ports[n]
		f.mu.Unlock()
		nic, err := netlink.LinkByName(nicName(n))
		if err == nil && !port.Blocked {
			err = send(nic.Attrs().Index, lldp(n, nic.Attrs().HardwareAddr, port))
		}
		if err != nil {
			fmt.Printf("netswitch: lldp on port %d: %v\n", n, err)
		}
	}
}

// send puts one frame on a link.
func send(index int, frame []byte) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) // nothing is lost by it
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: index})
}

// lldp is the frame of a port.
func lldp(n int, mac net.HardwareAddr, port netswitch.Port) []byte {
	b := []byte{0x01, 0x80, 0xc2, 0, 0, 0x0e}
	b = append(append(b, mac...), 0x88, 0xcc)
	tlv := func(kind int, value ...byte) {
		b = append(binary.BigEndian.AppendUint16(b, uint16(kind<<9|len(value))), value...)
	}
	tlv(1, append([]byte{4}, mac...)...)                      // chassis, by its MAC address
	tlv(2, append([]byte{5}, fmt.Sprintf("port%d", n)...)...) // port, by its name
	tlv(3, 0, 20)                                             // seconds that this holds
	tlv(5, []byte("netswitch")...)                            // system name
	vlan := func(id uint16) []byte { return []byte{byte(id >> 8), byte(id)} }
	if port.Untagged != 0 {
		tlv(127, append([]byte{0, 0x80, 0xc2, 1}, vlan(port.Untagged)...)...) // port VLAN, IEEE 802.1
	}
	for _, id := range port.Tagged {
		name := fmt.Sprintf("vlan%d", id)
		tlv(127, append(append([]byte{0, 0x80, 0xc2, 3}, vlan(id)...), append([]byte{byte(len(name))}, name...)...)...)
	}
	tlv(0)
	return b
}
