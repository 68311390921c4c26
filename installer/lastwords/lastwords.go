// Package lastwords keeps the end of the log where a crash or a power cut leaves
// it, and finds it again at the next start: in the kernel's own log, which
// firmware keeps across a panic (pstore, admin-guide/pstore-blk.rst), and in a
// file of the new system's disks, once these may be written to.
package lastwords

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/progress"
)

// MostBytes is how much of the log is kept.
const MostBytes = 64 << 10

// The files on the new system's disks: on the EFI system partition where there is
// one, else in the root. As long as the installation goes well they vanish with
// its end.
const (
	OnESP  = "EFI/firstlight-last.log"
	OnRoot = "firstlight-last.log"
)

// writeInterval is how old the file may be, at most.
const writeInterval = 2 * time.Second

// Recorder is a progress.Sink that keeps the end of the log.
type Recorder struct {
	kernel io.Writer

	mu    sync.Mutex
	lines bytes.Buffer
	news  bool
}

// New is a recorder that writes each line to kernel as well, /dev/kmsg: nil where
// there is none.
func New(kernel io.Writer) *Recorder { return &Recorder{kernel: kernel} }

// kernelPriority is facility user, severity debug (syslog(2)): it is kept, and not
// shown on the console, where the line stands already.
const kernelPriority = 1*8 + 7

// Line implements progress.Sink.
func (r *Recorder) Line(l progress.Line) {
	if r.kernel != nil {
		// A kernel that takes no line has more to say than we.
		_, _ = fmt.Fprintf(r.kernel, "<%d>firstlight: %s\n", kernelPriority, l)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintln(&r.lines, l)
	r.news = true
	if r.lines.Len() > 2*MostBytes {
		end := bytes.Clone(tail(r.lines.Bytes()))
		r.lines.Reset()
		r.lines.Write(end)
	}
}

// Event implements progress.Sink.
func (*Recorder) Event(progress.Event) {}

// tail is the end of a text, from the beginning of a line.
func tail(text []byte) []byte {
	if len(text) <= MostBytes {
		return text
	}
	text = text[len(text)-MostBytes:]
	if at := bytes.IndexByte(text, '\n'); at >= 0 {
		text = text[at+1:]
	}
	return text
}

// Keep writes the end of the log to a file below root again and again until ctx
// ends, and then once more. A failure ends it and is returned.
//
// The file has its full size from the beginning and is then overwritten in place:
// who looks for it after a power cut replays no journal, and would not find what is
// new in a directory.
func (r *Recorder) Keep(ctx context.Context, root *os.Root, name string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keeping the end of the log in %s: %w", name, err)
		}
	}()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := r.write(f); err != nil {
		return err
	}
	settle(f)
	tick := time.NewTicker(writeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return r.write(f)
		case <-tick.C:
			if err := r.write(f); err != nil {
				return err
			}
		}
	}
}

// write fills the file: the text, and zeroes behind it.
func (r *Recorder) write(f *os.File) error {
	r.mu.Lock()
	text, news := bytes.Clone(tail(r.lines.Bytes())), r.news
	r.news = false
	r.mu.Unlock()
	if !news {
		return nil
	}
	whole := make([]byte, MostBytes)
	copy(whole, text)
	if _, err := f.WriteAt(whole, 0); err != nil {
		return err
	}
	return f.Sync()
}

// ext4Checkpoint is EXT4_IOC_CHECKPOINT (linux/ext4.h).
const ext4Checkpoint = 0x4004662b

// settle has ext4 take the file's name and place from its journal to where they
// belong. Other file-systems know nothing of it; then they are there by and by.
func settle(f *os.File) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetPointerInt(int(fd), ext4Checkpoint, 0) })
}

// dumpHeader begins each record of a panic: "Panic#1 Part3".
var dumpHeader = regexp.MustCompile(`^(\w+)#(\d+) Part(\d+)\n`)

type dump struct {
	file        string
	at          time.Time
	count, part int
	text        []byte
}

// FromFirmware is what the kernel left in pstore when it went down, oldest line
// first, at most MostBytes; files are its records, to be removed once it is
// kept elsewhere. There is nothing where the kernel did not go down.
func FromFirmware(pstore fs.FS) (text []byte, files []string, err error) {
	names, err := fs.Glob(pstore, "dmesg-*")
	if err != nil {
		return nil, nil, err
	}
	var dumps []dump
	for _, name := range names {
		data, err := fs.ReadFile(pstore, name)
		if err != nil {
			return nil, nil, fmt.Errorf("reading what the kernel left: %w", err)
		}
		d := dump{file: name, text: data}
		if info, err := fs.Stat(pstore, name); err == nil {
			d.at = info.ModTime()
		}
		if m := dumpHeader.FindSubmatch(data); m != nil {
			d.count, _ = strconv.Atoi(string(m[2])) // digits
			d.part, _ = strconv.Atoi(string(m[3]))
			d.text = data[len(m[0]):]
		}
		dumps = append(dumps, d)
	}
	// The kernel writes the newest part first.
	slices.SortFunc(dumps, func(a, b dump) int {
		return cmp.Or(cmp.Compare(a.count, b.count), cmp.Compare(b.part, a.part), a.at.Compare(b.at), strings.Compare(a.file, b.file))
	})
	for _, d := range dumps {
		text = append(text, d.text...)
		files = append(files, d.file)
	}
	return tail(text), files, nil
}

// FromDisk is what an installation left on an old file system when it was cut
// short; nil where there is nothing.
func FromDisk(tree fs.FS) []byte {
	for _, name := range []string{OnESP, OnRoot} {
		f, err := tree.Open(name)
		if err != nil {
			continue // it is not there, or cannot be read
		}
		text, err := io.ReadAll(io.LimitReader(f, MostBytes))
		_ = f.Close() // only read from
		text = bytes.TrimRight(text, "\x00")
		if err == nil && len(text) > 0 {
			return text
		}
	}
	return nil
}

// Printable is text for a page or a log: without what moves a cursor.
func Printable(text []byte) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && r != '\uFFFD' {
			return r
		}
		return -1
	}, strings.ToValidUTF8(string(text), ""))
}
