package storage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// stacked is the default layout changed.
func stacked(change func(*Spec)) Spec {
	s := defaultSpec()
	change(&s)
	return s
}

// What lies on partitions, told in a few lines that a person can check.
func TestStacks(t *testing.T) {
	pair := []Disk{disk("nvme0n1", 32*GiB, 512), disk("nvme1n1", 40*GiB, 512)}
	cases := []struct {
		name     string
		spec     Spec
		disks    []Disk
		firmware Firmware
	}{
		{"mirror-uefi", stacked(func(s *Spec) { s.Mirror = true }), pair, UEFI},
		{"mirror-both", stacked(func(s *Spec) { s.Mirror, s.Firmware, s.Encrypt = true, Both, false }), pair, BIOS},
		{"mirror-group", stacked(func(s *Spec) { s.Mirror, s.VolumeGroup = true, "vg0" }), pair, UEFI},
		{"mirror-encrypted-root", stacked(func(s *Spec) {
			s.Mirror, s.Encryption = true, Encryption{Root: true, Unlock: []Unlock{UnlockTPM2}}
		}), pair, UEFI},
		{"group", stacked(func(s *Spec) {
			s.VolumeGroup, s.ExtraMountPointsBasename = "vg0", ""
			s.Volumes = append(s.Volumes, VolumeSpec{FileSystem: Swap, MinimumBytes: GiB}, VolumeSpec{MountPoint: "/boot"})
		}), []Disk{disk("vda", 16*GiB, 512)}, BIOS},
		{"data-raid0", stacked(func(s *Spec) { s.DataRAID = RAID0 }), append([]Disk{disk("nvme9n1", 9*GiB, 512), disk("nvme9n2", 9*GiB, 512)}, pair...), UEFI},
		{"data-raid10", stacked(func(s *Spec) { s.DataRAID, s.Encrypt = RAID10, false }), append([]Disk{disk("nvme9n1", 9*GiB, 512), disk("nvme9n2", 9*GiB, 512)}, pair...), UEFI},
		{"subvolumes", stacked(func(s *Spec) {
			s.Encrypt, s.ExtraMountPointsBasename = false, ""
			s.Volumes = []VolumeSpec{
				{FileSystem: Btrfs, MountPoint: "/", MinimumFreeBytes: GiB, Subvolumes: []Subvolume{{"@", "/"}, {"@home", "/home"}, {"@log", "/var/log"}}},
				{FileSystem: XFS, MountPoint: "/srv"},
				{FileSystem: Swap, MountPoint: "none", MinimumBytes: 512 * MiB},
			}
		}), []Disk{disk("vda", 16*GiB, 4096)}, UEFI},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l, err := Resolve(c.spec, c.disks, nil, debianNeed(), c.firmware, testIDs)
			if err != nil {
				t.Fatal(err)
			}
			checkLayout(t, l)
			checkStack(t, l)
			golden := filepath.Join("testdata", c.name+".golden")
			got := tell(l)
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("layout changed (-want +got):\n%s", d)
			}
			// The plan's JSON gives the same layout again.
			var again Layout
			data, err := json.Marshal(l)
			if err == nil {
				err = json.Unmarshal(data, &again)
			}
			if d := cmp.Diff(l, again); err != nil || d != "" {
				t.Errorf("%v\n%s", err, d)
			}
		})
	}
}

// tell is a layout in words.
func tell(l Layout) string {
	var b bytes.Buffer
	made := func(p Partition) string {
		text := fmt.Sprintf("%8d MiB %-5s %q", p.Bytes/MiB, p.FileSystem, p.MountPoint)
		if p.LUKS != nil {
			text += " in " + p.LUKS.Mapping
		}
		return text
	}
	for _, d := range l.Disks {
		fmt.Fprintln(&b, d.Path)
		for _, p := range d.Partitions {
			fmt.Fprintf(&b, "  %d %s %s %s\n", p.Number, p.TypeGUID[:8], made(p), p.Name)
		}
	}
	for _, a := range l.Arrays {
		fmt.Fprintf(&b, "%s %s RAID%d %s of %s, %d MiB each\n  %s\n", a.Node, a.Name, a.Level, a.Metadata(), strings.Join(a.Members, " "), a.MemberBytes/MiB, made(a.Volume))
	}
	for _, g := range l.Groups {
		fmt.Fprintf(&b, "%s on %s, %d extents\n", g.Name, g.Device, g.Extents)
		for _, v := range g.Volumes {
			fmt.Fprintf(&b, "  %-8s %5d+%-5d %s\n", v.Name, v.FirstExtent, v.Extents, made(v.Volume))
		}
	}
	fmt.Fprintf(&b, "initrd %v, root options %q, programs %s\n", l.NeedsInitrd(), l.RootOptions(), strings.Join(l.Programs(), " "))
	b.Write(l.MDConfig())
	b.Write(l.Fstab())
	b.Write(l.Crypttab())
	return b.String()
}

// checkStack holds what must be true of every stack.
func checkStack(t *testing.T, l Layout) {
	t.Helper()
	size := make(map[string]uint64) // of each node
	used := make(map[string]bool)
	for _, d := range l.Disks {
		for _, p := range d.Partitions {
			size[d.Node(p)] = p.Bytes
			used[d.Node(p)] = p.FileSystem != ""
		}
	}
	take := func(node string, bytes uint64) {
		if size[node] == 0 || used[node] || size[node] < bytes {
			t.Errorf("%s of %d bytes cannot give %d; used: %v", node, size[node], bytes, used[node])
		}
		used[node] = true
	}
	names := make(map[string]bool)
	unique := func(name string) {
		if names[name] {
			t.Errorf("%s is there twice", name)
		}
		names[name] = true
	}
	for _, a := range l.Arrays {
		unique("array " + a.Name)
		unique(a.Node)
		unique(a.UUID)
		for _, m := range a.Members {
			take(m, a.MemberBytes+ArrayOffset)
		}
		size[a.Node] = a.Bytes
		used[a.Node] = a.Volume.FileSystem != ""
		if a.Bytes == 0 || a.Bytes > a.MemberBytes*uint64(len(a.Members)) {
			t.Errorf("%s has %d bytes", a.Name, a.Bytes)
		}
	}
	for _, g := range l.Groups {
		take(g.Device, GroupStart+g.Extents*GroupExtent)
		at := uint64(0)
		for _, v := range g.Volumes {
			unique("volume " + v.Name)
			if v.FirstExtent != at || v.Extents == 0 {
				t.Errorf("%s: extents %d+%d after %d", v.Name, v.FirstExtent, v.Extents, at)
			}
			at += v.Extents
		}
		if at > g.Extents {
			t.Errorf("%d extents are used of %d", at, g.Extents)
		}
	}
}

// TestTakeDownPrograms: what may be active on a disk is taken down by programs, and
// these are asked for before the point of no return.
func TestTakeDownPrograms(t *testing.T) {
	d := disk("vda", 32*GiB, 512)
	for kind, want := range map[string]string{"ext4": "", "md": "mdadm", "isw-raid": "mdadm", "lvm": "dmsetup", "luks": "dmsetup"} {
		d.Contents = []Content{{Where: "vda", Kind: kind, Size: d.Size}}
		s := defaultSpec()
		s.Encrypt = false
		l, err := Resolve(s, []Disk{d}, nil, debianNeed(), UEFI, testIDs)
		if err != nil {
			t.Fatal(err)
		}
		programs := strings.Join(l.Programs(), " ")
		for _, name := range []string{"mdadm", "dmsetup"} {
			if strings.Contains(programs, name) != (name == want) {
				t.Errorf("over %s: %s", kind, programs)
			}
		}
	}
}

func TestStackRefuses(t *testing.T) {
	one, pair := []Disk{disk("vda", 32*GiB, 512)}, []Disk{disk("vda", 32*GiB, 512), disk("vdb", 32*GiB, 4096)}
	for name, c := range map[string]struct {
		spec     Spec
		disks    []Disk
		firmware Firmware
		code     string
		text     string
	}{
		"BIOS and 4096":     {defaultSpec(), []Disk{disk("vda", 8*GiB, 4096)}, BIOS, CodeLayout, "no BIOS starts from such a disk"},
		"unequal sectors":   {stacked(func(s *Spec) { s.Mirror = true }), pair, UEFI, CodeLayout, "equal sectors"},
		"mirror of one":     {stacked(func(s *Spec) { s.Mirror = true }), one, UEFI, CodeNoDisk, ""},
		"array of one":      {stacked(func(s *Spec) { s.DataRAID = RAID1 }), []Disk{one[0], disk("vdb", 9*GiB, 512)}, UEFI, CodeNoDisk, "two data disks"},
		"swap without size": {stacked(func(s *Spec) { s.Volumes = append(s.Volumes, VolumeSpec{FileSystem: Swap}) }), one, UEFI, CodeLayout, "swap needs MinimumBytes"},
		"swap twice": {stacked(func(s *Spec) {
			s.Volumes = append(s.Volumes, VolumeSpec{FileSystem: Swap, MinimumBytes: GiB}, VolumeSpec{FileSystem: Swap, MinimumBytes: GiB})
		}), one, UEFI, CodeLayout, "are both swap"},
		"swap somewhere": {stacked(func(s *Spec) {
			s.Volumes = append(s.Volumes, VolumeSpec{FileSystem: Swap, MountPoint: "/swap", MinimumBytes: GiB})
		}), one, UEFI, CodeLayout, "mounted nowhere"},
		"subvolumes of ext4": {stacked(func(s *Spec) { s.Volumes[1].Subvolumes = []Subvolume{{"a", "/a"}} }), one, UEFI, CodeLayout, "Subvolumes are for btrfs"},
		"subvolume twice": {stacked(func(s *Spec) {
			s.Volumes[1].FileSystem, s.Volumes[1].Subvolumes = Btrfs, []Subvolume{{"a", "/a"}, {"a", "/b"}, {"c/d", "/c"}, {"e", "/var/log"}, {"f", "/etc/f"}}
		}), one, UEFI, CodeLayout, "two subvolumes a"},
		"boot in an encrypted subvolume": {stacked(func(s *Spec) {
			s.Volumes[1].FileSystem, s.Volumes[1].Subvolumes = Btrfs, []Subvolume{{"@home", s.Volumes[1].MountPoint}, {"@boot", "/boot"}}
		}), one, UEFI, CodeLayout, "give /boot a volume of its own"},
		"ESP as a subvolume": {stacked(func(s *Spec) {
			s.Encrypt = false
			s.Volumes[1].FileSystem, s.Volumes[1].Subvolumes = Btrfs, []Subvolume{{"@home", s.Volumes[1].MountPoint}, {"@esp", "/boot/efi"}}
		}), one, UEFI, CodeLayout, "firmware reads no btrfs"},
		"group's name": {stacked(func(s *Spec) { s.VolumeGroup = "a-b" }), one, UEFI, CodeLayout, "VolumeGroup"},
		"RAID 5":       {stacked(func(s *Spec) { s.DataRAID = "raid5" }), one, UEFI, CodeLayout, "none of raid0, raid1, raid10"},
		"preserved":    {stacked(func(s *Spec) { s.VolumeGroup, s.Preserve = "vg", []string{"home"} }), one, UEFI, CodeLayout, ""},
		"too small":    {stacked(func(s *Spec) { s.VolumeGroup = "vg" }), []Disk{disk("vda", 4*GiB, 512)}, UEFI, CodeTooSmall, "volume group with / /home /var/log"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Resolve(c.spec, c.disks, nil, debianNeed(), c.firmware, testIDs)
			if err == nil {
				t.Fatal("accepted")
			}
			if e, ok := err.(*Error); !ok || e.Code() != c.code || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v", err)
			}
		})
	}
}
