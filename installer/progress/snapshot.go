package progress

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Facts say which installation this is. Empty fields are not known yet.
type Facts struct {
	Version     string `json:"version,omitempty"`     // of the installer
	Machine     string `json:"machine,omitempty"`     // its hostname
	Image       string `json:"image,omitempty"`       // resolved name
	ImageDigest string `json:"imageDigest,omitempty"` // sha256:…
	Plan        string `json:"plan,omitempty"`        // the plan's hash, sha256:…
	Fingerprint string `json:"fingerprint,omitempty"` // of the certificate of port 6978, SHA256:…
	Hardware    string `json:"hardware,omitempty"`    // vendor, product, serial number
	Page        string `json:"page,omitempty"`        // URL of this page
	Signed      string `json:"signed,omitempty"`      // who signed the configuration
	DryRun      bool   `json:"dryRun,omitempty"`
}

// PhaseStatus is where one phase stands.
type PhaseStatus struct {
	Phase          Phase   `json:"phase"`
	State          State   `json:"state"`
	Seconds        float64 `json:"seconds"`                  // taken so far
	WaitingFor     string  `json:"waitingFor,omitempty"`     // in state waiting
	WaitingSeconds float64 `json:"waitingSeconds,omitempty"` // in state waiting
	NextTrySeconds float64 `json:"nextTrySeconds,omitempty"` // until it tries again; 0: it is told when that comes
	Bytes          uint64  `json:"bytes,omitempty"`          // dealt with
	Total          uint64  `json:"total,omitempty"`          // to deal with; 0: not known
	Note           string  `json:"note,omitempty"`           // why it was skipped
}

// WaitsForPerson says that nothing happens until somebody acts.
func (s Snapshot) WaitsForPerson() bool {
	return s.Approval != nil && s.Approval.By == "" || s.Next != nil && s.Next.At.IsZero() && s.Failure == nil ||
		slices.ContainsFunc(s.Phases, func(p PhaseStatus) bool {
			return slices.ContainsFunc(s.Holds, func(h Hold) bool { return h.holds(p) })
		})
}

// Kind is the state of an installation as a whole.
type Kind string

// The kinds of Snapshot.
const (
	KindRunning Kind = "running"
	KindFailed  Kind = "failed"
	KindAsk     Kind = "ask"  // it waits for approval
	KindHeld    Kind = "held" // somebody holds it
	KindDone    Kind = "done"
)

// Kind says what a person sees first.
func (s Snapshot) Kind() Kind {
	switch {
	case s.Failure != nil:
		return KindFailed
	case s.Approval != nil && s.Approval.By == "":
		return KindAsk
	case s.WaitsForPerson():
		return KindHeld
	case s.Ratio >= 1 && len(s.Current()) == 0:
		return KindDone
	}
	return KindRunning
}

// Headline is the state in one line.
func (s Snapshot) Headline() string {
	switch s.Kind() {
	case KindFailed:
		return "failed in " + string(s.Failure.Phase) + ": " + s.Failure.Code
	case KindAsk:
		return "waiting for approval"
	case KindHeld:
		for _, p := range s.Current() {
			for _, h := range s.Holds {
				if h.holds(p) {
					return "held before " + h.Before + " by " + h.By
				}
			}
		}
		return "held"
	case KindDone:
		return "done"
	}
	var names []string
	for _, p := range s.Current() {
		names = append(names, string(p.Phase))
	}
	if len(names) == 0 {
		names = []string{"between phases"}
	}
	return fmt.Sprintf("%d %%, %s", int(s.Ratio*100), strings.Join(names, " and "))
}

// SourceStatus is what came from one source.
type SourceStatus struct {
	Source  Source `json:"source"`
	Objects uint64 `json:"objects"`
	Bytes   uint64 `json:"bytes"`
}

// DiskStatus is what is being done to one disk or volume.
type DiskStatus struct {
	Disk    string  `json:"disk"`
	Volume  string  `json:"volume,omitempty"` // partition; empty for the disk as a whole
	Step    string  `json:"step"`
	State   State   `json:"state"`   // running, done or failed
	Seconds float64 `json:"seconds"` // since the step before it
}

// Failure is how an installation ended badly.
type Failure struct {
	Phase        Phase  `json:"phase"`
	Code         string `json:"code"`
	Text         string `json:"text"`               // the error, perhaps several lines
	Happened     string `json:"happened,omitempty"` // these three from docs/errors.md
	Means        string `json:"means,omitempty"`
	Do           string `json:"do,omitempty"`
	DisksChanged bool   `json:"disksChanged"`
}

// Summary is the last line of a failed installation:
// "FAILED STO-002: text; disks untouched".
func (f Failure) Summary() string {
	text, rest, more := strings.Cut(strings.TrimSpace(f.Text), "\n")
	if more {
		text = fmt.Sprintf("%s (and %d more, above)", text, strings.Count(strings.TrimSpace(rest), "\n")+1)
	}
	disks := "disks untouched"
	if f.DisksChanged {
		disks = "disks changed"
	}
	return fmt.Sprintf("FAILED %s: %s; %s", f.Code, text, disks)
}

// Session is somebody's shell in the installer.
type Session struct {
	Number    uint32       `json:"number"`
	Who       string       `json:"who"` // the name in their certificate
	Programme string       `json:"programme"`
	Since     time.Time    `json:"since"`
	State     SessionState `json:"state"`
	Observers int          `json:"observers,omitempty"` // how many look on
}

// SessionState says whether somebody works in a session.
type SessionState string

// The states of a session.
const (
	SessionAttached SessionState = "attached"
	SessionLost     SessionState = "lost"     // the connection is cut; it waits a while
	SessionDetached SessionState = "detached" // left running on purpose
)

// Hold is somebody's wish that the installer wait.
type Hold struct {
	Before string    `json:"before"` // the name of a phase, or "hand-over"
	By     string    `json:"by"`
	Since  time.Time `json:"since"`
}

// holds says whether it is this that a phase waits for. The hand-over, which is no
// phase, is held in the last one.
func (h Hold) holds(p PhaseStatus) bool {
	return p.State == Waiting && (h.Before == string(p.Phase) || h.Before == "hand-over" && p.Phase == Finish)
}

// Approval is what a plan that needs one has of it.
type Approval struct {
	Plan  string    `json:"plan"`  // the hash that is to be approved
	Since time.Time `json:"since"` // when the installer began to wait
	By    string    `json:"by,omitempty"`
}

// Next is what the installer will do by itself.
type Next struct {
	Text string    `json:"text"`         // "reboot"
	At   time.Time `json:"at,omitzero"`  // zero: it waits for a person
	In   float64   `json:"in,omitempty"` // seconds from the snapshot to At
}

// Snapshot is everything but the log at one moment. It shares nothing with
// the Model.
type Snapshot struct {
	Format       int            `json:"format"`
	Time         time.Time      `json:"time"`
	Seconds      float64        `json:"seconds"` // since the installer started
	Facts        Facts          `json:"facts"`
	Ratio        float64        `json:"ratio"`                      // of the whole, 0 to 1; never falls
	Remaining    float64        `json:"remainingSeconds,omitempty"` // an estimate; 0: there is none yet
	Phases       []PhaseStatus  `json:"phases"`
	Objects      []SourceStatus `json:"objects"`
	Disks        []DiskStatus   `json:"disks"`
	Warnings     []string       `json:"warnings"`
	DisksChanged bool           `json:"disksChanged"`
	Failure      *Failure       `json:"failure,omitempty"`
	Next         *Next          `json:"next,omitempty"`
	Sessions     []Session      `json:"sessions,omitempty"`
	Holds        []Hold         `json:"holds,omitempty"`
	Approval     *Approval      `json:"approval,omitempty"` // only where the plan needs one
	History      *History       `json:"history,omitempty"`
}

// Current lists the phases that are running or waiting.
func (s Snapshot) Current() []PhaseStatus {
	var current []PhaseStatus
	for _, p := range s.Phases {
		if p.State == Running || p.State == Waiting {
			current = append(current, p)
		}
	}
	return current
}
