// Package progress is what the installer knows about its own way: the phases
// and their states, bytes and objects by source, the log, and the failure
// that ended it. The pipeline writes to one Model; console, files, status
// page and metrics read from it. It decides nothing and touches nothing but
// the sinks it was given.
package progress

import (
	"errors"
	"fmt"
	"github.com/firstlight/firstlight/docs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Format is the version of Event and Snapshot as JSON.
const Format = 1

// Phase is one step of an installation, by the name that stands in the log.
type Phase string

// The phases, in the order in which they begin.
const (
	Clock     Phase = "clock"
	Links     Phase = "links"
	Config    Phase = "config"
	Inventory Phase = "inventory"
	Manifest  Phase = "manifest"
	Plan      Phase = "plan"
	Stage     Phase = "stage"
	Tools     Phase = "tools"
	Prove     Phase = "prove"
	Commit    Phase = "commit"
	Storage   Phase = "storage"
	Unpack    Phase = "unpack"
	Identity  Phase = "identity"
	Network   Phase = "network"
	Boot      Phase = "boot"
	Finish    Phase = "finish"
)

// Phases lists every phase in the order in which they begin. Storage and
// Unpack run side by side.
func Phases() []Phase {
	return []Phase{Clock, Links, Config, Inventory, Manifest, Plan, Stage, Tools,
		Prove, Commit, Storage, Unpack, Identity, Network, Boot, Finish}
}

// weight is the phase's share of the overall ratio, from what the phases
// cost in a first installation.
func (p Phase) weight() float64 {
	switch p {
	case Stage:
		return 40
	case Storage:
		return 15
	case Unpack:
		return 25
	case Links, Config, Boot:
		return 4
	default:
		return 1
	}
}

// State is where a phase stands.
type State string

// The states of a phase.
const (
	Pending State = "pending"
	Running State = "running"
	Waiting State = "waiting" // running, but for something that PhaseStatus.WaitingFor names
	Done    State = "done"
	Failed  State = "failed"
	Skipped State = "skipped"
)

// Source is where an object came from.
type Source string

// The sources of objects, as the metrics name them.
const (
	FromServer    Source = "server"
	FromOldOS     Source = "old_os"
	FromBootImage Source = "boot_image"
	FromMedium    Source = "medium"
)

// Sources lists every source.
func Sources() []Source { return []Source{FromServer, FromOldOS, FromBootImage, FromMedium} }

// Line is one line of the log.
type Line struct {
	Seconds float64 `json:"seconds"` // since the installer started
	Phase   Phase   `json:"phase"`
	Text    string  `json:"text"` // one line, no control characters
}

// String is the line as console and log show it: "[  12.345] stage: text".
func (l Line) String() string {
	return fmt.Sprintf("[%8.3f] %s: %s", l.Seconds, l.Phase, l.Text)
}

// EventKind says what happened to a phase.
type EventKind string

// The kinds of events.
const (
	EventStart    EventKind = "start"
	EventProgress EventKind = "progress"
	EventDone     EventKind = "done"
	EventFail     EventKind = "fail"
)

// Event is the machine-readable twin of what happens to a phase. It is one
// line of events.jsonl and one message of the event stream.
type Event struct {
	Format  int       `json:"format"`
	Time    time.Time `json:"t"` // wall clock; it may jump in phase clock
	Phase   Phase     `json:"phase"`
	Kind    EventKind `json:"event"`
	Seconds float64   `json:"seconds"`         // the phase has taken so long
	Bytes   uint64    `json:"bytes,omitempty"` // the phase has dealt with so many
	Total   uint64    `json:"total,omitempty"` // of so many, 0 where that is not known
	Code    string    `json:"code,omitempty"`  // of the failure
	Skipped bool      `json:"skipped,omitempty"`
	// Objects are those of the whole installation so far, by source; only in
	// events of stage and unpack.
	Objects []SourceStatus `json:"objects,omitempty"`
}

// UncodedError is the code of an error that brought none.
const UncodedError = "SRV-099"

// Code is that of the first error in err's tree that has one, UncodedError
// where none has, and "" for nil.
func Code(err error) string {
	if err == nil {
		return ""
	}
	var coded interface{ Code() string }
	if errors.As(err, &coded) && coded.Code() != "" {
		return coded.Code()
	}
	return UncodedError
}

const (
	eventInterval = 500 * time.Millisecond // between progress events of one phase
	maxLines      = 4000                   // kept in memory; a file sink keeps them all
	maxLineBytes  = 2000
	maxEvents     = 256
	subscriberLag = 256 // messages a subscriber may be behind
)

type phase struct {
	state         State
	began, ended  time.Time
	waitingFor    string
	waitingSince  time.Time
	nextTry       time.Time
	waited        time.Duration // for people, in all
	bytes, total  uint64
	note, code    string
	lastPublished time.Time
}

// Model is the state of one installation. Its methods may be called from
// many goroutines; sinks are told in order, one call at a time, and a slow
// sink never holds up Snapshot or a subscriber.
type Model struct {
	now   func() time.Time
	start time.Time
	sinks []Sink

	out sync.Mutex // held while sinks are told; always taken before mu

	mu           sync.Mutex
	facts        Facts
	phases       map[Phase]*phase
	objects      map[Source]SourceStatus
	disks        map[string]*disk
	diskOrder    []string
	history      history
	warnings     []string
	disksChanged bool
	failure      *Failure
	next         *Next
	sessions     []Session
	holds        []Hold
	approval     *Approval
	ratio        float64
	lines        ring[Line]
	events       ring[Event]
	errors       map[string]uint64
}

// New begins an installation at now(). Time since then is measured with
// now's monotonic reading, so setting the system clock does not disturb it.
func New(now func() time.Time, sinks ...Sink) *Model {
	m := &Model{
		now: now, start: now(), sinks: sinks,
		phases:  map[Phase]*phase{},
		objects: map[Source]SourceStatus{},
		disks:   map[string]*disk{},
		lines:   ring[Line]{max: maxLines},
		events:  ring[Event]{max: maxEvents},
		errors:  map[string]uint64{},
	}
	for _, p := range Phases() {
		m.phases[p] = &phase{state: Pending}
	}
	return m
}

// AddSink tells sink everything from now on, after what is still in memory.
func (m *Model) AddSink(sink Sink) {
	m.out.Lock()
	defer m.out.Unlock()
	m.mu.Lock()
	lines, events := slices.Clone(m.lines.items), slices.Clone(m.events.items)
	m.mu.Unlock()
	for _, l := range lines {
		sink.Line(l)
	}
	for _, e := range events {
		sink.Event(e)
	}
	m.sinks = append(m.sinks, sink)
}

// Elapsed is the time since the installer started.
func (m *Model) Elapsed() time.Duration { return m.now().Sub(m.start) }

// Start begins phase p. Beginning again what has ended starts it afresh.
func (m *Model) Start(p Phase) {
	m.change(p, EventStart, func(ph *phase, now time.Time) {
		*ph = phase{state: Running, began: now}
	})
}

// Done ends phase p well.
func (m *Model) Done(p Phase) {
	m.change(p, EventDone, func(ph *phase, now time.Time) { ph.end(Done, now) })
}

// Skip says that phase p is not needed, and why.
func (m *Model) Skip(p Phase, why string) {
	m.change(p, EventDone, func(ph *phase, now time.Time) {
		ph.end(Skipped, now)
		ph.note = clean(why)
	})
	m.Log(p, "skipped: "+why)
}

// Wait says what the running phase p waits for; "" when it goes on.
func (m *Model) Wait(p Phase, reason string) { m.WaitUntil(p, reason, time.Time{}) }

// WaitUntil is Wait where it is known when p will try again.
func (m *Model) WaitUntil(p Phase, reason string, next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ph := m.phase(p)
	if reason == "" {
		if ph.state == Waiting {
			ph.waited += m.now().Sub(ph.waitingSince)
			ph.state, ph.waitingFor = Running, ""
		}
		return
	}
	if ph.state != Waiting {
		ph.state, ph.waitingSince = Waiting, m.now()
	}
	ph.waitingFor, ph.nextTry = clean(reason), next
}

// Update says that phase p has dealt with done of total bytes; total is 0
// where it is not known. It may be called often: events go out twice a
// second at most.
func (m *Model) Update(p Phase, done, total uint64) {
	m.mu.Lock()
	ph := m.phase(p)
	ph.bytes, ph.total = done, total
	now := m.now()
	due := now.Sub(ph.lastPublished) >= eventInterval && (ph.state == Running || ph.state == Waiting)
	if due {
		ph.lastPublished = now
	}
	m.mu.Unlock()
	if due {
		m.change(p, EventProgress, func(*phase, time.Time) {})
	}
}

// Fail ends phase p, and with it the installation, with err. What
// docs/errors.md says about its code is taken up, and the closing line
// "FAILED <CODE>: <text>; disks untouched|disks changed" is logged. Only the
// first failure counts; later ones are logged.
func (m *Model) Fail(p Phase, err error) Failure {
	code, text := Code(err), "no error was given"
	if err != nil {
		text = err.Error()
	}
	entry, _ := docs.Lookup(code)
	m.mu.Lock()
	m.errors[code]++
	f := Failure{Phase: p, Code: code, Text: text, DisksChanged: m.disksChanged,
		Happened: entry.Happened, Means: entry.Means, Do: entry.Do}
	first := m.failure == nil
	if first {
		m.failure = &f
	}
	m.mu.Unlock()
	m.change(p, EventFail, func(ph *phase, now time.Time) {
		ph.end(Failed, now)
		ph.code = code
	})
	if strings.Contains(strings.TrimSpace(text), "\n") {
		m.Log(p, text)
	}
	if f.Do != "" {
		m.Log(p, "what to do: "+f.Do)
	}
	if first {
		m.Log(p, f.Summary())
	} else {
		m.Log(p, fmt.Sprintf("also %s: %s", f.Code, f.Text))
	}
	return f
}

// Log adds a line to the log for each line of text.
func (m *Model) Log(p Phase, text string) {
	m.out.Lock()
	defer m.out.Unlock()
	for line := range strings.SplitSeq(strings.TrimRight(text, "\r\n"), "\n") {
		m.mu.Lock()
		l := Line{Seconds: m.Elapsed().Seconds(), Phase: p, Text: clean(line)}
		m.lines.add(l)
		m.mu.Unlock()
		for _, sink := range m.sinks {
			sink.Line(l)
		}
	}
}

// Logf is Log with a format of package fmt.
func (m *Model) Logf(p Phase, format string, args ...any) { m.Log(p, fmt.Sprintf(format, args...)) }

// Warn logs text and keeps it where the status page shows it.
func (m *Model) Warn(p Phase, text string) {
	m.mu.Lock()
	if w := clean(text); !slices.Contains(m.warnings, w) {
		m.warnings = append(m.warnings, w)
	}
	m.mu.Unlock()
	m.Log(p, "warning: "+text)
}

// Describe lets edit fill in what is known about the installation.
func (m *Model) Describe(edit func(*Facts)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	edit(&m.facts)
}

// PointOfNoReturn logs the line "commit: point of no return".
func (m *Model) PointOfNoReturn() { m.Log(Commit, "point of no return") }

// DisksChanged says that a write request has reached a disk, or is about to.
func (m *Model) DisksChanged() {
	m.mu.Lock()
	m.disksChanged = true
	m.mu.Unlock()
}

// Objects adds count objects with so many bytes, unpacked, from source.
func (m *Model) Objects(source Source, count, bytes uint64) {
	m.mu.Lock()
	s := m.objects[source]
	m.objects[source] = SourceStatus{Source: source, Objects: s.Objects + count, Bytes: s.Bytes + bytes}
	m.mu.Unlock()
}

// Next says what the installer will do by itself, and when; at is zero where
// it waits for a person. An empty text takes it back.
func (m *Model) Next(text string, at time.Time) {
	m.mu.Lock()
	m.next = &Next{Text: clean(text), At: at}
	if text == "" {
		m.next = nil
	}
	m.mu.Unlock()
}

// Sessions says which shells there are now.
func (m *Model) Sessions(sessions []Session) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sessions = slices.Clone(sessions)
	for n := range m.sessions {
		m.sessions[n].Who, m.sessions[n].Programme = clean(sessions[n].Who), clean(sessions[n].Programme)
	}
}

// Holds says who holds the installation now.
func (m *Model) Holds(holds []Hold) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holds = slices.Clone(holds)
}

// Approval says what the plan waits for, or who has approved it.
func (m *Model) Approval(a *Approval) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.approval = a
}

// Errors counts the failures by code.
func (m *Model) Errors() map[string]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.errors)
}

// Snapshot is the state at this moment.
func (m *Model) Snapshot() Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	s := Snapshot{
		Format: Format, Time: now.UTC(), Seconds: now.Sub(m.start).Seconds(), Facts: m.facts,
		Warnings: append([]string{}, m.warnings...), DisksChanged: m.disksChanged,
		Objects: []SourceStatus{}, Disks: []DiskStatus{},
		Approval: m.approval,
		Sessions: slices.Clone(m.sessions), Holds: slices.Clone(m.holds),
	}
	var reached, whole float64
	for _, name := range Phases() {
		ph := m.phases[name]
		status := PhaseStatus{Phase: name, State: ph.state, Seconds: ph.seconds(now), WaitingFor: ph.waitingFor,
			Bytes: ph.bytes, Total: ph.total, Note: ph.note}
		if ph.state == Waiting {
			status.WaitingSeconds = now.Sub(ph.waitingSince).Seconds()
			if !ph.nextTry.IsZero() {
				status.NextTrySeconds = max(0, ph.nextTry.Sub(now).Seconds())
			}
		}
		s.Phases = append(s.Phases, status)
		whole += name.weight()
		switch {
		case ph.state == Done, ph.state == Skipped:
			reached += name.weight()
		case ph.total > 0:
			reached += name.weight() * min(1, float64(ph.bytes)/float64(ph.total))
		}
	}
	s.Remaining = m.remaining(now)
	m.ratio = max(m.ratio, reached/whole)
	s.Ratio = m.ratio
	s.Objects = append(s.Objects, m.sources()...)
	s.Disks = m.diskStatus(now)
	s.History = m.history.clone()
	if m.failure != nil {
		f := *m.failure
		s.Failure = &f
	}
	if m.next != nil {
		n := *m.next
		if !n.At.IsZero() {
			n.In = max(0, n.At.Sub(now).Seconds())
		}
		s.Next = &n
	}
	return s
}

// Lines returns the lines that are still in memory, oldest first, and a
// channel of those that follow. The channel is closed by stop, which must be
// called, or when its reader is too slow.
func (m *Model) Lines() (past []Line, follow <-chan Line, stop func()) {
	return subscribe(m, &m.lines)
}

// Events returns the events that are still in memory, oldest first, and a
// channel of those that follow, as Lines does.
func (m *Model) Events() (past []Event, follow <-chan Event, stop func()) {
	return subscribe(m, &m.events)
}

func subscribe[T any](m *Model, r *ring[T]) ([]T, <-chan T, func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan T, subscriberLag)
	r.followers = append(r.followers, c)
	return slices.Clone(r.items), c, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		r.drop(c)
	}
}

// change lets edit change phase p and publishes an event about it.
func (m *Model) change(p Phase, kind EventKind, edit func(*phase, time.Time)) {
	m.out.Lock()
	defer m.out.Unlock()
	m.mu.Lock()
	now, ph := m.now(), m.phase(p)
	edit(ph, now)
	e := Event{Format: Format, Time: now.UTC(), Phase: p, Kind: kind, Seconds: ph.seconds(now),
		Bytes: ph.bytes, Total: ph.total, Code: ph.code, Skipped: ph.state == Skipped}
	if p == Stage || p == Unpack {
		e.Objects = m.sources()
	}
	if kind == EventProgress { // of the past only the newest is worth keeping
		m.events.replace(e, func(old Event) bool { return old.Phase == p && old.Kind == EventProgress })
	} else {
		m.events.add(e)
	}
	m.mu.Unlock()
	for _, sink := range m.sinks {
		sink.Event(e)
	}
}

// sources are those from which something came. m.mu is held.
func (m *Model) sources() []SourceStatus {
	var all []SourceStatus
	for _, source := range Sources() {
		if o, ok := m.objects[source]; ok {
			all = append(all, o)
		}
	}
	return all
}

// phase is p's record; a phase that is not one of Phases gets one as well,
// but is not shown.
func (m *Model) phase(p Phase) *phase {
	ph := m.phases[p]
	if ph == nil {
		ph = &phase{state: Pending}
		m.phases[p] = ph
	}
	return ph
}

func (ph *phase) end(s State, now time.Time) {
	if ph.began.IsZero() {
		ph.began = now
	}
	ph.state, ph.ended, ph.waitingFor = s, now, ""
}

func (ph *phase) seconds(now time.Time) float64 {
	switch ph.state {
	case Pending:
		return 0
	case Running, Waiting:
		return now.Sub(ph.began).Seconds()
	default:
		return ph.ended.Sub(ph.began).Seconds()
	}
}

// clean makes text safe to show on a console: names from the network and
// output of programs must not move the cursor.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	text = strings.TrimRight(text, " ")
	if len(text) > maxLineBytes {
		text = strings.ToValidUTF8(text[:maxLineBytes], "") + "…"
	}
	return text
}

// ring keeps the newest items and hands each to its followers.
type ring[T any] struct {
	max       int
	items     []T
	followers []chan T
}

func (r *ring[T]) add(item T) {
	if len(r.items) >= r.max {
		r.items = slices.Delete(r.items, 0, max(1, r.max/8))
	}
	r.items = append(r.items, item)
	r.publish(item)
}

// replace removes the last item that match accepts and adds item.
func (r *ring[T]) replace(item T, match func(T) bool) {
	for i := len(r.items) - 1; i >= 0; i-- {
		if match(r.items[i]) {
			r.items = slices.Delete(r.items, i, i+1)
			break
		}
	}
	r.add(item)
}

func (r *ring[T]) publish(item T) {
	for _, c := range slices.Clone(r.followers) {
		select {
		case c <- item:
		default:
			r.drop(c) // too slow: it may come again and read the past
		}
	}
}

func (r *ring[T]) drop(c chan T) {
	if i := slices.Index(r.followers, c); i >= 0 {
		r.followers = slices.Delete(r.followers, i, i+1)
		close(c)
	}
}
