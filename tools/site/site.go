// Package site keeps what a site knows of its machines, in one directory of
// plain files: what each of them shall be, where it stands, who approved what.
// The boot server and the operator's command work on the same directory at the
// same time; every change is made under a lock and is a file that is replaced
// whole.
//
//	site.yaml rules.yaml     settings; rules for machines that nobody knows yet
//	machines/<name>/         a machine: the installer's files, and machine.yaml
//	pending/<mac>/           one that nobody has said anything of yet
//	state/                   where machines stand, their last log, the audit trail
//	store/ secrets/          images; keys
//
// It decides whether a machine may be installed, and it never lets one approval
// be used twice. It speaks to no network.
package site

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Format is the version of a site's directory, in site.yaml.
const Format = 1

// The codes of this package; docs/errors.md explains each.
const (
	CodeDirectory = "SRV-040" // the directory cannot be used
	CodeNewer     = "SRV-041" // it was written by a newer version
	CodeUnknown   = "SRV-042" // no such machine
	CodeTwice     = "SRV-043" // two machines claim to be one
	CodeState     = "SRV-044" // not in this state
	CodeMachine   = "SRV-045" // what is said of a machine is wrong
	CodeSettings  = "SRV-046" // site.yaml is wrong
)

// Error is an error with a stable code.
type Error struct {
	code, text string
	err        error
}

func (e *Error) Error() string {
	if e.err == nil {
		return e.text
	}
	return e.text + ": " + e.err.Error()
}

// Code is the stable code, SRV-04x.
func (e *Error) Code() string { return e.code }

// Unwrap is the cause, which may be nil.
func (e *Error) Unwrap() error { return e.err }

func fail(code, format string, args ...any) error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{code: code, text: wrapped.Error(), err: nil}
}

// Site is a site's directory. It is safe for concurrent use, by several
// processes too.
type Site struct {
	dir   string
	now   func() time.Time
	known index
}

// The parts of the directory.
const (
	settingsFile = "site.yaml"
	rulesFile    = "rules.yaml"
	machinesDir  = "machines"
	pendingDir   = "pending"
	stateDir     = "state"
	auditFile    = "audit.jsonl"
	lockFile     = "lock"
)

// Open opens the site in dir, and makes what is missing there. A site of an
// older format is brought to this one, after a copy of it was written; one of
// a newer format is refused.
func Open(dir string, now func() time.Time) (*Site, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, &Error{CodeDirectory, "opening the site", err}
	}
	s := &Site{dir: dir, now: now}
	for name, mode := range map[string]fs.FileMode{"": 0o755, machinesDir: 0o755, pendingDir: 0o755, stateDir: 0o755, stateDir + "/machines": 0o755} {
		if err := makeDirectory(filepath.Join(dir, name), mode); err != nil {
			return nil, &Error{CodeDirectory, "opening the site", err}
		}
	}
	unlock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, file := range []struct{ name, text string }{
		{settingsFile, "# What this site is; docs/serve.md has every setting.\nformat: 1\n"},
		{".gitignore", "# What machines said, images and keys: not for version control.\n/pending/\n/state/\n/store/\n/secrets/\n"},
	} {
		if err := s.writeNew(file.name, file.text); err != nil {
			return nil, err
		}
	}
	return s, s.migrate(steps())
}

// writeNew writes a file that is not there.
func (s *Site) writeNew(name, text string) error {
	f, err := os.OpenFile(s.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close(), belong(f.Name()))
	}
	if err != nil {
		return &Error{CodeDirectory, "opening the site", err}
	}
	return nil
}

// Dir is the directory, an absolute path.
func (s *Site) Dir() string { return s.dir }

// State is the path of a file below state/.
func (s *Site) State(parts ...string) string {
	return filepath.Join(append([]string{s.dir, stateDir}, parts...)...)
}

// RulesFile is the path of rules.yaml.
func (s *Site) RulesFile() string { return s.path(rulesFile) }

func (s *Site) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// lock holds the directory against everybody else, in this process and in
// others (flock(2): each open file is a lock of its own).
func (s *Site) lock() (unlock func(), err error) {
	f, err := os.OpenFile(s.path(stateDir, lockFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, &Error{CodeDirectory, "locking the site", err}
	}
	if err := belong(f.Name()); err != nil {
		return nil, &Error{CodeDirectory, "locking the site", errors.Join(err, f.Close())}
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return nil, &Error{CodeDirectory, "locking the site", errors.Join(err, f.Close())}
	}
	return func() { _ = f.Close() }, nil // which unlocks; nothing was written to it
}

// belong gives what was made by root to the owner of the directory that it lies
// in: the server of a package runs as a user of its own, and could change nothing
// that an operator has made as root.
func belong(name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var above, own unix.Stat_t
	if err := errors.Join(unix.Stat(filepath.Dir(name), &above), unix.Lstat(name, &own)); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if own.Uid == above.Uid {
		return nil
	}
	return os.Lchown(name, int(above.Uid), int(above.Gid))
}

// makeDirectory makes a directory and those above it that are missing.
func makeDirectory(name string, mode fs.FileMode) error {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	if err := makeDirectory(filepath.Dir(name), mode); err != nil {
		return err
	}
	if err := os.Mkdir(name, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return belong(name)
}

// replace writes a file so that every reader, and a power cut, finds the old
// one or the new one.
func replace(name string, data []byte, mode fs.FileMode) (err error) {
	if err := makeDirectory(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error that counts is the first
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), belong(f.Name()), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	directory, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

// readSmall reads a file of at most limit bytes.
func readSmall(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	n, err := io.Copy(&b, io.LimitReader(f, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return b.Bytes(), err
}
