package config

import (
	"fmt"
	"slices"
	"strings"
)

// Codes of this package's errors.
const (
	CodeMissing     = "CFG-001" // a file that must be there is not
	CodeSyntax      = "CFG-002" // a file is not JSON, or not one line
	CodeUnknown     = "CFG-003" // a field has no meaning
	CodeDuplicate   = "CFG-004" // something stands twice
	CodeType        = "CFG-005" // a value has the wrong type
	CodeValue       = "CFG-006" // a value is not possible
	CodeUnsupported = "CFG-007" // a field that this version does not support
	CodeRefused     = "CFG-008" // the site itself says no
	CodeImageName   = "CFG-009" // not an image name
	CodeServer      = "CFG-010" // not a server's address
)

// Mistake is one thing that is wrong in a configuration file.
type Mistake struct {
	ID   string // one of the Code constants
	File string // "config.json"; empty for what is in no file
	Line int    // from 1; 0 for the file as a whole
	Text string
}

// Error is "file:line: text", without the code.
func (m *Mistake) Error() string {
	switch {
	case m.File == "":
		return m.Text
	case m.Line == 0:
		return m.File + ": " + m.Text
	}
	return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Text)
}

// Code is the stable code, as in docs/errors.md.
func (m *Mistake) Code() string { return m.ID }

// Mistakes are all that is wrong, by file and line. There is at least one.
type Mistakes []*Mistake

// Error has one line for each mistake; from the second on they bear their codes.
func (m Mistakes) Error() string {
	var b strings.Builder
	for i, one := range m {
		if i > 0 {
			fmt.Fprintf(&b, "\n%s: ", one.ID)
		}
		b.WriteString(one.Error())
	}
	return b.String()
}

// Code is the code of the first mistake.
func (m Mistakes) Code() string { return m[0].ID }

// Unwrap returns each mistake.
func (m Mistakes) Unwrap() []error {
	errs := make([]error, len(m))
	for i, one := range m {
		errs[i] = one
	}
	return errs
}

// reader collects what is found while files are read.
type reader struct {
	mistakes Mistakes
	warnings []string
}

func (r *reader) mistake(code, file string, line int, format string, args ...any) {
	r.mistakes = append(r.mistakes, &Mistake{ID: code, File: file, Line: line, Text: fmt.Sprintf(format, args...)})
}

// err is nil when there is no mistake.
func (r *reader) err() error {
	if len(r.mistakes) == 0 {
		return nil
	}
	// Files keep the order in which they were read.
	order := make(map[string]int)
	for _, m := range r.mistakes {
		if _, seen := order[m.File]; !seen {
			order[m.File] = len(order)
		}
	}
	slices.SortStableFunc(r.mistakes, func(a, b *Mistake) int {
		if a.File != b.File {
			return order[a.File] - order[b.File]
		}
		return a.Line - b.Line
	})
	return r.mistakes
}

// nearest returns the known name that is closest to name, if it is within two
// letters and the two have a letter in common at all: "Id" is not meant by "OS".
func nearest(name string, known []string) (string, bool) {
	best, distance := "", 3
	folded := strings.ToLower(name)
	for _, k := range known {
		d := editDistance(folded, strings.ToLower(k))
		if d < distance && d < len(k) && d < len(name) {
			best, distance = k, d
		}
	}
	return best, best != ""
}

// editDistance counts the letters to insert, delete, replace or swap with their
// neighbour (optimal string alignment).
func editDistance(a, b string) int {
	if d := len(a) - len(b); d > 2 || d < -2 {
		return 3 // no need to know exactly
	}
	var before, prev, cur []int
	for j := range len(b) + 1 {
		prev = append(prev, j)
	}
	for i := 1; i <= len(a); i++ {
		cur = make([]int, len(b)+1)
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev = prev, cur
	}
	return prev[len(b)]
}

// meant is ": did you mean X?" or nothing.
func meant(name string, known []string) string {
	if k, ok := nearest(name, known); ok {
		return fmt.Sprintf(": did you mean %q?", k)
	}
	return ""
}
