package shell_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/tools/shell"
)

// A line as TCP makes one of 300 ms there and back on which every twentieth
// packet is lost: what is lost comes once it has been sent again, and all that
// follows waits for it.
const (
	lineDelay      = 150 * time.Millisecond // one way
	lineResend     = 600 * time.Millisecond // until a lost packet is there after all
	lineLost       = 20                     // of so many packets one
	linePacket     = 1400
	lineInFlight   = 64 // packets under way
	lineBetweenTwo = 200 * time.Microsecond
)

// poorLine is a relay that is such a line, and can be cut.
type poorLine struct {
	address string

	mu   sync.Mutex
	open []net.Conn
	lost int
}

func newPoorLine(t *testing.T, to string) *poorLine {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &poorLine{address: listener.Addr().String()}
	t.Cleanup(func() {
		_ = listener.Close()
		l.cut()
	})
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				_ = near.Close()
				continue
			}
			l.mu.Lock()
			l.open = append(l.open, near, far)
			l.mu.Unlock()
			go l.carry(near, far)
			go l.carry(far, near)
		}
	}()
	return l
}

func (l *poorLine) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, connection := range l.open {
		_ = connection.Close()
	}
	l.open = nil
}

// carry takes packets from one end to the other.
func (l *poorLine) carry(from io.ReadCloser, to io.WriteCloser) {
	type packet struct {
		data []byte
		at   time.Time
	}
	packets := make(chan packet, lineInFlight)
	go func() {
		defer close(packets)
		dice := rand.New(rand.NewPCG(1, 2))
		for {
			data := make([]byte, linePacket)
			n, err := from.Read(data)
			if n > 0 {
				at := time.Now().Add(lineDelay)
				if dice.IntN(lineLost) == 0 {
					at = at.Add(lineResend)
					l.mu.Lock()
					l.lost++
					l.mu.Unlock()
				}
				packets <- packet{data[:n], at}
			}
			if err != nil {
				return
			}
			time.Sleep(lineBetweenTwo)
		}
	}()
	for p := range packets {
		time.Sleep(time.Until(p.at))
		if _, err := to.Write(p.data); err != nil {
			_ = from.Close()
		}
	}
	_ = to.Close()
}

// TestPoorLine works in a terminal over 300 ms and 5 % loss: each answer comes
// while a person still waits for it, what is typed meanwhile is not lost, and
// after a cut the same session goes on.
func TestPoorLine(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	line := newPoorLine(t, l.address)
	session := terminal()
	lost, back := make(chan struct{}, 9), make(chan struct{}, 9)
	session.Lost, session.Back = func(error) { lost <- struct{}{} }, func() { back <- struct{}{} }
	options := at(l.options(t, "operator"), line.address)
	options.Wait = 30 * time.Second
	s := open(t, t.Context(), options, session)
	s.typed(t, "stty -echo; mark=kept\n")
	var slowest time.Duration
	for n := range 4 {
		begin := time.Now()
		s.typed(t, fmt.Sprintf("echo answer-%d-$mark\n", n))
		s.out.wait(t, fmt.Sprintf("answer-%d-kept", n))
		if n > 0 { // the first includes the beginning of the connection
			slowest = max(slowest, time.Since(begin))
		}
	}
	if slowest > 4*time.Second {
		t.Errorf("the slowest answer took %s", slowest)
	}
	line.cut()
	<-lost
	s.typed(t, "echo after-$mark\n")
	<-back
	s.out.wait(t, "after-kept")
	s.typed(t, "exit 5\n")
	if result, err := s.wait(t); err != nil || result.Status != 5 {
		t.Errorf("got %+v, %v", result, err)
	}
	if count := strings.Count(s.out.String(), "after-kept"); count != 1 {
		t.Errorf("it stands there %d times: %q", count, s.out)
	}
	line.mu.Lock()
	t.Logf("slowest answer %s; %d packets were lost", slowest, line.lost)
	line.mu.Unlock()
}

// TestPoorLineCarriesALot sends 150 KB each way over the same line, with
// a cut in the middle.
func TestPoorLineCarriesALot(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	line := newPoorLine(t, l.address)
	options := at(l.options(t, "operator"), line.address)
	options.Wait = 30 * time.Second
	want := bytes.Repeat([]byte("a good deal, in lines of this length\n"), 4_000)
	var out bytes.Buffer
	time.AfterFunc(2*time.Second, line.cut)
	begin := time.Now()
	result, err := shell.Run(t.Context(), options, shell.Session{Argv: []string{"cat"}, In: bytes.NewReader(want), Out: &out, Err: io.Discard})
	if err != nil || result.Status != 0 || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("got %+v, %v, %d bytes of %d", result, err, out.Len(), len(want))
	}
	t.Logf("took %s", time.Since(begin))
}
