package media

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// firmwareOf are the firmware files that a kernel module names (modinfo(8)).
func firmwareOf(module []byte) []string {
	file, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil // it names none that could be found
	}
	section := file.Section(".modinfo")
	if section == nil {
		return nil
	}
	text, err := section.Data()
	if err != nil {
		return nil // as above
	}
	var names []string
	for entry := range strings.SplitSeq(string(text), "\x00") {
		if name, is := strings.CutPrefix(entry, "firmware="); is {
			names = append(names, name)
		}
	}
	return names
}

// addFirmware takes the files that modules name from dir, unpacked: the whole
// archive is packed, and not every kernel unpacks them. missing are those that
// are not there.
func addFirmware(files archive, dir string, named [][]string) (found int, missing []string, err error) {
	if _, err := os.Stat(dir); err != nil {
		return 0, nil, &Error{code: codeUsage, text: "the firmware cannot be read", err: err}
	}
	var names []string
	for _, some := range named {
		names = append(names, some...)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if !fs.ValidPath(name) {
			continue // nothing outside the directory
		}
		data, err := readFirmware(filepath.Join(dir, filepath.FromSlash(name)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, name)
		case err != nil:
			return 0, nil, &Error{code: codeUsage, text: "a firmware file cannot be read", err: err}
		default:
			files[path.Join("lib/firmware", name)] = archiveFile{data, 0o644}
			found++
		}
	}
	return found, missing, nil
}

// readFirmware reads a file that distributions may have packed.
func readFirmware(name string) ([]byte, error) {
	for _, suffix := range []string{"", ".xz", ".zst"} {
		data, err := readModule(name + suffix)
		if !errors.Is(err, fs.ErrNotExist) {
			return data, err
		}
	}
	return nil, fs.ErrNotExist
}
