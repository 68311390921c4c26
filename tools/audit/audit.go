// Package audit compares an installed root with what its installation put there:
// the image, and the files that the receipt names. It only reads.
package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/receipt"
)

// Kind says how a file differs.
type Kind string

// The kinds of differences.
const (
	Missing Kind = "missing" // it was installed and is not there
	Changed Kind = "changed" // it is another content, type or link
	Mode    Kind = "mode"    // its permissions or owner are others
	Extra   Kind = "extra"   // nobody installed it
)

// Difference is one file that is not as it was installed.
type Difference struct {
	Path string `json:"path"` // absolute, as the system sees it
	Kind Kind   `json:"kind"`
	// What differs, for people: "content", "mode 0755, was 0644".
	What string `json:"what,omitempty"`
}

// Options of Compare.
type Options struct {
	// Ignore are paths below which nothing is compared: patterns of path.Match
	// for one path, which stand for all below it too.
	Ignore []string
}

// UsualIgnore is what a system changes by itself as it runs.
func UsualIgnore() []string {
	return []string{"/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/var/cache", "/var/lib/systemd", "/var/lib/dbus", "/var/spool",
		"/var/lib/dhcp", "/var/lib/NetworkManager", "/home", "/root", "/lost+found", "/boot/grub", "/boot/efi", "/etc/machine-id", "/etc/resolv.conf",
		"/etc/.updated", "/var/.updated", "/etc/adjtime", "/etc/mtab", "/etc/ssh/ssh_host_*", "/var/lib/cloud", "/var/lib/logrotate", "/var/lib/apt", "/var/lib/private"}
}

// Compare lists how the tree at root differs from the image and the files of the
// receipt, sorted by path. A file that the receipt names replaces the image's.
func Compare(ctx context.Context, root string, manifest *image.Manifest, written []receipt.Written, o Options) ([]Difference, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, fmt.Errorf("opening the installed root: %w", err)
	}
	defer r.Close() // only read from
	c := &comparison{ctx: ctx, root: r, options: o, planned: map[string]receipt.Written{}, above: map[string]bool{}}
	for _, w := range written {
		name := strings.TrimPrefix(w.Path, "/")
		c.planned[name] = w
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			c.above[dir] = true
		}
	}
	for i := range manifest.Entries {
		e := manifest.Entries[i]
		if e.Type == image.Hardlink {
			target, found := manifest.Lookup(e.Target)
			if !found {
				return nil, fmt.Errorf("the image's manifest has a hard link %s to nothing", e.Path)
			}
			target.Path = e.Path
			e = target
		}
		if err := c.installed(e); err != nil {
			return nil, err
		}
	}
	for name, w := range c.planned {
		if err := c.own(name, w); err != nil {
			return nil, err
		}
	}
	if err := c.extra(manifest); err != nil {
		return nil, err
	}
	slices.SortFunc(c.found, func(a, b Difference) int { return strings.Compare(a.Path, b.Path) })
	return c.found, nil
}

type comparison struct {
	ctx     context.Context
	root    *os.Root
	options Options
	planned map[string]receipt.Written
	above   map[string]bool // directories in which a planned file lies
	found   []Difference
}

func (c *comparison) differs(name string, kind Kind, what string) {
	c.found = append(c.found, Difference{"/" + name, kind, what})
}

func (c *comparison) ignored(name string) bool {
	for at := name; at != "." && at != "/"; at = path.Dir(at) {
		for _, pattern := range c.options.Ignore {
			if match, err := path.Match(pattern, "/"+at); err == nil && match {
				return true
			}
		}
	}
	return false
}

// installed compares an entry of the image.
func (c *comparison) installed(e image.Entry) error {
	if err := context.Cause(c.ctx); err != nil {
		return err
	}
	if _, replaced := c.planned[e.Path]; replaced || e.Path == "." || c.ignored(e.Path) {
		return nil
	}
	info, err := c.root.Lstat(e.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		c.differs(e.Path, Missing, "")
		return nil
	case err != nil:
		return err
	case typeOf(info) != e.Type:
		c.differs(e.Path, Changed, "type")
		return nil
	}
	switch e.Type {
	case image.Symlink:
		target, err := c.root.Readlink(e.Path)
		if err != nil {
			return err
		}
		if target != e.Target {
			c.differs(e.Path, Changed, "it leads to "+target+", and not to "+e.Target)
		}
		return nil // a link's mode means nothing
	case image.File:
		same := uint64(info.Size()) == e.Size
		if same && e.Size > 0 {
			sum, err := c.sum(e.Path)
			if err != nil {
				return err
			}
			same = sum == e.Digest.Hex()
		}
		if !same {
			c.differs(e.Path, Changed, "content")
		}
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	if mode := stat.Mode & 0o7777; mode != e.Mode || stat.Uid != e.UID || stat.Gid != e.GID {
		c.differs(e.Path, Mode, fmt.Sprintf("%#o %d:%d, was %#o %d:%d", mode, stat.Uid, stat.Gid, e.Mode, e.UID, e.GID))
	}
	return nil
}

// own compares a file that the installer wrote.
func (c *comparison) own(name string, w receipt.Written) error {
	if c.ignored(name) {
		return nil
	}
	info, err := c.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.differs(name, Missing, "the installer wrote it")
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		c.differs(name, Changed, "type")
		return nil
	}
	if w.SHA256 != "" {
		sum, err := c.sum(name)
		if err != nil {
			return err
		}
		if sum != w.SHA256 {
			c.differs(name, Changed, "content; the installer wrote it")
		}
	}
	if mode := uint32(info.Mode().Perm()); mode != w.Mode {
		c.differs(name, Mode, fmt.Sprintf("%#o, was %#o", mode, w.Mode))
	}
	return nil
}

// extra finds what is in neither.
func (c *comparison) extra(manifest *image.Manifest) error {
	return fs.WalkDir(c.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case context.Cause(c.ctx) != nil:
			return context.Cause(c.ctx)
		case err != nil && errors.Is(err, fs.ErrNotExist): // gone meanwhile
			return nil
		case err != nil:
			return err
		case name == ".":
			return nil
		case c.ignored(name):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if _, known := manifest.Lookup(name); known {
			return nil
		}
		if _, known := c.planned[name]; known || d.IsDir() && (c.above[name] || c.onlyIgnored(name)) {
			return nil
		}
		c.differs(name, Extra, "")
		if d.IsDir() {
			return fs.SkipDir // all below it is as much
		}
		return nil
	})
}

// onlyIgnored is true of a directory in which there is something, all of which is
// ignored.
func (c *comparison) onlyIgnored(directory string) bool {
	ignored, others := false, false
	err := fs.WalkDir(c.root.FS(), directory, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case c.ignored(name):
			ignored = true
			if d.IsDir() {
				return fs.SkipDir
			}
		case !d.IsDir():
			others = true
			return fs.SkipAll
		}
		return nil
	})
	return err == nil && ignored && !others
}

func (c *comparison) sum(name string) (string, error) {
	f, err := c.root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close() // only read from
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading %s: %w", name, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func typeOf(info fs.FileInfo) image.Type {
	switch mode := info.Mode(); {
	case mode.IsDir():
		return image.Dir
	case mode&fs.ModeSymlink != 0:
		return image.Symlink
	case mode&fs.ModeNamedPipe != 0:
		return image.FIFO
	case mode&fs.ModeSocket != 0:
		return image.Socket
	case mode&fs.ModeCharDevice != 0:
		return image.CharDevice
	case mode&fs.ModeDevice != 0:
		return image.BlockDevice
	}
	return image.File
}
