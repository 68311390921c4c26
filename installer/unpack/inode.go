package unpack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
)

const (
	bufferBytes = 256 << 10
	// holeBytes of zeros, aligned, are left out of a file and so take no
	// room on the disk. Smaller holes would only scatter the file.
	holeBytes = 64 << 10
)

// dirs opens directories below top, following no symbolic link, and keeps those
// open that were used last: neighbours in path order share theirs, and objects
// come only about in that order.
type dirs struct {
	top  int
	fds  map[string]int
	used []string // paths, the one that goes next in front
}

// keptDirectories is how many directories each worker keeps open.
const keptDirectories = 32

func newDirs(top int) *dirs { return &dirs{top: top, fds: map[string]int{}} }

// open returns a descriptor of the directory p, valid until the next call.
func (d *dirs) open(p string) (int, error) {
	if fd, ok := d.fds[p]; ok {
		return fd, nil
	}
	fd, err := openDirectory(d.top, p)
	if err != nil {
		return -1, err
	}
	if len(d.used) == keptDirectories {
		_ = unix.Close(d.fds[d.used[0]]) // a directory: nothing is lost
		delete(d.fds, d.used[0])
		d.used = append(d.used[:0], d.used[1:]...)
	}
	d.fds[p] = fd
	d.used = append(d.used, p)
	return fd, nil
}

func (d *dirs) close() {
	for _, fd := range d.fds {
		_ = unix.Close(fd) // as above
	}
	clear(d.fds)
	d.used = nil
}

// openDirectory opens p below top without following any symbolic link, also
// in the middle (openat2(2)).
func openDirectory(top int, p string) (int, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(top, p, how)
		if err != unix.EINTR && err != unix.EAGAIN { // EAGAIN: something was renamed meanwhile
			return fd, err
		}
	}
}

// openat is openat(2), repeated when a signal of the Go runtime interrupts.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// split is the directory of p and the name in it.
func split(p string) (dir, name string) { return path.Dir(p), path.Base(p) }

// makeDirectory makes p, or replaces what is there and is no directory. Its
// attributes come at the end; until then nobody else may look into it.
func (u *unpacker) makeDirectory(d *dirs, p string) error {
	if p == "." {
		return nil
	}
	dir, name := split(p)
	fd, err := d.open(dir)
	if err != nil {
		return failed("opening the directory of", p, err)
	}
	err = unix.Mkdirat(fd, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return failed("looking at", p, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return failed("replacing", p, err)
		}
		err = unix.Mkdirat(fd, name, 0o700)
	}
	if err != nil {
		return failed("making the directory", p, err)
	}
	return nil
}

// finishDirectory sets the attributes of a directory, the time last.
func (u *unpacker) finishDirectory(d *dirs, i int) error {
	e := u.entries[i]
	fd, err := d.open(e.Path)
	if err != nil {
		return failed("opening", e.Path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("looking at", e.Path, err)
	}
	if !u.keepOwner[e.Path] && (st.Uid != e.UID || st.Gid != e.GID) {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil && !hasNoOwners(fd) {
			return failed("setting the owner of", e.Path, err)
		}
	}
	return setModeXattrsTimes(fd, e)
}

// setModeXattrsTimes sets what comes after the owner: chown(2) clears set-id
// bits and security.capability. An access ACL lies in the mode's group bits,
// so it comes after the mode.
func setModeXattrsTimes(fd int, e image.Entry) error {
	if err := unix.Fchmod(fd, e.Mode&0o7777); err != nil && !hasNoOwners(fd) {
		return failed("setting the mode of", e.Path, err)
	}
	return setXattrsTimes(fd, e)
}

func setXattrsTimes(fd int, e image.Entry) error {
	for _, x := range e.Xattrs {
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil && !hasNoOwners(fd) && !isMemory(fd, err) {
			return failed("setting the extended attribute "+x.Name+" of", e.Path, err)
		}
	}
	return setTimes(fd, "", e)
}

// hasNoOwners says whether fd is on a FAT file-system, such as the ESP,
// which has no owners, modes or attributes to set.
func hasNoOwners(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && st.Type == unix.MSDOS_SUPER_MAGIC
}

// isMemory says whether err is that fd's file-system, which lives in memory
// only, has no such extended attributes: ramfs has none at all, tmpfs no
// user.* before Linux 6.6. A tree of tools can do without.
func isMemory(fd int, err error) bool {
	var st unix.Statfs_t
	return errors.Is(err, unix.EOPNOTSUPP) && unix.Fstatfs(fd, &st) == nil &&
		(st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC)
}

// create calls make to make name in the directory fd. What is there already
// is removed first, unless it is a directory with something in it.
func create(fd int, name string, make func() error) error {
	err := make()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	err = unix.Unlinkat(fd, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return fmt.Errorf("something else is there: %w", err)
	}
	return make()
}

// link makes the entry i a further name of an inode on the same volume.
func (u *unpacker) link(d *dirs, i int) error {
	e := u.entries[i]
	oldDir, oldName := split(u.first[i])
	old, err := openDirectory(u.top, oldDir)
	if err != nil {
		return failed("opening the directory of", u.first[i], err)
	}
	defer unix.Close(old) // as in dirs.close
	dir, name := split(e.Path)
	fd, err := d.open(dir)
	if err != nil {
		return failed("opening the directory of", e.Path, err)
	}
	err = create(fd, name, func() error { return unix.Linkat(old, oldName, fd, name, 0) })
	if err != nil {
		return failed("linking", e.Path, err)
	}
	return nil
}

// sync writes everything of one file-system to its disk: cheaper than an
// fsync for each file, and enough, as nothing is used before all is there.
func (u *unpacker) sync(p string) error {
	fd, err := openDirectory(u.top, p)
	if errors.Is(err, unix.ENOENT) {
		return nil // a volume below which the image has nothing, and which nobody waited for
	}
	if err != nil {
		return failed("opening", p, err)
	}
	defer unix.Close(fd) // as in dirs.close
	if err := unix.Syncfs(fd); err != nil {
		return failed("syncing the file-system at", p, err)
	}
	return nil
}

// worker writes files, with descriptors and a buffer of its own.
type worker struct {
	*unpacker
	dirs   *dirs
	buffer []byte
}

func (u *unpacker) newWorker() *worker {
	return &worker{unpacker: u, dirs: newDirs(u.top), buffer: make([]byte, bufferBytes)}
}

// file is the entry i, with the content and attributes of another where it is
// the first name of an inode on its volume.
func (u *unpacker) file(i int) image.Entry {
	e := u.entries[i]
	if target, ok := u.content[i]; ok {
		p := e.Path
		e = u.entries[target]
		e.Path = p
	}
	return e
}

// write makes the entry i and returns how many bytes of content it has.
func (w *worker) write(ctx context.Context, i int) (uint64, error) {
	e := w.file(i)
	dir, name := split(e.Path)
	fd, err := w.dirs.open(dir)
	if err != nil {
		return 0, failed("opening the directory of", e.Path, err)
	}
	switch e.Type {
	case image.File:
		return e.Size, w.writeFile(e, func(fd int) error { return w.copyContent(ctx, fd, e) })
	case image.Symlink:
		err = create(fd, name, func() error { return unix.Symlinkat(e.Target, fd, name) })
	case image.CharDevice, image.BlockDevice, image.FIFO, image.Socket:
		kind := map[image.Type]uint32{image.CharDevice: unix.S_IFCHR, image.BlockDevice: unix.S_IFBLK,
			image.FIFO: unix.S_IFIFO, image.Socket: unix.S_IFSOCK}[e.Type]
		number := unix.Mkdev(e.Major, e.Minor)
		err = create(fd, name, func() error { return unix.Mknodat(fd, name, kind|e.Mode&0o7777, int(number)) })
	default:
		err = fmt.Errorf("an inode of unknown type %d", e.Type)
	}
	if err != nil {
		return 0, failed("making", e.Path, err)
	}
	if err := unix.Fchownat(fd, name, int(e.UID), int(e.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return 0, failed("setting the owner of", e.Path, err)
	}
	if e.Type != image.Symlink { // a link has no mode (symlink(7)); the others are no links, we just made them
		if err := unix.Fchmodat(fd, name, e.Mode&0o7777, 0); err != nil {
			return 0, failed("setting the mode of", e.Path, err)
		}
	}
	for _, x := range e.Xattrs {
		// There is no lsetxattrat(2) before Linux 6.13, and devices must
		// not be opened.
		link := "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
		if err := unix.Lsetxattr(link, x.Name, x.Value, 0); err != nil && !isMemory(fd, err) {
			return 0, failed("setting the extended attribute "+x.Name+" of", e.Path, err)
		}
	}
	return 0, setTimes(fd, name, e)
}

// writeFile makes a file, lets fill write its content, if it has any, and sets
// its attributes.
func (w *worker) writeFile(e image.Entry, fill func(fd int) error) (err error) {
	dir, name := split(e.Path)
	in, err := w.dirs.open(dir)
	if err != nil {
		return failed("opening the directory of", e.Path, err)
	}
	fd := -1
	err = create(in, name, func() (err error) {
		// Mostly what it is to be; set-id bits come when the content is there.
		fd, err = openat(in, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, e.Mode&0o777)
		return err
	})
	if err != nil {
		return failed("making", e.Path, err)
	}
	defer func() {
		if closeErr := unix.Close(fd); err == nil && closeErr != nil {
			err = failed("closing", e.Path, closeErr)
		}
	}()
	if e.Size > 0 {
		if err := fill(fd); err != nil {
			return err
		}
	}
	// To look costs a tenth of setting what is so already.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("looking at", e.Path, err)
	}
	if st.Uid != e.UID || st.Gid != e.GID {
		if err := unix.Fchown(fd, int(e.UID), int(e.GID)); err != nil && !hasNoOwners(fd) {
			return failed("setting the owner of", e.Path, err)
		}
	} else if st.Mode&0o7777 == e.Mode&0o7777 {
		return setXattrsTimes(fd, e)
	}
	return setModeXattrsTimes(fd, e)
}

// copyContent writes the content of e from the objects.
func (w *worker) copyContent(ctx context.Context, fd int, e image.Entry) error {
	r, err := w.objects.Open(ctx, e.Digest)
	if err != nil {
		return fmt.Errorf("unpacking /%s: %w", e.Path, err)
	}
	defer r.Close() // only read from
	return w.copyFrom(ctx, fd, e, r)
}

// copyFrom writes what r gives, which verifies it.
func (w *worker) copyFrom(ctx context.Context, fd int, e image.Entry, r io.Reader) error {
	out := &content{fd: fd, path: e.Path}
	if whole, ok := r.(io.WriterTo); ok { // it has all of it in memory
		if _, err := whole.WriteTo(out); err != nil {
			return err
		}
		return out.finish(e)
	}
	for {
		n, err := io.ReadFull(r, w.buffer)
		if err := out.write(w.buffer[:n]); err != nil {
			return failed("writing", e.Path, err)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return fmt.Errorf("unpacking /%s: %w", e.Path, err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
	}
	return out.finish(e)
}

// content writes the bytes of a file in order, without long runs of zeros.
type content struct {
	fd   int
	path string
	at   int64
	hole bool // at the end
}

// write takes the next bytes. All but the last ones are a multiple of holeBytes.
// What is between two holes is written at once.
func (c *content) write(data []byte) error {
	for len(data) > 0 {
		n := 0
		c.hole = isZero(data[:min(holeBytes, len(data))])
		for n < len(data) {
			block := data[n:min(n+holeBytes, len(data))]
			if isZero(block) != c.hole {
				break
			}
			n += len(block)
		}
		if !c.hole {
			if err := writeAt(c.fd, data[:n], c.at); err != nil {
				return err
			}
		}
		c.at += int64(n)
		data = data[n:]
	}
	return nil
}

// Write takes all of the content that a reader has at hand.
func (c *content) Write(data []byte) (int, error) {
	if err := c.write(data); err != nil {
		return 0, failed("writing", c.path, err)
	}
	return len(data), nil
}

// finish gives the file its length.
func (c *content) finish(e image.Entry) error {
	if uint64(c.at) != e.Size {
		return &Error{CodeContent, fmt.Errorf("unpacking /%s: its object has %d bytes, the manifest says %d", e.Path, c.at, e.Size)}
	}
	if !c.hole {
		return nil
	}
	if err := unix.Ftruncate(c.fd, c.at); err != nil {
		return failed("writing", e.Path, err)
	}
	return nil
}

func writeAt(fd int, data []byte, at int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, at)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n == 0:
			return io.ErrShortWrite
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}

// isZero looks at the first bytes alone where they settle it, as they do for
// nearly every block.
func isZero(block []byte) bool {
	return block[0] == 0 && len(block) == holeBytes && bytes.Count(block, []byte{0}) == len(block)
}

// setTimes sets the time of modification, and that of access to the same, of
// name in the directory fd, or of fd itself where name is empty.
func setTimes(fd int, name string, e image.Entry) error {
	ts := unix.Timespec{Sec: e.Seconds, Nsec: int64(e.Nanoseconds)}
	times := []unix.Timespec{ts, ts}
	var err error
	if name == "" {
		err = futimens(fd, times)
	} else {
		err = unix.UtimesNanoAt(fd, name, times, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return failed("setting the time of", e.Path, err)
	}
	return nil
}
