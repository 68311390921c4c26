package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// inserted is how a medium is connected to a machine: QEMU's arguments. The
// firmware tries it first.
type inserted func(medium string) []string

func asCD(medium string) []string {
	return []string{"-drive", "if=none,id=medium,media=cdrom,readonly=on,format=raw,file=" + medium, "-device", "ide-cd,drive=medium,bootindex=0"}
}

func asStick(medium string) []string {
	return []string{"-device", "qemu-xhci,id=sticks", "-drive", "if=none,id=medium,format=raw,snapshot=on,file=" + medium,
		"-device", "usb-storage,bus=sticks.0,drive=medium,removable=on,serial=stick-0,bootindex=0"}
}

// firstPhase is the first line of the installer, dryPlan the end of a dry run.
var (
	firstPhase = regexp.MustCompile(`\] clock: Firstlight installer`)
	dryPlan    = regexp.MustCompile(`plan: dry run: stopping here`)
)

// mediumMachine is a machine with an empty disk that starts from a medium.
func mediumMachine(t *testing.T, uefi bool, args []string) qemu.Config {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(t.Context())
	c := qemu.Config{Accel: accel, Disks: []qemu.Disk{{Path: disk, Serial: "lab-0"}}, Args: args}
	if uefi {
		c.Vars = filepath.Join(dir, "vars.fd")
		if err := qemu.CreateVars(c.Vars, false); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// makeBootable makes a medium in a directory of the test.
func makeBootable(t *testing.T, kind string, flags ...string) string {
	t.Helper()
	medium := filepath.Join(t.TempDir(), kind)
	if err := site.MakeBootable(t.Context(), kind, medium, flags...); err != nil {
		t.Fatal(err)
	}
	return medium
}

// untouched says that nothing was written to the machine's first disk.
func untouched(t *testing.T, m *qemu.Machine) {
	t.Helper()
	writes, err := m.Writes(t.Context())
	if err != nil || !writes[0].None() {
		t.Errorf("the disk was written to: %+v, %v", writes, err)
	}
}

// TestMediaISO: the ISO image starts as a CD, by BIOS; it is no larger than
// promised.
func TestMediaISO(t *testing.T) {
	medium := makeBootable(t, "iso", "--append", "installer.dryRun")
	atMost(t, medium, 40)
	lines := keepLines(t)
	m := powerOn(t, mediumMachine(t, false, asCD(medium)), lines)
	await(t, m, 3*time.Minute, firstPhase)
	untouched(t, m)
}

// atMost says that a medium has no more than so many megabytes.
func atMost(t *testing.T, medium string, limit int64) {
	t.Helper()
	info, err := os.Stat(medium)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %.1f MB", filepath.Base(medium), float64(info.Size())/1e6)
	if info.Size() > limit*1e6 {
		t.Errorf("the medium has %d bytes, more than %d MB", info.Size(), limit)
	}
}

// writeFiles writes a machine's configuration into a directory.
func writeFiles(t *testing.T, files lab.Config) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "machine")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// says fails unless the console has said all of these.
func says(t *testing.T, m *qemu.Machine, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(m.Text(), text) {
			t.Errorf("the console lacks %q", text)
		}
	}
}
