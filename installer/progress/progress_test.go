package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// clock is a time that moves when it is told to.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

type codedError struct{}

func (codedError) Error() string { return "the disk is too small" }
func (codedError) Code() string  { return "STO-002" }

func TestLinesLookLikeTheKernels(t *testing.T) {
	c := newClock()
	var console, log bytes.Buffer
	m := New(c.Now, LineWriter(&console))
	m.Log(Clock, "first")
	c.add(12_345 * time.Millisecond)
	m.Log(Stage, "two\nlines\n")
	m.AddSink(LineWriter(&log))
	c.add(3 * time.Hour)
	m.PointOfNoReturn()
	m.Logger(Finish).With("disk", "vda").Warn("odd", "n", 3)
	m.Log(Unpack, "\x1b[2Jevil\r\x00 \xff name\ttab")
	want := strings.Join([]string{
		"[   0.000] clock: first",
		"[  12.345] stage: two",
		"[  12.345] stage: lines",
		"[10812.345] commit: point of no return",
		"[10812.345] finish: warn: odd disk=vda n=3",
		"[10812.345] unpack: [2Jevil ? name tab",
	}, "\n") + "\n"
	if diff := cmp.Diff(want, console.String()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(want, log.String()); diff != "" {
		t.Error(diff)
	}
}

func TestPhases(t *testing.T) {
	c := newClock()
	var events bytes.Buffer
	m := New(c.Now, EventWriter(&events))
	m.Start(Clock)
	c.add(time.Second)
	m.Done(Clock)
	m.Start(Stage)
	for done := range uint64(100) {
		c.add(100 * time.Millisecond)
		m.Update(Stage, done, 100)
	}
	m.Wait(Stage, "the image server")
	c.add(2 * time.Second)
	m.Wait(Stage, "the image server")
	c.add(time.Second)
	s := m.Snapshot()
	status := s.Phases[6]
	want := PhaseStatus{Phase: Stage, State: Waiting, Seconds: 13, WaitingFor: "the image server", WaitingSeconds: 3, Bytes: 99, Total: 100}
	if diff := cmp.Diff(want, status); diff != "" {
		t.Error(diff)
	}
	if s.Ratio < 0.3 || s.Ratio > 0.5 {
		t.Errorf("ratio %f", s.Ratio)
	}
	m.Wait(Stage, "")
	if got := m.Snapshot().Current(); len(got) != 1 || got[0].State != Running || got[0].WaitingFor != "" {
		t.Errorf("current %+v", got)
	}
	m.Done(Stage)
	m.Skip(Tools, "all programs are there")

	lines := strings.Split(strings.TrimSpace(events.String()), "\n")
	if first := `{"format":1,"t":"2026-11-20T12:00:00Z","phase":"clock","event":"start","seconds":0}`; lines[0] != first {
		t.Errorf("first event %s", lines[0])
	}
	kinds := map[string]int{}
	for _, l := range lines {
		var e Event
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			t.Fatal(err)
		}
		kinds[string(e.Phase)+" "+string(e.Kind)]++
	}
	if diff := cmp.Diff(map[string]int{"clock start": 1, "clock done": 1, "stage start": 1, "stage progress": 20, "stage done": 1, "tools done": 1}, kinds); diff != "" {
		t.Error(diff)
	}
	for _, p := range Phases() {
		m.Start(p)
		m.Done(p)
	}
	if s := m.Snapshot(); s.Ratio != 1 {
		t.Errorf("at the end the ratio is %f", s.Ratio)
	}
}

func TestFail(t *testing.T) {
	c := newClock()
	var console, events bytes.Buffer
	m := New(c.Now, LineWriter(&console), EventWriter(&events))
	m.Start(Plan)
	c.add(time.Second)
	m.Fail(Plan, fmt.Errorf("planning: %w", codedError{}))
	m.Next("reboot", c.Now().Add(5*time.Minute))
	if text := console.String(); !strings.Contains(text, "plan: what to do: ") || !strings.HasSuffix(text, "plan: FAILED STO-002: planning: the disk is too small; disks untouched\n") {
		t.Errorf("console:\n%s", text)
	}
	if text := events.String(); !strings.Contains(text, `"event":"fail","seconds":1,"code":"STO-002"`) {
		t.Errorf("events:\n%s", text)
	}
	m.DisksChanged()
	m.Fail(Finish, errors.New("cannot unmount"))
	c.add(time.Minute)
	s := m.Snapshot()
	if s.Failure == nil || s.Failure.Code != "STO-002" || s.Failure.DisksChanged || s.Failure.Phase != Plan {
		t.Errorf("failure %+v", s.Failure)
	}
	if s.Next == nil || s.Next.In != 240 {
		t.Errorf("next %+v", s.Next)
	}
	if diff := cmp.Diff(map[string]uint64{"STO-002": 1, UncodedError: 1}, m.Errors()); diff != "" {
		t.Error(diff)
	}
	if n := strings.Count(console.String(), "FAILED"); n != 1 {
		t.Errorf("FAILED stands %d times on the console", n)
	}
}

// Of an error of several lines the closing line has the first; all of them
// stand above it.
func TestFailWithSeveralLines(t *testing.T) {
	var console bytes.Buffer
	m := New(newClock().Now, LineWriter(&console))
	m.DisksChanged()
	m.Fail(Config, errors.Join(errors.New("config.json:3: one"), errors.New("config.json:9: two"), codedError{}))
	text := console.String()
	for _, want := range []string{"config: config.json:9: two\n", "FAILED STO-002: config.json:3: one (and 2 more, above); disks changed\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestFollowersGetEverythingInOrder(t *testing.T) {
	m := New(time.Now)
	m.Log(Clock, "0")
	past, follow, stop := m.Lines()
	defer stop()
	if len(past) != 1 {
		t.Fatalf("past %v", past)
	}
	go func() {
		for i := 1; i <= 100; i++ {
			m.Logf(Clock, "%d", i)
		}
	}()
	for i := 1; i <= 100; i++ {
		if l := <-follow; l.Text != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, l.Text)
		}
	}
}

func TestSlowFollowersAreCutOff(t *testing.T) {
	m := New(time.Now)
	_, follow, stop := m.Lines()
	for range 2*subscriberLag + maxLines {
		m.Log(Clock, "x")
	}
	n := 0
	for range follow {
		n++
	}
	if n != subscriberLag {
		t.Errorf("%d lines", n)
	}
	stop() // after the end it does nothing
	if past, _, stop := m.Lines(); len(past) > maxLines {
		t.Errorf("%d lines are kept", len(past))
	} else {
		stop()
	}
}

// stuck is a console that takes nothing, like a serial line with flow control
// and nobody at its end.
type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) { <-s.release; return len(p), nil }

func TestAStuckConsoleDoesNotHideTheState(t *testing.T) {
	s := stuck{make(chan struct{})}
	m := New(time.Now, LineWriter(s))
	done := make(chan struct{})
	go func() { m.Log(Clock, "x"); close(done) }()
	for {
		if past, _, stop := m.Lines(); len(past) == 1 {
			stop()
			break
		} else {
			stop()
		}
		time.Sleep(time.Millisecond)
	}
	m.Describe(func(f *Facts) { f.Machine = "node7" })
	if m.Snapshot().Facts.Machine != "node7" {
		t.Error("no snapshot")
	}
	close(s.release)
	<-done
}

func TestManyWriters(t *testing.T) {
	m := New(time.Now, EventWriter(&bytes.Buffer{}), LineWriter(&bytes.Buffer{}))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range uint64(200) {
				m.Start(Unpack)
				m.Update(Unpack, n, 200)
				m.Objects(FromServer, 1, 10)
				m.DiskStep(fmt.Sprint("vd", i), "", "mkfs", Running)
				m.Sample(n, n)
				m.Warn(Unpack, "the same")
				m.Snapshot()
			}
		})
	}
	wg.Wait()
	s := m.Snapshot()
	if diff := cmp.Diff([]SourceStatus{{FromServer, 1600, 16000}}, s.Objects); diff != "" {
		t.Error(diff)
	}
	if len(s.Disks) != 8 || len(s.Warnings) != 1 {
		t.Errorf("%d disks, %d warnings", len(s.Disks), len(s.Warnings))
	}
}

// Events of the phases that gather objects say where they came from.
func TestEventsTellSources(t *testing.T) {
	m := New(time.Now)
	m.Start(Stage)
	m.Objects(FromServer, 3, 30)
	m.Objects(FromOldOS, 2, 20)
	m.Done(Stage)
	m.Start(Tools)
	m.Done(Tools)
	past, _, stop := m.Events()
	defer stop()
	var got []string
	for _, e := range past {
		line, err := json.Marshal(e.Objects)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s %s", e.Phase, e.Kind, line))
	}
	want := []string{"stage start null", `stage done [{"source":"server","objects":3,"bytes":30},{"source":"old_os","objects":2,"bytes":20}]`,
		"tools start null", "tools done null"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
