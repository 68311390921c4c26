package rules

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/installer/inventory"
)

// Pattern is how machines are named: text with {serial}, {model}, {vendor},
// {arch}, {mac} (the last six digits), {label:NAME}, and {n} or {n:WIDTH} for
// the first number, from 1, that is free.
type Pattern struct {
	text  string
	parts []part
}

// part is a piece of text, or what stands in its place.
type part struct {
	text  string // literal, where field is empty
	field string
	label string
	width int // of n
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.text }

// ParsePattern reads a pattern.
func ParsePattern(text string) (Pattern, error) {
	p := Pattern{text: text}
	rest := text
	for rest != "" {
		before, after, found := strings.Cut(rest, "{")
		if strings.Contains(before, "}") {
			return p, fmt.Errorf("%q has a } without its {", text)
		}
		if before != "" {
			p.parts = append(p.parts, part{text: before})
		}
		if !found {
			break
		}
		inside, next, closed := strings.Cut(after, "}")
		if !closed {
			return p, fmt.Errorf("%q has a { without its }", text)
		}
		one, err := parsePart(inside)
		if err != nil {
			return p, err
		}
		p.parts = append(p.parts, one)
		rest = next
	}
	if text == "" {
		return p, fmt.Errorf("it is empty")
	}
	return p, nil
}

func parsePart(text string) (part, error) {
	name, argument, with := strings.Cut(text, ":")
	switch {
	case name == "n" && with:
		width, err := strconv.Atoi(argument)
		if err != nil || width < 1 || width > 9 {
			return part{}, fmt.Errorf("{%s}: the width is 1 to 9", text)
		}
		return part{field: name, width: width}, nil
	case name == "label" && argument != "":
		return part{field: name, label: argument}, nil
	case !with && contains([]string{"n", "serial", "model", "vendor", "arch", "mac"}, name):
		return part{field: name}, nil
	}
	return part{}, fmt.Errorf("there is no {%s}: there are {serial}, {model}, {vendor}, {arch}, {mac}, {label:NAME}, {n} and {n:WIDTH}", text)
}

func (p Pattern) labels() (names []string) {
	for _, one := range p.parts {
		if one.label != "" {
			names = append(names, one.label)
		}
	}
	return names
}

// numbered says that the pattern has a number, which is counted until the name
// is free.
func (p Pattern) numbered() bool {
	for _, one := range p.parts {
		if one.field == "n" {
			return true
		}
	}
	return false
}

// name is the name of a machine, with the number n.
func (p Pattern) name(machine inventory.Document, labels map[string]string, n int) (string, error) {
	var b strings.Builder
	for _, one := range p.parts {
		value := ""
		switch one.field {
		case "":
			b.WriteString(one.text)
			continue
		case "n":
			fmt.Fprintf(&b, "%0*d", one.width, n)
			continue
		case "serial":
			value = machine.DMI.Serial
		case "model":
			value = machine.DMI.Product
		case "vendor":
			value = machine.DMI.Vendor
		case "arch":
			value = machine.Arch
		case "label":
			value = labels[one.label]
		case "mac":
			if all := macsOf(machine); len(all) > 0 {
				value = strings.ReplaceAll(all[0], ":", "")[6:]
			}
		}
		value = hostname(value)
		if value == "" {
			return "", fmt.Errorf("its name would need its %s, which it does not say", one.field)
		}
		b.WriteString(value)
	}
	return b.String(), nil
}

// hostname is a text as it can stand in a host name: small letters, digits, and
// hyphens for all else.
func hostname(text string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(strings.TrimSpace(text)) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
	}
	return strings.Trim(b.String(), "-")
}

// macsOf are the addresses of a machine, that of the lease first.
func macsOf(machine inventory.Document) (all []string) {
	for _, leased := range []bool{true, false} {
		for _, nic := range machine.NICs {
			if nic.Lease == leased {
				all = append(all, addresses(nic)...)
			}
		}
	}
	return all
}
