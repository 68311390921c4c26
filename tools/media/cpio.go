package media

import (
	"bytes"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/mkuimage/cpio"
)

// archive is a cpio archive in the making: files by their path, no leading
// slash. Directories above them make themselves.
type archive map[string]archiveFile

type archiveFile struct {
	data []byte
	mode uint64 // permission bits
}

// encode writes the archive in the kernel's "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst): sorted, owned
// by root, with one time for everything, so that the same files make the same
// bytes. Directories that need to be private are given in private.
func (a archive) encode(built time.Time, private map[string]uint64) ([]byte, error) {
	dirs := map[string]bool{}
	for name := range a {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = true
		}
	}
	names := make([]string, 0, len(a)+len(dirs))
	for name := range a {
		names = append(names, name)
	}
	for dir := range dirs {
		names = append(names, dir)
	}
	slices.Sort(names)

	var raw bytes.Buffer
	w := cpio.Newc.Writer(&raw)
	for i, name := range names {
		mode, is := private[name]
		if !is {
			mode = 0o755
		}
		record := cpio.Directory(name, mode)
		if file, ok := a[name]; ok {
			record = cpio.StaticRecord(file.data, cpio.Info{Name: name, Mode: cpio.S_IFREG | file.mode})
		}
		record.Ino, record.NLink = uint64(i+1), 1
		record.MTime = uint64(built.Unix())
		if err := w.WriteRecord(record); err != nil {
			return nil, err
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, err
	}
	return raw.Bytes(), nil
}

// newCompressor packs, with EncodeAll, into frames that the kernel and uinit can
// unpack. It is large: who packs much uses one, also several at once.
func newCompressor(atOnce int) (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(atOnce))
}

// compress packs raw in one frame.
func compress(raw []byte) ([]byte, error) {
	w, err := newCompressor(1)
	if err != nil {
		return nil, err
	}
	return w.EncodeAll(raw, nil), w.Close()
}

// padded ends data where the kernel looks for the next archive: at a multiple
// of four bytes (init/initramfs.c).
func padded(data []byte) []byte {
	for len(data)%4 != 0 {
		data = append(data, 0)
	}
	return data
}

// filterLines keeps the lines that keep says yes to.
func filterLines(text string, keep func(line string) bool) []byte {
	var out bytes.Buffer
	for line := range strings.Lines(text) {
		if trimmed := strings.TrimSpace(line); trimmed != "" && (trimmed[0] == '#' || keep(trimmed)) {
			out.WriteString(trimmed + "\n")
		}
	}
	return out.Bytes()
}
