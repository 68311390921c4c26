package target

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func openRoot(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func TestWriteMakesDirectoriesAndExactModes(t *testing.T) {
	root, dir := openRoot(t)
	if err := Write(root, File{Path: "/etc/keys/data.key", Mode: 0o400, Data: []byte("secret")}, File{Path: "/etc/fstab", Mode: 0o666, Data: nil}); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"etc/keys/data.key": 0o400, "etc/fstab": 0o666, "etc/keys": 0o755 | fs.ModeDir} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != mode {
			t.Errorf("%s: mode %v, want %v", name, info.Mode(), mode)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "etc/*"+temporarySuffix))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestWriteReplacesASymbolicLinkAndNotItsTarget(t *testing.T) {
	root, dir := openRoot(t)
	outside := filepath.Join(t.TempDir(), "host-file")
	if err := os.WriteFile(outside, []byte("the host's"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	if err := Write(root, File{Path: "/etc/resolv.conf", Mode: 0o644, Data: []byte("new")}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "the host's" {
		t.Errorf("outside the root: %q, %v", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "etc/resolv.conf")); err != nil || string(data) != "new" {
		t.Errorf("in the root: %q, %v", data, err)
	}
}

func TestWriteThroughADirectoryLinkOutOfTheRootIsRefused(t *testing.T) {
	root, dir := openRoot(t)
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "etc")); err != nil {
		t.Fatal(err)
	}
	if err := Write(root, File{Path: "/etc/fstab", Mode: 0o644, Data: []byte("x")}); err == nil {
		t.Error("wrote through a link that leaves the root")
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside the root: %v, %v", entries, err)
	}
}

func TestName(t *testing.T) {
	for p, want := range map[string]string{"/": ".", "": ".", "/etc/fstab": "etc/fstab", "/a/../../b": "b", "c//d/": "c/d"} {
		if got := Name(p); got != want {
			t.Errorf("Name(%q) = %q, want %q", p, got, want)
		}
	}
}
