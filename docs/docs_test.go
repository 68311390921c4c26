package docs

import (
	"regexp"
	"strings"
	"testing"
)

func TestEveryEntryIsWhole(t *testing.T) {
	entries := All()
	if len(entries) == 0 {
		t.Fatal("errors.md has no entry")
	}
	if heads := strings.Count("\n"+errorsPage, "\n### "); heads != len(entries) {
		t.Errorf("%d headings, %d entries", heads, len(entries))
	}
	code := regexp.MustCompile(`^(NET|CFG|TRU|IMG|STO|LUK|CNF|BOO|SRV)-\d{3}$`)
	seen := make(map[string]bool)
	for _, e := range entries {
		if !code.MatchString(e.Code) {
			t.Errorf("%q is no code", e.Code)
		}
		if seen[e.Code] {
			t.Errorf("%s stands twice", e.Code)
		}
		seen[e.Code] = true
		if e.Title == "" || e.Happened == "" || e.Means == "" || e.Do == "" {
			t.Errorf("%s lacks its title, Happened, Means or Do: %+v", e.Code, e)
		}
		for _, part := range []string{e.Happened, e.Means, e.Do} {
			if strings.Contains(part, "**Happened:**") || strings.Contains(part, "**Means:**") || strings.Contains(part, "**Do:**") {
				t.Errorf("%s: a part runs into the next: %q", e.Code, part)
			}
		}
	}
}

func TestLookup(t *testing.T) {
	e, ok := Lookup("CFG-008")
	if !ok || e.Title != "the site refuses to install this machine" || !strings.HasPrefix(e.Do, "Follow the text") {
		t.Errorf("CFG-008: %+v, %v", e, ok)
	}
	if _, ok := Lookup("CFG-999"); ok {
		t.Error("found a code that does not exist")
	}
}

func TestParse(t *testing.T) {
	got := parse("# Head\n\ntext\n\n### AAA-001: one: two\n**Happened:** a\nb\n\n- c\n**Means:** d\n**Do:** e\n\n## Other\n\nprose\n\n### AAA-002: x\n**Do:** f\n")
	want := []Entry{
		{Code: "AAA-001", Title: "one: two", Happened: "a\nb\n\n- c", Means: "d", Do: "e"},
		{Code: "AAA-002", Title: "x", Do: "f"},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}
