package lab

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

func TestReport(t *testing.T) {
	console := "[   30.1] x DEMO-REPORT hostname=demo0\nDEMO-REPORT address=10.0.2.15/24\nDEMO-REPORT dns=10.0.2.3\n" +
		"DEMO-REPORT mount=/home /dev/mapper/luks-home ext4\nDEMO-REPORT mount=/var/log /dev/mapper/luks-log ext4\n"
	r := ParseReport(console)
	err := r.Check()
	if err == nil || !strings.Contains(err.Error(), "/data/0") || strings.Count(err.Error(), "\n") != 0 {
		t.Errorf("with /data/0 missing: %v", err)
	}
	r = ParseReport(console + "DEMO-REPORT mount=/data/0 /dev/mapper/luks-data ext4\n")
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	r["mount"][2] = "/data/0 /dev/vda6 ext4"
	if err := r.Check(); err == nil {
		t.Error("a volume that is not encrypted was accepted")
	}
}

func TestPhaseLine(t *testing.T) {
	for _, c := range []struct {
		line    string
		seconds float64
		phase   progress.Phase
		text    string
		ok      bool
	}{
		{"[  12.345] stage: 5 objects", 12.345, progress.Stage, "5 objects", true},
		{"[   12.345678] virtio_blk virtio1: [vda] 16777216", 0, "", "", false},
		{"[  12.345] vdb: vdb1", 0, "", "", false},
	} {
		seconds, phase, text, ok := PhaseLine(c.line)
		if seconds != c.seconds || phase != c.phase || text != c.text || ok != c.ok {
			t.Errorf("%q: %v %q %q %v", c.line, seconds, phase, text, ok)
		}
	}
}

// TestPhases: what ended after the last status is taken from the console.
func TestPhases(t *testing.T) {
	var times phaseTimes
	for _, l := range []string{"[   1.000] clock: a", "[   2.000] storage: b", "[   2.500] unpack: c", "[   6.000] boot: d", "[   8.000] finish: e", "[   9.000] finish: f"} {
		times.add(l)
	}
	got := times.phases(progress.Snapshot{Phases: []progress.PhaseStatus{
		{Phase: progress.Clock, State: progress.Done, Seconds: 0.5},
		{Phase: progress.Tools, State: progress.Skipped},
		{Phase: progress.Storage, State: progress.Running, Seconds: 1},
	}})
	want := []PhaseTime{{progress.Clock, 0.5, false}, {progress.Tools, 0, true}, {progress.Storage, 4, false}, {progress.Unpack, 3.5, false}, {progress.Boot, 2, false}, {progress.Finish, 1, false}}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}

func TestHashDiskSeesEveryWrite(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	seen := make(map[[32]byte]string)
	for _, write := range []struct {
		what string
		data string
		at   int64
	}{{"nothing", "", 0}, {"first", "x", 0}, {"the same byte elsewhere", "x", 1 << 29}, {"zeros", "\x00", 1 << 28}, {"last", "x", 1<<30 - 1}} {
		if _, err := f.WriteAt([]byte(write.data), write.at); err != nil {
			t.Fatal(err)
		}
		sum, err := HashDisk(disk)
		if err != nil {
			t.Fatal(err)
		}
		if before, same := seen[sum]; same {
			t.Errorf("%s: the same hash as after %s", write.what, before)
		}
		seen[sum] = write.what
		if again, err := HashDisk(disk); err != nil || again != sum {
			t.Errorf("%s: the hash does not stay, %v", write.what, err)
		}
	}
}

func TestDamageLeavesTheOriginal(t *testing.T) {
	s := &Site{Dir: t.TempDir()}
	object := filepath.Join(s.store(), "objects", "ab", "abcdef")
	if err := os.MkdirAll(filepath.Dir(object), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{object: "the largest object", object + "0": "small"} {
		if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	copied := filepath.Join(s.Dir, "copy")
	if err := s.CopyStore(copied); err != nil {
		t.Fatal(err)
	}
	damaged, err := DamageLargest(copied)
	if err != nil {
		t.Fatal(err)
	}
	old, err1 := os.ReadFile(object)
	now, err2 := os.ReadFile(damaged)
	if err1 != nil || err2 != nil || string(old) != "the largest object" || len(now) != len(old) || bytes.Equal(now, old) {
		t.Errorf("original %q, damaged %q, %v, %v", old, now, err1, err2)
	}
}

func TestRelayTellsWhenSoManyBytesCameBack(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		buf := make([]byte, 5)
		if _, err := io.ReadFull(conn, buf); err == nil {
			fmt.Fprintf(conn, "%s%s", buf, strings.Repeat("x", 1<<20))
		}
	}()
	reached := make(chan struct{})
	r, err := NewRelay(l.Addr().(*net.TCPAddr).Port, 1<<19, func() { close(reached) })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", r.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "hello")
	data, err := io.ReadAll(conn)
	if err != nil || len(data) != 5+1<<20 || string(data[:6]) != "hellox" {
		t.Errorf("%d bytes came back, %v", len(data), err)
	}
	select {
	case <-reached:
	case <-time.After(10 * time.Second):
		t.Error("it was not told")
	}
}
