package lldp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/netconfig"
)

// etherType of LLDP (IEEE 802.1AB, 7.4).
const etherType = 0x88cc

// groups are the addresses that switches send to (IEEE 802.1AB, 7.1): to the
// nearest bridge, to the nearest that is no two-port one, to the nearest
// customer's.
func groups() [][6]byte {
	return [][6]byte{{0x01, 0x80, 0xc2, 0, 0, 0x0e}, {0x01, 0x80, 0xc2, 0, 0, 0x03}, {0x01, 0x80, 0xc2, 0, 0, 0}}
}

// Listen calls heard with what neighbours say, until ctx ends, and then returns
// nil. interfaces lists the names of the NICs, and is called again and again,
// for some appear late. heard is called from one goroutine, each time that a
// neighbour speaks; gone says that it takes its leave.
func Listen(ctx context.Context, interfaces func() ([]string, error), heard func(name string, n netconfig.Neighbour, gone bool)) error {
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, etherType))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return fmt.Errorf("opening a packet socket for LLDP: %w", err)
	}
	defer unix.Close(fd) // only read from
	second := unix.Timeval{Sec: 1}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second); err != nil {
		return fmt.Errorf("preparing a packet socket for LLDP: %w", err)
	}
	joined := map[int]string{}
	var looked time.Time
	buf := make([]byte, 65536)
	for ctx.Err() == nil {
		if time.Since(looked) > time.Second {
			looked = time.Now()
			join(fd, interfaces, joined)
		}
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hearing LLDP: %w", err)
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok || joined[link.Ifindex] == "" || link.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if neighbour, gone, err := Parse(buf[:n]); err == nil {
			heard(joined[link.Ifindex], neighbour, gone)
		}
	}
	return nil
}

// join makes the kernel let frames for the groups in on every interface. What
// it refuses is tried again.
func join(fd int, interfaces func() ([]string, error), joined map[int]string) {
	names, err := interfaces()
	if err != nil {
		return
	}
	for _, name := range names {
		link, err := net.InterfaceByName(name)
		if err != nil {
			continue
		}
		if joined[link.Index] == "" && !joinGroups(fd, link.Index) {
			continue
		}
		joined[link.Index] = name // it may have got another one
	}
}

func joinGroups(fd, index int) bool {
	for _, group := range groups() {
		request := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
		copy(request.Address[:], group[:])
		if unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &request) != nil {
			return false
		}
	}
	return true
}
