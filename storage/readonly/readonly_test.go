package readonly

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/lvm"
	"github.com/firstlight/firstlight/storage/signature"
	"github.com/firstlight/firstlight/storage/tool"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// disk describes an image file as the inventory describes a disk.
func disk(t *testing.T, path string) storage.Disk {
	t.Helper()
	d, err := block.OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	contents, err := signature.Probe("vda", d, d.Size(), d.SectorSize())
	if err != nil {
		t.Fatal(err)
	}
	return storage.Disk{Name: "vda", Path: path, Size: d.Size(), SectorSize: 512, Contents: contents}
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// attached is what the disks hold, and what was said about them.
func attached(t *testing.T, disks ...storage.Disk) (a *Attached, warnings []string) {
	t.Helper()
	a = Attach(t.Context(), tool.Exec{}, disks, Options{
		Dir: t.TempDir(), Warn: func(text string) { warnings = append(warnings, text) },
	})
	t.Cleanup(func() { _ = a.Close() })
	return a, warnings
}

// mounted mounts an image for writing, calls fill, and unmounts it again.
func mounted(t *testing.T, path string, options string, fill func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	run(t, "mount", "-o", "loop"+options, path, dir)
	defer run(t, "umount", dir)
	fill(dir)
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// free checks that nothing holds an image any more: no loop device, no mount.
func free(t *testing.T, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if out := run(t, "losetup", "-j", path); out != "" {
			t.Errorf("held: %s", out)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(t.Name())) {
		t.Errorf("mounted: %s", mounts)
	}
}

// Every file system that this kernel has is read, clean or in the state in which
// a power cut leaves it, and not one byte of the disk changes.
func TestFileSystems(t *testing.T) {
	for _, x := range []struct {
		kind, mkfs string
		options    string // to mount it for writing
	}{
		{"ext4", "mkfs.ext4 -q -F", ""},
		{"ext3", "mkfs.ext3 -q -F", ""},
		{"ext2", "mkfs.ext2 -q -F", ""},
		{"xfs", "mkfs.xfs -q -f", ""},
		{"btrfs", "mkfs.btrfs -q -f", ""},
	} {
		for _, dirty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s-dirty-%t", x.kind, dirty), func(t *testing.T) {
				path := image(t, 320<<20)
				words := append(strings.Fields(x.mkfs), path)
				run(t, words[0], words[1:]...)
				cut := path + "-cut"
				mounted(t, path, x.options, func(dir string) {
					write(t, filepath.Join(dir, "etc/os-release"), "ID=old\n")
					run(t, "fsfreeze", "-f", dir) // now it is in its place, not only in a journal
					run(t, "fsfreeze", "-u", dir)
					for i := range 50 { // these are in the journal only
						write(t, filepath.Join(dir, "etc", strconv.Itoa(i)), "x")
						if i%10 == 0 {
							f, err := os.Open(filepath.Join(dir, "etc", strconv.Itoa(i)))
							if err != nil {
								t.Fatal(err)
							}
							if err := f.Sync(); err != nil {
								t.Fatal(err)
							}
							f.Close()
						}
					}
					if dirty {
						// What is on the disk while it is mounted, as a power cut leaves it.
						run(t, "cp", "--sparse=always", path, cut)
					}
				})
				if dirty {
					path = cut
				}
				before := sum(t, path)
				a, warnings := attached(t, disk(t, path))
				if len(warnings) > 0 || len(a.Trees()) != 1 {
					t.Fatalf("trees %v, warnings %q", a.Trees(), warnings)
				}
				tree := a.Trees()[0]
				if want := "/dev/vda (" + x.kind + ")"; tree.Name != want {
					t.Errorf("name %q, want %q", tree.Name, want)
				}
				if got, err := fs.ReadFile(tree.FS, "etc/os-release"); err != nil || string(got) != "ID=old\n" {
					t.Errorf("%q, %v", got, err)
				}
				if err := a.Close(); err != nil {
					t.Error(err)
				}
				free(t, path)
				if after := sum(t, path); after != before {
					t.Error("the disk was written to")
				}
				if x.kind == "ext4" && dirty != strings.Contains(run(t, "dumpe2fs", "-h", path), "needs_recovery") {
					t.Error("the journal is not in the state that was to be tested")
				}
			})
		}
	}
}

// Whatever writes to the loop device gets an error, and the kernel calls the
// device read-only.
func TestLoopRefusesWrites(t *testing.T) {
	path := image(t, 8<<20)
	before := sum(t, path)
	l, err := newLoop(region{path, 1 << 20, 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if out := run(t, "blockdev", "--getro", "--getsize64", l.node); out != "1\n4194304\n" {
		t.Errorf("read-only and size: %q", out)
	}
	if f, err := os.OpenFile(l.node, os.O_WRONLY, 0); err == nil {
		if _, err := f.Write(bytes.Repeat([]byte("w"), 4096)); err == nil {
			if err := f.Sync(); err == nil {
				t.Error("a write was taken")
			}
		}
		f.Close()
	}
	if err := l.close(); err != nil {
		t.Error(err)
	}
	free(t, path)
	if sum(t, path) != before {
		t.Error("the file was written to")
	}
}

// Partitions lie at their offsets; a disk with a table of which one file system
// is damaged still gives the others.
func TestPartitionsAndDamage(t *testing.T) {
	path := image(t, 192<<20)
	run(t, "sgdisk", "-n1:1M:+64M", "-n2:65M:+64M", "-n3:129M:+32M", path)
	for i, at := range []int64{1 << 20, 65 << 20} {
		small := image(t, 64<<20)
		root := t.TempDir()
		write(t, filepath.Join(root, "file"), fmt.Sprint("partition ", i))
		run(t, "mkfs.ext4", "-q", "-F", "-d", root, small)
		run(t, "dd", "if="+small, "of="+path, "bs=1M", "seek="+fmt.Sprint(at>>20), "conv=notrunc", "status=none")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4), 1<<20+1024+40); err != nil { // s_inodes_per_group
		t.Fatal(err)
	}
	f.Close()
	before := sum(t, path)
	a, warnings := attached(t, disk(t, path))
	if len(warnings) != 1 || !strings.Contains(warnings[0], "/dev/vda1 (ext4) cannot be read") {
		t.Errorf("warnings %q", warnings)
	}
	trees := a.Trees()
	if len(trees) != 1 || trees[0].Name != "/dev/vda2 (ext4)" {
		t.Fatalf("trees %v", trees)
	}
	if got, err := fs.ReadFile(trees[0].FS, "file"); err != nil || string(got) != "partition 1" {
		t.Errorf("%q, %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("the second time: %v", err)
	}
	free(t, path)
	if sum(t, path) != before {
		t.Error("the disk was written to")
	}
}

// Subvolumes of btrfs are seen, and a file system on two devices is one tree.
func TestBtrfs(t *testing.T) {
	one, two := image(t, 200<<20), image(t, 200<<20)
	node := strings.TrimSpace(run(t, "losetup", "-f", "--show", two))
	detach := func() { run(t, "losetup", "-d", node) }
	first := strings.TrimSpace(run(t, "losetup", "-f", "--show", one))
	run(t, "mkfs.btrfs", "-q", "-f", "-d", "raid0", first, node)
	dir := t.TempDir()
	run(t, "mount", "-t", "btrfs", "-o", "device="+node, first, dir)
	run(t, "btrfs", "subvolume", "create", filepath.Join(dir, "@"))
	write(t, filepath.Join(dir, "@/usr/lib/os-release"), strings.Repeat("ID=old\n", 100_000))
	run(t, "btrfs", "subvolume", "set-default", filepath.Join(dir, "@"))
	run(t, "umount", dir)
	run(t, "losetup", "-d", first)
	detach()
	before := sum(t, one) + sum(t, two)

	a, warnings := attached(t, disk(t, one), disk(t, two))
	if len(warnings) > 0 || len(a.Trees()) != 1 {
		t.Fatalf("trees %v, warnings %q", a.Trees(), warnings)
	}
	if got, err := fs.ReadFile(a.Trees()[0].FS, "@/usr/lib/os-release"); err != nil || len(got) != 700_000 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	free(t, one, two)
	if sum(t, one)+sum(t, two) != before {
		t.Error("a disk was written to")
	}
	// With half of it gone there is nothing but a warning.
	a, warnings = attached(t, disk(t, one))
	if len(warnings) == 0 || !strings.Contains(warnings[0], "1 of its 2 devices") {
		t.Errorf("warnings %q", warnings)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	free(t, one)
}

// A volume of LVM that lies in one piece is read in its place; lvm2 itself made
// it, and says where it lies.
func TestLVM(t *testing.T) {
	path := image(t, 256<<20)
	node := strings.TrimSpace(run(t, "losetup", "-f", "--show", path))
	config := "--config=devices{filter=[\"a|" + node + "|\",\"r|.*|\"] use_devicesfile=0 scan=[\"/dev\"]} global{use_lvmlockd=0} backup{backup=0 archive=0}"
	lvm := func(args ...string) string {
		out, err := exec.Command("lvm", append(args, "--driverloaded=n", config)...).Output() // it complains of inherited files
		if err != nil {
			t.Fatalf("lvm %s: %v", args, err)
		}
		return string(out)
	}
	lvm("pvcreate", "-q", node)
	lvm("vgcreate", "-q", "old-vg", node)
	lvm("lvcreate", "-q", "-an", "-Zn", "-Wn", "-L48M", "-nswap", "old-vg")
	lvm("lvcreate", "-q", "-an", "-Zn", "-Wn", "-L128M", "-nroot", "old-vg")
	fields := strings.Fields(lvm("pvs", "--noheadings", "--units=b", "--nosuffix", "-o", "pe_start,vg_extent_size"))
	ranges := strings.TrimSpace(lvm("lvs", "--noheadings", "-o", "seg_pe_ranges", "old-vg/root"))
	run(t, "losetup", "-d", node)
	_, extents, _ := strings.Cut(ranges, ":")
	begin, _, _ := strings.Cut(extents, "-")
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	at := number(fields[0]) + number(begin)*number(fields[1])
	small, root := image(t, 128<<20), t.TempDir()
	write(t, filepath.Join(root, "etc/os-release"), "ID=old\n")
	run(t, "mkfs.ext4", "-q", "-F", "-d", root, small)
	run(t, "dd", "if="+small, "of="+path, "bs=64k", fmt.Sprint("seek=", at), "oflag=seek_bytes", "conv=notrunc", "status=none")
	before := sum(t, path)

	a, warnings := attached(t, disk(t, path))
	if len(warnings) > 0 || len(a.Trees()) != 1 {
		t.Fatalf("trees %v, warnings %q", a.Trees(), warnings)
	}
	tree := a.Trees()[0]
	if want := "/dev/old-vg/root (ext4)"; tree.Name != want {
		t.Errorf("name %q, want %q", tree.Name, want)
	}
	if got, err := fs.ReadFile(tree.FS, "etc/os-release"); err != nil || string(got) != "ID=old\n" {
		t.Errorf("%q, %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	free(t, path)
	if sum(t, path) != before {
		t.Error("the disk was written to")
	}
}

// Volumes in several pieces, in stripes, mirrored and cached become tables; what
// is not known is named.
func TestLVMSegments(t *testing.T) {
	text, err := lvm.Parse(`# made by hand after lvm.conf(5)
vg {
	id = "G" seqno = 7 extent_size = 8 # 4 KiB
	physical_volumes {
		pv0 { id = "A" pe_start = 2048 pe_count = 100 }
		pv1 { id = "B" pe_start = 4096 pe_count = 100 }
		pv2 { id = "C" pe_start = 4096 pe_count = 100 }
	}
	logical_volumes {
		pieces { id = "1" status = ["READ", "VISIBLE"] segment_count = 2
			segment2 { start_extent = 3 extent_count = 4 type = "striped" stripe_count = 2 stripe_size = 128 stripes = ["pv0", 10, "pv1", 20] }
			segment1 { start_extent = 0 extent_count = 3 type = "striped" stripe_count = 1 stripes = [ "pv1", 0 ] }
		}
		mirror { id = "2" status = ["VISIBLE"]
			segment1 { start_extent = 0 extent_count = 2 type = "raid1" raids = ["mirror_rmeta_0", "mirror_rimage_0", "mirror_rmeta_1", "mirror_rimage_1"] }
		}
		mirror_rimage_0 { id = "3" segment1 { start_extent = 0 extent_count = 2 type = "striped" stripes = ["pv2", 0] } }
		mirror_rimage_1 { id = "4" segment1 { start_extent = 0 extent_count = 2 type = "striped" stripes = ["pv0", 1] } }
		thin { id = "5" segment1 { start_extent = 0 extent_count = 2 type = "thin" } }
		outside { id = "6" segment1 { start_extent = 0 extent_count = 2 type = "striped" stripes = ["pv0", 99] } }
		around { id = "7" segment1 { start_extent = 0 extent_count = 2 type = "cache" origin = "around" } }
		gap { id = "8" segment1 { start_extent = 1 extent_count = 2 type = "striped" stripes = ["pv0", 0] } }
	}
}
creation_host = "old \"name\""
`)
	if err != nil {
		t.Fatal(err)
	}
	if got := text.Text("creation_host"); got != `old "name"` {
		t.Errorf("host %q", got)
	}
	present := map[string]place{
		"A": {region: region{"/a", 1 << 20, 2048*512 + 100*4096}},
		"B": {region: region{"/b", 0, 4096*512 + 100*4096}},
	}
	g, err := newGroup(text, present)
	if err != nil {
		t.Fatal(err)
	}
	got, err := g.segments("pieces", 0)
	want := []segment{
		{size: 3 * 4096, devices: []region{{"/b", 4096 * 512, 3 * 4096}}},
		{size: 4 * 4096, stripe: 128 * 512, devices: []region{{"/a", 1<<20 + 2048*512 + 10*4096, 2 * 4096}, {"/b", 4096*512 + 20*4096, 2 * 4096}}},
	}
	if err != nil || !slices.EqualFunc(got, want, func(x, y segment) bool { return fmt.Sprint(x) == fmt.Sprint(y) }) {
		t.Errorf("pieces: %v, %v", got, err)
	}
	if got, err := g.segments("mirror", 0); err != nil || got[0].devices[0].path != "/a" {
		t.Errorf("the leg that is there: %v, %v", got, err)
	}
	if _, err := g.segments("mirror_rimage_0", 0); !errors.Is(err, errAbsent) {
		t.Errorf("the leg that is not there: %v", err)
	}
	for _, name := range []string{"thin", "outside", "around", "gap", "none"} {
		if got, err := g.segments(name, 0); err == nil || errors.Is(err, errAbsent) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// A mirror is read without a RAID driver, from its newest member, wherever the
// super block stands.
func TestMirror(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "etc/os-release"), "ID=old\n")
	fs4 := image(t, 64<<20)
	run(t, "mkfs.ext4", "-q", "-F", "-d", root, fs4)
	data, err := os.ReadFile(fs4)
	if err != nil {
		t.Fatal(err)
	}
	super := func(place, dataOffset, events uint64, role uint16) string {
		b := make([]byte, 4096)
		le := binary.LittleEndian
		le.PutUint32(b, mdMagic)
		le.PutUint32(b[4:], 1)
		copy(b[16:], "sixteen bytes id")
		le.PutUint32(b[72:], 1) // level
		le.PutUint64(b[80:], 64<<20/512)
		le.PutUint32(b[92:], 2)
		le.PutUint64(b[128:], dataOffset/512)
		le.PutUint64(b[200:], events)
		le.PutUint16(b[256:], role)
		path := image(t, 80<<20)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for at, b := range map[uint64][]byte{dataOffset: data, place: b} {
			if _, err := f.WriteAt(b, int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	for name, x := range map[string][2]uint64{"1.0": {80<<20 - 8192, 0}, "1.1": {0, 1 << 20}, "1.2": {4096, 2 << 20}} {
		older, newer := super(x[0], x[1], 5, 0), super(x[0], x[1], 6, 1)
		before := sum(t, older) + sum(t, newer)
		second := disk(t, newer)
		second.Name = "vdb"
		for i := range second.Contents {
			second.Contents[i].Where = "vdb"
		}
		a, warnings := attached(t, disk(t, older), second)
		if len(warnings) > 0 || len(a.Trees()) != 1 || a.Trees()[0].Name != "RAID 1 on /dev/vdb (ext4)" {
			t.Errorf("%s: trees %v, warnings %q", name, a.Trees(), warnings)
			continue
		}
		if got, err := fs.ReadFile(a.Trees()[0].FS, "etc/os-release"); err != nil || string(got) != "ID=old\n" {
			t.Errorf("%q, %v", got, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		free(t, older, newer)
		if sum(t, older)+sum(t, newer) != before {
			t.Error("a disk was written to")
		}
	}
}

// Links lead nowhere, and nothing is waited for.
func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a/file"), "x")
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "a/link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "a/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := directory(dir)
	for _, name := range []string{"a/link", "a/fifo", "../etc/passwd", "/etc/passwd", "none"} {
		if f, err := d.Open(name); err == nil {
			f.Close()
			t.Errorf("%s was opened", name)
		}
	}
	var names []string
	err := fs.WalkDir(d, ".", func(name string, _ fs.DirEntry, err error) error {
		names = append(names, name)
		return err
	})
	if got := strings.Join(names, " "); err != nil || got != ". a a/fifo a/file a/link" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestParseCrypttab(t *testing.T) {
	got := parseCrypttab([]byte(`# <target> <source> <key file> <options>
home UUID=0A-1b /etc/keys/home.key luks
log /dev/disk/by-uuid/22 /etc/keys/my\040log luks,keyfile-size=64,keyfile-offset=512
data /dev/vda5 /../keys/data luks,discard
root UUID=33 none luks
swap /dev/vda6 /dev/urandom swap
swap2 /dev/vda7 /etc/keys/swap swap
broken
`))
	want := []entry{
		{"0a-1b", "etc/keys/home.key", 0, mostKeyBytes},
		{"22", "etc/keys/my log", 512, 64},
		{"", "keys/data", 0, mostKeyBytes},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestReadKeys(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "etc/crypttab"), "a UUID=1 /etc/keys/a\nb UUID=2 /etc/keys/b luks,keyfile-offset=2,keyfile-size=3\nc UUID=3 /etc/keys/out\nd UUID=4 /etc/keys/fifo\ne UUID=5 /etc/none\n")
	write(t, filepath.Join(dir, "@root/etc/crypttab"), "f UUID=6 /key\n")
	write(t, filepath.Join(dir, "@root/key"), "of a subvolume")
	write(t, filepath.Join(dir, "etc/keys/a"), "secret")
	write(t, filepath.Join(dir, "etc/keys/b"), "0123456")
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "etc/keys/out")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "etc/keys/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := readKeys(dir)
	if err == nil || !strings.Contains(err.Error(), "out") || !strings.Contains(err.Error(), "fifo") {
		t.Errorf("%v", err)
	}
	var got []string
	for _, k := range keys {
		got = append(got, k.uuid+":"+string(k.bytes))
	}
	if s := strings.Join(got, " "); s != "1:secret 2:234 6:of a subvolume" {
		t.Errorf("%q", s)
	}
}

// One key file that cannot be read costs none of the others: a volume that is to
// be kept may depend on them.
func TestKeysBesideUnreadable(t *testing.T) {
	path := image(t, 32<<20)
	run(t, "mkfs.ext4", "-q", "-F", path)
	mounted(t, path, "", func(dir string) {
		write(t, filepath.Join(dir, "etc/crypttab"), "a UUID=1 /etc/keys/a\nb UUID=2 /etc/keys\n")
		write(t, filepath.Join(dir, "etc/keys/a"), "secret")
	})
	d := disk(t, path)
	var warned string
	a := &Attached{
		options: Options{Dir: t.TempDir(), Step: 10 * time.Second, Warn: func(text string) { warned = text }},
		seen:    map[string]bool{}, loops: map[string]*loop{},
	}
	a.add(d.Path, 0, "/dev/", d.Contents)
	for _, p := range a.simple {
		a.mountSimple(t.Context(), p)
	}
	if len(a.keys) != 1 || string(a.keys[0].bytes) != "secret" || !strings.Contains(warned, "etc/keys is no regular file") {
		t.Errorf("%d keys, warned %q", len(a.keys), warned)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	free(t, path)
}

// recorder is a runner that keeps what it was asked for; cryptsetup knows one
// key.
type recorder struct {
	right string
	runs  []string
}

func (r *recorder) Run(_ context.Context, c tool.Cmd) (tool.Output, error) {
	r.runs = append(r.runs, c.String()+" < "+string(c.Stdin))
	if c.Name == "cryptsetup" && c.Args[0] == "open" && string(c.Stdin) != r.right {
		return tool.Output{}, &tool.ExitError{Command: c.String(), Status: 2}
	}
	return tool.Output{}, nil
}

// The key of the volume's own UUID comes first, a few others after it, on
// standard input; a wrong one is no catastrophe.
func TestUnlockTriesKeys(t *testing.T) {
	path := image(t, 32<<20)
	run(t, "sh", "-c", "printf k | cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --uuid 11111111-2222-3333-4444-555555555555 --key-file=- "+path)
	d := disk(t, path)
	runner := &recorder{right: "right"}
	a := &Attached{options: Options{Step: time.Second}, runner: runner, seen: map[string]bool{}, loops: map[string]*loop{}}
	a.add(d.Path, 0, "/dev/", d.Contents)
	if len(a.luks) != 1 {
		t.Fatalf("%+v", a)
	}
	if a.decrypt(t.Context()) || len(runner.runs) > 0 || len(a.luks) != 1 {
		t.Errorf("without a key: %q", runner.runs)
	}
	a.keys = []key{{"", []byte("guess")}, {"other", []byte("not for it")}, {"11111111-2222-3333-4444-555555555555", []byte("wrong")}}
	var warned string
	a.options.Warn = func(text string) { warned = text }
	if a.decrypt(t.Context()) || !strings.Contains(warned, "/dev/vda (luks) cannot be read") || strings.Contains(warned, "guess") {
		t.Errorf("with wrong keys: %q", warned)
	}
	if len(runner.runs) != 2 || !strings.HasSuffix(runner.runs[0], "< wrong") || !strings.HasSuffix(runner.runs[1], "< guess") || !strings.Contains(runner.runs[0], "--readonly") {
		t.Errorf("%q", runner.runs)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	free(t, path)
}

// What hangs is left behind and taken down when it comes back after all.
func TestWithin(t *testing.T) {
	release := make(chan struct{})
	late := make(chan struct{})
	err := within(t.Context(), 10*time.Millisecond, func() error { <-release; return nil }, func() { close(late) })
	if err == nil {
		t.Error("waited for ever")
	}
	close(release)
	select {
	case <-late:
	case <-time.After(5 * time.Second):
		t.Error("not taken down")
	}
	var calls atomic.Int32
	if err := within(t.Context(), time.Minute, func() error { return nil }, func() { calls.Add(1) }); err != nil || calls.Load() != 0 {
		t.Errorf("%v, %d", err, calls.Load())
	}
}

// Whatever bytes an old disk has where LVM's text is: an error, no panic.
func FuzzLVM(f *testing.F) {
	f.Add("vg { id = \"G\" seqno = 1 extent_size = 8 physical_volumes { p { id = \"A\" pe_start = 1 } } logical_volumes { l { status = [\"VISIBLE\"] segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripes = [\"p\", 0] } } } }")
	f.Add("a { b = [1, \"c\", d] # e\n}")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := lvm.Parse(text)
		if err != nil {
			return
		}
		g, err := newGroup(parsed, map[string]place{"A": {region: region{"/a", 0, 1 << 40}}})
		if err != nil {
			return
		}
		for name := range g.volumes {
			segments, err := g.segments(name, 0)
			for _, s := range segments {
				for _, d := range s.devices {
					if err == nil && d.offset+d.size > 1<<40 {
						t.Errorf("%s: %+v lies outside", name, s)
					}
				}
			}
		}
	})
}
