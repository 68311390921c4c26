package storage

import (
	"slices"
	"strings"
	"testing"
)

// installed is a disk as an earlier installation by l left it: what the layout
// says of it, found by a probe.
func installed(d Disk, l Layout) Disk {
	i := slices.IndexFunc(l.Disks, func(dl DiskLayout) bool { return dl.Name == d.Name })
	old := l.Disks[i]
	d.Contents = []Content{{Where: d.Name, Kind: "gpt", UUID: old.UUID, Size: d.Size}}
	for _, p := range old.Partitions {
		c := Content{Where: PartitionName(d.Name, p.Number), Offset: p.FirstSector * uint64(d.SectorSize), Size: p.Bytes}
		part, inner := c, c
		part.Kind, part.Label, part.UUID = KindPartition, p.Name, p.UUID
		d.Contents = append(d.Contents, part)
		switch {
		case p.LUKS != nil:
			inner.Kind, inner.Label, inner.UUID = "luks", p.Name, p.LUKS.UUID
		case p.FileSystem != "":
			inner.Kind, inner.Label, inner.UUID = p.FileSystem, p.Label, p.FSUUID
		default:
			continue
		}
		d.Contents = append(d.Contents, inner)
	}
	return d
}

func otherIDs(name string) [16]byte { return testIDs("again:" + name) }

func find(t *testing.T, l Layout, mountPoint string) (DiskLayout, Partition) {
	t.Helper()
	for _, d := range l.Disks {
		for _, p := range d.Partitions {
			if p.MountPoint == mountPoint {
				return d, p
			}
		}
	}
	t.Fatalf("nothing is mounted at %s", mountPoint)
	return DiskLayout{}, Partition{}
}

// What is kept stays at its sectors, with its UUIDs; everything else is made
// around it, also when it needs more or less room than before.
func TestPreserve(t *testing.T) {
	for _, x := range []struct {
		name    string
		change  func(first, second *Spec) // what differs between the two installations
		labels  []string
		points  []string
		encrypt bool
		sector  uint32
	}{
		{"the last one", func(*Spec, *Spec) {}, []string{"data-0"}, []string{"/data/0"}, false, 512},
		{"one in the middle", func(*Spec, *Spec) {}, []string{"home"}, []string{"/home"}, false, 512},
		{"all that can be", func(*Spec, *Spec) {}, []string{"home", "var-log", "data-0", "data-1"}, []string{"/home", "/var/log", "/data/0", "/data/1"}, false, 4096},
		{"encrypted", func(*Spec, *Spec) {}, []string{"home", "data-1"}, []string{"/home", "/data/1"}, true, 512},
		{"with a larger root", func(first, second *Spec) { second.Volumes[0].MinimumFreeBytes += GiB }, []string{"data-0"}, []string{"/data/0"}, false, 512},
		{"with a smaller root", func(first, second *Spec) { first.Volumes[0].MinimumFreeBytes += GiB }, []string{"home"}, []string{"/home"}, true, 4096},
		{"at another mount point", func(first, second *Spec) { second.Volumes[1].MountPoint, second.Volumes[1].Label = "/srv", "home" }, []string{"home"}, []string{"/srv"}, false, 512},
		{"with one volume less", func(first, second *Spec) { second.Volumes = second.Volumes[:2] }, []string{"home"}, []string{"/home"}, false, 512},
	} {
		t.Run(x.name, func(t *testing.T) {
			disks := []Disk{disk("vda", 16*GiB, x.sector), disk("vdb", 4*GiB, x.sector)}
			first, second := defaultSpec(), defaultSpec()
			first.Encrypt, second.Encrypt = x.encrypt, x.encrypt
			if x.name == "with a larger root" {
				// There must be room that nobody has: a volume that goes away.
				first.Volumes = append(first.Volumes, VolumeSpec{MountPoint: "/old", MinimumBytes: 4 * GiB})
			}
			x.change(&first, &second)
			old, err := Resolve(first, disks, nil, debianNeed(), UEFI, testIDs)
			if err != nil {
				t.Fatal(err)
			}
			for i := range disks {
				disks[i] = installed(disks[i], old)
			}
			second.Preserve = x.labels
			l, err := Resolve(second, disks, nil, debianNeed(), UEFI, otherIDs)
			if err != nil {
				t.Fatal(err)
			}
			disjoint(t, l)
			n := 0
			for _, d := range l.Disks {
				for _, p := range d.Partitions {
					if p.Kept {
						n++
					}
				}
			}
			if n != len(x.labels) {
				t.Errorf("%d partitions are kept, want %d", n, len(x.labels))
			}
			for i, point := range x.points {
				before := strings.Replace(point, "/srv", "/home", 1)
				_, was := find(t, old, before)
				d, is := find(t, l, point)
				if !is.Kept || is.FirstSector != was.FirstSector || is.LastSector != was.LastSector || is.UUID != was.UUID || is.Bytes != was.Bytes {
					t.Errorf("%s: %+v was %+v", x.labels[i], is, was)
				}
				if !x.encrypt && is.FSUUID != was.FSUUID {
					t.Errorf("%s: UUID %s was %s", x.labels[i], is.FSUUID, was.FSUUID)
				}
				if x.encrypt && (is.LUKS == nil || is.LUKS.UUID != was.LUKS.UUID || is.FSUUID != "" || !slices.Equal(is.LUKS.Slots, []Slot{SlotKeyFile})) {
					t.Errorf("%s: %+v was %+v", x.labels[i], is.LUKS, was.LUKS)
				}
				node := PartitionName(d.Name, was.Number)
				if x.encrypt && !strings.Contains(string(l.Fstab()), "/dev/mapper/"+is.LUKS.Mapping+" "+point) {
					t.Errorf("fstab:\n%s", l.Fstab())
				}
				mine := func(line string) bool { return strings.Contains(line, ": "+node+" ") }
				if !slices.ContainsFunc(l.Kept, mine) || slices.ContainsFunc(l.Lost, mine) {
					t.Errorf("%s: kept %q, lost %q", node, l.Kept, l.Lost)
				}
			}
		})
	}
}

// disjoint checks that partitions neither lie on each other nor on the tables.
func disjoint(t *testing.T, l Layout) {
	t.Helper()
	for _, d := range l.Disks {
		ps := slices.Clone(d.Partitions)
		slices.SortFunc(ps, func(a, b Partition) int { return int(int64(a.FirstSector) - int64(b.FirstSector)) })
		first, end := usableBytes(Disk{Size: d.Size, SectorSize: d.SectorSize})
		at := first / uint64(d.SectorSize)
		for _, p := range ps {
			if p.FirstSector < at || p.LastSector < p.FirstSector || (p.LastSector-p.FirstSector+1)*uint64(d.SectorSize) != p.Bytes {
				t.Errorf("%s: %+v begins before sector %d", d.Name, p, at)
			}
			at = p.LastSector + 1
		}
		if at*uint64(d.SectorSize) > end {
			t.Errorf("%s: the last partition lies on the second table", d.Name)
		}
	}
}

// A first installation has nothing to keep; a volume that should be there and is
// not stops everything.
func TestPreserveRefuses(t *testing.T) {
	spec := defaultSpec()
	spec.Encrypt = false
	spec.Preserve = []string{"home"}
	blank := []Disk{disk("vda", 16*GiB, 512), disk("vdb", 4*GiB, 512)}
	l, err := Resolve(spec, blank, nil, debianNeed(), UEFI, testIDs)
	if err != nil {
		t.Fatal(err)
	}
	if _, p := find(t, l, "/home"); p.Kept {
		t.Error("kept from a blank disk")
	}
	old := []Disk{installed(blank[0], l), installed(blank[1], l)}
	change := func(where string, f func(*Content)) func([]Disk) {
		return func(disks []Disk) {
			for i := range disks {
				for j := range disks[i].Contents {
					if c := &disks[i].Contents[j]; c.Where == where && c.Kind != KindPartition {
						f(c)
					}
				}
			}
		}
	}
	for _, x := range []struct {
		name  string
		spec  func(*Spec)
		disks func([]Disk)
		code  string
		says  string
	}{
		{"another label", nil, change("vda3", func(c *Content) { c.Label = "homes" }), CodePreserve, `"home" (/home) cannot be kept: no partition of /dev/vda has it`},
		{"two of them", nil, change("vda4", func(c *Content) { c.Label = "home" }), CodePreserve, "several partitions of /dev/vda have it: vda3, vda4"},
		{"another file system", nil, change("vda3", func(c *Content) { c.Kind = "xfs" }), CodePreserve, "vda3 is xfs, and the layout wants ext4"},
		{"encrypted there", nil, change("vda3", func(c *Content) { c.Kind = "luks" }), CodePreserve, "vda3 is encrypted, and the layout wants it plain"},
		{"plain there", func(s *Spec) { s.Encrypt = true }, nil, CodePreserve, "vda3 is not encrypted (ext4), and the layout wants it encrypted"},
		{"by the TPM alone", func(s *Spec) { s.Encrypt, s.Encryption.Unlock = true, []Unlock{UnlockTPM2} }, nil, CodePreserve, `add "keyfile" to Unlock`},
		{"on another disk", nil, func(d []Disk) {
			d[0].BusPath, d[1].BusPath = d[1].BusPath, d[0].BusPath
			d[1].Size = 32 * GiB
		}, CodePreserve, "it lies on /dev/vda (vda3), and the layout puts it on /dev/vdb"},
		{"the disk forgets all", func(s *Spec) { s.Erase = EraseCrypto }, func(d []Disk) { d[0].CryptoErase, d[1].CryptoErase = "nvme-format", "nvme-format" }, CodePreserve, "forgets all of it"},
		{"no such volume", func(s *Spec) { s.Preserve = []string{"home", "hmoe"} }, nil, CodePreserve, `Preserve names "hmoe", and no volume of the layout has that label: there are`},
		{"the root", func(s *Spec) { s.Preserve = []string{"root"} }, nil, CodePreserve, "the root file system is what is installed"},
		{"the EFI system partition", func(s *Spec) { s.Preserve = []string{"ESP"} }, nil, CodePreserve, "boot files are written there"},
		{"swap", func(s *Spec) {
			s.Volumes = append(s.Volumes, VolumeSpec{FileSystem: Swap, MinimumBytes: GiB})
			s.Preserve = []string{"swap"}
		}, change("vda3", func(c *Content) { c.Kind, c.Label = Swap, "swap" }), CodePreserve, `"swap" (swap) cannot be kept: swap holds nothing`},
		{"in a mirror", func(s *Spec) { s.Mirror = true }, nil, CodeLayout, "does not go together with Mirror"},
		{"no room beside it", func(s *Spec) { s.Volumes[0].MinimumFreeBytes = 6 * GiB }, nil, CodeTooSmall, "/dev/vda is too small"},
	} {
		t.Run(x.name, func(t *testing.T) {
			s, disks := spec, slices.Clone(old)
			s.Volumes = slices.Clone(s.Volumes)
			for i := range disks {
				disks[i].Contents = slices.Clone(disks[i].Contents)
			}
			if x.name == "no room beside it" {
				s.Preserve = []string{"home", "data-0"}
			}
			if x.spec != nil {
				x.spec(&s)
			}
			if x.disks != nil {
				x.disks(disks)
			}
			_, err := Resolve(s, disks, nil, debianNeed(), UEFI, otherIDs)
			if err == nil {
				t.Fatal("accepted")
			}
			if code := err.(*Error).Code(); code != x.code || !strings.Contains(err.Error(), x.says) {
				t.Errorf("%s %v, want %s %q", code, err, x.code, x.says)
			}
		})
	}
}

// A partition of a DOS table is kept too, as long as the new tables fit.
func TestPreserveFromDOSTable(t *testing.T) {
	d := disk("vda", 16*GiB, 512)
	spec := defaultSpec()
	spec.Encrypt, spec.Preserve = false, []string{"home"}
	old := func(first, size uint64) []Content {
		return []Content{
			{Where: "vda", Kind: "mbr", Size: d.Size},
			{Where: "vda1", Kind: KindPartition, UUID: "1234abcd-01", Offset: first, Size: size},
			{Where: "vda1", Kind: "ext4", Label: "home", UUID: "u", Offset: first, Size: size},
		}
	}
	d.Contents = old(8*GiB, 2*GiB)
	l, err := Resolve(spec, []Disk{d}, nil, debianNeed(), UEFI, testIDs)
	if err != nil {
		t.Fatal(err)
	}
	disjoint(t, l)
	if _, p := find(t, l, "/home"); !p.Kept || p.FirstSector != 8*GiB/512 || len(p.UUID) != 36 || p.FSUUID != "u" {
		t.Errorf("%+v", p)
	}
	for _, place := range [][2]uint64{{512, GiB}, {15 * GiB, GiB}} {
		d.Contents = old(place[0], place[1])
		if _, err := Resolve(spec, []Disk{d}, nil, debianNeed(), UEFI, testIDs); err == nil || !strings.Contains(err.Error(), "where the new partition table has to be") {
			t.Errorf("at %d: %v", place[0], err)
		}
	}
}
