package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestImagesFailOver: the first of two image servers dies in the middle of the
// download; the second brings the rest, and the installation reaches its point
// of no return with every object.
func TestImagesFailOver(t *testing.T) {
	t.Parallel()
	first, second := serve(t, site, copyStore(t)), serve(t, site, copyStore(t))
	relay, err := lab.NewRelay(first.Port, 40<<20, first.Kill)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { relay.Close() })
	m, lines := startInstaller(t, site, func(c lab.Config) {
		c["imageserver"] = []byte("# the near one first\n" + lab.InGuest(relay.Port) + "\n" + lab.InGuest(second.Port) + "\n")
	}, nil)
	wait(t, m, `commit: point of no return|FAILED`)
	if lines.index("commit: point of no return") < 0 {
		t.Fatal("it failed")
	}
	if lines.index("asking the next image server") < 0 {
		t.Error("the console does not tell that the server was changed")
	}
	if lines.index("connecting to the image server "+lab.InGuest(second.Port)) < 0 {
		t.Error("the second server was never asked")
	}
}

// timer spares an emulated machine a test of its timer, which the kernel takes
// for broken, and panics, when the host is busy.
const timer = " no_timer_check"

// startInstaller starts a machine with an empty disk that installs with the
// lab's configuration, edited.
func startInstaller(t *testing.T, s *lab.Site, edit func(lab.Config), machine func(*qemu.Config)) (*qemu.Machine, *keptLines) {
	t.Helper()
	config, err := s.NewConfig("nobody")
	if err != nil {
		t.Fatal(err)
	}
	edit(config)
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := s.WriteTFTP(tftp, config); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk.raw")
	if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(t.Context())
	lines := keepLines(t)
	c := qemu.Config{
		Accel: accel, Kernel: s.Kernel(), Initrd: s.Initramfs(), CommandLine: lab.CommandLine + timer,
		Net: qemu.Net{TFTP: tftp}, Disks: []qemu.Disk{{Path: disk, Serial: "lab-0"}},
		Lines: lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true,
	}
	if machine != nil {
		machine(&c)
	}
	// A socket's path must be short.
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(c.Dir) })
	m, err := qemu.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m, lines
}

// wait waits for a line of the console.
func wait(t *testing.T, m *qemu.Machine, pattern string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	found, err := m.WaitFor(ctx, regexp.MustCompile(pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// lowMemory asks for Install.LowMemory.
func lowMemory(c lab.Config) {
	c["config.json"] = append(bytes.TrimRight(c["config.json"], "}\n"), []byte(`, "Install": { "LowMemory": true } }`+"\n")...)
}
