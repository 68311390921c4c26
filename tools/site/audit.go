package site

import (
	"bufio"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"time"
)

// Entry is one line of the audit trail: who did what to which machine.
type Entry struct {
	Time    time.Time `json:"t"`
	Who     string    `json:"who"`
	Verb    string    `json:"verb"` // approve, reinstall, wipe, rescue, install, …
	Machine string    `json:"machine,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

// note appends to the audit trail; the lock is held. Lines are only ever added,
// whole, and are on the disk before what they speak of is done.
func (s *Site) note(e Entry) (err error) {
	e.Time = s.now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(s.State(auditFile), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return &Error{CodeDirectory, "writing the audit trail", err}
	}
	line = append(line, '\n')
	if cutShort(f) {
		line = append([]byte{'\n'}, line...)
	}
	_, err = f.Write(line)
	if err = errors.Join(err, belong(f.Name()), f.Sync(), f.Close()); err != nil {
		return &Error{CodeDirectory, "writing the audit trail", err}
	}
	return nil
}

// cutShort says whether the last line has no end: the power went while it was
// written.
func cutShort(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false
	}
	last := []byte{'\n'}
	_, err = f.ReadAt(last, info.Size()-1)
	return err == nil && last[0] != '\n'
}

// Note adds an entry to the audit trail, for what is done outside of this
// package.
func (s *Site) Note(e Entry) error {
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	return s.note(e)
}

// longestEntry is the longest line of the audit trail that is read, in bytes: what
// machines say of themselves stands in some.
const longestEntry = 16 << 20

// Audit reads the audit trail, oldest first. A line that a power cut has cut
// short is left out.
func (s *Site) Audit() ([]Entry, error) {
	f, err := os.Open(s.State(auditFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{CodeDirectory, "reading the audit trail", err}
	}
	defer f.Close() // only read from
	var all []Entry
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, longestEntry)
	for lines.Scan() {
		var e Entry
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			all = append(all, e)
		}
	}
	return all, lines.Err()
}
