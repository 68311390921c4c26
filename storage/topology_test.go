package storage

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The disks of machines, as an inventory describes them. Each function makes
// one disk; the options that follow change it.
type option func(*Disk)

func device(name, bus, transport string, gib uint64, options ...option) Disk {
	d := Disk{
		Name: name, Path: "/dev/" + name, Model: "Test", Serial: "S-" + name, BusPath: bus, Transport: transport,
		Size: gib * GiB, SectorSize: 512, PhysicalSectorSize: 4096,
	}
	for _, o := range options {
		o(&d)
	}
	return d
}

func virtio(letter string, slot int, gib uint64, options ...option) Disk {
	return device("vd"+letter, fmt.Sprintf("pci0000:00/0000:00:%02x.0/virtio%d", slot, slot), "virtio", gib, append([]option{byPath(fmt.Sprintf("pci-0000:00:%02x.0", slot))}, options...)...)
}

func nvme(n int, gib uint64, options ...option) Disk {
	return device(fmt.Sprintf("nvme%dn1", n), fmt.Sprintf("pci0000:80/0000:80:%02x.0/nvme/nvme%d", n, n), "nvme", gib,
		append([]option{wwn(fmt.Sprintf("eui.00253850000000%02x", n)), byPath(fmt.Sprintf("pci-0000:80:%02x.0-nvme-1", n))}, options...)...)
}

func sata(letter string, port int, gib uint64, options ...option) Disk {
	return device("sd"+letter, fmt.Sprintf("pci0000:00/0000:00:1f.2/ata%d/host%d/target%d:0:0/%d:0:0:0", port, port-1, port-1, port-1), "sata", gib,
		append([]option{wwn(fmt.Sprintf("naa.5000c50000000%03x", port)), byPath(fmt.Sprintf("pci-0000:00:1f.2-ata-%d", port))}, options...)...)
}

func sas(letter string, host, lun int, gib uint64, options ...option) Disk {
	return device("sd"+letter, fmt.Sprintf("pci0000:3a/0000:3b:00.%d/host%d/port-%d:0/end_device-%d:0/target%d:0:0/%d:0:0:%d", host, host, host, host, host, host, lun), "sas", gib, options...)
}

func usb(letter string, gib uint64, options ...option) Disk {
	return device("sd"+letter, "pci0000:00/0000:00:14.0/usb1/1-3/1-3:1.0/host9/target9:0:0/9:0:0:0", "usb", gib, options...)
}

func wwn(s string) option           { return func(d *Disk) { d.WWN = s } }
func model(s string) option         { return func(d *Disk) { d.Model = s } }
func serial(s string) option        { return func(d *Disk) { d.Serial = s } }
func byPath(s string) option        { return func(d *Disk) { d.ByPath = s } }
func bytesMore(n uint64) option     { return func(d *Disk) { d.Size += n } }
func sectors4096(d *Disk)           { d.SectorSize = 4096 }
func readOnly(d *Disk)              { d.ReadOnly = true }
func removable(d *Disk)             { d.Removable = true }
func bootMedium(d *Disk)            { d.BootMedium = true }
func nameless(d *Disk)              { d.Serial, d.WWN, d.Model = "", "", "" }
func holds(kinds ...Content) option { return func(d *Disk) { d.Contents = at(d.Name, kinds) } }
func ours(d *Disk)                  { d.Contents = at(d.Name, ourTable) }
func sectorsOf(bytes uint32) option { return func(d *Disk) { d.SectorSize = bytes } }

func at(disk string, cs []Content) []Content {
	cs = slices.Clone(cs)
	for i := range cs {
		cs[i].Where = strings.Replace(cs[i].Where, "X", disk, 1)
	}
	return cs
}

var (
	windows  = []Content{{Where: "X", Kind: "gpt"}, {Where: "X3", Kind: KindPartition, Label: "Basic data partition"}, {Where: "X3", Kind: "ntfs"}}
	ourTable = []Content{{Where: "X", Kind: "gpt"}, {Where: "X1", Kind: KindPartition, Label: "firstlight:/"}, {Where: "X1", Kind: "ext4", Label: "root"}}
	ceph     = []Content{{Where: "X", Kind: "bluestore"}}
)

// recorded is an inventory that a machine has served at /api/v1/inventory; of
// it only the disks count here.
func recorded(t *testing.T, name string) []Disk {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "inventories", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var document struct{ Disks []Disk }
	if err := json.Unmarshal(data, &document); err != nil {
		t.Fatal(err)
	}
	return document.Disks
}

// TestTopologies: which disks of a machine are used, in which order, and what is
// refused. The disks that are not used are all listed with a reason.
func TestTopologies(t *testing.T) {
	boot := func(s Selector) func(*Spec) { return func(sp *Spec) { sp.BootDisk = &s } }
	data := func(s ...Selector) func(*Spec) {
		return func(sp *Spec) { sp.DataDisks = append([]Selector{}, s...) }
	}
	overwrite := func(o Overwrite) func(*Spec) { return func(sp *Spec) { sp.Overwrite = o } }
	onlyBoot := func(sp *Spec) { sp.ExtraMountPointsBasename = "" }
	type changes []func(*Spec)
	disks := func(d ...Disk) []Disk { return d }

	for _, x := range []struct {
		name     string
		disks    []Disk
		change   changes
		selected []string
		want     string   // names, the boot disk first; empty for a refusal
		code     string   // of the refusal
		says     []string // parts of the refusal, or of the reasons for disks that are left out
	}{
		// Without selectors: every usable disk, the boot disk first by its place.
		{"one virtio disk", disks(virtio("a", 3, 8)), nil, nil, "vda", "", nil},
		{"one NVMe disk of 4096", disks(nvme(0, 20, sectors4096)), nil, nil, "nvme0n1", "", nil},
		{"one SATA disk", disks(sata("a", 1, 20)), nil, nil, "sda", "", nil},
		{"kernel names against the bus", disks(virtio("b", 3, 8), virtio("a", 9, 8)), nil, nil, "vdb vda", "", nil},
		{"SATA ports of two digits", disks(sata("a", 10, 8), sata("b", 2, 8), sata("c", 1, 8)), nil, nil, "sdc sdb sda", "", nil},
		{"several buses", disks(nvme(1, 20), nvme(0, 20), sata("a", 1, 20), virtio("a", 3, 20)), nil, nil, "vda sda nvme0n1 nvme1n1", "", nil},
		{"mixed sector sizes", disks(virtio("a", 3, 8), virtio("b", 4, 8, sectors4096)), nil, nil, "vda vdb", "", nil},
		{"a USB stick in front", disks(usb("a", 16), sata("b", 1, 20)), nil, nil, "sdb", "", []string{"/dev/sda: it is connected by USB"}},
		{"virtual media", disks(device("sda", "pci0000:00/0000:00:01.0/host0/target0:0:0/0:0:0:0", "scsi", 8, model("AMI Virtual HDisk0")), sata("b", 1, 20)), nil, nil, "sdb", "", []string{"/dev/sda: it is virtual media"}},
		{"an SD card reader", disks(device("mmcblk0", "pci0000:00/0000:00:02.0/mmc_host/mmc0/mmc0:0001", "mmc", 8, removable), sata("a", 1, 20)), nil, nil, "sda", "", []string{"it is removable"}},
		{"an eMMC with its boot areas", disks(device("mmcblk0", "p/mmc0/mmc0:0001", "mmc", 16), device("mmcblk0boot0", "p/mmc0/mmc0:0001/b", "mmc", 1)), nil, nil, "mmcblk0", "", []string{"/dev/mmcblk0boot0: it is no disk"}},
		{"a write-protected disk", disks(virtio("a", 3, 8, readOnly), virtio("b", 4, 8)), nil, nil, "vdb", "", []string{"it is read-only"}},
		{"the boot medium is a disk", disks(virtio("a", 3, 8, bootMedium), virtio("b", 4, 8)), nil, nil, "vdb", "", []string{"the running system or its configuration came from it"}},
		{"the medium by its label", disks(sata("a", 1, 8, holds(Content{Where: "X", Kind: "vfat", Label: MediumLabel})), sata("b", 2, 8)), nil, nil, "sdb", "", []string{"it is a medium labelled FIRSTLIGHT"}},
		{"a dying disk", disks(sata("a", 1, 8, holds(Content{Where: "X", Kind: KindUnreadable})), sata("b", 2, 8)), nil, nil, "sdb", "", []string{"it cannot be read"}},
		{"a reader without a card, a CD drive, a RAID and a mapping", disks(virtio("a", 3, 8), device("sda", "x", "scsi", 0), device("sr0", "x", "sata", 1), device("md127", "virtual/block/md127", "", 8), device("dm-0", "virtual/block/dm-0", "", 8)), nil, nil, "vda", "", []string{"/dev/sda: it has no size", "/dev/sr0: it is no disk", "/dev/md127: it is no disk", "/dev/dm-0: it is no disk"}},
		{"sectors of 520 bytes", disks(sas("a", 0, 0, 8, sectorsOf(520)), sas("b", 1, 0, 8)), nil, nil, "sdb", "", []string{"its sectors of 520 bytes"}},
		{"no disk", nil, nil, nil, "", CodeNoDisk, []string{"the kernel shows none at all"}},
		{"nothing but USB", disks(usb("a", 16)), nil, nil, "", CodeNoDisk, []string{"/dev/sda (Test, 16.0 GiB, serial S-sda): it is connected by USB"}},
		{"no further disks wanted", disks(virtio("a", 3, 8), virtio("b", 4, 8)), changes{onlyBoot}, nil, "vda", "", []string{"/dev/vdb: the layout names no ExtraMountPointsBasename"}},
		{"24 disks", func() (all []Disk) {
			for i := range 24 {
				all = append(all, nvme(i, 8))
			}
			return all
		}(), nil, nil, "nvme0n1 nvme1n1 nvme2n1 nvme3n1 nvme4n1 nvme5n1 nvme6n1 nvme7n1 nvme8n1 nvme9n1 nvme10n1 nvme11n1 nvme12n1 nvme13n1 nvme14n1 nvme15n1 nvme16n1 nvme17n1 nvme18n1 nvme19n1 nvme20n1 nvme21n1 nvme22n1 nvme23n1", "", nil},

		// Selectors.
		{"by serial", disks(virtio("a", 3, 8), virtio("b", 4, 8)), changes{boot(Selector{Serial: "s-VDB "})}, nil, "vdb vda", "", nil},
		{"by WWN in three spellings", disks(sata("a", 1, 8), sata("b", 2, 8)), changes{boot(Selector{WWN: "wwn-0x5000C50000000002"}), data(Selector{WWN: "0x5000c50000000001"})}, nil, "sdb sda", "", nil},
		{"by model with a star", disks(nvme(0, 8, model("SAMSUNG  MZQL23T8")), nvme(1, 8, model("INTEL SSDPE2KX"))), changes{boot(Selector{Model: "intel*"}), data()}, nil, "nvme1n1", "", []string{`nvme0n1: BootDisk does not describe it: its model is "SAMSUNG  MZQL23T8", not "intel*"`}},
		{"by transport", disks(sata("a", 1, 8), nvme(0, 8)), changes{boot(Selector{Transport: "nvme"}), data(Selector{Transport: "sata"})}, nil, "nvme0n1 sda", "", nil},
		{"by path", disks(virtio("a", 3, 8), virtio("b", 4, 8)), changes{boot(Selector{Path: "/dev/disk/by-path/pci-0000:00:04.0"}), data()}, nil, "vdb", "", []string{"vda: BootDisk does not describe it: its path is /dev/vda or /dev/disk/by-path/pci-0000:00:03.0"}},
		{"by the other path of virtio", disks(virtio("a", 3, 8), virtio("b", 4, 8)), changes{boot(Selector{Path: "/dev/disk/by-path/virtio-pci-0000:00:04.*"}), data()}, nil, "vdb", "", nil},
		{"by size", disks(sata("a", 1, 100), nvme(0, 30), nvme(1, 500)), changes{boot(Selector{MinimumBytes: 20 * GiB, MaximumBytes: 30 * GiB}), data(Selector{MinimumBytes: 200 * GiB})}, nil, "nvme0n1 nvme1n1", "", []string{"sda: BootDisk does not describe it: it has 107374182400 bytes, more than 32212254720"}},
		{"the smallest", disks(sata("a", 1, 100), nvme(0, 30), nvme(1, 500)), changes{boot(Selector{Pick: Smallest})}, nil, "nvme0n1 sda nvme1n1", "", nil},
		{"the largest", disks(sata("a", 1, 100), nvme(0, 30), nvme(1, 500)), changes{boot(Selector{Pick: Largest}), data()}, nil, "nvme1n1", "", nil},
		{"the first NVMe", disks(nvme(1, 30), nvme(0, 30), sata("a", 1, 100)), changes{boot(Selector{Transport: "nvme", Pick: First}), data(Selector{Transport: "nvme"})}, nil, "nvme0n1 nvme1n1", "", []string{"sda: BootDisk does not describe it"}},
		{"the smallest of what is left", disks(nvme(0, 30), nvme(1, 40), nvme(2, 50)), changes{boot(Selector{Pick: Smallest}), data(Selector{Pick: Smallest}, Selector{Pick: Largest})}, nil, "nvme0n1 nvme1n1 nvme2n1", "", nil},
		{"no data disks", disks(nvme(0, 30), nvme(1, 40)), changes{data()}, nil, "nvme0n1", "", []string{"nvme1n1: neither BootDisk nor DataDisks describe it"}},
		{"USB by its serial", disks(usb("a", 16), sata("b", 1, 20)), changes{boot(Selector{Serial: "S-sda"})}, nil, "", CodeSelection, []string{"BootDisk (Serial S-sda) describes no disk that can be used", "/dev/sda (Test, 16.0 GiB, serial S-sda): it is connected by USB", `its serial number is "S-sdb", not "S-sda"`}},
		{"two that fit", disks(nvme(0, 30), nvme(1, 40)), changes{boot(Selector{Transport: "nvme"})}, nil, "", CodeSelection, []string{"describes 2 disks, and 1 is wanted: /dev/nvme0n1, /dev/nvme1n1"}},
		{"two of the smallest", disks(nvme(0, 30), nvme(1, 30), nvme(2, 40)), changes{boot(Selector{Pick: Smallest})}, nil, "", CodeSelection, []string{"fits several disks of the same size: /dev/nvme0n1, /dev/nvme1n1"}},
		{"nearly the same size", disks(nvme(0, 30, bytesMore(512)), nvme(1, 30)), changes{boot(Selector{Pick: Smallest})}, nil, "nvme1n1 nvme0n1", "", nil},
		{"nothing fits", disks(virtio("a", 3, 8)), changes{boot(Selector{Serial: "other"})}, nil, "", CodeSelection, []string{`/dev/vda (Test, 8.0 GiB, serial S-vda): BootDisk does not describe it: its serial number is "S-vda", not "other"`}},
		{"a disk without names", disks(virtio("a", 3, 8, nameless)), changes{boot(Selector{WWN: "1"})}, nil, "", CodeSelection, []string{`it has no WWN, not "1"`}},
		{"a data disk is missing", disks(virtio("a", 3, 8)), changes{data(Selector{Transport: "nvme"})}, nil, "", CodeSelection, []string{"DataDisks[0] (Transport nvme) describes no disk", "/dev/vda (Test, 8.0 GiB, serial S-vda): taken"}},
		{"data disks without a basename", disks(virtio("a", 3, 8)), changes{onlyBoot, data(Selector{Pick: First})}, nil, "", CodeLayout, []string{"DataDisks needs ExtraMountPointsBasename"}},

		// The site's own selector.
		{"the disk selector", disks(virtio("a", 3, 8), virtio("b", 4, 8), virtio("c", 5, 8)), nil, []string{"/dev/vdc", "vda"}, "vdc vda", "", []string{"/dev/vdb: the disk selector did not select it"}},
		{"the disk selector and selectors", disks(virtio("a", 3, 8)), changes{boot(Selector{Pick: First})}, []string{"vda"}, "", CodeSelection, []string{"both the disk selector and"}},
		{"the disk selector and a stick", disks(usb("a", 16), virtio("a", 3, 8)), nil, []string{"sda"}, "", CodeSelection, []string{"sda cannot be used: it is connected by USB"}},

		// Several ways to one disk.
		{"multipath, nobody asked", disks(sas("a", 0, 0, 100, wwn("naa.6001")), sas("b", 1, 0, 100, wwn("naa.6001"))), nil, nil, "", CodeMultipath, []string{"it is one of 2 paths to one device, WWN naa.6001: /dev/sda, /dev/sdb"}},
		{"multipath beside a local disk", disks(sata("c", 1, 20), sas("a", 0, 0, 100, wwn("naa.6001")), sas("b", 1, 0, 100, wwn("naa.6001"))), nil, nil, "", CodeMultipath, nil},
		{"multipath, only the local disk wanted", disks(sata("c", 1, 20), sas("a", 0, 0, 100, wwn("naa.6001")), sas("b", 1, 0, 100, wwn("naa.6001"))), changes{data()}, nil, "sdc", "", []string{"sda: neither"}},
		{"multipath, one asked for by WWN", disks(sas("a", 0, 0, 100, wwn("naa.6001")), sas("b", 1, 0, 100, wwn("naa.6001"))), changes{boot(Selector{WWN: "6001"})}, nil, "sda", "", []string{"/dev/sdb: BootDisk does not describe it: it is one of 2 paths"}},
		{"multipath, one asked for by path", disks(sas("a", 0, 0, 100, wwn("naa.6001")), sas("b", 1, 0, 100, wwn("naa.6001"))), changes{boot(Selector{Path: "/dev/sdb"})}, nil, "sdb", "", nil},
		{"multipath, by serial", disks(sas("a", 0, 0, 100, wwn("naa.6001"), serial("L")), sas("b", 1, 0, 100, wwn("naa.6001"), serial("L"))), changes{boot(Selector{Serial: "L"})}, nil, "", CodeSelection, []string{"it is one of 2 paths"}},
		{"multipath, both selected", disks(sas("a", 0, 0, 100, wwn("naa.6001")), sas("b", 1, 0, 100, wwn("naa.6001"))), nil, []string{"sda", "sdb"}, "", CodeSelection, []string{"sdb is another path to a disk that was selected already"}},
		{"one WWN on two sizes is no multipath", disks(sas("a", 0, 0, 100, wwn("naa.6001")), sas("b", 1, 0, 50, wwn("naa.6001"))), nil, nil, "sda sdb", "", nil},

		// What may be overwritten.
		{"any", disks(sata("a", 1, 20, holds(windows...)), sata("b", 2, 20, holds(ceph...))), nil, nil, "sda sdb", "", nil},
		{"never foreign: Windows", disks(sata("a", 1, 20, holds(windows...)), sata("b", 2, 20)), changes{overwrite(OverwriteNeverForeign)}, nil, "", CodeOverwrite, []string{"/dev/sda (Test, 20.0 GiB, serial S-sda): it holds something that is not", "sda3 ntfs"}},
		{"never foreign: Ceph beside", disks(sata("a", 1, 20), sata("b", 2, 20, holds(ceph...)), sata("c", 3, 20, ours)), changes{overwrite(OverwriteNeverForeign)}, nil, "sda sdc", "", []string{`/dev/sdb: Overwrite is "never-foreign", and it holds something`}},
		{"never foreign: Ceph that was asked for", disks(sata("a", 1, 20), sata("b", 2, 20, holds(ceph...))), changes{overwrite(OverwriteNeverForeign), data(Selector{Serial: "S-sdb"})}, nil, "", CodeOverwrite, []string{"sdb bluestore"}},
		{"own: our disk", disks(sata("a", 1, 20, ours), sata("b", 2, 20)), changes{overwrite(OverwriteOwn)}, nil, "sda", "", []string{`/dev/sdb: Overwrite is "own", and it holds no earlier installation`}},
		{"own: a blank disk", disks(sata("a", 1, 20)), changes{overwrite(OverwriteOwn)}, nil, "", CodeOverwrite, []string{"it holds no earlier installation of ours"}},

		// A machine that QEMU made, as TestStorageChoose of hack/e2e recorded it.
		{"QEMU, every bus", recorded(t, "qemu-every-bus"), nil, nil, "", CodeMultipath, nil},
		{"QEMU, virtio only", recorded(t, "qemu-every-bus"), changes{boot(Selector{Transport: "virtio", MaximumBytes: 9 * GiB}), data()}, nil, "vda", "", nil},
		{"QEMU, the NVMe disk of 4096", recorded(t, "qemu-every-bus"), changes{boot(Selector{Serial: "nvme-4096"}), data(Selector{Transport: "nvme"})}, nil, "nvme1n1 nvme0n1", "", nil},
		{"QEMU, AHCI by path", recorded(t, "qemu-every-bus"), changes{boot(Selector{Path: "/dev/disk/by-path/pci-0000:00:08.0-ata-*"}), data()}, nil, "sdb", "", nil},
		{"QEMU, SCSI by WWN, two ways", recorded(t, "qemu-every-bus"), changes{boot(Selector{WWN: "0x5000c50012345678"}), data()}, nil, "sdc", "", []string{"/dev/sdd: BootDisk does not describe it: it is one of 2 paths"}},
		{"QEMU, without the two paths", recorded(t, "qemu-every-bus"), changes{data(Selector{Transport: "nvme"}, Selector{Transport: "sata"})}, nil, "vda nvme0n1 nvme1n1 sda sdb", "", []string{"/dev/sde: it is connected by USB"}},
		{"QEMU, no disk with a crypto erase", recorded(t, "qemu-every-bus"), changes{boot(Selector{Serial: "nvme-512"}), data(), func(s *Spec) { s.Erase = EraseCrypto }}, nil, "", CodeErase, []string{"no cryptographic erase, neither by Format nor by Sanitize"}},
		{"QEMU, discards", recorded(t, "qemu-every-bus"), changes{boot(Selector{Serial: "nvme-512"}), data(), func(s *Spec) { s.Erase = EraseDiscard }}, nil, "nvme0n1", "", nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := defaultSpec()
			if strings.HasPrefix(x.name, "QEMU") { // its disks are small
				s.Volumes = []VolumeSpec{{MountPoint: "/", MinimumFreeBytes: 64 * MiB}}
			}
			for _, change := range x.change {
				change(&s)
			}
			l, err := Resolve(s, x.disks, x.selected, debianNeed(), UEFI, testIDs)
			if x.code != "" {
				if err == nil {
					t.Fatalf("accepted: %v", taken(l))
				}
				if code := err.(*Error).Code(); code != x.code {
					t.Errorf("code %s, want %s: %v", code, x.code, err)
				}
				for _, text := range x.says {
					if !strings.Contains(err.Error(), text) {
						t.Errorf("%q does not say %q", err, text)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkLayout(t, l)
			if got := strings.Join(taken(l), " "); got != x.want {
				t.Errorf("chosen %q, want %q", got, x.want)
			}
			var reasons strings.Builder
			for _, sk := range l.Skipped {
				if sk.Reason == "" {
					t.Errorf("no reason why %s is left out", sk.Disk)
				}
				fmt.Fprintf(&reasons, "%s: %s\n", sk.Disk, sk.Reason)
			}
			if len(l.Skipped)+len(l.Disks) != len(x.disks) {
				t.Errorf("%d disks are used and %d left out, of %d", len(l.Disks), len(l.Skipped), len(x.disks))
			}
			for _, text := range x.says {
				if !strings.Contains(reasons.String(), text) {
					t.Errorf("reasons do not say %q:\n%s", text, &reasons)
				}
			}
			for _, d := range l.Disks {
				if d.ChosenBy == "" {
					t.Errorf("%s does not say by what it was chosen", d.Path)
				}
			}
			// The order in which the kernel found the disks has no part in it.
			backward := slices.Clone(x.disks)
			slices.Reverse(backward)
			again, err := Resolve(s, backward, x.selected, debianNeed(), UEFI, testIDs)
			if err != nil || !slices.Equal(taken(again), taken(l)) {
				t.Errorf("in another order: %v, %v", taken(again), err)
			}
		})
	}
}

func taken(l Layout) (names []string) {
	for _, d := range l.Disks {
		names = append(names, d.Name)
	}
	return names
}

func TestGlob(t *testing.T) {
	for _, x := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"a", "a", true}, {"a", "ab", false}, {"*", "", true}, {"*", "abc", true},
		{"a*", "abc", true}, {"*c", "abc", true}, {"a*c", "abc", true}, {"a*a", "a", false},
		{"*b*", "abc", true}, {"a*b*c", "axxbyyc", true}, {"a*b*c", "axxyyc", false}, {"*a*a*", "a", false},
	} {
		if got := glob(x.pattern, x.text); got != x.want {
			t.Errorf("glob(%q, %q) = %t", x.pattern, x.text, got)
		}
	}
}
