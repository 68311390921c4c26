// Package probe takes a machine's inventory: what package inventory reads in
// /sys, and what must be asked of the kernel or read from the devices: memory,
// links, what lies on each disk, the TPM.
//
// Disks are opened read-only and nothing is ever written to them.
package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/link"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/sanitize"
	"github.com/firstlight/firstlight/storage/signature"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// Seams are where the machine is looked at.
type Seams struct {
	Sys  fs.FS  // os.DirFS("/sys")
	Proc fs.FS  // os.DirFS("/proc")
	Dev  string // the directory of device nodes, "/dev"
}

// Unreadable is the kind of content of a disk that could not be read: what is on
// it is not known, so it counts as someone else's.
const Unreadable = "unreadable"

// How long a device may take to answer. A dying disk can hold a read for ever,
// and no signal ends that: the machine must not hang here because of it.
const (
	diskTimeout = 60 * time.Second
	tpmTimeout  = 15 * time.Second
)

// Run takes the inventory. What cannot be found out becomes a warning in the
// document; an error means that there is no document.
func Run(ctx context.Context, s Seams, seed inventory.Seed) (inventory.Document, error) {
	d, err := inventory.Read(s.Sys)
	if err != nil {
		return inventory.Document{}, err
	}
	warn := func(format string, args ...any) {
		d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
	}
	d.Seed = seed
	d.Arch = runtime.GOARCH
	if d.MemoryBytes, d.MemoryAvailableBytes, err = memory(s.Proc); err != nil {
		return inventory.Document{}, err
	}
	if d.CPUs, err = processors(s.Proc); err != nil {
		warn("%v", err)
	}
	if nics, err := link.List(s.Sys); err != nil {
		warn("%v; what /sys says of the interfaces is used", err)
	} else {
		slices.SortFunc(nics, func(a, b netconfig.NIC) int { return cmp.Compare(a.Name, b.Name) })
		d.NICs = nics
	}
	for _, warning := range contents(ctx, s.Dev, d.Disks, diskTimeout) {
		warn("%s", warning)
	}
	if mounted, err := mountedDevices(s.Proc); err != nil {
		warn("%v: a disk that this system runs from is not recognised", err)
	} else {
		d.MarkBootMedium(s.Sys, mounted)
	}
	if d.TPM != nil && d.TPM.Version == 2 {
		if err := askTPM(ctx, filepath.Join(s.Dev, filepath.Base(tpm2.Device)), d.TPM); err != nil {
			warn("the TPM: %v", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return inventory.Document{}, err
	}
	return d, nil
}

// memory reads MemTotal and MemAvailable of proc_meminfo(5), in bytes.
func memory(proc fs.FS) (total, available uint64, err error) {
	data, err := fs.ReadFile(proc, "meminfo")
	if err != nil {
		return 0, 0, fmt.Errorf("finding out how much memory there is: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseUint(fields[1], 10, 54)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			total = kib << 10
		case "MemAvailable:":
			available = kib << 10
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("finding out how much memory there is: meminfo has no MemTotal")
	}
	return total, available, nil
}

// processors counts the lines of proc_stat(5) that begin with cpu and a number.
func processors(proc fs.FS) (int, error) {
	data, err := fs.ReadFile(proc, "stat")
	if err != nil {
		return 0, fmt.Errorf("counting processors: %w", err)
	}
	n := 0
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), "cpu"); ok && rest != "" && '0' <= rest[0] && rest[0] <= '9' {
			n++
		}
	}
	return n, nil
}

// mountedDevices are the devices of which something is mounted, by number or
// node, as proc_pid_mountinfo(5) lists them. There are none to speak of on a
// system that does not run from memory: it is no installer, and looks at its own
// disks to see what one would do.
func mountedDevices(proc fs.FS) (devices []string, err error) {
	data, err := fs.ReadFile(proc, "self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("finding out what is mounted: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, source := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(source) < 2 {
			continue
		}
		number, point := fields[2], fields[4]
		if memory := []string{"rootfs", "tmpfs", "ramfs"}; point == "/" && !slices.Contains(memory, source[0]) {
			return nil, nil
		}
		switch {
		case !strings.HasPrefix(number, "0:"):
			devices = append(devices, number)
		case strings.HasPrefix(source[1], "/dev/"): // btrfs has a number of its own
			devices = append(devices, source[1])
		}
	}
	return devices, nil
}

// contents fills in what lies on each disk, all disks at once, and returns
// warnings about those that cannot be read.
func contents(ctx context.Context, dev string, disks []storage.Disk, limit time.Duration) []string {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	type answer struct {
		disk          int
		found         []storage.Content
		means, reason string // of erasing by its own means
		err           error
	}
	// With room for all, a read that ends after the time limit blocks nobody.
	answers := make(chan answer, len(disks))
	waiting := make(map[int]bool)
	for i, d := range disks {
		if d.Size == 0 || strings.HasPrefix(d.Name, "fd") {
			continue // an empty card reader; a floppy drive that would search for its disk
		}
		waiting[i] = true
		go func() {
			a := answer{disk: i}
			node := filepath.Join(dev, strings.TrimPrefix(d.Path, "/dev/"))
			if a.found, a.err = look(d.Name, node); a.err == nil && d.Physical() {
				a.means, a.reason = sanitize.Ask(node)
			}
			answers <- a
		}()
	}
	failed := make(map[int]error)
	for len(waiting) > 0 {
		select {
		case a := <-answers:
			delete(waiting, a.disk)
			d := &disks[a.disk]
			d.Contents, d.CryptoErase, d.NoCryptoErase = a.found, a.means, a.reason
			if a.err != nil {
				failed[a.disk] = a.err
			}
		case <-ctx.Done():
			for i := range waiting {
				failed[i] = fmt.Errorf("reading what lies on %s: no answer: %w", disks[i].Name, ctx.Err())
			}
			clear(waiting)
		}
	}
	var warnings []string
	for i := range disks {
		if err := failed[i]; err != nil {
			warnings = append(warnings, err.Error())
			disks[i].Contents = append(disks[i].Contents, storage.Content{Where: disks[i].Name, Kind: Unreadable, Size: disks[i].Size})
		}
	}
	return warnings
}

func look(name, node string) ([]storage.Content, error) {
	disk, err := block.OpenReadOnly(node)
	if errors.Is(err, unix.ENOMEDIUM) {
		return nil, nil // a CD drive without a CD
	}
	if err != nil {
		return nil, err
	}
	found, err := signature.Probe(name, disk, disk.Size(), disk.SectorSize())
	if closing := disk.Close(); err == nil {
		err = closing
	}
	return found, err
}

// EndorsementKey is which TPM the machine has, as it stands in the inventory;
// empty where it has none that answers.
func EndorsementKey(ctx context.Context, dev string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tpmTimeout)
	defer cancel()
	t, err := tpm2.Open(filepath.Join(dev, filepath.Base(tpm2.Device)))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	key, err := t.EndorsementKey(ctx)
	return key, errors.Join(err, t.Close())
}

// askTPM asks the TPM who made it and how the machine was started.
func askTPM(ctx context.Context, node string, found *inventory.TPM) (err error) {
	ctx, cancel := context.WithTimeout(ctx, tpmTimeout)
	defer cancel()
	t, err := tpm2.Open(node)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	return readTPM(ctx, t, found)
}

func readTPM(ctx context.Context, t *tpm2.TPM, found *inventory.TPM) (err error) {
	if found.Manufacturer, err = t.Manufacturer(ctx); err != nil {
		return err
	}
	if found.EndorsementKey, err = t.EndorsementKey(ctx); err != nil {
		return err
	}
	values, err := t.Values(ctx)
	if err != nil {
		return err
	}
	for _, value := range values {
		found.PCRs = append(found.PCRs, hex.EncodeToString(value[:]))
	}
	return nil
}
