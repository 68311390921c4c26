package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pages are all pages for people, README.md included.
func pages(t *testing.T) map[string]string {
	t.Helper()
	names, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	names = append(names, "../README.md")
	texts := make(map[string]string)
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(data)
	}
	return texts
}

func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#\s]+)(#[^)]*)?\)`)
	for name, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: the link %s leads nowhere", name, m[1])
			}
		}
	}
}

// TestCommandsExist holds every command of firstlight that a page shows in
// code, and every flag after it, against the program's own help.
func TestCommandsExist(t *testing.T) {
	program := filepath.Join(t.TempDir(), "firstlight")
	build := exec.Command("go", "build", "-o", program, "../tools/firstlight")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building firstlight: %v\n%s", err, out)
	}
	type answer struct {
		text string
		ok   bool
	}
	answers := make(map[string]answer)
	// help is the help of a command; ok says that there is this command.
	help := func(command []string) answer {
		key := strings.Join(command, " ")
		a, known := answers[key]
		if !known {
			out, err := exec.Command(program, slices.Concat(command, []string{"--help"})...).CombinedOutput()
			a = answer{string(out), err == nil && strings.Contains(string(out), "\n  firstlight "+key)}
			answers[key] = a
		}
		return a
	}
	code := regexp.MustCompile("`([^`\n]+)`|(?m:^(?:bin/)?(firstlight .*)$)|(?m:^(bin/firstlight .*)$)")
	word := regexp.MustCompile(`^[a-z-]+$`)
	groups := []string{"config", "image", "keys", "machine", "media", "rules"}
	for name, text := range pages(t) {
		for _, m := range code.FindAllStringSubmatch(text, -1) {
			fields := strings.Fields(strings.TrimPrefix(m[1]+m[2]+m[3], "bin/"))
			if len(fields) < 2 || fields[0] != "firstlight" || !word.MatchString(fields[1]) {
				continue
			}
			command := fields[1:2]
			if slices.Contains(groups, fields[1]) && len(fields) > 2 {
				command = fields[1:3]
			}
			a := help(command)
			if !a.ok {
				t.Errorf("%s: there is no command in `%s`", name, strings.Join(fields, " "))
				continue
			}
			for _, field := range fields {
				flag, _, _ := strings.Cut(strings.TrimRight(field, ",.;)"), "=")
				if strings.HasPrefix(flag, "--") && len(flag) > 2 && !strings.Contains(a.text, flag+" ") {
					t.Errorf("%s: `firstlight %s` has no flag %s", name, strings.Join(command, " "), flag)
				}
			}
		}
	}
}

// TestInstallerFlagsAreListed holds the table of installer.md against the
// program's own help, both ways.
func TestInstallerFlagsAreListed(t *testing.T) {
	out, err := exec.Command("go", "run", "../installer", "-h").CombinedOutput()
	if err != nil {
		t.Fatalf("installer -h: %v\n%s", err, out)
	}
	page := pages(t)["installer.md"]
	names := func(pattern, text string) []string {
		var found []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	_, flags, _ := strings.Cut(page, "## Flags\n")
	flags, _, _ = strings.Cut(flags, "\n## ")
	want, got := names(`(?m)^  -(\w+)`, string(out)), names("(?m)^\\| `-(\\w+)`", flags)
	if !slices.Equal(got, want) {
		t.Errorf("installer.md lists the flags\n%v\nthe program has\n%v", got, want)
	}
}
