package mount

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
)

func mountedAt(t *testing.T, prefix string) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], prefix) {
			points = append(points, f[4])
		}
	}
	return points
}

func TestStack(t *testing.T) {
	root := t.TempDir()
	var s Stack
	defer s.Close()
	if err := s.Mount("tmpfs", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	inner := filepath.Join(root, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Mount("tmpfs", inner, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	if got := s.Points(); len(got) != 2 || got[0] != root || got[1] != inner {
		t.Errorf("%v", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
	if got := mountedAt(t, root); got != nil {
		t.Errorf("still mounted: %v", got)
	}
}

func TestSystem(t *testing.T) {
	before := len(mountedAt(t, "/dev")) + len(mountedAt(t, "/proc")) + len(mountedAt(t, "/sys"))
	root := t.TempDir()
	var s Stack
	defer s.Close()
	if err := s.System(root); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dev/null", "proc/self/status", "sys/class"} {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Error(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := mountedAt(t, root); got != nil {
		t.Errorf("still mounted: %v", got)
	}
	if after := len(mountedAt(t, "/dev")) + len(mountedAt(t, "/proc")) + len(mountedAt(t, "/sys")); after != before {
		t.Errorf("the running system had %d mounts and has %d", before, after)
	}
}

// An image must not be able to send a mount over the running system.
func TestSystemRefusesLinks(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(root, "dev")); err != nil {
		t.Fatal(err)
	}
	var s Stack
	defer s.Close()
	if err := s.System(root, "/dev"); err == nil {
		t.Error("mounted over a link")
	}
	if got := mountedAt(t, elsewhere); got != nil {
		t.Errorf("mounted: %v", got)
	}
}

func TestErrors(t *testing.T) {
	root := t.TempDir()
	var s Stack
	defer s.Close()
	var coded *storage.Error
	if err := s.Mount("tmpfs", filepath.Join(root, "missing"), "tmpfs", 0, ""); !errors.As(err, &coded) || coded.Code() != storage.CodeMount {
		t.Errorf("%v", err)
	}
	if err := s.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	// Somebody else took it away: Close says so.
	if err := unix.Unmount(root, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); !errors.As(err, &coded) || coded.Code() != storage.CodeUnmount {
		t.Errorf("%v", err)
	}
	if err := s.Detach(); err == nil {
		t.Error("detached what is not there")
	}
}
