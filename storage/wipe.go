package storage

import (
	"cmp"
	"fmt"
	"strings"
)

// ResolveWipe decides which disks are erased, and nothing is made in their
// place: all of the machine, or those that its own selector chose (selected, nil
// where there is none). Media that the machine was started from, and those that
// come and go (USB, virtual media, card readers), stay as they are.
//
// A disk of the machine that cannot be erased as asked is an *Error of code
// CodeErase: a wipe that leaves a disk out without a word would not be one.
func ResolveWipe(erase Erase, disks []Disk, selected []string) (Layout, error) {
	c := newChooser(Spec{Erase: erase, ExtraMountPointsBasename: "/"}, disks)
	if selected != nil {
		if err := c.follow(selected); err != nil {
			return Layout{}, err
		}
		c.data = append(c.boot, c.data...)
		c.boot = nil
	} else {
		if err := c.leftBehind(); err != nil {
			return Layout{}, err
		}
		for _, d := range c.free() {
			if !c.reached(d) {
				c.data = append(c.data, chosenDisk{d, "every disk of the machine is wiped"})
			}
		}
		c.note("")
	}
	if len(c.data) == 0 {
		return Layout{}, c.none(CodeNoDisk, "there is no disk to wipe")
	}
	if err := c.erasable(); err != nil {
		return Layout{}, err
	}
	l := Layout{}
	for _, d := range c.data {
		one := DiskLayout{
			Name: d.Name, Path: d.Path, Model: d.Model, Serial: d.Serial, WWN: d.WWN,
			Size: d.Size, SectorSize: d.SectorSize, PhysicalSectorSize: d.PhysicalSectorSize,
			Contents: d.Contents, ChosenBy: d.by, Erase: cmp.Or(erase, EraseMetadata),
		}
		if one.Erase == EraseCrypto {
			one.CryptoErase = d.CryptoErase
		}
		l.Disks = append(l.Disks, one)
		lost, _ := one.losses()
		l.Lost = append(l.Lost, lost...)
	}
	for _, d := range c.disks {
		if !c.taken(d) {
			l.Skipped = append(l.Skipped, SkippedDisk{d.Path, c.reason[d.Path]})
		}
	}
	return l, nil
}

// leftBehind refuses a wipe after which a disk of the machine would still hold
// what it holds now.
func (c *chooser) leftBehind() error {
	var wrong []string
	for _, d := range c.disks {
		reason := unusable(d)
		if reason == "" || d.BootMedium || !d.Physical() || d.Size == 0 || d.comesAndGoes() {
			continue
		}
		wrong = append(wrong, fmt.Sprintf("%s: %s", d.Title(), reason))
	}
	if wrong == nil {
		return nil
	}
	return Errorf(CodeErase, "the machine has a disk that cannot be wiped: %s; take it out, or have a disk selector choose the others", strings.Join(wrong, "; "))
}
