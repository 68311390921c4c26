// Package rules says which machine becomes what: conditions on what a machine
// is, and the image, layout, labels and name of those that meet them. It reads
// rules.yaml, holds it against inventories, and says of each machine which rule
// it matches, or why it matches none.
//
// It decides and changes nothing: a [Preview] is applied by others, as it is or
// not at all.
package rules

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/firstlight/firstlight/installer/config"
)

// The codes of this package; docs/errors.md explains each.
const (
	CodeRules   = "SRV-070" // rules.yaml is wrong
	CodeRefused = "SRV-071" // a preview is not applied
)

// Error is an error with a stable code.
type Error struct {
	code, text string
}

// Error is the text without the code.
func (e *Error) Error() string { return e.text }

// Code is CodeRules or CodeRefused.
func (e *Error) Code() string { return e.code }

// Refuse is an error of code CodeRefused.
func Refuse(format string, args ...any) error {
	return &Error{CodeRefused, fmt.Sprintf(format, args...)}
}

// Rules are rules.yaml.
type Rules []Rule

// Rule is one rule. A machine matches it when all of its conditions hold.
type Rule struct {
	Name string
	Line int // where it begins
	// Priority decides between rules that match one machine, the highest first;
	// nil where the rule has none, and then it never decides.
	Priority   *int
	Conditions []Condition
	Set        Set
}

// Set is what a machine becomes.
type Set struct {
	Image string
	// Layout is a file in the site's directory, which becomes the machine's
	// storage-layout.json; empty for the default layout.
	Layout string
	Labels map[string]string
	// Name is the pattern of the machine's name.
	Name Pattern
}

// mistakes collects all that is wrong, so that one look is enough.
type mistakes []string

func (m *mistakes) add(line int, format string, args ...any) {
	*m = append(*m, fmt.Sprintf("rules.yaml:%d: %s", line, fmt.Sprintf(format, args...)))
}

// Parse reads rules.yaml. Its error is an *Error of code CodeRules with one line
// for each mistake: the line of the file, the rule and the condition.
func Parse(data []byte) (Rules, error) {
	var document yaml.Node
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	err := decoder.Decode(&document)
	if errors.Is(err, io.EOF) {
		return nil, nil // only comments, or nothing
	}
	if err == nil {
		var second yaml.Node
		if again := decoder.Decode(&second); again == nil {
			err = fmt.Errorf("line %d: a second document begins", second.Line)
		}
	}
	if err != nil {
		return nil, &Error{CodeRules, "rules.yaml: " + strings.TrimPrefix(err.Error(), "yaml: ")}
	}
	var wrong mistakes
	rules := wrong.file(document.Content[0])
	if len(wrong) > 0 {
		return nil, &Error{CodeRules, strings.Join(wrong, "\n")}
	}
	return rules, nil
}

// Format is the version of rules.yaml.
const Format = 1

func (m *mistakes) file(node *yaml.Node) (rules Rules) {
	fields := m.fields(node, "the file", "format", "rules")
	if format := fields["format"]; format != nil {
		var n int
		if err := format.Decode(&n); err != nil || n != Format {
			m.add(format.Line, "format is %s; this version reads %d", format.Value, Format)
			return nil
		}
	}
	list := fields["rules"]
	if list == nil {
		return nil
	}
	if list.Kind != yaml.SequenceNode {
		m.add(list.Line, "rules is a list: each rule begins with a dash")
		return nil
	}
	names := make(map[string]int)
	for _, item := range list.Content {
		rule := m.rule(item)
		if line, twice := names[rule.Name]; twice && rule.Name != "" {
			m.add(rule.Line, "there is a rule %q in line %d already", rule.Name, line)
		}
		names[rule.Name] = rule.Line
		rules = append(rules, rule)
	}
	return rules
}

func (m *mistakes) rule(node *yaml.Node) Rule {
	rule := Rule{Line: node.Line}
	fields := m.fields(node, "a rule", "name", "priority", "when", "set")
	if fields == nil {
		return rule
	}
	rule.Name = m.text(fields["name"], "name")
	if rule.Name == "" {
		m.add(node.Line, "a rule needs a name")
	}
	if priority := fields["priority"]; priority != nil {
		var n int
		if err := priority.Decode(&n); err != nil {
			m.add(priority.Line, "rule %s: priority is a whole number, not %q", rule.Name, priority.Value)
		}
		rule.Priority = &n
	}
	switch when := fields["when"]; {
	case when == nil:
		m.add(node.Line, "rule %s: it has no conditions (when); a rule for every machine says so: when: {arch: \"*\"}", rule.Name)
	case when.Kind != yaml.MappingNode || len(when.Content) == 0:
		m.add(when.Line, "rule %s: when has conditions, each with its name", rule.Name)
	default:
		for i := 0; i+1 < len(when.Content); i += 2 {
			rule.Conditions = append(rule.Conditions, m.condition(rule.Name, when.Content[i], when.Content[i+1])...)
		}
	}
	if fields["set"] == nil {
		m.add(node.Line, "rule %s: it does not say what its machines become (set)", rule.Name)
		return rule
	}
	rule.Set = m.set(rule.Name, fields["set"])
	return rule
}

func (m *mistakes) set(rule string, node *yaml.Node) (set Set) {
	fields := m.fields(node, "set of rule "+rule, "image", "layout", "labels", "name")
	if fields == nil {
		return set
	}
	set.Image = m.text(fields["image"], "image")
	if set.Image == "" {
		m.add(node.Line, "rule %s: set needs an image", rule)
	} else if err := config.CheckImageName(set.Image); err != nil {
		m.add(fields["image"].Line, "rule %s: %v", rule, err)
	}
	if layout := fields["layout"]; layout != nil {
		set.Layout = m.text(layout, "layout")
		if clean := path.Clean(set.Layout); set.Layout == "" || clean != set.Layout || path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") {
			m.add(layout.Line, "rule %s: layout is a file in the site's directory, such as layouts/big.json, not %q", rule, set.Layout)
		}
	}
	if labels := fields["labels"]; labels != nil {
		if err := labels.Decode(&set.Labels); err != nil {
			m.add(labels.Line, "rule %s: labels are names with texts: {role: storage}", rule)
		}
	}
	name := fields["name"]
	if name == nil {
		m.add(node.Line, "rule %s: set needs a name: a pattern such as web-{n:2} or {serial}", rule)
		return set
	}
	pattern, err := ParsePattern(m.text(name, "name"))
	if err != nil {
		m.add(name.Line, "rule %s: name: %v", rule, err)
	}
	set.Name = pattern
	for _, label := range pattern.labels() {
		if _, there := set.Labels[label]; !there {
			m.add(name.Line, "rule %s: name: the rule sets no label %q", rule, label)
		}
	}
	return set
}

// fields are the values of a mapping, by name; other names than known are a
// mistake.
func (m *mistakes) fields(node *yaml.Node, what string, known ...string) map[string]*yaml.Node {
	if node.Kind != yaml.MappingNode {
		m.add(node.Line, "%s has names and values: %s", what, strings.Join(known, ", "))
		return nil
	}
	fields := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if !contains(known, key.Value) {
			m.add(key.Line, "%s has no %q%s", what, key.Value, meant(key.Value, known))
			continue
		}
		if fields[key.Value] != nil {
			m.add(key.Line, "%s has %q twice", what, key.Value)
		}
		fields[key.Value] = value
	}
	return fields
}

// text is a scalar's; empty for a missing one.
func (m *mistakes) text(node *yaml.Node, what string) string {
	if node == nil {
		return ""
	}
	if node.Kind != yaml.ScalarNode {
		m.add(node.Line, "%s is one text", what)
		return ""
	}
	return strings.TrimSpace(node.Value)
}

func contains(names []string, name string) bool {
	for _, n := range names {
		if n == name {
			return true
		}
	}
	return false
}

// meant names what is known: the one that begins alike, or all.
func meant(name string, known []string) string {
	for _, k := range known {
		if len(name) >= 3 && (strings.HasPrefix(k, name[:3]) || strings.HasSuffix(k, name[len(name)-3:])) {
			return fmt.Sprintf("; did you mean %s?", k)
		}
	}
	return ": there are " + strings.Join(known, ", ")
}
