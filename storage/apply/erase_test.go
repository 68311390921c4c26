package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/gpt"
)

// small is a layout of one plain disk.
func small(t *testing.T, erase storage.Erase, firmware storage.Firmware, path string) storage.Layout {
	t.Helper()
	l := resolve(t, storage.Spec{
		Volumes: []storage.VolumeSpec{{MountPoint: "/", MinimumFreeBytes: 16 * storage.MiB}}, ExtraMountPointsBasename: "/firstlight-test-data/",
	}, firmware, path)
	l.Disks[0].Erase = erase
	return l
}

// erasing runs only the erasing and partitioning of the layout's first disk.
func erasing(t *testing.T, l storage.Layout, dev block.Device, s Seams) error {
	t.Helper()
	r := &run{Seams: s, layout: l, options: Options{Progress: func(string, string, string) {}}, slots: make(chan struct{}, 1), applied: &Applied{written: make(map[string]uint64)}}
	return r.partition(t.Context(), l.Disks[0], dev)
}

// noise fills a file with bytes of which none is zero.
func noise(t *testing.T, file string, from, to int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	for at := from; at < to; at += int64(len(b)) {
		_, _ = random.Read(b) // never fails
		for i := range b {
			b[i] |= 1
		}
		if _, err := f.WriteAt(b[:min(int64(len(b)), to-at)], at); err != nil {
			t.Fatal(err)
		}
	}
}

// zeroes counts those in a part of a file.
func zeroes(t *testing.T, file string, from, to int64) int {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b[from:to], []byte{0})
}

// What the words of Erase mean, and no more: with metadata, what was in files
// can still be read; with overwrite, nothing.
func TestErase(t *testing.T) {
	for sector, size := range map[int]int64{512: 144 << 20, 4096: 656 << 20} {
		for _, level := range []storage.Erase{"", storage.EraseMetadata, storage.EraseDiscard, storage.EraseOverwrite} {
			if level == storage.EraseOverwrite && sector == 4096 {
				continue // it takes long and knows no sectors
			}
			t.Run(fmt.Sprintf("%d %s", sector, level), func(t *testing.T) {
				file := create(t, size)
				sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", "-L", "old", file)
				// Outside of all places of signatures: contents of a file.
				const from, to = 100 << 20, 101 << 20
				noise(t, file, from, to)
				device := loop(t, file, sector)
				firmware := storage.BIOS
				if sector == 4096 {
					firmware = storage.UEFI // no BIOS starts from such a disk
				}
				l := small(t, level, firmware, device)
				dev, err := block.Open(device)
				if err != nil {
					t.Fatal(err)
				}
				if err := erasing(t, l, dev, Seams{}); err != nil {
					t.Fatal(err)
				}
				want := to - from
				if level == "" || level == storage.EraseMetadata {
					want = 0
				}
				if n := zeroes(t, file, from, to); n != want {
					t.Errorf("%d bytes of the old file are zero, want %d", n, want)
				}
				if level == storage.EraseOverwrite {
					// But for the tables: 34 or 6 sectors before, 33 or 5 behind.
					head, tail := int64(2*sector+16384), int64(sector+16384)
					if n := zeroes(t, file, head, size-tail); int64(n) != size-tail-head {
						t.Errorf("%d bytes are not zero", size-tail-head-int64(n))
					}
				}
				if out := sh(t, "/usr/sbin/wipefs", "-n", device); strings.Contains(out, "ext4") {
					t.Errorf("wipefs still sees:\n%s", out)
				}
			})
		}
	}
}

// lying is a disk that does not keep what is written to one of its bytes.
type lying struct {
	block.Device
	at int64
}

func (l lying) ReadAt(p []byte, off int64) (int, error) {
	n, err := l.Device.ReadAt(p, off)
	if l.at >= off && l.at < off+int64(n) {
		p[l.at-off] = 7
	}
	return n, err
}

// refusing is a disk without discards.
type refusing struct{ block.Device }

func (refusing) Discard(uint64, uint64) (bool, error) { return false, nil }

// A disk on which something is left, and one that cannot do what it said it can,
// end the installation.
func TestEraseFails(t *testing.T) {
	for _, x := range []struct {
		name  string
		level storage.Erase
		wrap  func(block.Device) block.Device
		s     Seams
		code  string
		says  string
	}{
		{"a byte stays, metadata", storage.EraseMetadata, func(d block.Device) block.Device { return lying{d, 4096} }, Seams{}, storage.CodeNotErased, "byte 4096 was zeroed and reads back as 0x07"},
		{"a byte stays, overwrite", storage.EraseOverwrite, func(d block.Device) block.Device { return lying{d, 120 << 20} }, Seams{}, storage.CodeNotErased, "byte 125829120"},
		{"no discard", storage.EraseDiscard, func(d block.Device) block.Device { return refusing{d} }, Seams{}, storage.CodeErase, "does not take discards"},
		{"the disk refuses", storage.EraseCrypto, func(d block.Device) block.Device { return d }, Seams{
			Sanitize: func(_ context.Context, d storage.DiskLayout) error {
				return storage.Errorf(storage.CodeErase, "%s: frozen", d.CryptoErase)
			},
		}, storage.CodeErase, "nvme-format: frozen"},
	} {
		t.Run(x.name, func(t *testing.T) {
			file := create(t, 144<<20)
			sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", file)
			l := small(t, storage.EraseMetadata, storage.BIOS, file)
			l.Disks[0].Erase, l.Disks[0].CryptoErase = x.level, "nvme-format"
			dev, err := block.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			err = erasing(t, l, x.wrap(dev), x.s)
			var coded *storage.Error
			if !errors.As(err, &coded) || coded.Code() != x.code || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%v, want %s %q", err, x.code, x.says)
			}
		})
	}
}

// Two volumes, one of them encrypted, outlive a second installation: not a byte
// of their partitions changes but by being mounted, and everything else is new.
func TestKept(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			first, second := create(t, 3<<30), create(t, 512<<20)
			devices := []string{loop(t, first, sector), loop(t, second, sector)}
			layout := spec() // "/", /firstlight-test-home and below are encrypted but for the root
			old := resolve(t, layout, storage.UEFI, devices...)
			s, r := seams(t)
			insides := make(map[string]string)
			r.aside = func(mapping string) string {
				r.mu.Lock()
				defer r.mu.Unlock()
				if insides[mapping] == "" {
					insides[mapping] = loop(t, create(t, 64<<20), sector)
				}
				return insides[mapping]
			}
			root := t.TempDir()
			a, err := Run(t.Context(), s, old, Options{Root: root, Keys: made(t, old)})
			if err != nil {
				t.Fatal(err)
			}
			write := func(name, text string) {
				if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			write("firstlight-test-home/letter", "dear")
			write("firstlight-test-data/1/table", "rows")
			write("etc-of-root", "gone")
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			oldKeys := r.keys
			r.keys = make(map[string][]byte)

			labels := map[string]string{}
			for _, v := range old.Mounts() {
				labels[v.MountPoint()] = v.Partition.Label
			}
			layout.Preserve = []string{labels["/firstlight-test-home"], labels["/firstlight-test-data/1"]}
			l := resolve(t, layout, storage.UEFI, devices...)
			ring := made(t, l)
			kept := 0
			for _, v := range l.Encrypted() {
				if !v.Partition.Kept {
					continue
				}
				kept++
				for _, w := range old.Encrypted() {
					if w.Partition.LUKS.UUID == v.Partition.LUKS.UUID {
						key := oldKeys[w.Disk.Node(w.Partition)]
						if err := ring.Adopt(v.Partition.LUKS.Mapping, bytes.Clone(key)); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			if kept != 2 {
				t.Fatalf("%d encrypted volumes are kept", kept)
			}
			// Before anybody works in the new root it has what opens them again,
			// also for who reads the disk as it is after a power cut, without
			// replaying the journal.
			ready := func(mountPoint string) {
				if mountPoint != "/" {
					return
				}
				root := withoutJournal(t, first, l)
				tab, err := os.ReadFile(filepath.Join(root, "etc/crypttab"))
				if err != nil || !bytes.Equal(tab, l.Crypttab()) {
					t.Errorf("crypttab %q, %v", tab, err)
				}
				for _, v := range l.Encrypted() {
					key, err := os.ReadFile(filepath.Join(root, v.Partition.LUKS.KeyFile))
					if there := err == nil && bytes.Equal(key, ring.Slots(v.Partition.LUKS.Mapping)[0].Key); there != v.Partition.Kept {
						t.Errorf("%s, kept %t: its key file is there: %t, %v", v.MountPoint(), v.Partition.Kept, there, err)
					}
				}
			}
			if a, err = Run(t.Context(), s, l, Options{Root: root, Keys: ring, Ready: ready}); err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			for name, want := range map[string]string{"firstlight-test-home/letter": "dear", "firstlight-test-data/1/table": "rows"} {
				if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
			if _, err := os.Stat(filepath.Join(root, "etc-of-root")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the old root is there: %v", err)
			}
			if len(r.keys) != len(l.Encrypted())-2 {
				t.Errorf("%d volumes were encrypted anew, of %d", len(r.keys), len(l.Encrypted()))
			}
			// The key files of the new root open all of them.
			tree, err := os.OpenRoot(root)
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			if err := a.WriteKeys(tree); err != nil {
				t.Fatal(err)
			}
			for _, v := range l.Encrypted() {
				sh(t, "/usr/sbin/cryptsetup", "open", "--test-passphrase", "--key-file", filepath.Join(root, v.Partition.LUKS.KeyFile), v.Disk.Node(v.Partition))
			}
			for _, d := range l.Disks {
				if out := sh(t, "/usr/sbin/sgdisk", "-v", d.Path); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk -v %s:\n%s", d.Path, out)
				}
			}
		})
	}
}

// withoutJournal is the root file system of a layout as it lies on its disk this
// moment, mounted as the search of old disks mounts it.
func withoutJournal(t *testing.T, disk string, l storage.Layout) (mounted string) {
	t.Helper()
	root := l.Mounts()[0]
	sector := int64(root.Disk.SectorSize)
	image := create(t, int64(root.Partition.Bytes))
	sh(t, "/usr/bin/dd", "if="+disk, "of="+image, "bs=1M", "iflag=skip_bytes,count_bytes", "conv=sparse,notrunc", "status=none",
		fmt.Sprint("skip=", int64(root.Partition.FirstSector)*sector), fmt.Sprint("count=", root.Partition.Bytes))
	mounted = t.TempDir()
	sh(t, "/usr/bin/mount", "-o", "ro,noload,loop", image, mounted)
	t.Cleanup(func() { sh(t, "/usr/bin/umount", mounted) })
	return mounted
}

// Erasing around what is kept writes nothing to it, and at no moment is there a
// disk without a table that names it.
func TestKeptIsNeverTouched(t *testing.T) {
	for _, x := range []struct {
		erase  storage.Erase
		sector int
		size   int64
	}{
		{storage.EraseMetadata, 512, 192 << 20}, {storage.EraseOverwrite, 512, 192 << 20}, {storage.EraseDiscard, 512, 192 << 20}, {storage.EraseDiscard, 4096, 704 << 20},
	} {
		t.Run(fmt.Sprintf("%s %d", x.erase, x.sector), func(t *testing.T) {
			firmware := storage.BIOS
			if x.sector == 4096 {
				firmware = storage.UEFI
			}
			file := create(t, x.size)
			device := loop(t, file, x.sector)
			l := small(t, x.erase, firmware, device)
			disk := &l.Disks[0]
			last := len(disk.Partitions) - 1
			disk.Partitions[last].Kept = true
			from, to := int64(disk.Partitions[last].FirstSector)*int64(x.sector), int64(disk.Partitions[last].LastSector+1)*int64(x.sector)
			// The old table names it as well.
			table, err := gpt.Table(*disk)
			if err != nil {
				t.Fatal(err)
			}
			noise(t, device, from-4<<20, to)
			f, err := os.OpenFile(device, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range table {
				if _, err := f.WriteAt(r.Data, int64(r.Offset)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				t.Fatal(err)
			}
			dev, err := block.Open(device)
			if err != nil {
				t.Fatal(err)
			}
			watched := &watching{Device: dev, t: t, from: from, to: to, file: device, partition: fmt.Sprint(last + 1)}
			if err := erasing(t, l, watched, Seams{}); err != nil {
				t.Fatal(err)
			}
			if watched.writes < 3 {
				t.Errorf("only %d writes were seen", watched.writes)
			}
			if n := zeroes(t, file, from, to); n != 0 {
				t.Errorf("%d bytes of what is kept are zero", n)
			}
			if n := zeroes(t, file, from-4<<20, from); x.erase != storage.EraseMetadata && n != 4<<20 {
				t.Errorf("before what is kept %d bytes are not zero", 4<<20-n)
			}
		})
	}
}

// watching looks at every write, and after some of them whether sgdisk still
// finds the partition.
type watching struct {
	block.Device
	t         *testing.T
	from, to  int64
	file      string
	partition string
	writes    int
}

func (w *watching) WriteAt(p []byte, off int64) (int, error) {
	w.writes++
	if off < w.to && off+int64(len(p)) > w.from {
		w.t.Errorf("a write of %d bytes at %d lies in what is kept", len(p), off)
	}
	return w.Device.WriteAt(p, off)
}

func (w *watching) Discard(offset, size uint64) (bool, error) {
	if int64(offset) < w.to && int64(offset+size) > w.from {
		w.t.Errorf("a discard of %d bytes at %d lies in what is kept", size, offset)
	}
	return w.Device.Discard(offset, size)
}

// Uncache is between erasing and the new table.
func (w *watching) Uncache() error {
	if out := sh(w.t, "/usr/sbin/sgdisk", "-i", w.partition, w.file); !strings.Contains(out, "Partition unique GUID") {
		w.t.Errorf("no table names what is kept:\n%s", out)
	}
	return w.Device.Uncache()
}

// The topmost is taken down first; what also lies on another disk, or is none of
// those that can be taken down, is refused.
func TestHolders(t *testing.T) {
	link := func() *fstest.MapFile { return &fstest.MapFile{} }
	for _, x := range []struct {
		name string
		sys  fstest.MapFS
		want []string
		says string
	}{
		{"nothing", fstest.MapFS{"block/vda/size": {}}, nil, ""},
		{"LVM on LUKS on RAID", fstest.MapFS{
			"block/vda/vda2/partition": {}, "block/vda/vda2/holders/md127": link(), "block/vdb/holders/md127": link(),
			"block/md127/slaves/vda2": link(), "block/md127/slaves/vdb": link(), "block/md127/holders/dm-0": link(),
			"block/dm-0/slaves/md127": link(), "block/dm-0/dm/name": {Data: []byte("crypt\n")}, "block/dm-0/holders/dm-1": link(), "block/dm-0/holders/dm-2": link(),
			"block/dm-1/slaves/dm-0": link(), "block/dm-1/dm/name": {Data: []byte("vg-root\n")},
			"block/dm-2/slaves/dm-0": link(), "block/dm-2/dm/name": {Data: []byte("vg-swap\n")},
		}, []string{"dmsetup remove --retry vg-root", "dmsetup remove --retry vg-swap", "dmsetup remove --retry crypt", "mdadm --stop /dev/md127"}, ""},
		{"a RAID with a disk that stays", fstest.MapFS{
			"block/vda/holders/md0": link(), "block/md0/slaves/vda": link(), "block/md0/slaves/sdz": link(), "block/sdz/size": {},
		}, nil, "md0 lies on it and on sdz, which is not erased"},
		{"bcache", fstest.MapFS{"block/vda/holders/bcache0": link(), "block/bcache0/slaves/vda": link()}, nil, "bcache0 lies on it"},
	} {
		t.Run(x.name, func(t *testing.T) {
			r := &run{Seams: Seams{Sys: x.sys}, layout: storage.Layout{Disks: []storage.DiskLayout{{Name: "vda"}, {Name: "vdb"}}}}
			found, err := r.holders(r.layout.Disks[0])
			if x.says != "" {
				if err == nil || !strings.Contains(err.Error(), x.says) {
					t.Errorf("%v, want %q", err, x.says)
				}
				return
			}
			var got []string
			for _, h := range found {
				got = append(got, h.stop.String())
			}
			if err != nil || !slices.Equal(got, x.want) {
				t.Errorf("%v, %q, want %q", err, got, x.want)
			}
		})
	}
}
