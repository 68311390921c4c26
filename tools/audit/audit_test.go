package audit

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/receipt"
)

func put(t *testing.T, root, name, text string, mode os.FileMode) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

func TestCompare(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"bin/sh": "shell", "bin/ls": "ls", "etc/passwd": "root", "etc/hostname": "image", "etc/empty": "", "var/log/x": "1"} {
		put(t, root, name, text, 0o644)
	}
	if err := os.Symlink("sh", filepath.Join(root, "bin/dash")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(root, "bin/sh"), filepath.Join(root, "bin/twin")); err != nil {
		t.Fatal(err)
	}
	drop := ingest.Packing(func(_ context.Context, _ object.Info, encoded io.Reader) error {
		_, err := io.Copy(io.Discard, encoded)
		return err
	})
	manifest, err := ingest.Directory(t.Context(), root, drop, ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// The installer's own.
	put(t, root, "etc/hostname", "web1", 0o644)
	put(t, root, "etc/systemd/network/10.link", "link", 0o644)
	put(t, root, "etc/key", "secret", 0o400)
	written := []receipt.Written{
		receipt.WrittenFile("/etc/hostname", 0o644, []byte("web1"), false),
		receipt.WrittenFile("/etc/systemd/network/10.link", 0o644, []byte("link"), false),
		receipt.WrittenFile("/etc/key", 0o400, []byte("secret"), true),
	}
	options := Options{Ignore: UsualIgnore()}
	compare := func() []Difference {
		t.Helper()
		found, err := Compare(t.Context(), root, manifest, written, options)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	put(t, root, "var/log/x", "2", 0o600)
	put(t, root, "var/log/installer/log", "x", 0o600)
	if found := compare(); len(found) > 0 {
		t.Errorf("as installed: %+v", found)
	}
	put(t, root, "bin/ls", "LS", 0o644) // as long as before
	put(t, root, "etc/empty", "x", 0o644)
	put(t, root, "etc/hostname", "evil", 0o644)
	put(t, root, "etc/cron.d/job", "evil", 0o644)
	if err := os.Chmod(filepath.Join(root, "bin/sh"), 0o4755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "bin/sh"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "etc/key"), 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "bin/dash")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("evil", filepath.Join(root, "bin/dash")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range compare() {
		got = append(got, d.Path+" "+string(d.Kind))
	}
	want := []string{"/bin/dash changed", "/bin/ls changed", "/bin/sh mode", "/bin/twin mode", "/etc/cron.d extra", "/etc/empty changed",
		"/etc/hostname changed", "/etc/key mode", "/etc/passwd missing"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
