package status_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/status"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// scene is a machine in the middle of an installation, by a clock of its own.
type scene struct {
	now     time.Time
	model   *progress.Model
	options status.Options
}

func (s *scene) pass(d time.Duration) { s.now = s.now.Add(d) }

const scenePlan = `Machine  web1.example.com, Example R640, serial 7QX2K3, in rack 12
         amd64 with UEFI firmware, Secure Boot on, 52:54:00:12:34:56
Image    debian/12/2026-11-20, Debian GNU/Linux 12 (bookworm)
         12,049 files, 414.8 MiB unpacked

WILL BE ERASED: /dev/nvme0n1 (Example NVMe, 894.3 GiB, serial S4X0)
  chosen by: smallest NVMe disk
  erased by: discard: the disk is told that nothing on it is needed
  lost: /dev/nvme0n1p2  ext4 "root", 400.0 GiB
`

// newScene stands before commit: everything is gathered.
func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{now: time.Date(2026, 11, 20, 3, 12, 0, 0, time.UTC)}
	m := progress.New(func() time.Time { return s.now })
	s.model = m
	m.Describe(func(f *progress.Facts) {
		f.Version, f.Machine, f.Image = "0.3", "web1.example.com", "debian/12/2026-11-20"
		f.Hardware = "Example R640, serial 7QX2K3"
		f.ImageDigest, f.Plan = "sha256:"+strings.Repeat("5a", 32), "sha256:"+strings.Repeat("3f6c", 16)
		f.Page = "http://10.0.2.15:6978/"
		f.Signed = "signed by 9c1f40aa03d2be71; sequence 4, until 2026-12-20"
	})
	var received uint64
	for n, p := range progress.Phases()[:9] {
		m.Start(p)
		m.Logf(p, "this is what the phase %s has to say", p)
		if p == progress.Tools {
			m.Skip(p, "the boot image has every program that the plan needs")
			continue
		}
		steps := 1
		if p == progress.Stage {
			steps = 40
		}
		for i := range steps {
			s.pass(time.Duration(300+n*40) * time.Millisecond)
			if p == progress.Stage {
				received += uint64(2+i%5) << 20
				m.Objects(progress.FromServer, 120, uint64(4+i%5)<<20)
				m.Objects(progress.FromOldOS, 180, uint64(5-i%4)<<20)
				m.Update(p, uint64(i+1)*10<<20, 400<<20)
			}
			m.Sample(received, 300<<20+received)
		}
		m.Done(p)
	}
	machine := inventory.Document{
		Format: inventory.Format, Arch: "amd64", Firmware: storage.UEFI, SecureBoot: true, MemoryBytes: 64 << 30, CPUs: 32,
		DMI: inventory.DMI{Vendor: "Example", Product: "R640", Serial: "7QX2K3", UUID: "4c4c4544-0051-5810-8032-b7c04f4b3332", BIOSVersion: "2.19.1"},
		TPM: &inventory.TPM{Version: 2, Manufacturer: "IFX"}, Consoles: []string{"tty0"},
		Disks: []storage.Disk{
			{Name: "nvme0n1", Path: "/dev/nvme0n1", Size: 960 << 30, Model: "Example NVMe", Serial: "S4X0", SectorSize: 512},
			{Name: "nvme1n1", Path: "/dev/nvme1n1", Size: 960 << 30, Model: "Example NVMe", Serial: "S4X1", SectorSize: 512},
			{Name: "sda", Path: "/dev/sda", Size: 8 << 40, Model: "Example Spinner", Serial: "WD1", SectorSize: 512,
				Contents: []storage.Content{{Kind: "ext4", Label: "backup"}}},
		},
	}
	document, err := machine.JSON()
	if err != nil {
		t.Fatal(err)
	}
	s.options = status.Options{
		Model:     m,
		Plan:      func() []byte { return []byte("{}") },
		PlanText:  func() string { return scenePlan },
		Inventory: func() []byte { return document },
		NICs: func() []netconfig.NIC {
			return []netconfig.NIC{
				{Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, Driver: "i40e", Carrier: true, SpeedMbps: 25000, Counters: &netconfig.Counters{ReceivedBytes: 163 << 20, SentBytes: 4 << 20},
					Neighbour: &netconfig.Neighbour{System: "leaf7", Port: "Eth1/7", Management: netip.MustParseAddr("10.0.0.7"), VLANs: []netconfig.NamedVLAN{{ID: 120, Name: "prod"}}}},
				{Name: "eth1", MAC: netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x57}, Driver: "i40e", Counters: &netconfig.Counters{}},
			}
		},
		Leases:     func() map[string]string { return map[string]string{"eth0": "10.0.2.15/24, leased by 10.0.2.2"} },
		Memory:     func() (uint64, uint64) { return 640 << 20, 64 << 30 },
		MemoryPeak: func() uint64 { return 702 << 20 },
	}
	return s
}

// running is in the middle of storage and unpack.
func running(t *testing.T) *scene {
	s := newScene(t)
	m := s.model
	m.Start(progress.Commit)
	s.pass(400 * time.Millisecond)
	m.Done(progress.Commit)
	m.PointOfNoReturn()
	m.DisksChanged()
	m.Start(progress.Storage)
	m.Start(progress.Unpack)
	for _, disk := range []string{"nvme0n1", "nvme1n1"} {
		m.DiskStep(disk, "", "partition", progress.Running)
		m.Logf(progress.Storage, "%s: partition", disk)
	}
	s.pass(900 * time.Millisecond)
	m.DiskStep("nvme0n1", "nvme0n1p1", "ready at /boot/efi", progress.Done)
	m.DiskStep("nvme0n1", "nvme0n1p2", "ready at /", progress.Done)
	m.DiskStep("nvme0n1", "nvme0n1p3", "format", progress.Running)
	m.DiskStep("nvme0n1", "nvme0n1p4", "encrypt", progress.Running)
	m.DiskStep("nvme1n1", "nvme1n1p1", "encrypt", progress.Running)
	s.pass(2 * time.Second)
	m.Update(progress.Unpack, 150<<20, 415<<20)
	m.Wait(progress.Unpack, "the volume /var/log")
	s.pass(1500 * time.Millisecond)
	m.Sessions([]progress.Session{{Number: 1, Who: "anna", Programme: "/bin/sh", Since: s.now.Add(-time.Minute), State: progress.SessionAttached, Observers: 1}})
	return s
}

// failed is what a disk that is too small leads to.
func failed(t *testing.T) *scene {
	s := newScene(t)
	s.model.Start(progress.Commit)
	s.pass(400 * time.Millisecond)
	s.model.Fail(progress.Commit, fmt.Errorf("/dev/nvme0n1 is too small: need 31.2 GiB, have 29.8 GiB: %w", small{}))
	s.model.Next("reboot", s.now.Add(4*time.Minute+10*time.Second))
	return s
}

type small struct{}

func (small) Error() string { return "the layout does not fit" }
func (small) Code() string  { return "STO-002" }

// waiting has everything but somebody's word.
func waiting(t *testing.T) *scene {
	s := newScene(t)
	m := s.model
	m.Start(progress.Commit)
	m.Wait(progress.Commit, "approval of the plan")
	m.Approval(&progress.Approval{Plan: m.Snapshot().Facts.Plan, Since: s.now})
	s.pass(7 * time.Minute)
	return s
}

func TestPageOfEachState(t *testing.T) {
	for name, c := range map[string]struct {
		scene *scene
		want  []string
		not   []string
	}{
		"running": {running(t), []string{"storage and unpack", "about ", " left", "for the volume /var/log, for 1.5 s now", "nvme0n1p4</b> encrypt", "ready at /boot/efi",
			"Example Spinner", "on it: ext4 backup", "<polyline", "anna", "observed by 1", "25 Gbit/s", "leased by 10.0.2.2", "leaf7", "640.0 MiB of 64.0 GiB", "signed by 9c1f", "with plain PXE at the first loader", "WILL BE ERASED"}, []string{"waits for a person"}},
		"failed": {failed(t), []string{"STO-002", "What happened", "What it means", "What to do", "; disks untouched.</p>", "No disk was touched", "Next:</strong> reboot in 4 min 10 s",
			"firstlight installer-shell 10.0.2.15", "curl -s http://10.0.2.15:6978/log"}, []string{" left", "Waiting for approval"}},
		"waiting": {waiting(t), []string{"waiting for approval", "approve sha256:3f6c", "it waits for a person", "No disk has been touched", "<details id=\"plan\" open>"}, []string{" left."}},
	} {
		t.Run(name, func(t *testing.T) {
			page := body(t, get(t, status.Handler(c.scene.options), "GET", "/"))
			for _, want := range c.want {
				if !strings.Contains(page, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			for _, not := range c.not {
				if strings.Contains(page, not) {
					t.Errorf("the page has %q", not)
				}
			}
			if len(page) > 60<<10 {
				t.Errorf("%d bytes", len(page))
			}
		})
	}
}

// The filter works without JavaScript, in any case, over all of the log.
func TestLogFilter(t *testing.T) {
	s := newScene(t)
	for n := range 300 {
		s.model.Logf(progress.Stage, "line %d", n)
	}
	h := status.Handler(s.options)
	page := body(t, get(t, h, "GET", "/?q=PHASE+links"))
	_, log, _ := strings.Cut(page, `<pre id="log"`)
	if !strings.Contains(log, "what the phase links has to say") || strings.Contains(log, "line 299") || !strings.Contains(page, `value="PHASE links"`) {
		t.Errorf("the log is\n%s", log)
	}
	if page := body(t, get(t, h, "GET", "/?q=%3Cscript%3E")); !strings.Contains(page, "no line of the log has that") || !strings.Contains(page, `value="&lt;script&gt;"`) {
		t.Error("the query is not shown as text")
	}
}
