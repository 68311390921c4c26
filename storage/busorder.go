package storage

import (
	"slices"
	"strings"
)

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
