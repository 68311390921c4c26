package unpack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/unpack"
)

// memory is an object.Getter over a map, verifying as the contract says.
type memory map[object.Digest][]byte

func (m memory) add(b []byte) object.Digest {
	d := object.Of(b)
	m[d] = b
	return d
}

func (m memory) Open(_ context.Context, d object.Digest) (io.ReadCloser, error) {
	b, ok := m[d]
	if !ok {
		return nil, fmt.Errorf("%s: %w", d, object.ErrNotFound)
	}
	return io.NopCloser(object.VerifyReader(bytes.NewReader(b), d, uint64(len(b)))), nil
}

// tree is a manifest with everything that an inode can be.
func tree(store memory) *image.Manifest {
	random := make([]byte, 3<<20+17)
	for i, r := 0, rand.New(rand.NewPCG(1, 2)); i < len(random); i++ {
		random[i] = byte(r.Uint32())
	}
	sparse := make([]byte, 8<<20)
	copy(sparse[5<<20:], "in the middle")
	file := func(path string, mode uint32, content []byte) image.Entry {
		e := image.Entry{Path: path, Mode: mode, Seconds: 1_600_000_000, Nanoseconds: 123_456_789, Size: uint64(len(content))}
		if len(content) > 0 {
			e.Digest = store.add(content)
		}
		return e
	}
	dir := func(path string, mode uint32) image.Entry {
		return image.Entry{Path: path, Type: image.Dir, Mode: mode, Seconds: 1_500_000_000, Nanoseconds: 1}
	}
	with := func(e image.Entry, edit func(*image.Entry)) image.Entry { edit(&e); return e }
	entries := []image.Entry{
		dir(".", 0o755),
		dir("bin", 0o755),
		with(file("bin/ping", 0o755, []byte("ping")), func(e *image.Entry) {
			e.Xattrs = []image.Xattr{{Name: "security.capability", Value: capNetRaw}}
		}),
		file("bin/sudo", 0o4755, []byte("sudo")),
		with(file("bin/wall", 0o2755, []byte("wall")), func(e *image.Entry) { e.GID = 5 }),
		with(dir("dev", 0o755), func(e *image.Entry) { e.UID, e.GID = 1, 2 }),
		{Path: "dev/null", Type: image.CharDevice, Mode: 0o666, Major: 1, Minor: 3, Seconds: 7},
		{Path: "dev/vda", Type: image.BlockDevice, Mode: 0o660, GID: 6, Major: 254, Minor: 300, Seconds: -7, Nanoseconds: 5},
		{Path: "dev/fifo", Type: image.FIFO, Mode: 0o600, UID: 65534, Seconds: 8},
		{Path: "dev/socket", Type: image.Socket, Mode: 0o777, Seconds: 9},
		file("empty", 0o600, nil),
		// A default ACL must not rub off on what is written below it.
		with(dir("home", 0o755), func(e *image.Entry) {
			e.Xattrs = []image.Xattr{{Name: "system.posix_acl_default", Value: acl(7, 5, 5, 5)}}
		}),
		with(file("home/acl", 0o640, []byte("acl")), func(e *image.Entry) {
			e.Xattrs = []image.Xattr{{Name: "system.posix_acl_access", Value: acl(6, 4, 4, 0)}, {Name: "user.mime_type", Value: []byte("text/plain")}}
		}),
		file("name with \n newline and \xff byte", 0o444, []byte("raw name")),
		file("random", 0o400, random),
		with(file("selinux", 0o644, []byte("label")), func(e *image.Entry) {
			e.UID, e.GID = 3_000_000_000, 4_000_000_000 // more than 31 bits
			e.Xattrs = []image.Xattr{{Name: "security.selinux", Value: []byte("system_u:object_r:etc_t:s0\x00")}}
		}),
		file("sparse", 0o600, sparse),
		dir("tmp", 0o1777),
		dir("var", 0o755),
		dir("var/lib", 0o555),
		{Path: "var/lib/again", Type: image.Hardlink, Target: "random"},
		{Path: "var/lib/link", Type: image.Symlink, Target: "../../does/not/exist", UID: 3, GID: 4, Seconds: 11, Nanoseconds: 12},
		dir("var/log", 0o2755),
		file("var/log/messages", 0o640, []byte("log")),
		{Path: "var/log/random", Type: image.Hardlink, Target: "random"},
		{Path: "var/log/random2", Type: image.Hardlink, Target: "random"},
		{Path: "var/run", Type: image.Symlink, Target: "/run", Seconds: 13},
	}
	for i := range 300 {
		entries = append(entries, file(fmt.Sprintf("var/lib/many-%03d", i), 0o644, []byte(fmt.Sprint("content ", i))))
	}
	slices.SortFunc(entries, func(a, b image.Entry) int {
		switch {
		case a.Path == b.Path:
			return 0
		case a.Path == ".":
			return -1
		case b.Path == ".":
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return &image.Manifest{Entries: entries}
}

// capNetRaw is the value of security.capability for cap_net_raw=ep
// (vfs_cap_data of revision 2, linux/capability.h).
var capNetRaw = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// acl is the kernel's form of an ACL (linux/posix_acl_xattr.h) for the owner,
// the user 1000 and the owning group, the mask, and others.
func acl(owner, user, mask, other byte) []byte {
	const anyone = "\xff\xff\xff\xff"
	entry := func(tag, permissions byte, id string) string { return string([]byte{tag, 0, permissions, 0}) + id }
	return []byte("\x02\x00\x00\x00" + entry(1, owner, anyone) + entry(2, user, "\xe8\x03\x00\x00") +
		entry(4, user, anyone) + entry(16, mask, anyone) + entry(32, other, anyone))
}

// read is what is really there below dir, in the form of a manifest.
func read(t *testing.T, dir string) []image.Entry {
	t.Helper()
	var entries []image.Entry
	first := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		e := image.Entry{Path: rel, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Seconds: st.Mtim.Sec, Nanoseconds: uint32(st.Mtim.Nsec)}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if earlier, ok := first[st.Ino]; ok {
				entries = append(entries, image.Entry{Path: rel, Type: image.Hardlink, Target: earlier})
				return nil
			}
			first[st.Ino] = rel
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			e.Type = image.Dir
		case unix.S_IFLNK:
			e.Type, e.Mode = image.Symlink, 0
			if e.Target, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			e.Type, e.Major, e.Minor = image.CharDevice, unix.Major(st.Rdev), unix.Minor(st.Rdev)
			if st.Mode&unix.S_IFMT == unix.S_IFBLK {
				e.Type = image.BlockDevice
			}
		case unix.S_IFIFO:
			e.Type = image.FIFO
		case unix.S_IFSOCK:
			e.Type = image.Socket
		default:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if e.Size = uint64(len(data)); e.Size > 0 {
				e.Digest = object.Of(data)
			}
		}
		names := make([]byte, 4096)
		n, err := unix.Llistxattr(p, names)
		if err != nil {
			return err
		}
		for name := range strings.SplitSeq(string(names[:n]), "\x00") {
			if name == "" {
				continue
			}
			value := make([]byte, 4096)
			n, err := unix.Lgetxattr(p, name, value)
			if err != nil {
				return err
			}
			e.Xattrs = append(e.Xattrs, image.Xattr{Name: name, Value: value[:n]})
		}
		slices.SortFunc(e.Xattrs, func(a, b image.Xattr) int { return strings.Compare(a.Name, b.Name) })
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(entries, func(a, b image.Entry) int {
		if a.Path == "." {
			return -1
		}
		if b.Path == "." {
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return entries
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("owners and devices can only be made by root: run this test as root")
	}
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// withoutMode is entries as they can be read back: a symbolic link's mode
// says nothing.
func withoutMode(entries []image.Entry) []image.Entry {
	entries = slices.Clone(entries)
	for i := range entries {
		if entries[i].Type == image.Symlink {
			entries[i].Mode = 0
		}
	}
	return entries
}

func TestRunWritesEverythingExactly(t *testing.T) { bothWays(t, runWritesEverythingExactly) }

func runWritesEverythingExactly(t *testing.T, run runner) {
	needRoot(t)
	store, dir := memory{}, t.TempDir()
	m := tree(store)
	syscall.Umask(0o077) // modes must not depend on it
	defer syscall.Umask(0o022)
	var done, total uint64
	err := run(t.Context(), store, openRoot(t, dir), m, unpack.Options{Report: func(d, of uint64) { done, total = d, of }})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(withoutMode(m.Entries), read(t, dir)); diff != "" {
		t.Error(diff)
	}
	if done != total || total < 11<<20 {
		t.Errorf("reported %d of %d bytes", done, total)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "sparse"), &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > 256<<10 {
		t.Errorf("8 MiB of zeros take %d bytes", used)
	}
	// Another program's opinion of the capability.
	if getcap, err := exec.LookPath("getcap"); err == nil {
		out, err := exec.Command(getcap, filepath.Join(dir, "bin/ping")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "cap_net_raw=ep") {
			t.Errorf("getcap: %v, %s", err, out)
		}
	}

	// Doing it again over what is there changes nothing.
	if err := os.Symlink("/", filepath.Join(dir, "var/lib/evil")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "home")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), filepath.Join(dir, "home")); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), store, openRoot(t, dir), m, unpack.Options{}); err != nil {
		t.Fatal(err)
	}
	got := slices.DeleteFunc(read(t, dir), func(e image.Entry) bool { return e.Path == "var/lib/evil" })
	if diff := cmp.Diff(withoutMode(m.Entries), got); diff != "" {
		t.Error(diff)
	}
}

// A real tree, made by other programs, comes out as rsync sees it.
func TestRunCopiesARealTree(t *testing.T) {
	needRoot(t)
	source, target := "/usr/share/doc", t.TempDir()
	if _, err := os.Stat(source); err != nil {
		source = "/etc"
	}
	store := memory{}
	entries := read(t, source)
	for _, e := range entries {
		if e.Type == image.File && e.Size > 0 {
			data, err := os.ReadFile(filepath.Join(source, e.Path))
			if err != nil {
				t.Fatal(err)
			}
			store.add(data)
		}
	}
	if err := unpack.Run(t.Context(), store, openRoot(t, target), &image.Manifest{Entries: entries}, unpack.Options{}); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("diff", "-r", "--no-dereference", source, target).CombinedOutput()
	if err != nil {
		t.Errorf("diff: %v\n%.2000s", err, out)
	}
	list := func(dir string) string {
		out, err := exec.Command("find", dir, "-printf", `%P %y %m %U %G %s %T@ %l\n`).Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(out), "\n")
		for i, l := range lines { // a directory's size is the file-system's business
			if f := strings.Split(l, " "); len(f) > 5 && f[1] == "d" {
				f[5] = "-"
				lines[i] = strings.Join(f, " ")
			}
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n")
	}
	if diff := cmp.Diff(list(source), list(target)); diff != "" {
		t.Error(diff)
	}
}

// An entry below a mount point waits for that volume, and nothing else does.
func TestRunWaitsForVolumes(t *testing.T) { bothWays(t, runWaitsForVolumes) }

func runWaitsForVolumes(t *testing.T, run runner) {
	needRoot(t)
	store, dir := memory{}, t.TempDir()
	m := tree(store)
	log := filepath.Join(dir, "var/log")
	mounted := make(chan struct{})
	var once sync.Once
	o := unpack.Options{
		Volumes: []unpack.Volume{{MountPoint: "/"}, {MountPoint: "/data/0"}, {MountPoint: "/var/log", KeepOwner: true}},
		Wait: func(ctx context.Context, mountPoint string) error {
			if mountPoint != "/var/log" {
				return nil
			}
			select {
			case <-mounted:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		Report: func(done, total uint64) {
			if done < total-2*(3<<20+17)-3-3 { // all but what is on the volume, and random, which is on both
				return
			}
			once.Do(func() {
				if err := os.MkdirAll(log, 0o700); err != nil {
					t.Error(err)
				}
				if err := unix.Mount("tmpfs", log, "tmpfs", 0, "uid=77,mode=700"); err != nil {
					t.Error(err)
				}
				close(mounted)
			})
		},
	}
	t.Cleanup(func() { unix.Unmount(log, unix.MNT_DETACH) })
	if err := run(t.Context(), store, openRoot(t, dir), m, o); err != nil {
		t.Fatal(err)
	}
	// A hard link cannot cross to the volume: there the file is a second
	// one, and its two names there are one file.
	want := withoutMode(m.Entries)
	for i, e := range want {
		switch e.Path {
		case "var/log":
			want[i].UID = 77
		case "var/log/random":
			random := want[slices.IndexFunc(want, func(e image.Entry) bool { return e.Path == "random" })]
			want[i] = random
			want[i].Path = "var/log/random"
		case "var/log/random2":
			want[i].Target = "var/log/random"
		}
	}
	if diff := cmp.Diff(want, read(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestRunEndsWhenAVolumeNeverComes(t *testing.T) { bothWays(t, runEndsWhenAVolumeNeverComes) }

func runEndsWhenAVolumeNeverComes(t *testing.T, run runner) {
	needRoot(t)
	store := memory{}
	m := tree(store)
	broken := errors.New("no such disk")
	err := run(t.Context(), store, openRoot(t, t.TempDir()), m, unpack.Options{
		Volumes: []unpack.Volume{{MountPoint: "/home"}},
		Wait:    func(context.Context, string) error { return broken },
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

// A tree of tools may lie in memory, where there are no extended attributes.
func TestRunIntoMemory(t *testing.T) { bothWays(t, runIntoMemory) }

func runIntoMemory(t *testing.T, run runner) {
	needRoot(t)
	store, dir := memory{}, t.TempDir()
	if err := unix.Mount("ramfs", dir, "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	m := tree(store)
	if err := run(t.Context(), store, openRoot(t, dir), m, unpack.Options{}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "bin/ping"))
	if err != nil || string(data) != "ping" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestRunRefusesDamagedObjects(t *testing.T) {
	needRoot(t)
	for name, spoil := range map[string]func(store memory, d object.Digest){
		"flipped bit": func(s memory, d object.Digest) { s[d] = bytes.Clone(s[d]); s[d][1000] ^= 1 },
		"cut off":     func(s memory, d object.Digest) { s[d] = s[d][:1000] },
		"missing":     func(s memory, d object.Digest) { delete(s, d) },
	} {
		t.Run(name, func(t *testing.T) {
			store := memory{}
			m := tree(store)
			for _, e := range m.Entries {
				if e.Path == "random" {
					spoil(store, e.Digest)
				}
			}
			err := unpack.Run(t.Context(), store, openRoot(t, t.TempDir()), m, unpack.Options{})
			if !errors.Is(err, object.ErrDamaged) && !errors.Is(err, object.ErrNotFound) {
				t.Errorf("error %v", err)
			}
			if err == nil || !strings.Contains(err.Error(), "/random") {
				t.Errorf("the error does not name the file: %v", err)
			}
		})
	}
}

func TestRunSaysWhenTheDiskIsFull(t *testing.T) { bothWays(t, runSaysWhenTheDiskIsFull) }

func runSaysWhenTheDiskIsFull(t *testing.T, run runner) {
	needRoot(t)
	store, dir := memory{}, t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	err := run(t.Context(), store, openRoot(t, dir), tree(store), unpack.Options{})
	var coded *unpack.Error
	if !errors.As(err, &coded) || coded.Code() != unpack.CodeNoRoom {
		t.Errorf("error %v", err)
	}
}

// Beside what tar does with the same files (tar x of an uncompressed tar).
func BenchmarkUnpack(b *testing.B) {
	needRoot(b)
	store := memory{}
	entries := []image.Entry{{Path: ".", Type: image.Dir, Mode: 0o755}}
	source := b.TempDir()
	r := rand.New(rand.NewPCG(3, 4))
	var bytesTotal int64
	for d := range 100 {
		dir := fmt.Sprintf("dir-%03d", d)
		if err := os.Mkdir(filepath.Join(source, dir), 0o755); err != nil {
			b.Fatal(err)
		}
		entries = append(entries, image.Entry{Path: dir, Type: image.Dir, Mode: 0o755})
		for f := range 80 {
			data := make([]byte, int(r.ExpFloat64()*20_000)+1)
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			p := fmt.Sprintf("%s/file-%03d", dir, f)
			if err := os.WriteFile(filepath.Join(source, p), data, 0o644); err != nil {
				b.Fatal(err)
			}
			bytesTotal += int64(len(data))
			entries = append(entries, image.Entry{Path: p, Mode: 0o644, Size: uint64(len(data)), Digest: store.add(data)})
		}
	}
	slices.SortFunc(entries[1:], func(a, b image.Entry) int { return strings.Compare(a.Path, b.Path) })
	archive := filepath.Join(b.TempDir(), "tree.tar")
	if out, err := exec.Command("tar", "-C", source, "-cf", archive, ".").CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	targets := b.TempDir()
	fresh := func(b *testing.B) string {
		b.StopTimer()
		defer b.StartTimer()
		if err := os.RemoveAll(targets + "/t"); err != nil {
			b.Fatal(err)
		}
		if err := os.Mkdir(targets+"/t", 0o755); err != nil {
			b.Fatal(err)
		}
		return targets + "/t"
	}
	b.Run("unpack", func(b *testing.B) {
		b.SetBytes(bytesTotal)
		for b.Loop() {
			if err := unpack.Run(b.Context(), store, openRoot(b, fresh(b)), &image.Manifest{Entries: entries}, unpack.Options{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tar", func(b *testing.B) {
		b.SetBytes(bytesTotal)
		for b.Loop() {
			dir := fresh(b)
			if out, err := exec.Command("sh", "-c", `tar -C "$1" -xf "$2" && sync -f "$1"`, "sh", dir, archive).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
		}
	})
}

func TestRunLeavesKeptVolumesAlone(t *testing.T) { bothWays(t, runLeavesKeptVolumesAlone) }

// What is on a volume that is kept stays as it is, and nothing is added: not even
// the owner of its top directory changes. What has a further name there is
// written where it has another.
func runLeavesKeptVolumesAlone(t *testing.T, run runner) {
	needRoot(t)
	store, dir := memory{}, t.TempDir()
	m := tree(store)
	log := filepath.Join(dir, "var/log")
	if err := os.MkdirAll(log, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(log, "random"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(log, 55, 66); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(log, 0o711); err != nil {
		t.Fatal(err)
	}
	before := read(t, log)
	var last [2]uint64
	o := unpack.Options{
		Volumes: []unpack.Volume{{MountPoint: "/"}, {MountPoint: "/var/log", Kept: true}},
		Report:  func(done, total uint64) { last = [2]uint64{done, total} },
	}
	if err := run(t.Context(), store, openRoot(t, dir), m, o); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, read(t, log)); diff != "" {
		t.Errorf("what was kept has changed:\n%s", diff)
	}
	if info, err := os.Stat(log); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "random")); err != nil {
		t.Error(err)
	}
	if last[0] != last[1] {
		t.Errorf("%d of %d bytes were written", last[0], last[1])
	}
}
