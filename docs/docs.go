// Package docs carries the pages that the programs themselves show: what each
// error code means and what to do about it.
package docs

import (
	_ "embed"
	"strings"
)

//go:embed errors.md
var errorsPage string

// Entry explains one error code.
type Entry struct {
	Code     string // "STO-002"
	Title    string // "the disk is too small"
	Happened string // Markdown, without the leading word
	Means    string
	Do       string
}

// Lookup finds the entry of a code.
func Lookup(code string) (Entry, bool) {
	for _, e := range All() {
		if e.Code == code {
			return e, true
		}
	}
	return Entry{}, false
}

// All returns every entry in the order of the page.
func All() []Entry { return parse(errorsPage) }

// parse reads the entries of a page. What is malformed is left as it is, for the
// test of this package to find: a program must not fail over its own help.
func parse(page string) []Entry {
	var entries []Entry
	var current *string
	for _, line := range strings.Split(page, "\n") {
		if head, ok := strings.CutPrefix(line, "### "); ok {
			code, title, _ := strings.Cut(head, ": ")
			entries = append(entries, Entry{Code: code, Title: title})
			current = nil
			continue
		}
		if strings.HasPrefix(line, "#") {
			current = nil
			continue
		}
		if len(entries) == 0 {
			continue
		}
		e := &entries[len(entries)-1]
		for _, part := range []struct {
			word string
			into *string
		}{{"**Happened:**", &e.Happened}, {"**Means:**", &e.Means}, {"**Do:**", &e.Do}} {
			if rest, ok := strings.CutPrefix(line, part.word); ok {
				current, line = part.into, strings.TrimSpace(rest)
			}
		}
		if current == nil {
			continue
		}
		if *current != "" {
			*current += "\n"
		}
		*current += line
	}
	for i := range entries {
		e := &entries[i]
		for _, s := range []*string{&e.Happened, &e.Means, &e.Do} {
			*s = strings.TrimSpace(*s)
		}
	}
	return entries
}
