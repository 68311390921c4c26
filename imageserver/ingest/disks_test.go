package ingest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
)

// A squashfs means the same as the directory that it was made of, except that it
// keeps no fractions of seconds.
func TestSquashfs(t *testing.T) {
	root := makeTree(t)
	file := filepath.Join(t.TempDir(), "-image.squashfs") // a name like an option
	run(t, "mksquashfs", root, file, "-noappend", "-quiet", "-no-progress", "-comp", "zstd", "-xattrs", "-Xcompression-level", "1")
	want, err := ingest.Directory(context.Background(), root, newSink(), ingest.Options{})
	must(t, err)
	source, err := ingest.ParseSource(file)
	if err != nil || source.Kind != ingest.KindSquashfs {
		t.Fatal(source, err)
	}
	s := newSink()
	got, err := ingest.Squashfs(context.Background(), file, s, ingest.Options{TempDir: t.TempDir()})
	must(t, err)
	s.mustHaveAll(t, got)
	for _, m := range []*image.Manifest{want, got} {
		for i := range m.Entries {
			m.Entries[i].Nanoseconds = 0
			if m.Entries[i].Seconds < 0 || m.Entries[i].Seconds == 1<<32-1 || m.Entries[i].Path == "." {
				m.Entries[i].Seconds = 0 // squashfs has unsigned seconds
			}
		}
		// sqfs2tar makes two links of a symbolic link with two names.
		m.Entries = slices.DeleteFunc(m.Entries, func(e image.Entry) bool { return e.Path == "dangling2" })
	}
	// Squashfs keeps no trusted and POSIX ACL attributes as tar does: compare
	// what both have.
	for i := range want.Entries {
		kept := want.Entries[i].Xattrs[:0:0]
		for _, x := range want.Entries[i].Xattrs {
			if !strings.HasPrefix(x.Name, "system.") {
				kept = append(kept, x)
			}
		}
		want.Entries[i].Xattrs = kept
	}
	if diff := cmp.Diff(want.Entries, got.Entries); diff != "" {
		t.Error(diff)
	}
}

func TestBrokenSquashfs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x")
	must(t, os.WriteFile(file, append([]byte("hsqs"), make([]byte, 4096)...), 0o644))
	if _, err := ingest.Squashfs(context.Background(), file, newSink(), ingest.Options{}); !errors.Is(err, ingest.ErrProgram) || !strings.Contains(err.Error(), "sqfs2tar") {
		t.Error(err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := ingest.Squashfs(context.Background(), file, newSink(), ingest.Options{}); !errors.Is(err, ingest.ErrProgram) || !strings.Contains(err.Error(), "apt-get install") {
		t.Error(err)
	}
}

// makeDisk makes a GPT disk with a root and a separate /boot, and returns its
// path.
func makeDisk(t *testing.T, kind, root, boot string) string {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(disk, nil, 0o644), os.Truncate(disk, map[string]int64{"ext4": 100, "btrfs": 250, "xfs": 370}[kind]<<20))
	run(t, "sgdisk", "-n1:2048:+2M", "-t1:ef02", "-n2:0:+40M", "-n3:0:0", disk)
	const sector = 512
	for _, part := range []struct {
		number, kind, from string
		arguments          []string
	}{
		{"2", "ext4", boot, []string{"mkfs.ext4", "-q", "-L", "BOOT", "-d", boot}},
		{"3", kind, root, nil},
	} {
		var first, last int
		for line := range strings.Lines(string(run(t, "sgdisk", "-i", part.number, disk))) {
			fmt.Sscanf(line, "First sector: %d", &first)
			fmt.Sscanf(line, "Last sector: %d", &last)
		}
		fs := filepath.Join(t.TempDir(), "fs")
		must(t, os.WriteFile(fs, nil, 0o644), os.Truncate(fs, int64(last-first+1)*sector))
		switch {
		case part.arguments != nil:
			run(t, part.arguments[0], append(part.arguments[1:], fs)...)
		case part.kind == "ext4":
			run(t, "mkfs.ext4", "-q", "-d", root, fs)
		case part.kind == "btrfs":
			run(t, "mkfs.btrfs", "-q", "-r", root, fs)
		case part.kind == "xfs":
			run(t, "mkfs.xfs", "-q", fs)
			at := filepath.Join(t.TempDir(), "at")
			must(t, os.Mkdir(at, 0o755))
			run(t, "mount", "-o", "loop", fs, at)
			defer exec.Command("umount", at).Run()
			run(t, "cp", "-a", root+"/.", at)
			run(t, "umount", at)
		}
		run(t, "dd", "if="+fs, "of="+disk, "bs=512", fmt.Sprintf("seek=%d", first), "conv=notrunc,sparse", "status=none")
	}
	return disk
}

// TestDisks reads disk images of each kind by their root partition, with /boot
// from its own.
func TestDisks(t *testing.T) {
	root, boot := t.TempDir(), t.TempDir()
	for path, text := range map[string]string{
		"etc/fstab": "LABEL=BOOT /boot ext4 defaults 0 2\nUUID=1234 /data ext4 defaults 0 2\n/dev/sr0 /home/x iso9660 ro 0 0\n", "etc/os-release": "ID=debian\n",
		"usr/lib/modules/6.1/x": "m", "boot/hidden": "below the mount", "data/x": "x",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o755), os.WriteFile(filepath.Join(root, path), []byte(text), 0o644))
	}
	must(t, os.WriteFile(filepath.Join(boot, "vmlinuz-6.1"), []byte("k"), 0o644))
	for _, kind := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			disk := makeDisk(t, kind, root, boot)
			var before object.Digest
			if kind == "ext4" { // the smallest
				before = object.Of(run(t, "sha256sum", disk))
			}
			qcow2 := filepath.Join(t.TempDir(), "disk.qcow2")
			images := []string{disk}
			if kind == "ext4" {
				run(t, "qemu-img", "convert", "-O", "qcow2", "-c", disk, qcow2)
				images = append(images, qcow2)
			}
			for _, path := range images {
				source, err := ingest.ParseSource(path)
				if err != nil || source.Kind != ingest.KindDisk {
					t.Fatal(source, err)
				}
				options := ingest.Options{TempDir: t.TempDir()}
				s := newSink()
				m, err := ingest.Disk(context.Background(), path, s, options)
				must(t, err)
				s.mustHaveAll(t, m)
				if m.Attributes[image.AttrKernel] != "boot/vmlinuz-6.1" || m.Attributes[image.AttrOSID] != "debian" {
					t.Error(m.Attributes)
				}
				if _, found := m.Lookup("boot/hidden"); found {
					t.Error("/boot of the root was read, not the partition")
				}
				if left, err := os.ReadDir(options.TempDir); err != nil || len(left) > 0 {
					t.Error(left, err)
				}
			}
			if kind == "ext4" && object.Of(run(t, "sha256sum", disk)) != before {
				t.Error("the disk image was written to")
			}
		})
	}
}

func TestHostileDisks(t *testing.T) {
	work := t.TempDir()
	secret := filepath.Join(work, "secret")
	must(t, os.WriteFile(secret, make([]byte, 1<<20), 0o644))
	backed := filepath.Join(work, "backed.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", secret, backed)
	external := filepath.Join(work, "external.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(work, "data")+",data_file_raw=on", external, "1M")
	future := filepath.Join(work, "future.qcow2")
	header := make([]byte, 512)
	copy(header, "QFI\xfb")
	binary.BigEndian.PutUint32(header[4:], 9)
	must(t, os.WriteFile(future, header, 0o644))
	short := filepath.Join(work, "short.qcow2")
	must(t, os.WriteFile(short, []byte("QFI\xfb\x00\x00\x00\x03"), 0o644))
	data := filepath.Join(work, "nothing.raw")
	run(t, "mkfs.ext4", "-q", "-L", "data", data, "8M")
	linked := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(linked, "etc"), 0o755), os.MkdirAll(filepath.Join(linked, "usr"), 0o755),
		os.WriteFile(filepath.Join(linked, "etc/fstab"), []byte("LABEL=elsewhere /boot ext4 defaults 0 0\n"), 0o644), os.Mkdir(filepath.Join(linked, "boot"), 0o755))
	noBoot := filepath.Join(work, "noboot.raw")
	run(t, "mkfs.ext4", "-q", "-d", linked, noBoot, "16M")
	for path, test := range map[string]struct {
		want error
		text string
	}{
		backed:   {ingest.ErrSource, "backing file"},
		external: {ingest.ErrSource, "another file"},
		future:   {ingest.ErrSource, "version 9"},
		short:    {ingest.ErrSource, "version 3"},
		data:     {ingest.ErrDisk, "ext4"},
		noBoot:   {ingest.ErrDisk, "LABEL=elsewhere"},
	} {
		s := newSink()
		if _, err := ingest.Disk(context.Background(), path, s, ingest.Options{TempDir: t.TempDir()}); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: %v, want %q", filepath.Base(path), err, test.text)
		}
		if len(s.given) > 0 {
			t.Errorf("%s: objects were kept", path)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(mounts), work) {
		t.Error("something is still mounted", err)
	}
}

// rpmHeaderBlob is a header as rpm keeps it.
func rpmHeaderBlob(name, version, release, arch string) []byte {
	var index, store []byte
	for i, text := range []string{name, version, release, arch} {
		for _, n := range []uint32{[]uint32{1000, 1001, 1002, 1022}[i], 6, uint32(len(store)), 1} {
			index = binary.BigEndian.AppendUint32(index, n)
		}
		store = append(append(store, text...), 0)
	}
	store = append(store, make([]byte, 9000)...) // longer than a page
	b := binary.BigEndian.AppendUint32(nil, 4)
	b = binary.BigEndian.AppendUint32(b, uint32(len(store)))
	return append(append(b, index...), store...)
}

func rpmDatabase(t testing.TB) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rpmdb.sqlite")
	sql := "CREATE TABLE other(x);CREATE TABLE Packages(hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL);"
	for i := range 300 {
		sql += fmt.Sprintf("INSERT INTO Packages(blob) VALUES(x'%x');", rpmHeaderBlob(fmt.Sprintf("p%03d", i), "1.2", "3.el9", "x86_64"))
	}
	sql += fmt.Sprintf("INSERT INTO Packages(blob) VALUES(x'%x');", rpmHeaderBlob("gpg-pubkey", "1", "1", ""))
	cmd := exec.Command("sqlite3", file)
	cmd.Stdin = strings.NewReader(sql)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sqlite3: %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	must(t, err)
	return data
}

func TestRPM(t *testing.T) {
	db := rpmDatabase(t)
	m, err := fromTar(t, makeTar(t, regular("usr/lib/sysimage/rpm/rpmdb.sqlite", string(db))), ingest.Options{})
	must(t, err)
	if m.Attributes[image.AttrPackageCount] != "300" || m.Attributes[image.AttrPackageDatabase] != "rpm" {
		t.Error(m.Attributes)
	}
	m, err = fromTar(t, makeTar(t, regular("var/lib/rpm/Packages", "Berkeley DB")), ingest.Options{})
	must(t, err)
	if m.Attributes[image.AttrPackageDatabase] != "rpm (not read)" || m.Attributes[image.AttrPackages] != "" {
		t.Error(m.Attributes)
	}
}

func FuzzRPM(f *testing.F) {
	db := rpmDatabase(f)
	f.Add(db[:64<<10])
	f.Add(db[:4096])
	f.Add([]byte("SQLite format 3\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 256<<10 {
			return
		}
		// It must end without a panic; the image is good in any case.
		if _, err := fromTar(t, makeTar(t, regular("var/lib/rpm/rpmdb.sqlite", string(data))), ingest.Options{}); err != nil {
			t.Error(err)
		}
	})
}
