package prove

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// arpConn sends and receives ARP frames (RFC 826) on one interface.
type arpConn struct {
	fd   int
	hw   net.HardwareAddr
	peer unix.SockaddrLinklayer
}

func openARP(device string) (*arpConn, error) {
	link, err := net.InterfaceByName(device)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", device, err)
	}
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("%s is not an Ethernet interface", device)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	c := &arpConn{fd: fd, hw: link.HardwareAddr, peer: unix.SockaddrLinklayer{
		Protocol: hostToNet(unix.ETH_P_ARP), Ifindex: link.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255},
	}}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: hostToNet(unix.ETH_P_ARP), Ifindex: link.Index}); err != nil {
		c.close()
		return nil, fmt.Errorf("binding a packet socket to %s: %w", device, err)
	}
	return c, nil
}

func (c *arpConn) close() { _ = unix.Close(c.fd) } // nothing is lost: frames are sent or not

func hostToNet(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// arpMessage is what an ARP frame says.
type arpMessage struct {
	request        bool
	sender, target netip.Addr
	hardware       net.HardwareAddr // the sender's
}

const arpBytes = 28

func (m arpMessage) encode() []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 2} // Ethernet, IPv4
	if m.request {
		b[7] = 1
	}
	sender, target := m.sender.As4(), m.target.As4()
	b = append(append(b, m.hardware...), sender[:]...)
	return append(append(b, 0, 0, 0, 0, 0, 0), target[:]...)
}

func decodeARP(b []byte) (arpMessage, bool) {
	if len(b) < arpBytes || !bytes.Equal(b[:7], []byte{0, 1, 8, 0, 6, 4, 0}) || b[7] != 1 && b[7] != 2 {
		return arpMessage{}, false
	}
	return arpMessage{
		request: b[7] == 1, hardware: bytes.Clone(b[8:14]),
		sender: netip.AddrFrom4([4]byte(b[14:18])), target: netip.AddrFrom4([4]byte(b[24:28])),
	}, true
}

// request asks who has target.
func (c *arpConn) request(sender, target netip.Addr) error {
	m := arpMessage{request: true, sender: sender, target: target, hardware: c.hw}
	if err := unix.Sendto(c.fd, m.encode(), 0, &c.peer); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	return nil
}

// listen calls heard with each message until that is true, or until the time
// is over, which is no error.
func (c *arpConn) listen(ctx context.Context, until time.Time, heard func(arpMessage) bool) error {
	const slice = 100 * time.Millisecond // after which ctx is looked at
	buf := make([]byte, 1500)
	for time.Now().Before(until) && ctx.Err() == nil {
		wait := min(slice, max(time.Until(until), time.Millisecond))
		timeout := unix.NsecToTimeval(wait.Nanoseconds())
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENETDOWN) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		if m, ok := decodeARP(buf[:n]); ok && heard(m) {
			return nil
		}
	}
	return ctx.Err()
}

var errSilent = errors.New("no answer")

// resolve is the hardware address of target, asked for every second.
func (c *arpConn) resolve(ctx context.Context, sender, target netip.Addr, wait time.Duration) (net.HardwareAddr, error) {
	var found net.HardwareAddr
	last := errSilent
	for end := time.Now().Add(wait); found == nil && time.Now().Before(end); {
		if err := c.request(sender, target); err != nil {
			last = err // the link may come back
		}
		err := c.listen(ctx, earlier(end, time.Now().Add(time.Second)), func(m arpMessage) bool {
			if m.sender == target && !bytes.Equal(m.hardware, c.hw) {
				found = m.hardware
			}
			return found != nil
		})
		if err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%w within %v", last, wait)
	}
	return found, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// probe looks for another machine with the address, as RFC 5227, 2.1.1 says it:
// three questions without a sender, then two seconds of listening. It returns
// the hardware address of one that has it, or that wants it at the same time;
// nil where there is none. ours says which addresses are this machine's own.
func (c *arpConn) probe(ctx context.Context, address netip.Addr, second time.Duration, ours func(net.HardwareAddr) bool) (net.HardwareAddr, error) {
	const probes = 3
	var other net.HardwareAddr
	for n := 1; n <= probes && other == nil; n++ {
		if err := c.request(netip.IPv4Unspecified(), address); err != nil {
			return nil, err
		}
		wait := second
		if n == probes {
			wait = 2 * second
		}
		err := c.listen(ctx, time.Now().Add(wait), func(m arpMessage) bool {
			rival := m.request && m.sender.IsUnspecified() && m.target == address
			if (m.sender == address || rival) && !ours(m.hardware) {
				other = m.hardware
			}
			return other != nil
		})
		if err != nil {
			return nil, err
		}
	}
	return other, nil
}
