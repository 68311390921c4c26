package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func testIDs(name string) (id [16]byte) {
	sum := sha256.Sum256([]byte("test:" + name))
	copy(id[:], sum[:])
	return id
}

// defaultSpec is the default layout of the model's README.
func defaultSpec() Spec {
	return Spec{
		Volumes: []VolumeSpec{
			{FileSystem: "ext4", MountPoint: "/", MinimumFreeBytes: 2 * GiB},
			{FileSystem: "ext4", MountPoint: "/home", MinimumFreeBytes: 1 * GiB},
			{FileSystem: "ext4", MountPoint: "/var/log", MinimumFreeBytes: 512 * MiB},
		},
		ExtraMountPointsBasename: "/data/",
		Encrypt:                  true,
	}
}

func disk(name string, size uint64, sector uint32) Disk {
	return Disk{
		Name: name, Path: "/dev/" + name, Model: "Test", Serial: "S-" + name,
		BusPath: "pci0000:00/" + name, Transport: "virtio",
		Size: size, SectorSize: sector, PhysicalSectorSize: 4096,
	}
}

func debianNeed() Need {
	return Need{RootBytes: 450 * MiB, Inodes: 13000, BytesBelow: map[string]uint64{"/var/log": 40960, "/home": 4096}}
}

func TestResolveGolden(t *testing.T) {
	withDisk := func(d Disk, change func(*Disk)) Disk { change(&d); return d }
	cases := []struct {
		name     string
		spec     Spec
		disks    []Disk
		selected []string
		firmware Firmware
	}{
		{"default-8g-512-bios", defaultSpec(), []Disk{disk("vda", 8*GiB, 512)}, nil, BIOS},
		{"default-8g-512-uefi", defaultSpec(), []Disk{disk("vda", 8*GiB, 512)}, nil, UEFI},
		{"default-1t-512-both", defaultSpec(), []Disk{disk("nvme0n1", 1000204886016, 512)}, nil, Both},
		{"default-1t-4096-uefi", defaultSpec(), []Disk{disk("nvme0n1", 1000204886016, 4096)}, nil, UEFI},
		{"two-disks", defaultSpec(), []Disk{disk("vda", 8*GiB, 512), disk("vdb", 2*GiB, 4096)}, nil, BIOS},
		{"three-disks-selected", defaultSpec(), []Disk{disk("vda", 8*GiB, 512), disk("vdb", 20*GiB, 512), disk("vdc", 2*GiB, 512)}, []string{"/dev/vdb", "vda"}, BIOS},
		{"stripe-of-768k", defaultSpec(), []Disk{withDisk(disk("sda", 64*GiB, 512), func(d *Disk) { d.OptimalIOSize = 768 << 10 })}, nil, UEFI},
		{"plain-boot-esp-owner", Spec{
			Volumes: []VolumeSpec{
				{FileSystem: "vfat", MountPoint: "/boot/efi", MinimumBytes: 300*MiB + 1, Label: "EFI"},
				{FileSystem: "ext4", MountPoint: "/boot", MinimumBytes: 512 * MiB},
				{MountPoint: "/", MinimumFreeBytes: GiB, BytesPerInode: 8192, ReservedBlocksPercentage: 1},
				{FileSystem: "xfs", MountPoint: "/srv", MinimumBytes: GiB, RootUserID: 1000, RootGroupID: 100},
				{MountPoint: "/var-log", MinimumBytes: 100},
				{MountPoint: "/var/log"},
				{MountPoint: "/a/long/mount/point/one"},
				{MountPoint: "/a/long/mount/point/two"},
			},
			Encrypt: true,
		}, []Disk{disk("vda", 16*GiB, 512), disk("vdb", GiB, 512)}, nil, UEFI},
		{"old-contents", defaultSpec(), []Disk{withDisk(disk("vda", 8*GiB, 512), func(d *Disk) {
			d.Contents = []Content{
				{Where: "vda", Kind: "gpt", UUID: "u", Size: 8 * GiB},
				{Where: "vda1", Kind: "partition", Label: "Windows", Offset: MiB, Size: 4 * GiB},
				{Where: "vda1", Kind: "ntfs", Label: "System", Offset: MiB, Size: 4 * GiB},
			}
		})}, nil, BIOS},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, err := Resolve(c.spec, c.disks, c.selected, debianNeed(), c.firmware, testIDs)
			if err != nil {
				t.Fatal(err)
			}
			checkLayout(t, l)
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetIndent("", "  ")
			if err := e.Encode(l); err != nil {
				t.Fatal(err)
			}
			b.WriteString("--- fstab\n")
			b.Write(l.Fstab())
			b.WriteString("--- crypttab\n")
			b.Write(l.Crypttab())
			golden := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("layout changed (-want +got):\n%s", d)
			}
			again, err := Resolve(c.spec, c.disks, c.selected, debianNeed(), c.firmware, testIDs)
			if err != nil || !cmp.Equal(l, again) {
				t.Error("the same input gave another layout")
			}
		})
	}
}

// checkLayout holds what must be true of every layout.
func checkLayout(t *testing.T, l Layout) {
	t.Helper()
	seen := make(map[string]bool)
	unique := func(s string) {
		if seen[s] {
			t.Errorf("%s is used twice", s)
		}
		seen[s] = true
	}
	for _, d := range l.Disks {
		unique(d.UUID)
		sector := uint64(d.SectorSize)
		last := uint64(0)
		for i, p := range d.Partitions {
			unique(p.UUID)
			if p.FSUUID != "" {
				unique(p.FSUUID)
			}
			if p.Label != "" {
				unique("label " + p.Label)
			}
			if p.LUKS != nil {
				unique(p.LUKS.UUID)
				unique(p.LUKS.Mapping)
			}
			if p.Number != i+1 || p.FirstSector <= last || p.LastSector <= p.FirstSector {
				t.Errorf("%s partition %d: sectors %d–%d after %d", d.Name, p.Number, p.FirstSector, p.LastSector, last)
			}
			if p.FirstSector*sector%MiB != 0 {
				t.Errorf("%s partition %d is not aligned", d.Name, p.Number)
			}
			if (p.LastSector-p.FirstSector+1)*sector != p.Bytes || p.Bytes%MiB != 0 {
				t.Errorf("%s partition %d: %d bytes", d.Name, p.Number, p.Bytes)
			}
			last = p.LastSector
		}
		if end := (last + 1) * sector; end+sector+gptEntries > d.Size {
			t.Errorf("%s: the last partition lies on the second table", d.Name)
		}
	}
	before := make(map[string]bool)
	for i, v := range l.Mounts() {
		if i == 0 && v.MountPoint() != "/" {
			t.Errorf("first mount is %s", v.MountPoint())
		}
		for other := range before {
			if strings.HasPrefix(other, v.MountPoint()+"/") {
				t.Errorf("%s is mounted after %s", v.MountPoint(), other)
			}
		}
		before[v.MountPoint()] = true
	}
}

func TestResolveRefuses(t *testing.T) {
	with := func(change func(*Spec)) Spec { s := defaultSpec(); change(&s); return s }
	usb := disk("sda", 8*GiB, 512)
	usb.Transport = "usb"
	ro := disk("sdb", 8*GiB, 512)
	ro.ReadOnly = true
	removable := disk("sdc", 8*GiB, 512)
	removable.Removable = true
	virtual := disk("sdd", 8*GiB, 512)
	virtual.Model = "AMI Virtual HDisk0"
	medium := disk("sde", 8*GiB, 512)
	medium.BootMedium = true
	empty := disk("sdf", 0, 512)
	labelled := disk("sdg", 8*GiB, 512)
	labelled.Contents = []Content{{Where: "sdg", Kind: "vfat", Label: "FIRSTLIGHT"}}
	broken := disk("sdh", 8*GiB, 512)
	broken.Contents = []Content{{Where: "sdh", Kind: KindUnreadable}}
	good := disk("vda", 8*GiB, 512)

	cases := []struct {
		name     string
		spec     Spec
		disks    []Disk
		selected []string
		code     string
		texts    []string
	}{
		{"no disk at all", defaultSpec(), nil, nil, CodeNoDisk, []string{"no disk"}},
		{"no usable disk", defaultSpec(), []Disk{usb, ro, removable, virtual, medium, empty, labelled, broken}, nil, CodeNoDisk,
			[]string{"/dev/sda (Test, 8.0 GiB, serial S-sda): it is connected by USB", "S-sdb): it is read-only", "S-sdc): it is removable", "S-sdd): it is virtual media", "S-sde): the running system or its configuration came from it", "S-sdf): it has no size", "S-sdg): it is a medium labelled FIRSTLIGHT", "S-sdh): it cannot be read"}},
		{"too small", defaultSpec(), []Disk{disk("vda", 2*GiB, 512)}, nil, CodeTooSmall, []string{"/dev/vda is too small: need 4.", "have 2.0 GiB", "/var/log"}},
		{"tiny", defaultSpec(), []Disk{disk("vda", 512, 512)}, nil, CodeTooSmall, []string{"have 512 B"}},
		{"data disk too small", defaultSpec(), []Disk{good, disk("vdb", 10*MiB, 512)}, nil, CodeTooSmall, []string{"/dev/vdb is too small", "have 10.0 MiB"}},
		{"absurd size", with(func(s *Spec) { s.Volumes[1].MinimumFreeBytes = 1 << 63 }), []Disk{good}, nil, CodeLayout, []string{"volume 2 (/home): no disk is larger"}},
		{"selected an unusable one", defaultSpec(), []Disk{good, usb}, []string{"sda", "nvme7n1"}, CodeSelection, []string{"sda cannot be used: it is connected by USB", "nvme7n1 is no disk"}},
		{"selected twice", defaultSpec(), []Disk{good}, []string{"vda", "/dev/vda"}, CodeSelection, []string{"twice"}},
		{"selected none", defaultSpec(), []Disk{good}, []string{}, CodeSelection, []string{"selected no disk", "/dev/vda"}},
		{"everything wrong", with(func(s *Spec) {
			s.Volumes[0].MountPoint = "home"
			s.Volumes[2].MountPoint = "/home"
			s.Volumes[2].ReservedBlocksPercentage = 70
			s.Volumes = append(s.Volumes,
				VolumeSpec{MountPoint: "/data/7"}, VolumeSpec{MountPoint: "/a//b"}, VolumeSpec{MountPoint: "/a/../b"},
				VolumeSpec{MountPoint: "/etc/x"}, VolumeSpec{MountPoint: "/proc"}, VolumeSpec{},
				VolumeSpec{MountPoint: "/l", Label: "much too long a label"}, VolumeSpec{MountPoint: "/m", BytesPerInode: 1},
				VolumeSpec{MountPoint: "/boot/efi"},
				VolumeSpec{MountPoint: "/v", FileSystem: "vfat", RootUserID: 1, BytesPerInode: 4096}, VolumeSpec{MountPoint: "/v/w", FileSystem: "zfs"})
		}), []Disk{good}, nil, CodeLayout, []string{
			`mount point "home" does not begin with /`, "volume 2 and volume 3 have the same mount point /home",
			"ReservedBlocksPercentage is 70", "no volume is mounted at /", "which ExtraMountPointsBasename", `should be written "/a/b"`, `should be written "/b"`,
			"/etc/x cannot be a volume", "/proc cannot be a volume", "has no mount point", "longer than the 16 bytes", "BytesPerInode is 1;",
			"must be vfat, not ext4", "vfat has no owners", "BytesPerInode is for ext4", "/v/w lies on the vfat volume", `file system "zfs"`,
		}},
		{"unknown file system", with(func(s *Spec) { s.Volumes[1].FileSystem = "reiserfs" }), []Disk{good}, nil, CodeFileSystem, []string{`volume 2 (/home): file system "reiserfs"`}},
		{"relative basename", with(func(s *Spec) { s.ExtraMountPointsBasename = "data" }), []Disk{good}, nil, CodeLayout, []string{"does not begin with /"}},
		{"no volumes", Spec{ExtraMountPointsBasename: "/data/"}, []Disk{good}, nil, CodeLayout, []string{"no volume is mounted at /"}},
		{"root on vfat", with(func(s *Spec) { s.Volumes[0].FileSystem = "vfat" }), []Disk{good}, nil, CodeLayout, []string{"cannot be vfat"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Resolve(c.spec, c.disks, c.selected, debianNeed(), UEFI, testIDs)
			if err == nil {
				t.Fatal("accepted")
			}
			if code := err.(*Error).Code(); code != c.code {
				t.Errorf("code %s, want %s", code, c.code)
			}
			for _, text := range c.texts {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
		})
	}
}

func TestBusOrder(t *testing.T) {
	var disks []Disk
	for _, bus := range []string{
		"pci0000:00/0000:00:1f.2/ata10/host9", "pci0000:00/0000:00:1f.2/ata2/host1",
		"pci0000:00/0000:00:1d.0/nvme/nvme0", "pci0000:00/0000:00:0a.0/virtio12", "pci0000:00/0000:00:0a.0/virtio3", "",
	} {
		d := disk("x", 8*GiB, 512)
		d.BusPath = bus
		disks = append(disks, d)
	}
	slices.SortStableFunc(disks, compareBus)
	var got []string
	for _, d := range disks {
		got = append(got, d.BusPath)
	}
	want := []string{
		"pci0000:00/0000:00:0a.0/virtio3", "pci0000:00/0000:00:0a.0/virtio12", "pci0000:00/0000:00:1d.0/nvme/nvme0",
		"pci0000:00/0000:00:1f.2/ata2/host1", "pci0000:00/0000:00:1f.2/ata10/host9", "",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestForeign(t *testing.T) {
	cases := []struct {
		name     string
		contents []Content
		want     bool
	}{
		{"empty", nil, false},
		{"ours", []Content{{Where: "vda", Kind: "gpt"}, {Where: "vda1", Kind: "partition", Label: "firstlight:/"}, {Where: "vda1", Kind: "ext4"}}, false},
		{"one more partition", []Content{{Where: "vda", Kind: "gpt"}, {Where: "vda1", Kind: "partition", Label: "firstlight:/"}, {Where: "vda2", Kind: "partition", Label: "photos"}}, true},
		{"foreign table", []Content{{Where: "vda", Kind: "gpt"}, {Where: "vda1", Kind: "partition", Label: "root"}}, true},
		{"empty foreign table", []Content{{Where: "vda", Kind: "gpt"}}, true},
		{"whole-disk file system", []Content{{Where: "vda", Kind: "ext4"}}, true},
		{"MBR", []Content{{Where: "vda", Kind: "mbr"}, {Where: "vda1", Kind: "partition"}}, true},
	}
	for _, c := range cases {
		d := disk("vda", 8*GiB, 512)
		d.Contents = c.contents
		if got := d.Foreign(); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		l, err := Resolve(defaultSpec(), []Disk{d}, nil, debianNeed(), BIOS, testIDs)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.RefuseForeign(); (err != nil) != c.want {
			t.Errorf("%s: %v", c.name, err)
		} else if err != nil && err.(*Error).Code() != CodeForeign {
			t.Errorf("%s: code %s", c.name, err.(*Error).Code())
		}
	}
}

func TestNeed(t *testing.T) {
	files := func(yield func(string, uint64) bool) {
		for _, f := range []struct {
			name string
			size uint64
		}{{".", 0}, {"etc", 0}, {"etc/fstab", 1}, {"home", 0}, {"home/x", 4097}, {"homely", 5}, {"var", 0}, {"var/log", 0}, {"var/log/a/b", 4096}, {"data/0/seed", 1}, {"data/00", 1}} {
			if !yield(f.name, f.size) {
				return
			}
		}
	}
	want := Need{
		RootBytes: 6 * 4096, Inodes: 6,
		BytesBelow:  map[string]uint64{"/home": 3 * 4096, "/var/log": 2 * 4096, "/data/0": 4096},
		InodesBelow: map[string]uint64{"/home": 2, "/var/log": 2, "/data/0": 1},
	}
	if d := cmp.Diff(want, defaultSpec().Need(files)); d != "" {
		t.Error(d)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("/home", "ext4", uint64(1<<30), uint64(0), uint64(8<<30), uint(3), true)
	f.Add("/boot/efi", "vfat", uint64(0), uint64(1<<20), uint64(1<<40), uint(0), false)
	f.Fuzz(func(t *testing.T, point, fs string, least, free, size uint64, reserved uint, encrypt bool) {
		s := defaultSpec()
		s.Encrypt = encrypt
		s.Volumes = append(s.Volumes, VolumeSpec{MountPoint: point, FileSystem: fs, MinimumBytes: least, MinimumFreeBytes: free, ReservedBlocksPercentage: reserved})
		l, err := Resolve(s, []Disk{disk("vda", size, 512)}, nil, debianNeed(), Both, testIDs)
		if err == nil {
			checkLayout(t, l)
		}
	})
}
