package storage

import (
	"fmt"
	"strings"
)

// RefuseForeign is the check for a layout that nobody asked for by name: an
// error with code STO-017 that lists what is on the disks, when one of them
// holds anything but an earlier installation of ours.
func (l Layout) RefuseForeign() error {
	var lines []string
	for _, d := range l.Disks {
		if !d.Foreign() {
			continue
		}
		for _, c := range d.Contents {
			lines = append(lines, fmt.Sprintf("%s: %s", d.Path, describe(c)))
		}
	}
	if lines == nil {
		return nil
	}
	return Errorf(CodeForeign, "the site gives no storage-layout.json for this machine, and its disks are in use; nothing is erased without being asked for: %s", strings.Join(lines, "; "))
}

// losses has a line for each thing on the disk: those that will be gone, and
// those that stay.
func (d DiskLayout) losses() (lost, kept []string) {
	name := d.Path
	if what := strings.Join(strings.Fields(d.Model), " "); what != "" {
		name += " (" + what + ", " + Bytes(d.Size) + ")"
	} else {
		name += " (" + Bytes(d.Size) + ")"
	}
	if len(d.Contents) == 0 {
		return []string{name + ": nothing was recognised on it"}, nil
	}
	for _, c := range d.Contents {
		if d.Keeps(c) {
			kept = append(kept, name+": "+describe(c))
		} else {
			lost = append(lost, name+": "+describe(c))
		}
	}
	return lost, kept
}

func describe(c Content) string {
	s := c.Where + " " + c.Kind
	if c.Label != "" {
		s += fmt.Sprintf(" %q", c.Label)
	}
	if c.UUID != "" {
		s += " " + c.UUID
	}
	if c.Size > 0 {
		s += ", " + Bytes(c.Size)
	}
	return s
}

// Bytes writes a size for people: 3.1 GiB.
func Bytes(n uint64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), ""
	for _, unit = range []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"} {
		if value /= 1024; value < 1024 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
