package apply

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
)

// wiping is the layout that wipes the disks at these paths.
func wiping(t *testing.T, erase storage.Erase, paths ...string) storage.Layout {
	t.Helper()
	l, err := storage.ResolveWipe(erase, found(t, paths...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Nothing is recognised on a wiped disk, the kernel knows no partition of it, and
// a disk that fails does not keep the others from being wiped.
func TestWipe(t *testing.T) {
	file := create(t, 144<<20)
	sh(t, "/usr/sbin/sgdisk", "-n", "1:2048:+64M", "-c", "1:firstlight:root", file)
	device := loop(t, file, 512)
	sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", "-E", "offset=1048576", file, "60M")
	noise(t, file, 120<<20, 121<<20)
	other := create(t, 64<<20)
	sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", "-L", "other", other)
	committed := 0
	var steps []string
	l := wiping(t, storage.EraseOverwrite, device, other)
	l.Disks[1].Erase, l.Disks[1].CryptoErase = storage.EraseCrypto, "nvme-format"
	err := Wipe(t.Context(), Seams{
		OpenDisk: block.Open,
		Sanitize: func(context.Context, storage.DiskLayout) error {
			return storage.Errorf(storage.CodeErase, "the disk is frozen")
		},
	}, l, Options{
		Commit:   func() error { committed++; return nil },
		Progress: func(disk, _, step string) { steps = append(steps, disk+" "+step) },
	})
	var coded *storage.Error
	if !errors.As(err, &coded) || coded.Code() != storage.CodeErase || !strings.Contains(err.Error(), "frozen") {
		t.Errorf("error %v", err)
	}
	if committed != 1 {
		t.Errorf("committed %d times", committed)
	}
	if n := zeroes(t, file, 0, 144<<20); n != 144<<20 {
		t.Errorf("%d bytes are zero", n)
	}
	if left := found(t, device)[0].Contents; len(left) > 0 {
		t.Errorf("there is still %v", left)
	}
	if !slices.Contains(steps, l.Disks[0].Name+" erased") || slices.Contains(steps, l.Disks[1].Name+" erased") {
		t.Errorf("steps: %q", steps)
	}
	if known, err := filepath.Glob("/sys/block/" + filepath.Base(device) + "/loop*p*"); err != nil || len(known) > 0 {
		t.Errorf("the kernel knows partitions of a wiped disk: %q, %v", known, err)
	}
}

// Nothing is written where a disk is not what the plan was made for, or somebody
// says no.
func TestWipeChecksFirst(t *testing.T) {
	file, changed := create(t, 64<<20), create(t, 64<<20)
	for _, f := range []string{file, changed} {
		sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", "-L", "old", f)
	}
	l := wiping(t, storage.EraseOverwrite, file, changed)
	before := zeroes(t, file, 0, 64<<20)
	no := errors.New("no")
	err := Wipe(t.Context(), Seams{OpenDisk: block.Open}, l, Options{Commit: func() error { return no }})
	if !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
	sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", "-L", "precious", changed)
	err = Wipe(t.Context(), Seams{OpenDisk: block.Open}, l, Options{Commit: func() error { t.Error("committed"); return nil }})
	var coded *storage.Error
	if !errors.As(err, &coded) || coded.Code() != storage.CodeChanged {
		t.Errorf("%v", err)
	}
	l.Disks[0].Partitions = []storage.Partition{{Number: 1}}
	if err := Wipe(t.Context(), Seams{OpenDisk: block.Open}, l, Options{}); err == nil {
		t.Error("a layout with partitions was taken for a wipe")
	}
	if after := zeroes(t, file, 0, 64<<20); after != before {
		t.Errorf("%d bytes are zero, before there were %d", after, before)
	}
}
