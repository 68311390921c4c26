package storage

import (
	"fmt"
	"slices"
	"strings"
)

// chosenDisk is a disk that will be used, and by what it was chosen.
type chosenDisk struct {
	Disk
	by string
}

// choice is the answer to the question which disks are used.
type choice struct {
	// boot has the boot disk, or the two of a mirror; data the further disks.
	boot, data []chosenDisk
	skipped    []SkippedDisk // all others
}

// choose gives the disks to use, and why the others are not used.
//
// What lies on a disk has no part in the choice, so that the same machine has
// the same disks chosen on each day; afterwards Overwrite says whether the
// choice may stand.
func choose(spec Spec, disks []Disk, selected []string) (choice, error) {
	c := newChooser(spec, disks)
	var err error
	if selected != nil {
		err = c.follow(selected)
	} else if err = c.chooseBoot(); err == nil {
		err = c.chooseData()
	}
	if err != nil {
		return choice{}, err
	}
	if err := c.guard(); err != nil {
		return choice{}, err
	}
	if err := c.erasable(); err != nil {
		return choice{}, err
	}
	for _, d := range c.disks {
		if !c.taken(d) {
			c.skipped = append(c.skipped, SkippedDisk{d.Path, c.reason[d.Path]})
		}
	}
	return c.choice, nil
}

// chooser makes a choice.
type chooser struct {
	choice
	spec  Spec
	disks []Disk // all, by their places on the bus
	// paths are the disks that are several ways to one device: path → what to
	// say of it.
	paths map[string]string
	// reason says why a disk is not taken, as far as is known.
	reason map[string]string
	// unasked are the data disks that were taken because nobody chose any.
	unasked map[string]bool
}

func newChooser(spec Spec, disks []Disk) *chooser {
	c := &chooser{spec: spec, disks: slices.Clone(disks), reason: make(map[string]string), unasked: make(map[string]bool)}
	slices.SortStableFunc(c.disks, compareBus)
	c.paths = multipath(c.disks)
	for _, d := range c.disks {
		if reason := unusable(d); reason != "" {
			c.reason[d.Path] = reason
		}
	}
	return c
}

// free are the disks that can still be taken.
func (c *chooser) free() (disks []Disk) {
	for _, d := range c.disks {
		if unusable(d) == "" && !c.taken(d) && !c.reached(d) {
			disks = append(disks, d)
		}
	}
	return disks
}

func (c *chooser) taken(d Disk) bool {
	same := func(t chosenDisk) bool { return t.Path == d.Path }
	return slices.ContainsFunc(c.boot, same) || slices.ContainsFunc(c.data, same)
}

// reached says that the disk is taken already by another path.
func (c *chooser) reached(d Disk) bool {
	if c.paths[d.Path] == "" {
		return false
	}
	same := func(t chosenDisk) bool { return c.paths[t.Path] != "" && SameWWN(t.WWN, d.WWN) }
	return slices.ContainsFunc(c.boot, same) || slices.ContainsFunc(c.data, same)
}

// follow takes what the site's own selector answered.
func (c *chooser) follow(selected []string) error {
	if c.spec.BootDisk != nil || c.spec.DataDisks != nil {
		return Errorf(CodeSelection, "both the disk selector and the layout's BootDisk or DataDisks choose disks: leave one of them out")
	}
	var wrong []string
	var chosen []chosenDisk
	for _, s := range selected {
		i := slices.IndexFunc(c.disks, func(d Disk) bool { return d.Name == s || d.Path == s })
		switch {
		case i < 0:
			wrong = append(wrong, fmt.Sprintf("%s is no disk of this machine", s))
		case c.reason[c.disks[i].Path] != "":
			wrong = append(wrong, fmt.Sprintf("%s cannot be used: %s", s, c.reason[c.disks[i].Path]))
		case slices.ContainsFunc(chosen, func(t chosenDisk) bool { return t.Path == c.disks[i].Path }):
			wrong = append(wrong, fmt.Sprintf("%s was selected twice", s))
		case slices.ContainsFunc(chosen, func(t chosenDisk) bool {
			return c.paths[t.Path] != "" && c.paths[c.disks[i].Path] != "" && SameWWN(t.WWN, c.disks[i].WWN)
		}):
			wrong = append(wrong, fmt.Sprintf("%s is another path to a disk that was selected already", s))
		default:
			chosen = append(chosen, chosenDisk{c.disks[i], "the disk selector"})
		}
	}
	if wrong != nil {
		return Errorf(CodeSelection, "the disk selector's answer cannot be followed: %s", strings.Join(wrong, "; "))
	}
	boot := c.bootDisks()
	if len(chosen) < boot {
		return Errorf(CodeSelection, "the disk selector selected %s, and %d are needed; it was offered: %s", count(len(chosen)), boot, join(c.free()))
	}
	c.boot, c.data = chosen[:boot], chosen[boot:]
	why := "the disk selector did not select it"
	if c.spec.ExtraMountPointsBasename == "" {
		for _, d := range c.data {
			c.reason[d.Path] = noBasename
		}
		c.data = nil
	}
	c.note(why)
	return nil
}

const noBasename = "the layout names no ExtraMountPointsBasename for further disks"

// bootDisks is how many disks the boot disk is made of.
func (c *chooser) bootDisks() int {
	if c.spec.Mirror {
		return 2
	}
	return 1
}

// note gives all disks that are left, and of which nothing is known yet, a
// reason.
func (c *chooser) note(why string) {
	for _, d := range c.disks {
		switch {
		case c.reason[d.Path] != "" || c.taken(d):
		case c.reached(d):
			c.reason[d.Path] = c.paths[d.Path]
		default:
			c.reason[d.Path] = why
		}
	}
}

func (c *chooser) chooseBoot() error {
	want, free := c.bootDisks(), c.free()
	if s := c.spec.BootDisk; s != nil {
		found, err := c.match("BootDisk", *s, want)
		c.boot = found
		return err
	}
	if len(free) < want {
		return c.none(CodeNoDisk, fmt.Sprintf("there is no disk to install on: %d needed, %d usable", want, len(free)))
	}
	for _, d := range free[:want] {
		if err := c.refusePaths(d); err != nil {
			return err
		}
		by := "first usable disk on the bus"
		if want == 2 {
			by = "one of the first two usable disks on the bus"
		}
		c.boot = append(c.boot, chosenDisk{d, by})
	}
	return nil
}

func (c *chooser) chooseData() error {
	if c.spec.ExtraMountPointsBasename == "" {
		c.note(noBasename)
		return nil
	}
	if c.spec.DataDisks == nil {
		for _, d := range c.free() {
			if err := c.refusePaths(d); err != nil {
				return err
			}
			c.data = append(c.data, chosenDisk{d, "every usable disk, as there are no DataDisks"})
			c.unasked[d.Path] = true
		}
		c.note("")
		return nil
	}
	for i, s := range c.spec.DataDisks {
		found, err := c.match(fmt.Sprintf("DataDisks[%d]", i), s, 0)
		if err != nil {
			return err
		}
		c.data = append(c.data, found...)
	}
	c.note("neither BootDisk nor DataDisks describe it")
	return nil
}

// refusePaths is for a disk that nobody named: it must not be one of several
// paths to one device.
func (c *chooser) refusePaths(d Disk) error {
	if c.paths[d.Path] == "" {
		return nil
	}
	return c.none(CodeMultipath, fmt.Sprintf("%s would be taken because nobody chose a disk, and %s", d.Path, c.paths[d.Path]))
}

// match finds the disks that a selector describes. want is how many of them
// there must be, 0 for any number but none; with Pick a number of 0 means 1.
func (c *chooser) match(name string, s Selector, want int) ([]chosenDisk, error) {
	why := make(map[string]string)
	var fit []Disk
	for _, d := range c.free() {
		switch mismatch := s.mismatch(d); {
		case mismatch != "":
			why[d.Path] = mismatch
		case c.paths[d.Path] != "" && s.WWN == "" && s.Path == "":
			why[d.Path] = c.paths[d.Path]
		case c.paths[d.Path] != "" && slices.ContainsFunc(fit, func(f Disk) bool { return SameWWN(f.WWN, d.WWN) }):
			why[d.Path] = c.paths[d.Path]
		default:
			fit = append(fit, d)
		}
	}
	for path, reason := range why {
		if c.reason[path] == "" {
			c.reason[path] = name + " does not describe it: " + reason
		}
	}
	refuse := func(format string, args ...any) ([]chosenDisk, error) {
		return nil, c.none(CodeSelection, fmt.Sprintf(name+" ("+s.String()+") "+format, args...))
	}
	if len(fit) == 0 {
		return refuse("describes no disk that can be used")
	}
	if s.Pick != "" {
		picked, rest := s.Pick.from(fit, max(want, 1))
		if len(rest) > 0 && s.Pick != First && len(picked) > 0 && rest[0].Size == picked[len(picked)-1].Size {
			return refuse("fits several disks of the same size: %s", join(append(picked, rest...)))
		}
		fit = picked
	}
	if want > 0 && len(fit) != want {
		return refuse("describes %s, and %d is wanted: %s", count(len(fit)), want, join(fit))
	}
	var chosen []chosenDisk
	for _, d := range fit {
		chosen = append(chosen, chosenDisk{d, name + ": " + s.String()})
		delete(c.reason, d.Path)
	}
	return chosen, nil
}

// none is a refusal that lists every disk with the reason why it is not taken.
func (c *chooser) none(code, text string) error {
	lines := []string{text}
	for _, d := range c.disks {
		why := c.reason[d.Path]
		switch {
		case c.taken(d):
			why = "taken"
		case why == "" && c.paths[d.Path] != "":
			why = c.paths[d.Path]
		case why == "":
			why = "nothing speaks against it"
		}
		lines = append(lines, d.Title()+": "+why)
	}
	if len(c.disks) == 0 {
		lines = append(lines, "the kernel shows none at all; a driver may be missing, or a controller be switched off")
	}
	return Errorf(code, "%s", strings.Join(lines, "; "))
}

// guard applies Overwrite to what was chosen. A data disk that nobody asked for
// is left out; any other refuses the whole.
func (c *chooser) guard() error {
	var wrong []string
	keep := func(d chosenDisk) bool {
		reason := c.spec.Overwrite.forbids(d.Disk)
		switch {
		case reason == "":
			return true
		case c.unasked[d.Path]:
			c.reason[d.Path] = fmt.Sprintf("Overwrite is %q, and %s", c.spec.Overwrite, reason)
			return false
		}
		wrong = append(wrong, d.Title()+": "+reason)
		for _, content := range d.Contents {
			wrong = append(wrong, describe(content))
		}
		return true
	}
	for _, d := range c.boot {
		keep(d)
	}
	c.data = slices.DeleteFunc(c.data, func(d chosenDisk) bool { return !keep(d) })
	if wrong == nil {
		return nil
	}
	return Errorf(CodeOverwrite, "Overwrite is %q, and a disk that was chosen may not be overwritten: %s", c.spec.Overwrite, strings.Join(wrong, "; "))
}

// erasable refuses disks that cannot be erased as asked: no way of erasing stands
// in for another.
func (c *chooser) erasable() error {
	var wrong []string
	for _, d := range slices.Concat(c.boot, c.data) {
		switch {
		case c.spec.Erase == EraseDiscard && !d.Discards:
			wrong = append(wrong, d.Title()+": it does not take discards")
		case c.spec.Erase == EraseCrypto && d.CryptoErase == "":
			why := d.NoCryptoErase
			if why == "" {
				why = "nothing says that it can"
			}
			wrong = append(wrong, d.Title()+": "+why)
		}
	}
	if wrong == nil {
		return nil
	}
	return Errorf(CodeErase, "Erase is %q, and a disk that was chosen cannot do that: %s", c.spec.Erase, strings.Join(wrong, "; "))
}

// forbids says why a disk may not be overwritten, or nothing.
func (o Overwrite) forbids(d Disk) string {
	switch {
	case o == "" || o == OverwriteAny:
		return ""
	case d.Foreign():
		return "it holds something that is not an earlier installation of ours"
	case o == OverwriteOwn && len(d.Contents) == 0:
		return "it holds no earlier installation of ours"
	}
	return ""
}

func join(disks []Disk) string {
	if len(disks) == 0 {
		return "none"
	}
	var names []string
	for _, d := range disks {
		names = append(names, d.Path)
	}
	return strings.Join(names, ", ")
}

func count(n int) string {
	switch n {
	case 0:
		return "no disk"
	case 1:
		return "one disk"
	}
	return fmt.Sprintf("%d disks", n)
}
