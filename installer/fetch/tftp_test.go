package fetch

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Every block size from RFC 1350's to the largest of RFC 2348, against a real
// server, with files that fill their last block and files that do not.
func TestTFTPBlockSizes(t *testing.T) {
	for _, size := range []int{512, 1428, 8192, 65464} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var mu sync.Mutex
			files := map[string][]byte{}
			source := hurriedTFTP(tftpServer(t, func(path string) ([]byte, bool) {
				mu.Lock()
				defer mu.Unlock()
				data, ok := files[path]
				return data, ok
			}))
			source.block, source.patience.deadline = size, 20*time.Second
			conformance(t, source, func(name string, data []byte) {
				mu.Lock()
				defer mu.Unlock()
				files[name] = data
			})
			for _, n := range []int{size - 1, size, size + 1, 3 * size} {
				want := bytes.Repeat([]byte{7}, n)
				mu.Lock()
				files["of-a-size"] = want
				mu.Unlock()
				if got, err := source.Get(t.Context(), "of-a-size"); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes: got %d, %v", n, len(got), err)
				}
			}
		})
	}
}

// ports is a server with a port of its own for a transfer, and one of a
// stranger's: send says from which a packet comes.
func ports(t *testing.T, answer func(packet []byte, send func(stranger bool, packet []byte))) string {
	t.Helper()
	listen := func() *net.UDPConn {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() }) // ends its loop
		return conn
	}
	well, own, stranger := listen(), listen(), listen()
	for _, conn := range []*net.UDPConn{well, own} {
		go func() {
			buf := make([]byte, 70000)
			for {
				n, from, err := conn.ReadFromUDP(buf)
				if err != nil {
					return
				}
				answer(slices.Clone(buf[:n]), func(strange bool, packet []byte) {
					c := own
					if strange {
						c = stranger
					}
					_, _ = c.WriteToUDP(packet, from) // what is lost is asked for again
				})
			}
		}()
	}
	return well.LocalAddr().String()
}

// Packets that come twice, as from the network of RFC 1123, 4.2.3.1, and
// packets of another transfer leave no trace in the file.
func TestTFTPDuplicatesAndStrangers(t *testing.T) {
	block := func(n byte) string { return strings.Repeat(string('a'+rune(n)), 512) }
	for name, extra := range map[string]func(n uint16, send func(bool, []byte)){
		"twice":            func(n uint16, send func(bool, []byte)) { send(false, dataPacket(n, block(byte(n)))) },
		"the one before":   func(n uint16, send func(bool, []byte)) { send(false, dataPacket(n-1, block(byte(n-1)))) },
		"a stranger's":     func(n uint16, send func(bool, []byte)) { send(true, dataPacket(n, strings.Repeat("X", 512))) },
		"a stranger's end": func(n uint16, send func(bool, []byte)) { send(true, dataPacket(n+1, "")) },
		"a stranger's no":  func(n uint16, send func(bool, []byte)) { send(true, errorPacket(1, "File not found")) },
		"nonsense":         func(n uint16, send func(bool, []byte)) { send(true, []byte{0xff}); send(true, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			server := ports(t, func(p []byte, send func(bool, []byte)) {
				next := uint16(1)
				switch {
				case opcode(p) == acknowledge && len(p) == 4:
					next = uint16(p[3]) + 1
				case opcode(p) != readRequest:
					return
				}
				data := block(byte(next))
				if next > 4 {
					data = ""
				}
				if next > 5 {
					return
				}
				if 1 < next && next < 5 { // the transfer has its port
					extra(next, send)
				}
				send(false, dataPacket(next, data))
			})
			source := hurriedTFTP(server)
			source.patience.deadline = 10 * time.Second
			got, err := source.Get(t.Context(), ConfigJSON)
			if want := block(1) + block(2) + block(3) + block(4); err != nil || string(got) != want {
				t.Errorf("%d bytes, %v; want %d", len(got), err, len(want))
			}
		})
	}
}

// A server that never ends a file, or says that its blocks are larger than they
// may be, is cut off.
func TestTFTPServerWithoutAnEnd(t *testing.T) {
	source := hurriedTFTP(rawTFTP(t, func(p []byte) []byte {
		switch opcode(p) {
		case readRequest:
			return dataPacket(1, strings.Repeat("x", 512))
		case acknowledge:
			n := uint16(p[2])<<8 | uint16(p[3])
			return dataPacket(n+1, strings.Repeat("x", 512))
		}
		return nil
	}))
	source.patience.deadline = 20 * time.Second
	if _, err := source.Get(t.Context(), ConfigJSON); code(err) != "CFG-104" {
		t.Errorf("got %v", err)
	}
}

// Whatever a server sends, the client ends, and takes no more than a file may
// have. The data are the server's answers: a length, and as many bytes.
func FuzzTFTP(f *testing.F) {
	answers := func(packets ...[]byte) (all []byte) {
		for _, p := range packets {
			all = append(append(all, byte(len(p))), p...)
		}
		return all
	}
	oack := func(text string) []byte { return append([]byte{0, 6}, text...) }
	f.Add(answers(dataPacket(1, "{}")))
	f.Add(answers(oack("blksize\x001428\x00"), dataPacket(1, "{}")))
	f.Add(answers(oack("blksize\x0099999\x00tsize\x00-1\x00"), dataPacket(1, "{}")))
	f.Add(answers(oack("blksize\x000\x00"), dataPacket(1, "")))
	f.Add(answers(errorPacket(1, "File not found")))
	f.Add(answers(errorPacket(8, "no options"), dataPacket(1, "{}")))
	f.Add(answers([]byte{0}, []byte{0, 3}, []byte{0, 3, 0}, []byte{0, 5, 0}, []byte{0, 6, 'x'}))
	f.Fuzz(func(t *testing.T, data []byte) {
		var mu sync.Mutex
		server := rawTFTP(t, func([]byte) []byte {
			mu.Lock()
			defer mu.Unlock()
			if len(data) == 0 {
				return nil
			}
			n := min(int(data[0]), len(data)-1)
			packet := data[1 : 1+n]
			data = data[1+n:]
			return packet
		})
		source := TFTP(server, testMAC, "")
		source.dirs, source.answer = []string{""}, 2*time.Millisecond
		source.patience = patience{deadline: 30 * time.Millisecond, first: time.Millisecond}
		got, err := source.Get(t.Context(), ConfigJSON)
		if len(got) > MaxFileBytes {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		if err != nil && code(err) == "" && !errors.Is(err, ErrAbsent) {
			t.Errorf("an error without a code: %v", err)
		}
	})
}
