package config

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func parseSteps(steps string, programmes ...string) (Config, error) {
	files := map[string][]byte{
		MachineFile: []byte(`{"Machine":{"Hostname":"n1"},"Install":{"Steps":` + steps + `}}`),
		ImageFile:   []byte("debian/12\n"),
	}
	for _, name := range programmes {
		files["steps/"+name] = []byte("#!/bin/sh\n")
	}
	return Parse(files, DefaultPort)
}

func TestSteps(t *testing.T) {
	c, err := parseSteps(`[
		{"Programme": "seed.sh", "After": "identity", "In": "system", "TimeoutSeconds": 30},
		{"Programme": "check", "Before": "commit", "OnFailure": "continue"}]`, "seed.sh", "check")
	if err != nil {
		t.Fatal(err)
	}
	program := []byte("#!/bin/sh\n")
	want := []Step{
		{Name: "seed.sh", Program: program, Phase: "identity", After: true, In: InSystem, Timeout: 30 * time.Second},
		{Name: "check", Program: program, Phase: "commit", In: InInstaller, Timeout: defaultStepTimeout, GoOn: true},
	}
	if diff := cmp.Diff(want, c.Install.Steps); diff != "" {
		t.Error(diff)
	}
	files := map[string][]byte{MachineFile: []byte(`{"Install":{"Steps":[{"Programme":"a"},{"Programme":"b"},{"Programme":"a"},{"Programme":"../x"}]}}`)}
	if got := StepFiles(files); !slices.Contains(got, "steps/a") || !slices.Contains(got, "steps/b") {
		t.Errorf("files %q", got)
	}
}

func TestStepMistakes(t *testing.T) {
	for step, want := range map[string]string{
		`{"Programme": "a", "Before": "plan", "After": "plan"}`: "either Before or After",
		`{"Programme": "a"}`:                                       "either Before or After",
		`{"Programme": "../a", "After": "plan"}`:                   "is the name of a file in steps/",
		`{"Programme": "-a", "After": "plan"}`:                     "is the name of a file in steps/",
		`{"Programme": "b", "After": "plan"}`:                      "there is no programme steps/b",
		`{"Programme": "a", "After": "lunch"}`:                     `"lunch" is not possible`,
		`{"Programme": "a", "After": "config"}`:                    `"config" is not possible`,
		`{"Programme": "a", "After": "finish"}`:                    "and not after finish",
		`{"Programme": "a", "Before": "storage", "In": "system"}`:  "and not before storage",
		`{"Programme": "a", "Before": "tools", "In": "tools"}`:     "and not before tools",
		`{"Programme": "a", "After": "boot", "In": "moon"}`:        `"moon" is not possible`,
		`{"Programme": "a", "After": "boot", "TimeoutSeconds": 0}`: "1 to 21600, not 0",
		`{"Programme": "a", "After": "boot", "OnFailure": "weep"}`: `"weep" is not possible`,
		`{"Programme": "a", "After": "boot", "Arguments": ["x"]}`:  "unknown field",
	} {
		if _, err := parseSteps("["+step+"]", "a"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", step, err, want)
		}
	}
	files := map[string][]byte{MachineFile: []byte(`{"Install":{"Steps":[{"Programme":"a","After":"plan"}]}}`), ImageFile: []byte("x\n"), "steps/a": []byte("hello")}
	if _, err := Parse(files, DefaultPort); err == nil || !strings.Contains(err.Error(), "neither with #!") {
		t.Errorf("no programme: %v", err)
	}
}
