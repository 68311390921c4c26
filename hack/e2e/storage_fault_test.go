package e2e

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/hack/writelog"
)

// checkFaults installs again and again over the old system, each time onto a
// disk with a sector that cannot be written, among those that an installation
// wrote (several in the short series, so that its one installation meets them). An installation that met it says so and fails, and nothing half made
// boots afterwards.
func checkFaults(t *testing.T, s *smallSite, old string, l *writelog.Log) {
	met := 0
	all := sampleFaults(l, sampledFaults*faultsAtOnce)
	for n := range sampledFaults {
		faults := all[n*faultsAtOnce : (n+1)*faultsAtOnce]
		fault := faults[0]
		disk := filepath.Join(t.TempDir(), "disk")
		if err := lab.CopySparse(disk, old); err != nil {
			t.Fatal(err)
		}
		r := s.install(t, "new", smallLayout, qemu.Disk{Path: disk, Faults: faults})
		t.Logf("%d: sector %d fails with %s: %s %s%s", n, fault.Sector, syscall.Errno(fault.Errno), r.code, r.text, r.image)
		if r.code != "" {
			met++
			if !strings.HasSuffix(r.text, "; disks changed") && !strings.HasSuffix(r.text, "; disks untouched") {
				t.Errorf("sector %d: it does not say what became of the disks: %s", fault.Sector, r.text)
			}
		}
		if failed := r.writes[0].Failed; r.code == "" && failed > 0 {
			t.Errorf("sector %d: %d writes failed, and the installation called itself complete", fault.Sector, failed)
		}
		checkWholeOrNothing(t, disk)
		os.Remove(disk)
	}
	// Where a file comes to lie differs a little from one installation to the
	// next, so some meet no failing sector. Were it most, this proved nothing.
	if met < (sampledFaults+1)/2 {
		t.Errorf("of %d installations only %d met the failing sector", sampledFaults, met)
	}
}

// sampleFaults picks sectors that an installation wrote, evenly over the time
// that it took.
func sampleFaults(l *writelog.Log, n int) []qemu.Fault {
	var writes []writelog.Entry
	for _, e := range l.Entries {
		if e.Bytes > 0 && !e.Discard {
			writes = append(writes, e)
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	var faults []qemu.Fault
	for i := range n {
		e := writes[(2*i+1)*len(writes)/(2*n)]
		errno := []syscall.Errno{syscall.EIO, syscall.ENOSPC}[i%2]
		faults = append(faults, qemu.Fault{Sector: (e.Offset + random.Int64N(e.Bytes)) / 512, Errno: int(errno)})
	}
	return faults
}

// checkWholeOrNothing boots a disk, if there is anything that the firmware
// would start: what comes up has to be whole.
func checkWholeOrNothing(t *testing.T, disk string) {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	program, err := firmwareStarts(f)
	if err != nil {
		t.Fatal(err)
	}
	if program == "" {
		return
	}
	if edition, wrong := bootSmall(t, 90*time.Second, qemu.Disk{Path: disk}); edition != "" && wrong != "" {
		t.Errorf("the machine boots edition %q, but %s", edition, wrong)
	}
}
