package site

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// step brings a site from the format before to the one that it makes. It is
// done under the lock, after a copy was written, and may be done again.
type step struct {
	to int
	do func(dir string) error
}

// steps are all that there have been, in order. Format 0 is a directory without
// site.yaml, as `keys init` makes it: nothing in it has to change.
func steps() []step {
	return []step{{to: 1, do: func(string) error { return nil }}}
}

var formatLine = regexp.MustCompile(`(?m)^format:.*$`)

// migrate brings the site to the last step's format; the lock is held.
func (s *Site) migrate(steps []step) error {
	file := s.path(settingsFile)
	text, err := os.ReadFile(file)
	if err != nil {
		return &Error{CodeDirectory, "opening the site", err}
	}
	latest := steps[len(steps)-1].to
	now := 0
	if found := formatLine.Find(text); found != nil {
		_, value, _ := strings.Cut(string(found), ":")
		if now, err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
			return fail(CodeSettings, "%s: format is a number", settingsFile)
		}
	}
	if now > latest {
		return fail(CodeNewer, "the site %s has format %d; this version knows %d", s.dir, now, latest)
	}
	if now == latest {
		return nil
	}
	copied := s.State(fmt.Sprintf("before-format-%d", latest))
	if err := copyPlain(copied, s.dir); err != nil {
		return &Error{CodeDirectory, "copying the site before it is changed", err}
	}
	for _, one := range steps {
		if one.to <= now {
			continue
		}
		if err := one.do(s.dir); err != nil {
			return &Error{CodeDirectory, fmt.Sprintf("bringing the site to format %d (a copy of how it was is in %s)", one.to, copied), err}
		}
		now = one.to
	}
	line := fmt.Sprintf("format: %d", latest)
	if formatLine.Match(text) {
		text = formatLine.ReplaceAll(text, []byte(line))
	} else {
		text = append([]byte(line+"\n"), text...)
	}
	if err := replace(file, text, 0o644); err != nil {
		return &Error{CodeDirectory, "writing the site's settings", err}
	}
	return s.note(Entry{Who: "firstlight", Verb: "migrate", Detail: fmt.Sprintf("to format %d; a copy is in %s", latest, copied)})
}

// copyPlain copies the site's files, without images (large, and of a format of
// their own), keys (never in two places) and earlier copies, to a directory that
// appears when it is whole.
func copyPlain(to, from string) error {
	next := to + ".new"
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	err := filepath.WalkDir(from, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if rel == "store" || rel == "secrets" || rel == filepath.Join(stateDir, "boot") || strings.HasPrefix(rel, filepath.Join(stateDir, "before-format-")) || e.Name() == ".git" {
				return filepath.SkipDir
			}
			return os.MkdirAll(filepath.Join(next, rel), 0o755)
		}
		if !e.Type().IsRegular() {
			return nil
		}
		return copyFile(filepath.Join(next, rel), name)
	})
	if err != nil {
		return err
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(next, to)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read from
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}
