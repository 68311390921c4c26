package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage"
)

// State is where a machine stands.
type State string

// The states of a machine.
const (
	New        State = "new"        // it asked for something to boot
	Waiting    State = "waiting"    // for somebody to approve it
	Approved   State = "approved"   // it will be installed, or wiped, when it boots the installer
	Installing State = "installing" // it has taken its approval
	Installed  State = "installed"  // it boots its disk until somebody says reinstall
	Failed     State = "failed"     // the installation has; somebody must approve it again
	Rescue     State = "rescue"     // it boots the installer, which waits and touches nothing
	Wiped      State = "wiped"      // its disks have been erased
)

// Action is what an approval allows.
type Action string

// The actions.
const (
	Install Action = "install"
	Wipe    Action = "wipe"
)

// Approval is somebody's word that the disks of a machine may be erased, once.
type Approval struct {
	Action Action    `json:"action"`
	By     string    `json:"by"`
	At     time.Time `json:"at"`
	// Erase is the level of a wipe, in the words of storage-layout.json.
	Erase storage.Erase `json:"erase,omitempty"`
	// For are the marks that the machine had then: a directory that has become
	// another machine's since takes no approval with it.
	For Identity `json:"for"`
}

// Status is what happened to a machine last. It stays when the machine's own
// page is gone.
type Status struct {
	Format   int       `json:"format"`
	State    State     `json:"state"`
	Since    time.Time `json:"since,omitzero"`   // in this state
	Reason   string    `json:"reason,omitempty"` // why it is in it, for people
	Do       string    `json:"do,omitempty"`     // what to do about it
	Approval *Approval `json:"approval,omitempty"`
	// Boot is the one boot (boot_id of the kernel) that has taken the approval.
	Boot    string `json:"boot,omitempty"`
	Address string `json:"address,omitempty"` // from which it was last heard
	// Heard is when the machine last said anything; HandedOver when its installer
	// said that it starts the new system; Answered when that system answered or
	// reported, and How.
	Heard      time.Time `json:"heard,omitzero"`
	HandedOver time.Time `json:"handedOver,omitzero"`
	Answered   time.Time `json:"answered,omitzero"`
	How        string    `json:"how,omitempty"`
	// Progress is the last that its installer told.
	Progress *progress.Snapshot `json:"progress,omitempty"`
	// Firmware is what was seen of its network boot.
	Firmware string `json:"firmware,omitempty"`
}

// Headline is the state in one line: "installed" only when the new system was
// seen.
func (s Status) Headline() string {
	switch {
	case s.State == Installed && s.Answered.IsZero():
		return "handed over, not seen since"
	case s.State == Approved && s.Approval != nil && s.Approval.Action == Wipe:
		return "to be wiped"
	case s.State == Installing && s.Approval != nil && s.Approval.Action == Wipe:
		return "wiping"
	}
	return string(s.State)
}

// unnamed is why a pending machine waits.
const unnamed = "nobody has said what it shall be"

func nameIt(id string) string {
	return "firstlight machine set " + id + " --name NAME --image IMAGE, then firstlight machine approve NAME"
}

// mostStatus bounds a state's file, in bytes: most of it is what the machine says.
const mostStatus = 1 << 20

func (s *Site) statusPath(name string) string { return s.State("machines", name, "status.json") }

// status reads a machine's; one that has none is waiting for approval.
func (s *Site) status(name string) (Status, error) {
	data, err := readSmall(s.statusPath(name), mostStatus)
	if errors.Is(err, fs.ErrNotExist) {
		status := Status{Format: 1, State: Waiting, Reason: "nobody has approved it", Do: "firstlight machine approve " + name}
		if _, pending := ParseID(name); pending {
			status.State, status.Reason, status.Do = New, unnamed, nameIt(name)
		}
		return status, nil
	}
	var status Status
	if err == nil {
		err = json.Unmarshal(data, &status)
	}
	if err == nil && status.Format > 1 {
		err = fail(CodeNewer, "it has format %d; this version knows 1", status.Format)
	}
	if err == nil && status.State == Approved && status.Approval == nil {
		err = fail(CodeState, "it says approved, and not by whom")
	}
	if err != nil {
		// Nothing is done to a machine of which it is not known where it stands.
		return Status{Format: 1, State: Failed, Reason: "its state cannot be read: " + err.Error()}, &Error{CodeDirectory, "reading the state of " + name, err}
	}
	return status, nil
}

// change changes a machine's status under the lock. do may leave it as it is.
func (s *Site) change(name string, do func(*Status) error) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return s.changeLocked(name, do)
}

func (s *Site) changeLocked(name string, do func(*Status) error) error {
	before, err := s.status(name)
	if err != nil {
		return err
	}
	after := before
	if err := do(&after); err != nil {
		return err
	}
	if after.State != before.State {
		after.Since = s.now().UTC()
	}
	data, err := json.MarshalIndent(after, "", "  ")
	if err != nil {
		return err
	}
	if len(data) >= mostStatus {
		return fail(CodeState, "what %s reports of itself is too much to be kept (%d bytes)", name, len(data))
	}
	if err := replace(s.statusPath(name), append(data, '\n'), 0o644); err != nil {
		return &Error{CodeDirectory, "keeping the state of " + name, err}
	}
	return nil
}

// to puts a machine into another state.
func (s *Status) to(state State, reason, do string) {
	s.State, s.Reason, s.Do = state, reason, do
}

// Approve allows one installation of a machine that has a configuration. again
// is needed where it is, or may be, installed already.
func (s *Site) Approve(name, by string, again bool) error {
	return s.approve(name, Approval{Action: Install, By: by}, again)
}

// Wipe allows the disks of a machine to be erased, once.
func (s *Site) Wipe(name, by string, level storage.Erase) error {
	return s.approve(name, Approval{Action: Wipe, By: by, Erase: level}, true)
}

func (s *Site) approve(name string, a Approval, again bool) error {
	m, err := s.Machine(name)
	if err != nil {
		return err
	}
	if m.Pending {
		return fail(CodeState, "nobody has said what %s shall be: firstlight machine set %s --name NAME --image IMAGE", name, name)
	}
	if m.Mistake != "" && a.Action == Install {
		return fail(CodeMachine, "%s cannot be installed as it is: %s", name, m.Mistake)
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return s.changeLocked(m.Name, func(status *Status) error {
		verb := "approve"
		switch {
		case a.Action == Wipe:
			verb = "wipe"
		case again:
			verb = "reinstall"
		}
		switch status.State {
		case Installing:
			return fail(CodeState, "%s is being installed: wait until it has ended", m.Name)
		case Installed, Wiped:
			if !again {
				return fail(CodeState, "%s is %s: firstlight machine reinstall %s erases it and installs it again", m.Name, status.Headline(), m.Name)
			}
		}
		a.At, a.For = s.now().UTC(), m.Identity
		// The trail first: what is not written there is not done.
		if err := s.note(Entry{Who: a.By, Verb: verb, Machine: m.Name, Detail: a.detail(m)}); err != nil {
			return err
		}
		status.Approval, status.Boot, status.Progress = &a, "", nil
		status.HandedOver, status.Answered, status.How = time.Time{}, time.Time{}, ""
		status.to(Approved, "approved by "+a.By, "boot it from the network or from a medium")
		return nil
	})
}

func (a Approval) detail(m *Machine) string {
	if a.Action == Wipe {
		return "erase: " + string(a.Erase)
	}
	return "image " + m.Image
}

// givenUp is after how long a silence somebody may say that an installation has
// ended: one that was begun from a running system, say, and that no boot from the
// network ends. An installer that runs reports every few seconds.
const givenUp = 10 * time.Minute

// Keep takes an approval back, or lets a machine boot its disk: state is
// Waiting, Installed or Rescue.
func (s *Site) Keep(name, by string, state State) error {
	m, err := s.Machine(name)
	if err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return s.changeLocked(m.Name, func(status *Status) error {
		if quiet := s.now().Sub(status.Heard); status.State == Installing && quiet < givenUp {
			return fail(CodeState, "%s is being installed: wait until it has ended, or has said nothing for %s", m.Name, givenUp)
		}
		if err := s.note(Entry{Who: by, Verb: string(state), Machine: m.Name}); err != nil {
			return err
		}
		status.Approval, status.Boot = nil, ""
		switch state {
		case Rescue:
			status.to(Rescue, "its installer waits for you and touches nothing", "firstlight installer-shell ADDRESS; when you are done: firstlight machine set "+m.Name+" --state installed, or approve, or reinstall")
		case Installed:
			status.Answered, status.How = s.now().UTC(), "said by "+by
			status.to(Installed, "said by "+by, "")
		default:
			status.to(Waiting, "nobody has approved it", "firstlight machine approve "+m.Name)
		}
		return nil
	})
}

// Answer is what a machine that asks for its configuration is told.
type Answer struct {
	Name   string
	State  State  // Installing: go on; Installed: boot your disk; else wait
	Reason string // for the machine's console
	Action Action
	Erase  storage.Erase
}

// Claim is asked by a machine for its configuration: who it is, which boot of it
// that is, and from where. A machine that is approved is installing from then on,
// and only this boot of it: an installation that was interrupted has ended, for
// nobody here knows how far it came. One that nobody knows waits.
func (s *Site) Claim(who Identity, boot, address string) (Answer, error) {
	who = who.Clean()
	m, err := s.meet(who, address)
	if err != nil {
		return Answer{}, err
	}
	answer := Answer{Name: m.Name}
	unlock, err := s.lock()
	if err != nil {
		return answer, err
	}
	defer unlock()
	err = s.changeLocked(m.Name, func(status *Status) error {
		status.Heard, status.Address = s.now().UTC(), address
		switch {
		case status.State == New:
			status.to(Waiting, unnamed, nameIt(m.Name))
		case status.State == Approved && m.Mistake != "" && status.Approval.Action == Install:
			status.to(Failed, "its configuration is wrong: "+m.Mistake, "correct it, then firstlight machine approve "+m.Name)
		case status.State == Approved && who.in(status.Approval.For) == "":
			status.otherMachine(m.Name)
		case status.State == Approved:
			if err := s.note(Entry{Who: "machine", Verb: string(status.Approval.Action), Machine: m.Name, Detail: "begun by " + address}); err != nil {
				return err
			}
			status.Boot = boot
			status.to(Installing, "", "")
			s.putAway(m.Name)
		case status.State == Installing && status.Boot != boot:
			s.interrupt(m.Name, status)
		}
		answer.State, answer.Reason = status.State, status.Reason
		if status.Do != "" && status.State != Installing {
			answer.Reason += " (" + status.Do + ")"
		}
		if status.Approval != nil {
			answer.Action, answer.Erase = status.Approval.Action, status.Approval.Erase
		}
		return nil
	})
	return answer, err
}

// otherMachine takes an approval back that was given for other hardware than what
// has the name now.
func (s *Status) otherMachine(name string) {
	s.Approval = nil
	s.to(Waiting, "it was approved when "+name+" was another machine: none of the marks of then is this machine's", "firstlight machine approve "+name)
}

// interrupt ends an installation of which another boot of the machine has shown
// that it is not going on.
func (s *Site) interrupt(name string, status *Status) {
	status.to(Failed, "the machine was restarted before its installer had said how it ended: its disks may hold the old system, the new one, or a part of it",
		"look at it (firstlight machine rescue "+name+"), then firstlight machine reinstall "+name+", or firstlight machine set "+name+" --state installed")
}

// meet finds the machine, or makes a pending one of it.
func (s *Site) meet(who Identity, address string) (*Machine, error) {
	who = who.Clean()
	m, err := s.Find(who)
	if m != nil || err != nil {
		return m, err
	}
	if who.ID() == "" {
		return nil, fail(CodeMachine, "a machine without a MAC address asks from %s", address)
	}
	if known, err := os.ReadDir(s.path(pendingDir)); err == nil && len(known) >= maxPending {
		return nil, fail(CodeState, "%d machines are pending: no more are kept", len(known))
	}
	if err := makeDirectory(s.path(pendingDir, who.ID()), 0o755); err != nil {
		return nil, &Error{CodeDirectory, "keeping a new machine", err}
	}
	return s.Machine(who.ID())
}

// maxPending bounds how many machines that nobody knows are kept: whoever
// invents MAC addresses must not fill the disk.
const maxPending = 4096

// Booted notes that a machine asks for something to boot, and says where it
// stands. An installation that it was in has been interrupted. firmware is what
// was seen of it, empty to leave that as it is.
func (s *Site) Booted(who Identity, address, firmware string) (*Machine, error) {
	m, err := s.meet(who, address)
	if err != nil {
		return nil, err
	}
	err = s.change(m.Name, func(status *Status) error {
		status.Heard = s.now().UTC()
		if address != "" {
			status.Address = address
		}
		if firmware != "" {
			status.Firmware = firmware
		}
		if status.State == Installing {
			s.interrupt(m.Name, status)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.Machine(m.Name)
}

// Told takes the progress that a machine's installer reports. It says how an
// installation that was allowed has ended, and nothing else.
func (s *Site) Told(name string, p progress.Snapshot) error {
	return s.change(name, func(status *Status) error {
		status.Heard = s.now().UTC()
		if !slices.Contains([]State{New, Waiting, Installing, Rescue}, status.State) {
			return nil // a late report of what has ended
		}
		status.Progress = &p
		if status.State != Installing {
			return nil
		}
		done := slices.ContainsFunc(p.Phases, func(one progress.PhaseStatus) bool {
			return one.Phase == progress.Finish && one.State == progress.Done
		})
		wiped := status.Approval != nil && status.Approval.Action == Wipe
		switch {
		case p.Failure != nil:
			status.to(Failed, p.Failure.Summary(), strings.TrimSpace(p.Failure.Do+" Then: firstlight machine reinstall "+name))
		case done && wiped:
			status.Approval = nil
			status.to(Wiped, "its disks were erased", "firstlight machine reinstall "+name+" installs it")
		case done:
			status.Approval = nil
			status.HandedOver = s.now().UTC()
			status.to(Installed, "it has handed over to its new system", "")
		default:
			return nil
		}
		return s.note(Entry{Who: "machine", Verb: string(status.State), Machine: name, Detail: status.Reason})
	})
}

// Answered notes that the new system of an installed machine was seen, and how.
func (s *Site) Answered(name, how string) error {
	return s.change(name, func(status *Status) error {
		if status.State != Installed {
			return fail(CodeState, "%s is %s, not installed", name, status.State)
		}
		if status.Answered.IsZero() {
			status.How = how
		}
		status.Answered = s.now().UTC()
		return nil
	})
}

// SawFirmware notes what is seen of a machine's firmware, and what to do about
// it.
func (s *Site) SawFirmware(who Identity, text string) error {
	m, err := s.meet(who, "")
	if err != nil {
		return err
	}
	return s.change(m.Name, func(status *Status) error {
		status.Firmware = text
		return nil
	})
}

// Adopt gives a pending machine a name: its directory becomes machines/<name>,
// with the files that are given. Where the machine cannot be told by its
// configuration, it is by the marks in its inventory.
func (s *Site) Adopt(id, name, by string, files map[string][]byte) error {
	if err := checkName(name); err != nil {
		return err
	}
	m, err := s.Machine(id)
	if err != nil {
		return err
	}
	if !m.Pending {
		return fail(CodeState, "%s has a name already: %s", id, m.Name)
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	dir := s.path(machinesDir, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fail(CodeState, "there is a machine called %s already", name)
		}
		return &Error{CodeDirectory, "naming a machine", err}
	}
	if err := belong(dir); err != nil {
		return &Error{CodeDirectory, "naming a machine", errors.Join(err, os.RemoveAll(dir))}
	}
	for file, data := range files {
		if err := replace(s.path(machinesDir, name, file), data, 0o644); err != nil {
			return &Error{CodeDirectory, "naming a machine", errors.Join(err, os.RemoveAll(dir))}
		}
	}
	if err := s.note(Entry{Who: by, Verb: "name", Machine: name, Detail: fmt.Sprintf("was %s (%s)", m.Name, m.Identity)}); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	// What it said of itself goes with it.
	from, to := s.State("machines", m.Name), s.State("machines", name)
	if err := os.RemoveAll(to); err != nil {
		return &Error{CodeDirectory, "naming a machine", err}
	}
	if err := os.Rename(from, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &Error{CodeDirectory, "naming a machine", err}
	}
	if data, err := os.ReadFile(s.path(pendingDir, m.Name, inventoryFile)); err == nil {
		if err := replace(s.inventoryPath(name), data, 0o644); err != nil {
			return &Error{CodeDirectory, "naming a machine", err}
		}
	}
	if err := os.RemoveAll(s.path(pendingDir, m.Name)); err != nil {
		return &Error{CodeDirectory, "naming a machine", err}
	}
	return s.changeLocked(name, func(status *Status) error {
		status.to(Waiting, "nobody has approved it", "firstlight machine approve "+name)
		return nil
	})
}

// Hardware is a machine's last inventory; ok is false where it has said nothing.
func (s *Site) Hardware(name string) (found inventory.Document, ok bool) {
	found, err := s.Inventory(name)
	return found, err == nil
}
