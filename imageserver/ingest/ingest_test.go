package ingest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
)

// run runs a program of the system; without it the test fails.
func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.Bytes())
	}
	return out
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// makeTree makes a tree with everything a file-system can hold. It needs root.
func makeTree(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "root")
	at := func(path string) string { return filepath.Join(root, path) }
	write := func(path, content string, mode uint32) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Dir(at(path)), 0o755), os.WriteFile(at(path), []byte(content), 0o600), unix.Chmod(at(path), mode))
	}
	write("etc/passwd", "root:x:0:0::/:/bin/sh\nbackup:x:34:34::/:/bin/sh\n", 0o644)
	write("etc/group", "root:x:0:\nbackup:x:34:\n", 0o644)
	write("etc/os-release", "ID=test\n", 0o644)
	write("usr/bin/setuid", "#!/bin/sh\n", 0o4755)
	write("usr/bin/capable", string(objecttest.Text(1, 5000)), 0o755)
	write("usr/bin/zz-original", "one inode", 0o644)
	must(t, os.Link(at("usr/bin/zz-original"), at("usr/bin/aa-link")), os.Link(at("usr/bin/zz-original"), at("another")))
	write("usr/share/large", string(objecttest.Text(2, 3<<20)), 0o644)
	write("usr/share/copy-of-large", string(objecttest.Text(2, 3<<20)), 0o600)
	write("usr/share/noise", string(objecttest.Noise(3, 2<<20)), 0o644)
	write("empty", "", 0o640)
	write("odd \xff\n\"name", "odd", 0o644)
	write(strings.Repeat("long/", 30)+strings.Repeat("n", 255), "deep", 0o644)
	write("owned", "x", 0o644)
	must(t, os.Lchown(at("owned"), 3_000_000_000, 4_000_000_000))
	sparse, err := os.Create(at("sparse"))
	must(t, err)
	_, err = sparse.WriteAt([]byte("end"), 5<<20)
	must(t, err, sparse.Close())
	must(t, os.Mkdir(at("tmp"), 0o755), unix.Chmod(at("tmp"), 0o1777), os.Mkdir(at("setgid"), 0o755), unix.Chmod(at("setgid"), 0o2750))
	must(t, os.Symlink("usr/bin", at("bin")), os.Symlink("/nowhere/"+strings.Repeat("x", 200), at("dangling")), os.Lchown(at("dangling"), 7, 8))
	must(t, os.Link(at("dangling"), at("dangling2")))
	must(t, os.Mkdir(at("dev"), 0o755),
		unix.Mknod(at("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(at("dev/sda"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 300))),
		unix.Mkfifo(at("fifo"), 0o622))
	run(t, "setcap", "cap_net_raw+ep", at("usr/bin/capable"))
	run(t, "setfattr", "-n", "user.note", "-v", "0x00ff0a3d", at("owned"))
	run(t, "setfattr", "-n", "trusted.note", "-v", "x", at("setgid"))
	run(t, "setfacl", "-m", "u:34:rw,g:777:x,m:rwx", at("owned"))
	run(t, "setfacl", "-m", "u:34:rwx", "-m", "d:u:34:rx", at("setgid"))
	for i, path := range []string{"empty", "owned", "usr/bin", "tmp", "dangling"} {
		when := []unix.Timespec{{Sec: 1}, {Sec: int64(i)*500_000_000 - 1, Nsec: 123_456_789 + int64(i)}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, at(path), when, unix.AT_SYMLINK_NOFOLLOW))
	}
	return root
}

// sink keeps everything in a store and counts how often it was given what.
type sink struct {
	*objecttest.Memory
	mutex sync.Mutex
	given map[object.Digest]int
	to    ingest.Sink
}

func newSink() *sink {
	s := &sink{Memory: objecttest.NewMemory(), given: make(map[object.Digest]int)}
	s.to = ingest.Packing(s.Put)
	return s
}

func (s *sink) Add(ctx context.Context, d object.Digest, size uint64, open func() (io.ReadCloser, error)) error {
	s.mutex.Lock()
	s.given[d]++
	s.mutex.Unlock()
	return s.to.Add(ctx, d, size, open)
}

// size reads an object and says how many bytes it has.
func (s *sink) size(t *testing.T, d object.Digest) int64 {
	t.Helper()
	r, err := s.Open(context.Background(), d)
	must(t, err)
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	must(t, err)
	return n
}

// mustHaveAll checks that the sink has exactly the objects of m, each given
// once.
func (s *sink) mustHaveAll(t *testing.T, m *image.Manifest) {
	t.Helper()
	objects := m.Objects()
	if list, err := object.ParseDigest(m.Attributes[image.AttrPackages]); err == nil {
		objects = append(objects, image.Object{Digest: list, Size: uint64(s.size(t, list))})
	}
	if len(objects) != len(s.given) {
		t.Errorf("%d objects in the manifest, %d in the sink", len(objects), len(s.given))
	}
	for _, o := range objects {
		if s.given[o.Digest] != 1 {
			t.Errorf("%s was given %d times", o.Digest, s.given[o.Digest])
		}
		r, err := s.Open(context.Background(), o.Digest)
		if err != nil {
			t.Error(err)
			continue
		}
		if n, err := io.Copy(io.Discard, r); err != nil || uint64(n) != o.Size {
			t.Errorf("%s: %d bytes, %v", o.Digest, n, err)
		}
	}
}

func fromTar(t *testing.T, b []byte, options ingest.Options) (*image.Manifest, error) {
	t.Helper()
	s := newSink()
	options.TempDir = t.TempDir()
	m, err := ingest.Tar(context.Background(), bytes.NewReader(b), s, options)
	if err == nil {
		s.mustHaveAll(t, m)
		if _, err := image.Encode(m); err != nil {
			t.Error(err)
		}
	}
	if left, dirErr := os.ReadDir(options.TempDir); dirErr != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, dirErr)
	}
	return m, err
}

func TestDirectoryKeepsEverything(t *testing.T) {
	root := makeTree(t)
	socket, err := net.Listen("unix", filepath.Join(root, "socket"))
	must(t, err)
	defer socket.Close()
	s := newSink()
	m, err := ingest.Directory(context.Background(), root, s, ingest.Options{})
	must(t, err)
	s.mustHaveAll(t, m)
	for path, want := range map[string]image.Entry{
		"another":             {Type: image.File, Mode: 0o644, Size: 9, Digest: object.Of([]byte("one inode"))},
		"usr/bin/aa-link":     {Type: image.Hardlink, Target: "another"},
		"usr/bin/zz-original": {Type: image.Hardlink, Target: "another"},
		"usr/bin/setuid":      {Type: image.File, Mode: 0o4755, Size: 10, Digest: object.Of([]byte("#!/bin/sh\n"))},
		"odd \xff\n\"name":    {Type: image.File, Mode: 0o644, Size: 3, Digest: object.Of([]byte("odd"))},
		"empty":               {Type: image.File, Mode: 0o640, Seconds: -1, Nanoseconds: 123_456_789},
		"tmp":                 {Type: image.Dir, Mode: 0o1777, Seconds: 1_499_999_999, Nanoseconds: 123_456_792},
		"dangling2":           {Type: image.Hardlink, Target: "dangling"},
		"dangling": {Type: image.Symlink, Mode: 0o777, UID: 7, GID: 8, Target: "/nowhere/" + strings.Repeat("x", 200),
			Seconds: 1_999_999_999, Nanoseconds: 123_456_793},
		"bin":      {Type: image.Symlink, Mode: 0o777, Target: "usr/bin"},
		"dev/null": {Type: image.CharDevice, Mode: 0o644, Major: 1, Minor: 3},
		"dev/sda":  {Type: image.BlockDevice, Mode: 0o640, Major: 8, Minor: 300},
		"fifo":     {Type: image.FIFO, Mode: 0o600},
		"sparse":   {Type: image.File, Size: 5<<20 + 3, Digest: object.Of(append(make([]byte, 5<<20), "end"...))},
	} {
		got, found := m.Lookup(path)
		if !found {
			t.Errorf("%q is missing", path)
			continue
		}
		want.Path = path
		if want.Seconds == 0 {
			got.Seconds, got.Nanoseconds = 0, 0
		}
		switch path { // made under the umask of whoever tests
		case "dev/null", "dev/sda", "fifo", "sparse":
			got.Mode, want.Mode = 0, 0
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", path, diff)
		}
	}
	if _, found := m.Lookup("socket"); found {
		t.Error("a socket was taken")
	}
	for path, want := range map[string][]string{
		"usr/bin/capable": {"security.capability"},
		"owned":           {"system.posix_acl_access", "user.note"},
		"setgid":          {"system.posix_acl_access", "system.posix_acl_default", "trusted.note"},
	} {
		e, _ := m.Lookup(path)
		var names []string
		for _, x := range e.Xattrs {
			names = append(names, x.Name)
			out := strings.TrimSpace(string(run(t, "getfattr", "--only-values", "-h", "-n", x.Name, filepath.Join(root, path))))
			if strings.TrimSpace(string(x.Value)) != out {
				t.Errorf("%s of %s: %x, getfattr says %x", x.Name, path, x.Value, out)
			}
		}
		if !slices.Equal(names, want) {
			t.Errorf("%s has %v, want %v", path, names, want)
		}
	}
	if e, _ := m.Lookup("owned"); e.UID != 3_000_000_000 || e.GID != 4_000_000_000 {
		t.Errorf("owner %d:%d", e.UID, e.GID)
	}
}

// A tar made by the real tar, in every format that can hold it all, says the
// same as the directory itself.
func TestTarSaysTheSameAsDirectory(t *testing.T) {
	root := makeTree(t)
	want, err := ingest.Directory(context.Background(), root, newSink(), ingest.Options{})
	must(t, err)
	pax := []string{"--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "-C", root, "-c"}
	for name, args := range map[string][]string{
		"plain":        append(slices.Clone(pax), "."),
		"sparse":       append(slices.Clone(pax), "--sparse", "."),
		"numeric":      append(slices.Clone(pax), "--numeric-owner", "."),
		"gzip":         append(slices.Clone(pax), "-z", "."),
		"xz":           append(slices.Clone(pax), "-I", "xz -1", "."),
		"zstd":         append(slices.Clone(pax), "--zstd", "."),
		"big blocks":   append(slices.Clone(pax), "-b", "2000", "."),
		"listed twice": append(slices.Clone(pax), ".", "./etc/passwd", "./usr/bin", "./another"),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := fromTar(t, run(t, "tar", args...), ingest.Options{})
			must(t, err)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("gnu", func(t *testing.T) {
		// The format of GNU tar has no nanoseconds and no attributes.
		got, err := fromTar(t, run(t, "tar", "--format=gnu", "--sparse", "-C", root, "-c", "."), ingest.Options{})
		must(t, err)
		plain := slices.Clone(want.Entries)
		for i := range plain {
			plain[i].Nanoseconds, plain[i].Xattrs = 0, nil
		}
		if diff := cmp.Diff(plain, got.Entries); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("without parents", func(t *testing.T) {
		got, err := fromTar(t, run(t, "tar", "-C", root, "-c", "usr/bin/setuid"), ingest.Options{})
		must(t, err)
		for _, path := range []string{".", "usr", "usr/bin"} {
			if e, found := got.Lookup(path); !found || !cmp.Equal(e, image.Entry{Path: path, Type: image.Dir, Mode: 0o755}) {
				t.Errorf("%q: %+v", path, e)
			}
		}
	})
}

// A tar that is cut off or damaged anywhere is never taken for a whole one.
func TestTarCutOff(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.MkdirAll(root, 0o755))
	for i := range 4 {
		must(t, os.WriteFile(filepath.Join(root, fmt.Sprint(i)), objecttest.Noise(uint64(i), 700*i), 0o644))
	}
	for name, flag := range map[string]string{"plain": "-b1", "gzip": "-z", "xz": "-J", "zstd": "--zstd"} {
		whole := run(t, "tar", flag, "-C", root, "-c", ".")
		if _, err := fromTar(t, whole, ingest.Options{}); err != nil {
			t.Fatal(err)
		}
		step := 512 // of a plain tar the borders between entries matter
		if name != "plain" {
			step = 97
		}
		end := len(whole)
		if name == "plain" {
			end -= 512 // one block of zeros is enough of an end
		}
		for n := 0; n < end; n += step {
			if _, err := fromTar(t, whole[:n], ingest.Options{}); !errors.Is(err, ingest.ErrSource) {
				t.Errorf("%s cut at %d of %d: %v", name, n, len(whole), err)
			}
		}
		if name != "plain" { // which has no checksum of contents
			for _, n := range []int{1, 4} {
				if _, err := fromTar(t, whole[:len(whole)-n], ingest.Options{}); !errors.Is(err, ingest.ErrSource) {
					t.Errorf("%s, last %d bytes missing: %v", name, n, err)
				}
			}
			damaged := bytes.Clone(whole)
			damaged[len(damaged)/2] ^= 0x20
			if _, err := fromTar(t, damaged, ingest.Options{}); !errors.Is(err, ingest.ErrSource) {
				t.Errorf("%s damaged: %v", name, err)
			}
		}
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "text": []byte(strings.Repeat("this is no tar\n", 100)), "bzip2": []byte("BZh91AY&SY"),
		"zeros only": make([]byte, 300), "no entry": makeTar(t),
	} {
		if _, err := fromTar(t, b, ingest.Options{}); !errors.Is(err, ingest.ErrSource) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// entry is a header and its content.
type entry struct {
	tar.Header
	content string
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Mode == 0 {
			e.Mode = 0o644
		}
		e.Size = int64(len(e.content))
		must(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func regular(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name}, content}
}

func special(typeflag byte, name, target string) entry {
	return entry{tar.Header{Typeflag: typeflag, Name: name, Linkname: target}, ""}
}

func with(e entry, change func(*tar.Header)) entry {
	change(&e.Header)
	return e
}

// What reaches out of the tree, or cannot be kept, is refused by name.
func TestHostileEntries(t *testing.T) {
	bad := func(e entry) []entry { return []entry{regular("a", "x"), e} }
	for name, test := range map[string]struct {
		entries []entry
		named   string
	}{
		"dot dot":             {bad(regular("../evil", "x")), "../evil"},
		"dot dot inside":      {bad(regular("a/../../evil", "x")), "a/../../evil"},
		"only dot dot":        {bad(special(tar.TypeDir, "../", "")), "../"},
		"absolute":            {bad(regular("/etc/evil", "x")), "/etc/evil"},
		"absolute behind dot": {bad(regular(".//etc/evil", "x")), ".//etc/evil"},
		"double slash":        {bad(regular("b//evil", "x")), "b//evil"},
		"below a file":        {bad(regular("a/evil", "x")), "a/evil"},
		"below a link":        {[]entry{special(tar.TypeSymlink, "l", "/etc"), regular("l/evil", "x")}, "l/evil"},
		"hard link out":       {bad(special(tar.TypeLink, "evil", "../../etc/shadow")), "evil"},
		"hard link absolute":  {bad(special(tar.TypeLink, "evil", "/etc/shadow")), "evil"},
		"hard link to none":   {bad(special(tar.TypeLink, "evil", "later")), "evil"},
		"hard link to itself": {bad(special(tar.TypeLink, "evil", "evil")), "evil"},
		"hard link to a dir":  {[]entry{special(tar.TypeDir, "d", ""), special(tar.TypeLink, "evil", "d")}, "evil"},
		"other content":       {bad(regular("./a", "y")), "a"},
		"other type":          {bad(special(tar.TypeSymlink, "a", "x")), "a"},
		"other mode":          {bad(with(regular("a", "x"), func(h *tar.Header) { h.Mode = 0o4755 })), "a"},
		"root is a link":      {bad(special(tar.TypeSymlink, "./", "/etc")), "."},
		"negative owner":      {bad(with(regular("evil", "x"), func(h *tar.Header) { h.Uid = -5; h.Format = tar.FormatGNU })), "evil"},
		"owner too large":     {bad(with(regular("evil", "x"), func(h *tar.Header) { h.Gid = math.MaxUint32 })), "evil"},
		"device too large":    {bad(with(special(tar.TypeChar, "evil", ""), func(h *tar.Header) { h.Devmajor = 4096 })), "evil"},
		"long name":           {bad(regular(strings.Repeat("n", 256), "x")), "nnnn"},
		"unknown type":        {bad(entry{tar.Header{Typeflag: 'M', Name: "evil"}, ""}), "evil"},
		"strange xattr": {bad(with(regular("evil", "x"), func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.nonsense": "x"}
		})), "evil"},
		"ACL of a stranger": {bad(with(regular("evil", "x"), func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.acl.access": "user::rw-,user:stranger:rw-,group::r--,mask::rw-,other::r--"}
		})), "evil"},
	} {
		m, err := fromTar(t, makeTar(t, test.entries...), ingest.Options{})
		if !errors.Is(err, ingest.ErrEntry) || m != nil {
			t.Errorf("%s: %v", name, err)
		} else if !strings.Contains(err.Error(), test.named) {
			t.Errorf("%s: the entry is not named: %v", name, err)
		}
	}
}

// A sparse header of some bytes that claims more than any file has is refused
// before it is read.
func TestSparseBomb(t *testing.T) {
	b := makeTar(t, regular("GNUSparseFile.0/bomb", "1\n0\n512\n"+strings.Repeat("\x00", 504)+strings.Repeat("x", 512)))
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	// archive/tar writes no GNU.sparse records; they are put in by hand.
	records := ""
	for _, r := range []string{"GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=bomb", fmt.Sprintf("GNU.sparse.realsize=%d", int64(1)<<50)} {
		n := len(r) + 4
		if n < 10 || n > 99 {
			t.Fatal("a record of another length than expected")
		}
		records += fmt.Sprintf("%d %s\n", n, r)
	}
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "PaxHeaders/bomb", Mode: 0o644, Size: int64(len(records))}))
	_, err := io.WriteString(w, records)
	must(t, err, w.Flush())
	header := out.Bytes()
	header[156] = tar.TypeXHeader
	copy(header[148:156], "        ")
	sum := 0
	for _, c := range header[:512] {
		sum += int(c)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
	begun := time.Now()
	_, err = fromTar(t, append(header, b...), ingest.Options{})
	if !errors.Is(err, ingest.ErrEntry) || !strings.Contains(err.Error(), "bomb") || time.Since(begun) > 10*time.Second {
		t.Errorf("after %s: %v", time.Since(begun), err)
	}
}

// A sink that fails ends it with that error.
func TestFailingSink(t *testing.T) {
	full := errors.New("no space")
	var entries []entry
	for i := range 200 {
		entries = append(entries, regular(fmt.Sprint(i), fmt.Sprint(i)))
	}
	_, err := ingest.Tar(context.Background(), bytes.NewReader(makeTar(t, entries...)), failingSink{full}, ingest.Options{})
	if !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := ingest.Tar(ended, bytes.NewReader(makeTar(t, entries...)), newSink(), ingest.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

type failingSink struct{ err error }

func (f failingSink) Add(context.Context, object.Digest, uint64, func() (io.ReadCloser, error)) error {
	return f.err
}

// Another file-system is entered only when that is asked for.
func TestMountPoints(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	must(t, os.MkdirAll(filepath.Join(root, "mnt"), 0o755))
	if err := unix.Mount("none", filepath.Join(root, "mnt"), "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("this test mounts a tmpfs and needs root: %v", err)
	}
	defer func() { must(t, unix.Unmount(filepath.Join(root, "mnt"), 0)) }()
	must(t, os.WriteFile(filepath.Join(root, "mnt/inside"), []byte("x"), 0o644))
	for _, cross := range []bool{false, true} {
		m, err := ingest.Directory(context.Background(), root, newSink(), ingest.Options{CrossFileSystems: cross})
		must(t, err)
		if _, found := m.Lookup("mnt/inside"); found != cross {
			t.Errorf("cross %v: entered %v", cross, found)
		}
		if _, found := m.Lookup("mnt"); !found {
			t.Error("the mount point itself is missing")
		}
	}
}

// A whole way: a compressed tar into a directory store, one batch.
func TestTarIntoStore(t *testing.T) {
	ctx := context.Background()
	store, err := dir.Open(t.TempDir())
	must(t, err)
	defer func() { must(t, store.Close()) }()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	var entries []entry
	for i := range 300 {
		entries = append(entries, regular(fmt.Sprintf("f%03d", i), string(objecttest.Text(uint64(i%200), 3000))))
	}
	_, err = z.Write(makeTar(t, entries...))
	must(t, err, z.Close())
	batch := store.Begin()
	m, err := ingest.Tar(ctx, &packed, ingest.Packing(batch.Put), ingest.Options{Arch: "amd64"})
	must(t, err, batch.Commit(ctx))
	objects := m.Objects()
	if len(objects) != 200 || m.Attributes[image.AttrArch] != "amd64" {
		t.Errorf("%d objects, %v", len(objects), m.Attributes)
	}
	stored := make(map[object.Digest]bool)
	must(t, store.List(ctx, func(info object.Info) error {
		stored[info.Digest] = true
		return nil
	}))
	for _, o := range objects {
		if !stored[o.Digest] {
			t.Errorf("%s is not stored", o.Digest)
		}
	}
	if len(slices.Collect(maps.Keys(stored))) != len(objects) {
		t.Errorf("%d stored", len(stored))
	}
}
