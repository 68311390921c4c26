package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/mkuimage/cpio"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage/tool"
)

// The closure of real programs holds what ld.so itself loads for them, and a
// chroot with nothing else in it runs them.
func TestProgramsRun(t *testing.T) {
	records, err := programs(tree{"/"}, append(tool.Programs(), shell()))
	if err != nil {
		t.Fatal(err)
	}
	sh, err := shellLink(tree{"/"})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, r := range merge(time.Unix(0, 0), records, sh) {
		name := filepath.Join(root, r.Name)
		if r.Mode&cpio.S_IFMT == cpio.S_IFDIR {
			if err := os.MkdirAll(name, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var content bytes.Buffer
		if r.ReaderAt != nil {
			content.Grow(int(r.FileSize))
			data := make([]byte, r.FileSize)
			if _, err := r.ReadAt(data, 0); err != nil {
				t.Fatalf("%s: %v", r.Name, err)
			}
			content.Write(data)
		}
		if r.Mode&cpio.S_IFMT == cpio.S_IFLNK {
			if err := os.Symlink(content.String(), name); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(name, content.Bytes(), fs.FileMode(r.Mode&0o777)); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\necho \"$2 $1\"\n"
	if err := os.WriteFile(filepath.Join(root, "script"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chroot", root, "/script", "first", "second").CombinedOutput(); err != nil || string(out) != "second first\n" {
		t.Errorf("a script with arguments says %q: %v", out, err)
	}
	for _, command := range [][]string{{"cryptsetup", "--version"}, {"mkfs.ext4", "-V"}, {"mkfs.vfat", "--help"}, {"dmsetup", "--help"}, {"mdadm", "--version"}} {
		file, err := tree{root}.find(command[0])
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("chroot", append([]string{root, "/" + file}, command[1:]...)...).CombinedOutput()
		if err != nil {
			t.Errorf("%v in an empty root: %v\n%s", command, err, out)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"random": 8, "urandom": 9} { // random(4)
		if err := unix.Mknod(filepath.Join(root, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(root, "disk")
	if err := os.WriteFile(disk, make([]byte, 32<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// argon2 runs threads and cancels them, for which glibc opens libgcc_s.
	format := exec.Command("chroot", root, "/usr/sbin/cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2",
		"--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "1024", "--key-file", "-", "/disk")
	format.Stdin = strings.NewReader("key")
	if out, err := format.CombinedOutput(); err != nil {
		t.Errorf("cryptsetup luksFormat with argon2id: %v\n%s", err, out)
	}
}

func TestResolve(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"usr/lib/x", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"lib": "usr/lib", "usr/lib/a": "/lib/x/file", "usr/lib/x/up": "../../../etc/../lib/x/file",
		"usr/lib/out": "../../../../../../lib/x/file", "loop": "loop", "gone": "/nowhere",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/lib/x/file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const file = "usr/lib/x/file"
	for name, want := range map[string]string{
		"usr/lib/x/file": file, "/lib/x/file": file, "lib/a": file, "lib/x/up": file, "lib/out": file,
	} {
		got, err := tree{root}.resolve(name)
		if err != nil || got != want {
			t.Errorf("resolve(%s) = %q, %v", name, got, err)
		}
	}
	if _, err := (tree{root}).resolve("gone"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a dangling link: %v", err)
	}
	if _, err := (tree{root}).resolve("loop"); err == nil {
		t.Error("a link to itself was followed to an end")
	}
}

// A library of another architecture is passed over, and a missing one is
// named.
func TestClosureMissing(t *testing.T) {
	root := t.TempDir()
	host := tree{"/"}
	file, err := host.find("cryptsetup")
	if err != nil {
		t.Fatal(err)
	}
	real, err := host.resolve(file)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/" + real)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"usr/sbin", "usr/lib/x86_64-linux-gnu", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/sbin/cryptsetup"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = tree{root}.closure([]string{"usr/sbin/cryptsetup"})
	if err == nil || !strings.Contains(err.Error(), "lib") || !strings.Contains(err.Error(), "cryptsetup") {
		t.Errorf("%v", err)
	}
	foreign := slices.Clone(data)
	foreign[18], foreign[19] = byte(elf.EM_AARCH64), 0 // e_machine, elf(5)
	if err := os.WriteFile(filepath.Join(root, "usr/lib/x86_64-linux-gnu/libx.so"), foreign, 0o644); err != nil {
		t.Fatal(err)
	}
	dirs, err := libraryDirs(elf.EM_X86_64)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := (tree{root}).library(dirs, "libx.so", elf.EM_X86_64); err == nil {
		t.Errorf("took %s of another architecture", found)
	}
}

// The archive is what cpio(1) reads, is the same every time, carries the
// build's time, and has neither modules nor keys nor configuration.
func TestArchive(t *testing.T) {
	built := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	build := func() []byte {
		t.Helper()
		system, err := programs(tree{"/"}, tool.Programs())
		if err != nil {
			t.Fatal(err)
		}
		raw, err := encode(merge(built, skeleton("v1"), system))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	raw := build()
	if !bytes.Equal(raw, build()) {
		t.Error("two builds differ")
	}
	list := exec.Command("cpio", "-tv", "--quiet")
	list.Stdin, list.Env = bytes.NewReader(raw), append(os.Environ(), "TZ=UTC", "LC_ALL=C")
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v\n%s", err, out)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		names = append(names, fields[8+b2i(strings.HasPrefix(line, "c"))])
		if !strings.Contains(line, "Nov 20  2026") && !strings.Contains(line, "Nov 20 12:00") {
			t.Errorf("not the time of the build: %s", line)
		}
	}
	for _, want := range []string{"build-timestamp", "dev/console", "etc/mke2fs.conf", "run/cryptsetup"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in the archive", want)
		}
	}
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, "lib/modules"), strings.HasPrefix(name, "tftpdata"), path.Ext(name) == ".ko", path.Ext(name) == ".pem":
			t.Errorf("%s does not belong here", name)
		}
		if dir := path.Dir(name); dir != "." && slices.Index(names, dir) > slices.Index(names, name) || dir != "." && !slices.Contains(names, dir) {
			t.Errorf("%s comes before its directory", name)
		}
	}
	if !slices.IsSorted(names) {
		t.Error("not sorted")
	}
}

// b2i counts a device node's extra column in `cpio -tv` (major, minor).
func b2i(device bool) int {
	if device {
		return 1
	}
	return 0
}

func TestCompress(t *testing.T) {
	raw := bytes.Repeat([]byte("an initramfs "), 100_000)
	packed, err := compress(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := compress(raw)
	if err != nil || !bytes.Equal(packed, again) {
		t.Errorf("two runs differ (%v)", err)
	}
	unpack := exec.Command("zstd", "-dc")
	unpack.Stdin = bytes.NewReader(packed)
	out, err := unpack.Output()
	if err != nil || !bytes.Equal(out, raw) {
		t.Errorf("zstd reads something else: %v", err)
	}
}

// tools.go and commands name the same commands.
func TestCommandsAreInTools(t *testing.T) {
	text, err := os.ReadFile("tools.go")
	if err != nil {
		t.Fatal(err)
	}
	var imported, built []string
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), `_ "`); ok {
			imported = append(imported, strings.TrimSuffix(name, `"`))
		}
	}
	for _, name := range commands() {
		if strings.HasPrefix(name, "github.com/u-root/") {
			built = append(built, name)
		}
	}
	slices.Sort(imported)
	slices.Sort(built)
	if diff := cmp.Diff(built, imported); diff != "" {
		t.Errorf("tools.go is not what is built (-built +tools.go):\n%s", diff)
	}
}

func TestBuildTime(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	if got, err := buildTime(t.Context()); err != nil || got.Unix() != 1700000000 {
		t.Errorf("%v, %v", got, err)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, err := buildTime(t.Context()); err == nil {
		t.Error("took a word for a time")
	}
}
