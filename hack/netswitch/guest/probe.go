package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/netswitch"
)

// probe looks once.
func (f *fabric) probe(ctx context.Context, p netswitch.Probe) netswitch.Answer {
	f.mu.Lock()
	s := f.stations[p.Station]
	names := f.names()
	f.mu.Unlock()
	if s == nil {
		return netswitch.Answer{Error: fmt.Sprintf("there is no station %q, only %q", p.Station, names)}
	}
	if p.Wait == 0 {
		p.Wait = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, p.Wait)
	defer cancel()
	var a netswitch.Answer
	err := s.inside(func() (err error) {
		switch p.Kind {
		case netswitch.ProbeARP:
			a.MAC, err = s.arp(ctx, p.Target)
		case netswitch.ProbePing:
			err = s.ping(ctx, p.Target, p.Size)
		case netswitch.ProbeTCP:
			var conn net.Conn
			if conn, err = new(net.Dialer).DialContext(ctx, "tcp", p.Target); err == nil {
				err = conn.Close()
			}
		default:
			err = fmt.Errorf("there is no probe %q", p.Kind)
		}
		return err
	})
	a.OK = err == nil
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// arp asks who has an address (RFC 826), in the station's own name.
func (s *station) arp(ctx context.Context, target string) (string, error) {
	wanted, err := netip.ParseAddr(target)
	if err != nil || !wanted.Is4() {
		return "", fmt.Errorf("%q is not an IPv4 address", target)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), "arp") // non-blocking: reads have a deadline
	defer f.Close()
	const arp = unix.ETH_P_ARP
	order := uint16(arp>>8 | arp&0xff<<8)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: order, Ifindex: s.index}); err != nil {
		return "", err
	}
	deadline, _ := ctx.Deadline()
	if err := f.SetDeadline(deadline); err != nil {
		return "", err
	}
	own := s.own(true)
	if !own.IsValid() {
		own = netip.IPv4Unspecified()
	}
	broadcast := bytes.Repeat([]byte{0xff}, 6)
	frame := append(append(broadcast, s.mac...), 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	frame = append(append(append(frame, s.mac...), own.AsSlice()...), make([]byte, 6)...)
	frame = append(frame, wanted.AsSlice()...)
	if _, err := f.Write(frame); err != nil {
		return "", err
	}
	buf := make([]byte, 1500)
	for {
		n, err := f.Read(buf)
		if err != nil {
			return "", fmt.Errorf("nobody says to have %s: %w", target, err)
		}
		a := buf[:n]
		if n >= 42 && binary.BigEndian.Uint16(a[20:]) == 2 && bytes.Equal(a[28:32], wanted.AsSlice()) {
			return net.HardwareAddr(a[22:28]).String(), nil
		}
	}
}

// ping sends one echo of that many bytes with all headers and waits for it.
func (s *station) ping(ctx context.Context, target string, size int) error {
	address, err := netip.ParseAddr(target)
	if err != nil {
		return fmt.Errorf("%q is not an address", target)
	}
	network, proto, headers := "ip4:icmp", 1, 28
	var kind icmp.Type = ipv4.ICMPTypeEcho
	var reply icmp.Type = ipv4.ICMPTypeEchoReply
	if address.Is6() {
		network, proto, headers = "ip6:ipv6-icmp", 58, 48
		kind, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	if size == 0 {
		size = 84
	}
	if size < headers+4 {
		return fmt.Errorf("an echo has at least %d bytes", headers+4)
	}
	conn, err := net.ListenPacket(network, "")
	if err != nil {
		return err
	}
	defer conn.Close() // nothing was written that could be lost
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	id := int(time.Now().UnixNano() & 0xffff)
	data := make([]byte, size-headers)
	binary.BigEndian.PutUint32(data, uint32(time.Now().UnixNano()))
	packet, err := (&icmp.Message{Type: kind, Body: &icmp.Echo{ID: id, Seq: 1, Data: data}}).Marshal(nil)
	if err != nil {
		return err
	}
	if raw, ok := conn.(*net.IPConn); ok && address.Is4() {
		if err := unfragmented(raw); err != nil {
			return err
		}
	}
	if _, err := conn.WriteTo(packet, &net.IPAddr{IP: address.AsSlice(), Zone: address.Zone()}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("no echo from %s: %w", target, err)
		}
		m, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || m.Type != reply {
			continue
		}
		if echo, ok := m.Body.(*icmp.Echo); ok && echo.ID == id && bytes.Equal(echo.Data, data) {
			return nil
		}
	}
}

// unfragmented sets "don't fragment" (ip(7), IP_MTU_DISCOVER).
func unfragmented(conn *net.IPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		inner = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	return errors.Join(err, inner)
}
