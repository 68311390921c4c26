package lab

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Report is what the new system says about itself on its console: lines
// "DEMO-REPORT key=value", the last one "DEMO-REPORT done".
type Report map[string][]string

var reportLine = regexp.MustCompile(`(?m)DEMO-REPORT ([a-z]+)=(.*?)\s*$`)

// ParseReport takes the report out of a console's text.
func ParseReport(console string) Report {
	r := make(Report)
	for _, m := range reportLine.FindAllStringSubmatch(console, -1) {
		r[m[1]] = append(r[m[1]], m[2])
	}
	return r
}

// String is the report in one line.
func (r Report) String() string {
	var parts []string
	for _, key := range []string{"hostname", "address", "dns", "mount"} {
		parts = append(parts, key+" "+strings.Join(r[key], ", "))
	}
	return strings.Join(parts, "; ")
}

// Check compares the report with what the lab's configuration asks for, and
// names everything that is not so.
func (r Report) Check() error {
	var wrong []error
	want := func(key, what string, matches func(value string) bool) {
		if !slices.ContainsFunc(r[key], matches) {
			wrong = append(wrong, fmt.Errorf("the new system reports %s %q, wanted %s", key, r[key], what))
		}
	}
	want("hostname", Hostname, func(v string) bool { return v == Hostname })
	want("address", Address, func(v string) bool { return strings.Contains(v+"/", Address+"/") })
	want("dns", Nameserver, func(v string) bool { return slices.Contains(strings.Fields(v), Nameserver) })
	for _, point := range Mounts() {
		want("mount", point+" from a LUKS mapping", func(v string) bool {
			fields := strings.Fields(v)
			return slices.Contains(fields, point) && slices.ContainsFunc(fields, func(f string) bool { return strings.HasPrefix(f, "/dev/mapper/") })
		})
	}
	for _, units := range r["failed"] {
		if strings.TrimSpace(units) != "" {
			wrong = append(wrong, fmt.Errorf("units of the new system failed: %s", units))
		}
	}
	return errors.Join(wrong...)
}
