package storage

import (
	"fmt"
	"slices"
	"strings"
)

// choose gives the disks to use, the boot disk first, and why others are not.
func choose(disks []Disk, selected []string) (usable []Disk, skipped []SkippedDisk, err error) {
	disks = slices.Clone(disks)
	slices.SortStableFunc(disks, func(a, b Disk) int { return compareBus(a, b) })
	reasons := make(map[string]string)
	worldwide := make(map[string]string)
	for _, d := range disks {
		reason := unusable(d)
		if first := worldwide[d.WWN]; reason == "" && d.WWN != "" && first != "" {
			reason = "it is another path to " + first
		}
		if reason == "" && d.WWN != "" {
			worldwide[d.WWN] = d.Path
		}
		if reason != "" {
			reasons[d.Path] = reason
			skipped = append(skipped, SkippedDisk{d.Path, reason})
			continue
		}
		usable = append(usable, d)
	}
	if selected != nil {
		var chosen []Disk
		var wrong []string
		for _, s := range selected {
			i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == s || d.Path == s })
			switch {
			case i < 0:
				wrong = append(wrong, fmt.Sprintf("%s is no disk of this machine", s))
			case reasons[disks[i].Path] != "":
				wrong = append(wrong, fmt.Sprintf("%s cannot be used: %s", s, reasons[disks[i].Path]))
			case slices.ContainsFunc(chosen, func(d Disk) bool { return d.Path == disks[i].Path }):
				wrong = append(wrong, fmt.Sprintf("%s was selected twice", s))
			default:
				chosen = append(chosen, disks[i])
			}
		}
		if wrong != nil {
			return nil, nil, Errorf(CodeSelection, "the disk selector's answer cannot be followed: %s", strings.Join(wrong, "; "))
		}
		if len(chosen) == 0 {
			return nil, nil, Errorf(CodeSelection, "the disk selector selected no disk; it was offered: %s", join(usable))
		}
		for _, d := range usable {
			if !slices.ContainsFunc(chosen, func(c Disk) bool { return c.Path == d.Path }) {
				skipped = append(skipped, SkippedDisk{d.Path, "the disk selector did not select it"})
			}
		}
		usable = chosen
	}
	if len(usable) == 0 {
		var lines []string
		for _, s := range skipped {
			lines = append(lines, s.Disk+": "+s.Reason)
		}
		if lines == nil {
			lines = []string{"the kernel shows none at all; a driver may be missing, or a controller be switched off"}
		}
		return nil, nil, Errorf(CodeNoDisk, "there is no disk to install on: %s", strings.Join(lines, "; "))
	}
	return usable, skipped, nil
}

// Usable reports whether an installation may erase the disk, and if not, why.
func (d Disk) Usable() (ok bool, reason string) {
	reason = unusable(d)
	return reason == "", reason
}

func unusable(d Disk) string {
	switch {
	case d.BootMedium:
		return "the installer was started from it"
	case d.Size == 0:
		return "it has no size (an empty reader or an unreachable disk)"
	case d.ReadOnly:
		return "it is read-only"
	case strings.EqualFold(d.Transport, "usb"):
		return "it is connected by USB"
	case virtualMedia(d):
		return "it is virtual media of a BMC"
	case d.Removable:
		return "it is removable"
	case slices.ContainsFunc(d.Contents, func(c Content) bool { return c.Label == MediumLabel }):
		return "it is a medium labelled " + MediumLabel
	case slices.ContainsFunc(d.Contents, func(c Content) bool { return c.Kind == KindUnreadable }):
		return "it cannot be read"
	case !pseudoFree(d.Name):
		return "it is no physical disk"
	case d.SectorSize != 512 && d.SectorSize != 4096:
		return fmt.Sprintf("its sectors of %d bytes are neither 512 nor 4096", d.SectorSize)
	}
	return ""
}

func virtualMedia(d Disk) bool {
	model := strings.ToLower(d.Model)
	for _, word := range []string{"virtual media", "virtual floppy", "virtual cd", "virtual hdisk", "virtual usb", "vmedia"} {
		if strings.Contains(model, word) {
			return true
		}
	}
	return false
}

func pseudoFree(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtdblock"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	// An eMMC's boot and RPMB areas are no place for an OS.
	return !strings.HasPrefix(name, "mmcblk") || !(strings.Contains(name, "boot") || strings.Contains(name, "rpmb"))
}

// compareBus orders disks by where they are plugged in: kernel names depend on
// which driver was faster.
func compareBus(a, b Disk) int {
	switch {
	case a.BusPath != "" && b.BusPath == "":
		return -1
	case a.BusPath == "" && b.BusPath != "":
		return 1
	}
	as, bs := strings.Split(a.BusPath, "/"), strings.Split(b.BusPath, "/")
	if c := slices.CompareFunc(as, bs, natural); c != 0 {
		return c
	}
	return natural(a.Name, b.Name)
}

// natural compares numbers in text by value. Texts of one length are compared as
// they are, since PCI addresses are hexadecimal and padded.
func natural(a, b string) int {
	if len(a) == len(b) {
		return strings.Compare(a, b)
	}
	for a != "" && b != "" {
		an, bn := digits(a), digits(b)
		if an > 0 && bn > 0 {
			x, y := strings.TrimLeft(a[:an], "0"), strings.TrimLeft(b[:bn], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[an:], b[bn:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func join(disks []Disk) string {
	var names []string
	for _, d := range disks {
		names = append(names, d.Path)
	}
	return strings.Join(names, ", ")
}
