package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/progress"
)

// reuse is what an installation took from where before its point of no return.
type reuse struct {
	old, server, boot progress.SourceStatus
	lines             *keptLines
}

// share is the part of the objects, and of their bytes, that the old system had.
func (r reuse) share() (objects, bytes float64) {
	all := r.old.Objects + r.server.Objects + r.boot.Objects
	size := r.old.Bytes + r.server.Bytes + r.boot.Bytes
	return float64(r.old.Objects) / float64(max(all, 1)), float64(r.old.Bytes) / float64(max(size, 1))
}

// reuseFrom starts an installation over old disks and lets it run to its last
// look at the disks, right before the first write. There it has to end: a
// further disk, one of those to be used, becomes another one meanwhile. So it
// is certain that nothing of what came before, the taking down of the old file
// systems included, wrote to a disk: QEMU counts no write, and the old disks
// are what they were.
func reuseFrom(t *testing.T, disks ...string) reuse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	config, err := site.NewConfig(lab.InGuest(serve(t, site, copyStore(t)).Port))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := site.WriteTFTP(tftp, config); err != nil {
		t.Fatal(err)
	}
	changing := filepath.Join(dir, "changing.raw")
	if err := qemu.CreateDisk(changing, 1<<30); err != nil {
		t.Fatal(err)
	}
	page, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(ctx)
	r := reuse{lines: keepLines(t)}
	c := qemu.Config{
		Accel: accel, Kernel: site.Kernel(), Initrd: site.Initramfs(), CommandLine: lab.CommandLine + timer,
		Net: qemu.Net{TFTP: tftp, Forwards: map[int]int{page: 6978}},
		Log: filepath.Join(dir, "console.log"), NoReboot: true,
		Lines: func(line string) {
			r.lines.add(line)
			if strings.Contains(line, "] stage: gathering") {
				if err := makeSwap(changing); err != nil {
					t.Error(err)
				}
			}
		},
	}
	var before [][32]byte
	for n, path := range disks {
		log := filepath.Join(dir, fmt.Sprint("writes-", n))
		if err := os.WriteFile(log, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		c.Disks = append(c.Disks, qemu.Disk{Path: path, Serial: fmt.Sprint("old-", n), WriteLog: log})
		sum, err := lab.HashDisk(path)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, sum)
	}
	c.Disks = append(c.Disks, qemu.Disk{Path: changing, Serial: "changing"})
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	found, err := m.WaitFor(ctx, failedLine)
	if err != nil {
		t.Fatal(err)
	}
	if found[1] != "STO-006" || !strings.HasSuffix(found[2], "; disks untouched") {
		t.Fatalf("it failed with %s, want STO-006: %s", found[1], found[2])
	}
	var status progress.Snapshot
	if err := json.Unmarshal(get(ctx, t, fmt.Sprintf("http://127.0.0.1:%d/api/v1/status", page)), &status); err != nil {
		t.Fatal(err)
	}
	for _, o := range status.Objects { // those from nowhere are not there
		switch o.Source {
		case "old_os":
			r.old = o
		case "server":
			r.server = o
		case "boot_image":
			r.boot = o
		}
	}
	metrics := get(ctx, t, fmt.Sprintf("http://127.0.0.1:%d/metrics", page))
	if !bytes.Contains(metrics, []byte(fmt.Sprintf(`installer_objects_total{source="old_os"} %d`, r.old.Objects))) {
		t.Errorf("the metrics do not tell the %d objects of the old system", r.old.Objects)
	}
	writes, err := m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for n, w := range writes {
		if !w.None() {
			t.Errorf("disk %d was written to before the point of no return: %+v", n, w)
		}
	}
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	for n, path := range disks {
		after, err := lab.HashDisk(path)
		if err != nil {
			t.Fatal(err)
		}
		if after != before[n] {
			t.Errorf("disk %d is not what it was", n)
		}
		if log, err := os.Stat(c.Disks[n].WriteLog); err != nil || log.Size() != 0 {
			t.Errorf("the log of what was written to disk %d is not empty: %v, %v", n, log, err)
		}
	}
	objects, bytes := r.share()
	t.Logf("from the old system %.1f %% of the objects, %.1f %% of the bytes: %+v; from the server %+v", 100*objects, 100*bytes, r.old, r.server)
	return r
}

// makeSwap gives a disk the signature of a swap area (mkswap(8)).
func makeSwap(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte("SWAPSPACE2"), 4086); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// check: of what an image needs, its own old installation has nearly all.
func (r reuse) check(t *testing.T, trees ...string) {
	t.Helper()
	objects, bytes := r.share()
	if objects < 0.9 || bytes < 0.95 {
		t.Errorf("the old system gave only %.1f %% of the objects and %.1f %% of the bytes", 100*objects, 100*bytes)
	}
	for _, tree := range trees {
		if r.lines.index("objects from "+tree) < 0 {
			t.Errorf("%s was not searched", tree)
		}
	}
}
