package ingest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/signature"
)

// Disk reads the root file-system of a disk image, raw or qcow2: the one
// file-system that holds etc and usr, and with it those that its fstab puts at
// /boot, /usr, /var, /home, /opt and /srv. They are mounted read-only, with no
// journal replayed, which needs root; qcow2 needs qemu-img. Where one of these
// is missing the error wraps ErrProgram; where no root or more than one is found,
// ErrDisk.
func Disk(ctx context.Context, path string, sink Sink, options Options) (_ *image.Manifest, err error) {
	raw := path
	qcow2, err := isQcow2(path)
	if err != nil {
		return nil, err
	}
	if qcow2 {
		directory, err := os.MkdirTemp(options.TempDir, "firstlight-disk-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(directory) // a copy; what is left of it harms nobody
		raw = filepath.Join(directory, "raw")
		if err := convert(ctx, path, raw); err != nil {
			return nil, err
		}
	}
	contents, err := probe(raw)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%s: a disk image is mounted, which only root may; run it as root, or mount it yourself and add the directory: %w", path, ErrProgram)
	}
	if options.TempDir, err = os.MkdirTemp(options.TempDir, "firstlight-root-"); err != nil {
		return nil, err
	}
	m := &mounts{image: raw, at: filepath.Join(options.TempDir, "root")}
	defer func() {
		if closeErr := m.close(); closeErr != nil {
			err = errors.Join(err, closeErr)
			return // never remove what may be mounted
		}
		err = errors.Join(err, os.RemoveAll(options.TempDir))
	}()
	if err := os.Mkdir(m.at, 0o700); err != nil {
		return nil, err
	}
	if err := m.root(ctx, path, contents); err != nil {
		return nil, err
	}
	if err := m.volumes(ctx, path, contents); err != nil {
		return nil, err
	}
	options.CrossFileSystems = true
	return Directory(ctx, m.at, sink, options)
}

// The header of qcow2: QEMU's docs/interop/qcow2.txt.
const (
	qcow2Magic          = "QFI\xfb"
	qcow2HeaderSize     = 104
	qcow2Backing        = 8
	qcow2Version        = 4
	qcow2Incompatible   = 72
	qcow2ExternalData   = 1 << 2
	sectorSize          = 512
	advancedFormat      = 4096
	maxFstab            = 1 << 20
	squashfsMagic       = "hsqs"
	oldestQcow2, newest = 2, 3
)

// isQcow2 refuses a qcow2 that leans on other files: they would be read without
// anybody having named them.
func isQcow2(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close() // it was only read
	header := make([]byte, qcow2HeaderSize)
	n, err := io.ReadFull(f, header)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return false, fmt.Errorf("reading %s: %w", path, err)
	}
	if !bytes.HasPrefix(header[:n], []byte(qcow2Magic)) {
		return false, nil
	}
	version := binary.BigEndian.Uint32(header[qcow2Version:])
	switch {
	case n < 72 || version < oldestQcow2 || version > newest:
		return false, fmt.Errorf("%s: qcow2 of version %d: %w", path, version, ErrSource)
	case binary.BigEndian.Uint64(header[qcow2Backing:]) != 0:
		return false, fmt.Errorf("%s: it leans on a backing file; flatten it first (qemu-img convert -O qcow2): %w", path, ErrSource)
	case version == 3 && binary.BigEndian.Uint64(header[qcow2Incompatible:])&qcow2ExternalData != 0:
		return false, fmt.Errorf("%s: its data lie in another file; flatten it first (qemu-img convert -O qcow2): %w", path, ErrSource)
	}
	return true, nil
}

func convert(ctx context.Context, from, to string) error {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return fmt.Errorf("%s: qcow2 is unpacked with qemu-img, which is missing; install it (Debian: apt-get install qemu-utils): %w", from, ErrProgram)
	}
	absolute, err := filepath.Abs(from) // a name may begin with "json:" or a dash
	if err != nil {
		return err
	}
	return run(ctx, from, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", absolute, to)
}

func run(ctx context.Context, path, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &limited{&stderr, 64 << 10}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return failedProgram(path, program, err, stderr.String())
	}
	return nil
}

// probe reports what lies in the image, with either size of sectors.
func probe(path string) (found []storage.Content, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	for _, size := range []uint32{sectorSize, advancedFormat} {
		if found, err = signature.Probe("image", f, uint64(info.Size()), size); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(found, mountable) {
			break
		}
	}
	return found, nil
}

// mountable says whether a root may lie on it, and how it is mounted so that
// nothing is written.
func mountable(c storage.Content) bool { return readOnly(c.Kind) != "" }

func readOnly(kind string) string {
	switch kind {
	case "ext2", "ext3", "ext4":
		return "noload"
	case "xfs":
		return "norecovery,nouuid"
	case "btrfs":
		return "rescue=nologreplay"
	}
	return ""
}

// mounts are file-systems of one image, the root first.
type mounts struct {
	image string
	at    string
	done  []string
}

func (m *mounts) mount(ctx context.Context, c storage.Content, at, more string) error {
	kind := c.Kind
	if strings.HasPrefix(kind, "ext") {
		kind = "ext4" // which reads the others too
	}
	flags := fmt.Sprintf("ro,nosuid,nodev,noexec,loop,offset=%d,sizelimit=%d,%s", c.Offset, c.Size, readOnly(c.Kind))
	if more != "" {
		flags += "," + more
	}
	if err := run(ctx, m.image, "mount", "-t", kind, "-o", flags, "--", m.image, at); err != nil {
		return err
	}
	m.done = append(m.done, at)
	return nil
}

// unmount undoes the last one.
func (m *mounts) unmount() error {
	last := m.done[len(m.done)-1]
	if err := unix.Unmount(last, 0); err != nil {
		return fmt.Errorf("unmounting %s: %w", last, err)
	}
	m.done = m.done[:len(m.done)-1]
	return nil
}

func (m *mounts) close() error {
	for len(m.done) > 0 {
		if err := m.unmount(); err != nil {
			return err
		}
	}
	return nil
}

// root mounts the one file-system that holds a root.
func (m *mounts) root(ctx context.Context, path string, contents []storage.Content) error {
	type place struct {
		content storage.Content
		more    string
	}
	var roots []place
	var seen []string
	for _, c := range contents {
		seen = append(seen, c.Where+" "+c.Kind)
		if !mountable(c) {
			continue
		}
		subvolumes := []string{""}
		if c.Kind == "btrfs" { // where Debian, Fedora and SUSE put it
			subvolumes = append(subvolumes, "subvol=@rootfs", "subvol=root", "subvol=@")
		}
		for _, more := range subvolumes {
			if err := m.mount(ctx, c, m.at, more); err != nil {
				if more != "" {
					continue // there is no such subvolume
				}
				return err
			}
			is := isRoot(m.at)
			if err := m.unmount(); err != nil {
				return err
			}
			if is {
				roots = append(roots, place{c, more})
				break
			}
		}
	}
	if len(roots) == 1 {
		return m.mount(ctx, roots[0].content, m.at, roots[0].more)
	}
	text := "none of what is there holds etc and usr"
	if len(roots) > 1 {
		text = fmt.Sprintf("%d file-systems hold etc and usr", len(roots))
	}
	return fmt.Errorf("%s: %s (%s): %w", path, text, strings.Join(seen, ", "), ErrDisk)
}

func isRoot(at string) bool {
	for _, name := range []string{"etc", "usr"} {
		if info, err := os.Lstat(filepath.Join(at, name)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// volumes mounts what the image's fstab puts below its root.
func (m *mounts) volumes(ctx context.Context, path string, contents []storage.Content) error {
	tree, err := os.OpenRoot(m.at)
	if err != nil {
		return err
	}
	defer tree.Close() // it was only read
	f, err := tree.Open("etc/fstab")
	if err != nil {
		return nil // a cloud image may have none, and a link out of the tree is none
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFstab))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: its fstab: %w", path, err)
	}
	for _, v := range fstab(string(text)) {
		at := strings.TrimPrefix(v.at, "/")
		if info, err := tree.Lstat(at); err != nil || !info.IsDir() {
			continue
		}
		i := slices.IndexFunc(contents, func(c storage.Content) bool {
			return mountable(c) && (v.uuid != "" && strings.EqualFold(c.UUID, v.uuid) || v.label != "" && c.Label == v.label)
		})
		if i < 0 {
			if slices.Contains([]string{"boot", "usr", "var"}, at) {
				return fmt.Errorf("%s: its fstab puts /%s on %s, which is not in the image, or in LVM, RAID or LUKS: %w", path, at, v.what, ErrDisk)
			}
			continue // data of another disk
		}
		// No component may be a link: the mount would lie elsewhere.
		real, err := filepath.EvalSymlinks(filepath.Join(m.at, at))
		if err != nil || real != filepath.Join(m.at, at) {
			return fmt.Errorf("%s: its /%s is a link: %w", path, at, ErrDisk)
		}
		if err := m.mount(ctx, contents[i], real, v.subvolume); err != nil {
			return err
		}
	}
	return nil
}

// volume is a line of fstab(5).
type volume struct{ what, uuid, label, at, subvolume string }

// fstab reads the lines that belong to the system, those above before those
// below.
func fstab(text string) []volume {
	var found []volume
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		v := volume{what: fields[0], at: filepath.Clean(fields[1])}
		top, _, _ := strings.Cut(strings.TrimPrefix(v.at, "/"), "/")
		if !slices.Contains([]string{"boot", "usr", "var", "home", "opt", "srv"}, top) || v.at[0] != '/' ||
			fields[2] == "vfat" || fields[2] == "swap" {
			continue
		}
		unquoted := strings.ReplaceAll(v.what, `"`, "")
		if uuid, ok := strings.CutPrefix(unquoted, "UUID="); ok {
			v.uuid = uuid
		} else if label, ok := strings.CutPrefix(unquoted, "LABEL="); ok {
			v.label = label
		}
		for option := range strings.SplitSeq(fields[3], ",") {
			if strings.HasPrefix(option, "subvol=") {
				v.subvolume = option
			}
		}
		found = append(found, v)
	}
	slices.SortStableFunc(found, func(a, b volume) int { return strings.Count(a.at, "/") - strings.Count(b.at, "/") })
	return found
}
