package efiboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Directory is where the kernel shows the firmware's variables
// (Documentation/filesystems/efivarfs.rst).
const Directory = "/sys/firmware/efi/efivars"

// Prefix begins the description of every entry of ours: by it a later
// installation knows them.
const Prefix = "Firstlight "

const (
	global = "-8be4df61-93ca-11d2-aa0d-00e098032b8c" // EFI_GLOBAL_VARIABLE
	// Non-volatile, boot service and runtime access (UEFI 2.10, 8.2).
	attributes = 7
	order      = "BootOrder"
)

// errFull: 65,536 entries are there.
var errFull = errors.New("the firmware's boot menu has no free number")

// Put makes entries, in this order, the first of the boot menu in directory,
// and takes away every other one of ours. Entries of others, and their order,
// stay as they are. What is there already, to the byte, is not written again:
// the firmware's memory wears out. An error leaves a menu that is whole, with
// the entries that fitted.
func Put(directory string, entries []Entry) error {
	m := menu{directory}
	wanted := make([][]byte, len(entries))
	for i, e := range entries {
		if !strings.HasPrefix(e.Description, Prefix) {
			return fmt.Errorf("the boot entry %q would not be known as ours", e.Description)
		}
		var err error
		if wanted[i], err = e.Encode(); err != nil {
			return err
		}
	}
	options, err := m.options()
	if err != nil {
		return err
	}
	before, err := m.order()
	if err != nil {
		return err
	}

	numbers := make([]int, len(wanted)) // of each wanted entry; -1: it is not there yet
	var stale []int
	taken := make(map[int]bool)
	for i := range numbers {
		numbers[i] = -1
	}
	for number, option := range options {
		taken[number] = true
		if d, err := description(option); err != nil || !strings.HasPrefix(d, Prefix) {
			continue // another's, which may look as it likes
		}
		i := slices.IndexFunc(wanted, func(w []byte) bool { return bytes.Equal(w, option) })
		if i >= 0 && numbers[i] < 0 {
			numbers[i] = number
		} else {
			stale = append(stale, number)
		}
	}
	slices.Sort(stale)
	// They lead to partitions that are gone; without them there is more room.
	for _, number := range stale {
		if err := m.remove(number); err != nil {
			return err
		}
		delete(taken, number)
	}
	for i, option := range wanted {
		if numbers[i] >= 0 {
			continue
		}
		if numbers[i] = firstFree(taken); numbers[i] < 0 {
			return errFull
		}
		if err := m.write(name(numbers[i]), option); err != nil {
			return err
		}
		taken[numbers[i]] = true
	}
	after := slices.Clone(numbers)
	for _, number := range before {
		if !slices.Contains(numbers, number) && !slices.Contains(stale, number) {
			after = append(after, number)
		}
	}
	if slices.Equal(before, after) {
		return nil
	}
	var data []byte
	for _, number := range after {
		data = binary.LittleEndian.AppendUint16(data, uint16(number))
	}
	return m.write(order, data)
}

// firstFree is the least number that nothing has, -1 where all are taken.
func firstFree(taken map[int]bool) int {
	for n := range 1 << 16 {
		if !taken[n] {
			return n
		}
	}
	return -1
}

// menu is the boot menu in a directory of variables.
type menu struct{ directory string }

func name(number int) string { return fmt.Sprintf("Boot%04X", number) }

var entryName = regexp.MustCompile(`^Boot([0-9A-F]{4})` + global + `$`)

// options are all entries, by number.
func (m menu) options() (map[int][]byte, error) {
	files, err := os.ReadDir(m.directory)
	if err != nil {
		return nil, fmt.Errorf("reading the firmware's boot menu: %w", err)
	}
	options := make(map[int][]byte)
	for _, f := range files {
		found := entryName.FindStringSubmatch(f.Name())
		if found == nil {
			continue
		}
		number, err := strconv.ParseUint(found[1], 16, 16)
		if err != nil {
			return nil, err // four hexadecimal digits always fit
		}
		if options[int(number)], err = m.read(name(int(number))); err != nil {
			return nil, err
		}
	}
	return options, nil
}

// order are the numbers of the entries that the firmware tries.
func (m menu) order() ([]int, error) {
	data, err := m.read(order)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var numbers []int
	for ; len(data) >= 2; data = data[2:] {
		numbers = append(numbers, int(binary.LittleEndian.Uint16(data)))
	}
	return numbers, nil
}

func (m menu) file(variable string) string { return filepath.Join(m.directory, variable+global) }

// read returns a variable without its attributes, which efivarfs puts before
// it.
func (m menu) read(variable string) ([]byte, error) {
	data, err := os.ReadFile(m.file(variable))
	if err != nil {
		return nil, fmt.Errorf("reading the firmware's variable %s: %w", variable, err)
	}
	if len(data) < 4 {
		return nil, fmt.Errorf("the firmware's variable %s has no attributes", variable)
	}
	return data[4:], nil
}

// write sets a variable: efivarfs takes attributes and value in one write.
func (m menu) write(variable string, value []byte) error {
	f, err := os.OpenFile(m.file(variable), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return fmt.Errorf("writing the firmware's variable %s: %w", variable, err)
	}
	_, err = f.Write(append(binary.LittleEndian.AppendUint32(nil, attributes), value...))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing the firmware's variable %s: %w", variable, err)
	}
	return nil
}

func (m menu) remove(number int) error {
	if err := os.Remove(m.file(name(number))); err != nil {
		return fmt.Errorf("removing the firmware's boot entry %04X: %w", number, err)
	}
	return nil
}

// Next has the firmware start the first of our entries at the next start, once
// (UEFI 2.10, 3.1.1, BootNext), and returns its description. The error is
// fs.ErrNotExist where there is no entry of ours, or no UEFI.
func Next(directory string) (string, error) {
	m := menu{directory}
	options, err := m.options()
	if err != nil {
		return "", err
	}
	tried, err := m.order()
	if err != nil {
		return "", err
	}
	for _, number := range tried {
		text, err := description(options[number])
		if err != nil || !strings.HasPrefix(text, Prefix) {
			continue
		}
		return text, m.write("BootNext", binary.LittleEndian.AppendUint16(nil, uint16(number)))
	}
	return "", fmt.Errorf("the firmware's boot menu has no entry of ours: %w", fs.ErrNotExist)
}
