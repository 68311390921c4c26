package apply

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/tool"
)

// holder is a device that the kernel has made of a disk, or of another holder.
type holder struct {
	name string   // md127, dm-0
	stop tool.Cmd // takes it down
}

func (h holder) node() string { return "/dev/" + h.name }

// openDisk opens a disk for us alone. One that is part of a RAID or mapping which
// nobody uses is opened for reading; it will be taken down after the commit: a
// RAID may write to its members when it stops.
func (r *run) openDisk(d storage.DiskLayout) (block.Device, error) {
	device, err := r.OpenDisk(d.Path)
	var coded *storage.Error
	if err == nil || r.Sys == nil || !errors.As(err, &coded) || coded.Code() != storage.CodeBusy {
		return device, err
	}
	holders, unable := r.holders(d)
	if unable != nil {
		return nil, storage.Errorf(storage.CodeBusy, "%w: %w", err, unable)
	}
	if len(holders) == 0 {
		return nil, err
	}
	// Whether the topmost are used: by a mount, by swap, by a program.
	for _, h := range holders {
		if len(r.above(path.Join("block", h.name))) > 0 {
			continue
		}
		if err := block.Unused(h.node()); err != nil {
			return nil, storage.Errorf(storage.CodeBusy, "%s cannot be taken down from %s: %w", h.name, d.Path, err)
		}
	}
	r.heldMu.Lock()
	r.held[d.Path] = holders
	r.heldMu.Unlock()
	return block.OpenReadOnly(d.Path)
}

// takeDown takes RAIDs and mappings down, the topmost first, and opens their
// disks for us alone. devices are those of the layout; what is replaced among
// them is closed.
func (r *run) takeDown(ctx context.Context, devices []block.Device) error {
	down := make(map[string]bool)
	for i, d := range r.layout.Disks {
		holders := r.held[d.Path]
		if holders == nil {
			continue
		}
		for _, h := range holders {
			if down[h.name] {
				continue // it lies on several disks
			}
			down[h.name] = true
			r.options.Progress(d.Name, "", "take down "+h.name)
			if err := r.tool(ctx, h.stop); err != nil {
				return storage.Errorf(storage.CodeBusy, "taking down %s, which lies on %s: %w", h.name, d.Path, err)
			}
		}
		if err := devices[i].Close(); err != nil {
			return err
		}
		device, err := r.OpenDisk(d.Path)
		if err != nil {
			return err
		}
		devices[i] = device
		if err := r.check(d, device); err != nil {
			return err
		}
	}
	return nil
}

// holders are the devices that lie on a disk and its partitions, each after those
// that lie on it. The error says why they cannot be taken down.
func (r *run) holders(d storage.DiskLayout) ([]holder, error) {
	var found []holder
	var visit func(dir string, depth int) error
	visit = func(dir string, depth int) error {
		const deepest = 16
		if depth > deepest {
			return errors.New("too many devices lie on each other")
		}
		for _, name := range r.above(dir) {
			if slices.ContainsFunc(found, func(h holder) bool { return h.name == name }) {
				continue
			}
			if err := r.onlyOurs(name); err != nil {
				return err
			}
			if err := visit(path.Join("block", name), depth+1); err != nil {
				return err
			}
			h := holder{name: name}
			switch title, err := fs.ReadFile(r.Sys, "block/"+name+"/dm/name"); {
			case err == nil:
				h.stop = tool.Cmd{Name: "dmsetup", Args: []string{"remove", "--retry", strings.TrimSpace(string(title))}}
			case strings.HasPrefix(name, "md"):
				h.stop = tool.Cmd{Name: "mdadm", Args: []string{"--stop", "/dev/" + name}}
			default:
				return fmt.Errorf("%s lies on it, which only its own programs take down", name)
			}
			found = append(found, h)
		}
		return nil
	}
	return found, visit(path.Join("block", d.Name), 0)
}

// above are the devices that lie on a device and on its partitions; dir is its
// directory in sysfs.
func (r *run) above(dir string) (names []string) {
	dirs := []string{dir}
	partitions, _ := fs.Glob(r.Sys, dir+"/*/partition") // only a malformed pattern fails
	for _, p := range partitions {
		dirs = append(dirs, path.Dir(p))
	}
	for _, dir := range dirs {
		entries, err := fs.ReadDir(r.Sys, dir+"/holders")
		if err != nil {
			continue // a device without the directory has none on it
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	return names
}

// onlyOurs refuses a device that also lies on a disk that the layout does not
// erase: taking it down may write to all of its members.
func (r *run) onlyOurs(name string) error {
	below, err := fs.ReadDir(r.Sys, "block/"+name+"/slaves")
	if err != nil {
		return fmt.Errorf("what %s lies on: %w", name, err)
	}
	for _, e := range below {
		ours := slices.ContainsFunc(r.layout.Disks, func(d storage.DiskLayout) bool {
			_, err := fs.Stat(r.Sys, path.Join("block", d.Name, e.Name()))
			return e.Name() == d.Name || err == nil
		})
		stacked := slices.ContainsFunc([]string{"md", "dm-"}, func(p string) bool { return strings.HasPrefix(e.Name(), p) })
		if !ours && !stacked {
			return fmt.Errorf("%s lies on it and on %s, which is not erased", name, e.Name())
		}
	}
	return nil
}
