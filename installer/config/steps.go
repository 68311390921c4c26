package config

import (
	"bytes"
	"path"
	"slices"
	"strings"
	"time"
)

// StepsDirectory is where a machine's own programmes lie, beside its files.
const StepsDirectory = "steps"

// Step is a programme of the site's own that runs before or after a phase.
type Step struct {
	// Name is the programme's, a file of StepsDirectory.
	Name string
	// Program is the programme itself, with its #! line or as an ELF file.
	Program []byte
	// Phase is when it runs: After it, or before.
	Phase string
	After bool
	// In is the root that the programme sees.
	In StepRoot
	// Timeout is how long it may take.
	Timeout time.Duration
	// GoOn says that its failure is a warning, and does not end the installation.
	GoOn bool
}

// When is "before storage", for people.
func (s Step) When() string {
	if s.After {
		return "after " + s.Phase
	}
	return "before " + s.Phase
}

// StepsIn says whether there is a step in that root.
func (i Install) StepsIn(root StepRoot) bool {
	return slices.ContainsFunc(i.Steps, func(s Step) bool { return s.In == root })
}

// StepRoot is where a step runs.
type StepRoot string

// The roots of steps.
const (
	InInstaller StepRoot = "installer" // the initramfs itself
	InTools     StepRoot = "tools"     // the tools image, unpacked to memory
	InSystem    StepRoot = "system"    // a chroot of the new root
)

// stepPhases are the phases before or after which a step can run: from the
// inventory on, as the configuration is read by then, to the last one.
var stepPhases = []string{"inventory", "manifest", "plan", "stage", "tools", "prove", "commit",
	"storage", "unpack", "identity", "network", "boot", "finish"}

const (
	defaultStepTimeout = 5 * time.Minute
	longestStep        = 6 * time.Hour
)

// StepFiles are the files of StepsDirectory that the config.json among files
// names, each once, for those who fetch them. What is wrong in the file is for
// Parse to tell.
func StepFiles(files map[string][]byte) []string {
	r := new(reader)
	var c Config
	r.machineFile(&c, files)
	var names []string
	for _, step := range c.Install.Steps {
		if file := path.Join(StepsDirectory, step.Name); !slices.Contains(names, file) {
			names = append(names, file)
		}
	}
	return names
}

func (r *reader) steps(files map[string][]byte, raw []rawStep) []Step {
	var all []Step
	for _, one := range raw {
		all = append(all, r.step(files, one))
	}
	return all
}

func (r *reader) step(files map[string][]byte, raw rawStep) Step {
	s := Step{Name: raw.Programme.value, In: StepRoot(r.oneOf(raw.In, string(InInstaller), string(InTools), string(InSystem))), Timeout: defaultStepTimeout}
	wrong := func(format string, args ...any) {
		r.mistake(CodeValue, raw.file, raw.line, raw.path+format, args...)
	}
	switch {
	case !isFileName(s.Name):
		wrong(".Programme is the name of a file in %s/, of letters, digits, dots, hyphens and underscores, and not %q", StepsDirectory, s.Name)
	default:
		s.Program = bytes.Clone(files[path.Join(StepsDirectory, s.Name)])
		if len(s.Program) == 0 {
			r.mistake(CodeMissing, raw.file, raw.line, "%s: there is no programme %s/%s, or it is empty", raw.path, StepsDirectory, s.Name)
		} else if !bytes.HasPrefix(s.Program, []byte("#!")) && !bytes.HasPrefix(s.Program, []byte("\x7fELF")) {
			wrong(": %s/%s is no programme: it begins neither with #! nor as an ELF file does", StepsDirectory, s.Name)
		}
	}
	if s.In == "" {
		s.In = InInstaller
	}
	if raw.Before.set == raw.After.set {
		wrong(" needs either Before or After, with the name of a phase")
		return s
	}
	when := raw.Before
	if s.After = raw.After.set; s.After {
		when = raw.After
	}
	s.Phase = r.oneOf(when, stepPhases...)
	if first, last := s.In.span(); s.Phase != "" && !s.within(first, last) {
		wrong(": In %q is there from %q to %q, and not %s", s.In, first, last, s.When())
	}
	if t := raw.TimeoutSeconds; t.set {
		if t.value == 0 || t.value > uint64(longestStep/time.Second) {
			wrong(".TimeoutSeconds: 1 to %d, not %d", longestStep/time.Second, t.value)
		} else {
			s.Timeout = time.Duration(t.value) * time.Second
		}
	}
	s.GoOn = r.oneOf(raw.OnFailure, "stop", "continue") == "continue"
	return s
}

// span is the first and the last moment at which a root is there, as a person
// writes them.
func (in StepRoot) span() (first, last string) {
	switch in {
	case InTools:
		return "after tools", "before finish"
	case InSystem:
		return "before identity", "before finish"
	}
	return "before inventory", "before finish"
}

func (s Step) within(first, last string) bool {
	moment := func(when string) int {
		word, phase, _ := strings.Cut(when, " ")
		at := 2 * slices.Index(stepPhases, phase)
		if word == "after" {
			at++
		}
		return at
	}
	return moment(first) <= moment(s.When()) && moment(s.When()) <= moment(last)
}

// isFileName keeps names that could be somewhere else, or mean something to a
// server, out of paths.
func isFileName(name string) bool {
	if name == "" || len(name) > 100 || name[0] == '.' || name[0] == '-' {
		return false
	}
	for _, c := range name {
		if !letterOrDigit(c) && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
