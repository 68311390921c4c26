package lab

import (
	"strings"
	"testing"

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
