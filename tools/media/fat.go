package media

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/diskfs/go-diskfs/filesystem/fat16"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
)

// volumeFile is a file that goes onto a volume.
type volumeFile struct {
	path string // with slashes, none in front
	data []byte
	from string // a file to copy, instead of data
	size int64  // of that file, in bytes
}

func (f volumeFile) bytes() int64 {
	if f.from != "" {
		return f.size
	}
	return int64(len(f.data))
}

func (f volumeFile) open() (io.ReadCloser, error) {
	if f.from != "" {
		return os.Open(f.from)
	}
	return io.NopCloser(bytes.NewReader(f.data)), nil
}

// Sizes of FAT volumes, in bytes.
const (
	leastFAT    = 9 << 19   // FAT16 has at least 4085 clusters
	mostFAT16   = 256 << 20 // larger ones are FAT32
	fatRounding = 64 << 10
)

// fatSize is a size with room for the files and free bytes more.
func fatSize(files []volumeFile, free int64) int64 {
	total := free
	for _, f := range files {
		total += alignUp(f.bytes(), 4<<10)
	}
	total += total/100 + 256<<10 // the tables themselves, and directories
	return alignUp(max(total, leastFAT), fatRounding)
}

// epoch is the time of every file on a medium, the first that FAT can say: the
// same inputs shall make the same bytes.
var epoch = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// fatVolume is what both kinds of FAT can do.
type fatVolume interface {
	filesystem.FileSystem
	DataStart() uint32
}

// writeFAT makes a FAT file system of size bytes in f from the offset start,
// with files in it, one after the other. Its label has nine to eleven capital
// letters. It returns where in it, in bytes, each
// file begins; every file is in one piece.
func writeFAT(f *os.File, start, size int64, label string, files []volumeFile) (map[string]int64, error) {
	create := func() (fatVolume, error) { return fat16.Create(file.New(f, false), size, start, 512, label, true) }
	if size > mostFAT16 {
		create = func() (fatVolume, error) { return fat32.Create(file.New(f, false), size, start, 512, label, true) }
	}
	volume, err := create()
	if err != nil {
		return nil, fmt.Errorf("making a FAT file system: %w", err)
	}
	var made []string
	for _, one := range files {
		for dir := path.Dir(one.path); dir != "."; dir = path.Dir(dir) {
			if !slices.Contains(made, dir) {
				made = append(made, dir)
			}
		}
	}
	slices.Sort(made)
	for _, dir := range slices.Clone(made) {
		if err := volume.Mkdir("/" + dir); err != nil {
			return nil, fmt.Errorf("making %s: %w", dir, err)
		}
		made = append(made, dir+"/.", dir+"/..")
	}
	at := make(map[string]int64)
	for _, one := range files {
		if at[one.path], err = writeFATFile(volume, one); err != nil {
			return nil, fmt.Errorf("writing %s: %w", one.path, err)
		}
		made = append(made, one.path)
	}
	made = append(made, label[:8]+"."+label[8:]) // it is an entry, with a name and an extension
	for _, name := range made {
		if err := volume.Chtimes("/"+name, epoch, epoch, epoch); err != nil {
			return nil, err
		}
	}
	if volume.Type() == filesystem.TypeFat16 {
		return at, releaseRoot(f, start)
	}
	return at, nil
}

// releaseRoot gives back the cluster 2 of a FAT16 volume, which go-diskfs marks
// as the root directory's, as in FAT32; FAT16 has that directory in a place of
// its own, and fsck.fat would find a cluster that belongs to nothing.
func releaseRoot(f *os.File, start int64) error {
	boot := make([]byte, 24)
	if _, err := f.ReadAt(boot, start); err != nil {
		return err
	}
	sector := int64(binary.LittleEndian.Uint16(boot[11:]))
	first := start + sector*int64(binary.LittleEndian.Uint16(boot[14:]))
	second := first + sector*int64(binary.LittleEndian.Uint16(boot[22:]))
	for _, table := range []int64{first, second} {
		if _, err := f.WriteAt([]byte{0, 0}, table+2*2); err != nil {
			return err
		}
	}
	return nil
}

// writeFATFile writes one file and returns where it begins.
func writeFATFile(volume fatVolume, one volumeFile) (int64, error) {
	from, err := one.open()
	if err != nil {
		return 0, err
	}
	defer from.Close()
	to, err := volume.OpenFile("/"+one.path, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return 0, err
	}
	// Each piece has the whole table written again: few and large ones.
	buffer := make([]byte, min(max(one.bytes(), 1), 64<<20))
	var copied int64
	for copied < one.bytes() {
		n, err := io.ReadFull(from, buffer[:min(int64(len(buffer)), one.bytes()-copied)])
		if err != nil {
			return 0, err
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return 0, err
		}
		copied += int64(n)
	}
	ranged, is := to.(*fat12.File)
	if !is {
		return 0, fmt.Errorf("where a file of type %T lies is not known", to)
	}
	pieces, err := ranged.GetDiskRanges()
	if err != nil {
		return 0, err
	}
	if len(pieces) != 1 {
		return 0, fmt.Errorf("the file is in %d pieces", len(pieces))
	}
	return int64(pieces[0].Offset), to.Close()
}
