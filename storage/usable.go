package storage

import (
	"fmt"
	"slices"
	"strings"
)

// Usable reports whether an installation may erase the disk, and if not, why.
func (d Disk) Usable() (ok bool, reason string) {
	reason = unusable(d)
	return reason == "", reason
}

func unusable(d Disk) string {
	switch {
	case d.BootMedium:
		return "the running system or its configuration came from it"
	case !d.Physical():
		return "it is no disk (a CD drive, or what the kernel makes of other devices)"
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
	case d.SectorSize != 512 && d.SectorSize != 4096:
		return fmt.Sprintf("its sectors of %d bytes are neither 512 nor 4096", d.SectorSize)
	}
	return ""
}

// comesAndGoes says that the disk is no part of the machine.
func (d Disk) comesAndGoes() bool {
	ours := func(c Content) bool { return c.Label == MediumLabel }
	return strings.EqualFold(d.Transport, "usb") || virtualMedia(d) || d.Removable || slices.ContainsFunc(d.Contents, ours)
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

// Physical reports whether the device is hardware that keeps what is written to
// it, and not something that the kernel makes of other devices or of memory.
func (d Disk) Physical() bool {
	for _, prefix := range []string{"loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd", "mtdblock"} {
		if strings.HasPrefix(d.Name, prefix) {
			return false
		}
	}
	// An eMMC's boot and RPMB areas are no place for an OS.
	return !strings.HasPrefix(d.Name, "mmcblk") || !(strings.Contains(d.Name, "boot") || strings.Contains(d.Name, "rpmb"))
}
