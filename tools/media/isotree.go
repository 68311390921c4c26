package media

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf16"
)

// isoTree is the one directory of a CD's file system as go-diskfs wrote it, to be
// changed in place (ECMA-119): times, which are of no use to anybody and would
// make every image another one, and where files lie.
type isoTree struct {
	size    int64              // of the volume, in bytes
	catalog []int64            // where the boot images lie, in their order, in bytes
	blocks  map[int64][]byte   // what is changed, by its place in the image
	files   map[string][]isoAt // by name, in small letters: in each of the trees
}

// isoAt is a directory record in one of the blocks.
type isoAt []byte

// readISO reads the directory of an image.
func readISO(f *os.File) (*isoTree, error) {
	t := &isoTree{blocks: make(map[int64][]byte), files: make(map[string][]isoAt)}
	for at := int64(16 * cdSector); ; at += cdSector {
		descriptor, err := t.read(f, at, cdSector)
		if err != nil {
			return nil, err
		}
		if string(descriptor[1:6]) != "CD001" {
			return nil, fmt.Errorf("there is no volume descriptor at byte %d", at)
		}
		switch descriptor[0] {
		case 0: // boot record
			if err := t.readCatalog(f, int64(binary.LittleEndian.Uint32(descriptor[0x47:]))*cdSector); err != nil {
				return nil, err
			}
		case 1, 2: // primary, supplementary
			t.size = int64(binary.LittleEndian.Uint32(descriptor[80:])) * cdSector
			for n := range 4 { // creation, modification, expiration, effective: not given
				copy(descriptor[813+17*n:], "0000000000000000\x00")
			}
			root := isoAt(descriptor[156:190])
			root.forgetTime()
			if err := t.readDirectory(f, root, descriptor[0] == 2); err != nil {
				return nil, err
			}
		case 255: // the end
			return t, t.bootRecordFirst()
		}
	}
}

// bootRecordFirst puts the boot record into sector 17, which is where El Torito
// wants it (1.0, figure 1) and BIOSes look; go-diskfs has it behind the
// supplementary descriptor.
func (t *isoTree) bootRecordFirst() error {
	const first = 17 * cdSector
	for at := int64(first); len(t.blocks[at]) == cdSector; at += cdSector {
		if t.blocks[at][0] == 0 {
			t.blocks[first], t.blocks[at] = t.blocks[at], t.blocks[first]
			return nil
		}
	}
	return errors.New("the CD has no boot record")
}

// read reads a part of the image, which write will write back.
func (t *isoTree) read(f *os.File, at, size int64) ([]byte, error) {
	block := make([]byte, size)
	if _, err := f.ReadAt(block, at); err != nil {
		return nil, fmt.Errorf("reading the CD's directory: %w", err)
	}
	t.blocks[at] = block
	return block, nil
}

// readCatalog reads El Torito's boot catalog: a default entry, then sections of
// one entry each.
func (t *isoTree) readCatalog(f *os.File, at int64) error {
	catalog, err := t.read(f, at, cdSector)
	if err != nil {
		return err
	}
	for entry := 0x20; entry+0x20 <= cdSector && catalog[entry] != 0; entry += 0x20 {
		if catalog[entry] == 0x88 { // bootable
			t.catalog = append(t.catalog, int64(binary.LittleEndian.Uint32(catalog[entry+8:]))*cdSector)
		}
	}
	if len(t.catalog) == 0 {
		return errors.New("the CD's boot catalog is empty")
	}
	return nil
}

func (t *isoTree) readDirectory(f *os.File, dir isoAt, joliet bool) error {
	data, err := t.read(f, int64(binary.LittleEndian.Uint32(dir[2:]))*cdSector, (int64(binary.LittleEndian.Uint32(dir[10:]))+cdSector-1)/cdSector*cdSector)
	if err != nil {
		return err
	}
	for at := 0; at < len(data); {
		length := int(data[at])
		if length == 0 { // the rest of this sector is empty
			at = (at/cdSector + 1) * cdSector
			continue
		}
		record := isoAt(data[at : at+length])
		at += length
		record.forgetTime()
		const directory = 2
		if record[25]&directory == 0 {
			name := record.name(joliet)
			t.files[name] = append(t.files[name], record)
		}
	}
	return nil
}

// name is the record's name in small letters, without its version.
func (r isoAt) name(joliet bool) string {
	raw := r[33 : 33+int(r[32])]
	if joliet && len(raw) > 1 {
		var letters []uint16
		for n := 0; n+1 < len(raw); n += 2 {
			letters = append(letters, binary.BigEndian.Uint16(raw[n:]))
		}
		return strings.ToLower(string(utf16.Decode(letters)))
	}
	name, _, _ := strings.Cut(string(raw), ";")
	return strings.TrimSuffix(strings.ToLower(name), ".")
}

// forgetTime makes it 1980-01-01 00:00:00 UTC.
func (r isoAt) forgetTime() { copy(r[18:25], []byte{80, 1, 1, 0, 0, 0, 0}) }

// redirect makes the files of that name, in all trees, begin at a byte of the
// image, a multiple of cdSector.
func (t *isoTree) redirect(name string, at int64, size int) {
	for _, record := range t.files[name] {
		binary.LittleEndian.PutUint32(record[2:], uint32(at/cdSector))
		binary.BigEndian.PutUint32(record[6:], uint32(at/cdSector))
		binary.LittleEndian.PutUint32(record[10:], uint32(size))
		binary.BigEndian.PutUint32(record[14:], uint32(size))
	}
}

// write writes back what was read, as it is now.
func (t *isoTree) write(f *os.File) error {
	for at, block := range t.blocks {
		if _, err := f.WriteAt(block, at); err != nil {
			return err
		}
	}
	return nil
}
