package block

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/storage"
)

func create(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

func loop(t *testing.T, sector int) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/losetup", "--find", "--show", "--sector-size", fmt.Sprint(sector), create(t, 64<<20)).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("/usr/sbin/losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v %s", err, out)
		}
	})
	return device
}

func code(t *testing.T, err error) string {
	t.Helper()
	var coded *storage.Error
	if !errors.As(err, &coded) {
		t.Fatalf("no code: %v", err)
	}
	return coded.Code()
}

// One body for a file and for devices of both sector sizes.
func TestDevice(t *testing.T) {
	for _, c := range []struct {
		name   string
		path   func(t *testing.T) string
		sector uint32
	}{
		{"file", func(t *testing.T) string { return create(t, 64<<20) }, 512},
		{"loop 512", func(t *testing.T) string { return loop(t, 512) }, 512},
		{"loop 4096", func(t *testing.T) string { return loop(t, 4096) }, 4096},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.path(t)
			d, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if d.Size() != 64<<20 || d.SectorSize() != c.sector {
				t.Errorf("%d bytes in sectors of %d", d.Size(), d.SectorSize())
			}
			want := bytes.Repeat([]byte("firstlight"), 1000)
			if _, err := d.WriteAt(want, 12345); err != nil {
				t.Fatal(err)
			}
			if err := d.Sync(); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if _, err := d.ReadAt(got, 12345); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read something else: %v", err)
			}
			if ok, err := d.Discard(0, d.Size()); err != nil {
				t.Error(err)
			} else if ok && c.name == "file" {
				if _, err := d.ReadAt(got, 12345); err != nil || bytes.Equal(got, want) {
					t.Errorf("discarded bytes are still there: %v", err)
				}
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if err := d.Close(); err != nil {
				t.Errorf("the second Close: %v", err)
			}
		})
	}
}

func TestReread(t *testing.T) {
	device := loop(t, 512)
	d, err := Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, want := range [][]Partition{
		{{1, 1 << 20, 10 << 20}, {2, 11 << 20, 20 << 20}},
		{{1, 1 << 20, 10 << 20}, {2, 11 << 20, 30 << 20}, {5, 50 << 20, 8 << 20}},
		nil,
	} {
		if err := d.Reread(want); err != nil {
			t.Fatal(err)
		}
		known, err := d.(*disk).known()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, known); diff != "" {
			t.Error(diff)
		}
		for _, p := range want {
			if err := WaitFor(t.Context(), storage.PartitionName(device, p.Number), 5*time.Second); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	device := loop(t, 512)
	d, err := Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := Open(device); code(t, err) != storage.CodeBusy {
		t.Errorf("a disk in use: %v", err)
	}
	if r, err := OpenReadOnly(device); err != nil {
		t.Errorf("reading a disk in use: %v", err)
	} else {
		if _, err := r.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a disk opened for reading was written")
		}
		r.Close()
	}
	for _, path := range []string{"/dev/null", "/nonexistent", t.TempDir()} {
		if _, err := Open(path); code(t, err) != storage.CodeIO {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestWaitFor(t *testing.T) {
	if err := WaitFor(t.Context(), "/dev/nonexistent", 30*time.Millisecond); code(t, err) != storage.CodeNoNode {
		t.Error(err)
	}
	if err := WaitFor(t.Context(), "/dev/null", 30*time.Millisecond); code(t, err) != storage.CodeNoNode {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WaitFor(ctx, "/dev/nonexistent", time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
