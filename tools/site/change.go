package site

import (
	"bytes"
	"maps"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// PutFiles replaces some of the installer's files of a machine; they count for
// its next installation.
func (s *Site) PutFiles(name, by string, files map[string][]byte) error {
	if len(files) == 0 {
		return nil
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	names := slices.Sorted(maps.Keys(files))
	if err := s.note(Entry{Who: by, Verb: "set", Machine: name, Detail: strings.Join(names, ", ")}); err != nil {
		return err
	}
	for _, file := range names {
		if err := replace(s.path(machinesDir, name, file), files[file], 0o644); err != nil {
			return &Error{CodeDirectory, "changing " + name, err}
		}
	}
	s.forgetMarks()
	return nil
}

// PutCard replaces a machine's card where it is another.
func (s *Site) PutCard(name, by string, card Card) error {
	old, err := s.card(name)
	if err != nil {
		return err
	}
	before, err := yaml.Marshal(old)
	if err != nil {
		return err
	}
	data, err := yaml.Marshal(card)
	if err != nil {
		return err
	}
	if bytes.Equal(before, data) {
		return nil
	}
	return s.PutFiles(name, by, map[string][]byte{CardFile: data})
}

// FailedMachine is the error of somebody who waited for a machine that has failed.
func FailedMachine(m *Machine) error {
	return fail(CodeState, "%s has failed: %s", m.Name, m.Status.Reason)
}
