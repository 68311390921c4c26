package site

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/trust"
)

// fileBoot stands for the boot of a machine that fetches its files one by one and
// cannot say which boot of it that is.
const fileBoot = "files"

// How long files are given out for one approval. A machine asks for config.json
// first, again and again while the network stumbles, and for the others right
// after it; no installation and no restart fits into that time.
const (
	firstFileTime = time.Minute
	filesTime     = 5 * time.Minute
)

// ClaimFile is Claim for a machine that fetches its files one by one, by TFTP or
// from a web server: asking for config.json, or for the
// signed bundle, takes the approval. It returns the
// machine's name; a machine that may not be installed gets nothing, and the error
// says why.
func (s *Site) ClaimFile(who Identity, file, address string) (string, error) {
	who = who.Clean()
	m, err := s.Find(who)
	if err != nil {
		return "", err
	}
	if m == nil {
		if m, err = s.meet(who, address); err != nil {
			return "", err
		}
	}
	unlock, err := s.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	var refused error
	err = s.changeLocked(m.Name, func(status *Status) error {
		status.Heard, status.Address = s.now().UTC(), address
		// What is asked for first: the bundle, where only what is signed counts.
		first := file == config.MachineFile || file == trust.BundleFile
		wait := filesTime
		if first {
			wait = firstFileTime
		}
		switch {
		case status.State == Approved && first && who.in(status.Approval.For) == "":
			status.otherMachine(m.Name)
		case status.State == Approved && status.Approval.Action == Install && m.Mistake == "" && first:
			if err := s.note(Entry{Who: "machine", Verb: string(Install), Machine: m.Name, Detail: "begun by " + address}); err != nil {
				return err
			}
			status.Boot = fileBoot
			status.to(Installing, "", "")
			s.putAway(m.Name)
			return nil
		case status.State == Installing && status.Boot == fileBoot && s.now().Sub(status.Since) < wait:
			return nil
		case status.State == Installing && status.Boot == fileBoot && first:
			s.interrupt(m.Name, status)
		}
		refused = fail(CodeState, "%s gets no %s: it is %s", m.Name, file, status.Headline())
		return nil
	})
	return m.Name, errors.Join(err, refused)
}

// mostEvents is the size beyond which no more events of an installation are kept,
// in bytes.
const mostEvents = 16 << 20

// KeepEvents adds to the events of a machine's installation.
func (s *Site) KeepEvents(name string, lines []byte) (err error) {
	file := s.State("machines", name, "events.jsonl")
	if info, err := os.Stat(file); err == nil && info.Size()+int64(len(lines)) > mostEvents {
		return nil // somebody floods us, or it waits for weeks: the state says what counts
	}
	if err := makeDirectory(filepath.Dir(file), 0o755); err != nil {
		return &Error{CodeDirectory, "keeping events", err}
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return &Error{CodeDirectory, "keeping events", err}
	}
	_, err = f.Write(lines)
	if err = errors.Join(err, f.Close()); err != nil {
		return &Error{CodeDirectory, "keeping events", err}
	}
	return nil
}

// KeepLog keeps the log of a machine's last installation.
func (s *Site) KeepLog(name string, log []byte) error {
	if err := replace(s.State("machines", name, "log"), log, 0o644); err != nil {
		return &Error{CodeDirectory, "keeping a log", err}
	}
	return nil
}

// Log is the log of a machine's last installation. The error is fs.ErrNotExist
// where there is none.
func (s *Site) Log(name string) ([]byte, error) {
	if name == "" || name != filepath.Base(name) {
		return nil, fs.ErrNotExist
	}
	return readSmall(s.State("machines", name, "log"), 32<<20)
}

// mostRecoveryKeys is how many recovery keys of one machine are kept: whoever sends
// them forever must not fill the disk, nor drive out those that are there.
const mostRecoveryKeys = 500

// KeepRecovery keeps a machine's recovery key, which only its recipients can
// read, beside those that it had before.
func (s *Site) KeepRecovery(name string, document []byte) error {
	directory := s.State("machines", name, "recovery")
	if kept, err := os.ReadDir(directory); err == nil && len(kept) >= mostRecoveryKeys {
		return fail(CodeState, "%s has %d recovery keys already, in %s: move away those that are needed no more", name, len(kept), directory)
	}
	file := s.State("machines", name, "recovery", s.now().UTC().Format("2006-01-02T150405.000000000")+".json")
	if err := replace(file, document, 0o600); err != nil {
		return &Error{CodeDirectory, "keeping a recovery key", err}
	}
	return s.Note(Entry{Who: "machine", Verb: "recovery-key", Machine: name, Detail: fmt.Sprintf("kept in %s", filepath.Base(file))})
}
