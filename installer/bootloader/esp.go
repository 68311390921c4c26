package bootloader

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/efiboot"
	"github.com/firstlight/firstlight/storage"
)

// esp is the EFI system partition, a name below the new root.
const esp = "boot/efi"

// efiArch is how EFI programs of an architecture are called (UEFI 2.10,
// 3.5.1.1).
func efiArch(goarch string) (short, upper string) {
	if goarch == "arm64" {
		return "aa64", "AA64"
	}
	return "x64", "X64"
}

// removable is the program that firmware starts from a disk of which its boot
// menu knows nothing.
func (s system) removable() string {
	_, upper := efiArch(s.target.Arch)
	return esp + "/EFI/BOOT/BOOT" + upper + ".EFI"
}

// copyWhole copies a file of the new system such that its name stands for the
// whole file or does not exist, and is on the disk when it returns.
func (s system) copyWhole(to, from string) error {
	in, err := s.root.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read from
	return s.writeWhole(to, in)
}

// writeWhole is copyWhole from a reader. FAT has no journal: the data are on
// the disk before the directory names them.
func (s system) writeWhole(to string, from io.Reader) (err error) {
	if err := s.root.MkdirAll(path.Dir(to), 0o755); err != nil {
		return err
	}
	temporary := path.Join(path.Dir(to), "firstlight.new")
	out, err := s.root.Create(temporary)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, from)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(err, s.root.Remove(temporary))
	}
	if err := s.root.Rename(temporary, to); err != nil {
		return errors.Join(err, s.root.Remove(temporary))
	}
	return s.syncDirectory(path.Dir(to))
}

func (s system) syncDirectory(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) {
		err = nil // a file system that has nothing to sync there
	}
	return errors.Join(err, d.Close())
}

// startFrom makes a program the one that firmware starts: program and its
// companions, names below the ESP, are copied to \EFI\BOOT, and the boot menu
// gets an entry for each disk.
func (s system) startFrom(program string, companions ...string) error {
	for _, companion := range companions {
		if err := s.copyWhole(path.Join(path.Dir(s.removable()), path.Base(companion)), path.Join(esp, companion)); err != nil {
			return &Error{CodeInstall, fmt.Errorf("copying %s to \\EFI\\BOOT: %w", companion, err)}
		}
	}
	if err := s.copyWhole(s.removable(), path.Join(esp, program)); err != nil {
		return &Error{CodeInstall, fmt.Errorf("copying %s to \\EFI\\BOOT: %w", program, err)}
	}
	s.putEntries(program, "")
	return nil
}

// putEntries writes the boot menu. It is a convenience: what goes wrong with it
// is a warning.
func (s system) putEntries(program, options string) {
	if s.target.Variables == "" {
		return
	}
	var entries []efiboot.Entry
	for i, partition := range s.target.ESPs {
		description := efiboot.Prefix + s.target.Name
		if len(s.target.ESPs) > 1 {
			description += fmt.Sprintf(" (disk %d)", i+1)
		}
		entries = append(entries, efiboot.Entry{Description: description, Partition: partition, File: "/" + program, Options: options})
	}
	if err := efiboot.Put(s.target.Variables, entries); err != nil {
		s.warn(fmt.Sprintf("the firmware took no boot entry; it starts \\EFI\\BOOT of the disk when nothing else is before it in its menu: %v", err))
	}
}

// below reads the names in a directory of the new system, nil where there is
// none.
func (s system) below(directory string) []os.DirEntry {
	d, err := s.root.Open(directory)
	if err != nil {
		return nil
	}
	defer d.Close() // only read from
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil
	}
	return entries
}

// PartitionOf is a partition of a layout as the firmware's boot menu names it.
func PartitionOf(p storage.Partition) efiboot.Partition {
	return efiboot.Partition{
		Number:      uint32(p.Number),
		FirstSector: p.FirstSector, Sectors: p.LastSector - p.FirstSector + 1,
		UUID: p.UUID,
	}
}
