package inventory

import (
	"bufio"
	"bytes"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
	"github.com/google/go-cmp/cmp"
)

// tree reads a sysfs from a file of lines: `path "content"` for an attribute,
// `path -> target` for a link.
func tree(t *testing.T, file string) fstest.MapFS {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	sys := fstest.MapFS{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, target, ok := strings.Cut(line, " -> "); ok {
			sys[name] = &fstest.MapFile{Mode: fs.ModeSymlink | 0o777, Data: []byte(target)}
			continue
		}
		name, quoted, _ := strings.Cut(line, " ")
		content, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatalf("%s: %q: %v", file, line, err)
		}
		sys[name] = &fstest.MapFile{Mode: 0o444, Data: []byte(content)}
	}
	return sys
}

var prefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })

func TestVirtioMachine(t *testing.T) {
	got, err := Read(tree(t, "testdata/qemu-virtio.sysfs"))
	if err != nil {
		t.Fatal(err)
	}
	want := Document{
		Format:   1,
		Firmware: storage.BIOS,
		DMI: DMI{
			Vendor: "QEMU", Product: "Standard PC (Q35 + ICH9, 2009)", Version: "pc-q35-7.2",
			UUID: "4f2c8a52-9b3e-4b7a-8f44-0c8d9a7b1e10", ChassisType: "1",
			BIOSVendor: "SeaBIOS", BIOSVersion: "1.16.2-debian-1.16.2-1", BIOSDate: "04/01/2014",
		},
		Consoles: []string{"tty0", "ttyS0"},
		Disks: []storage.Disk{{
			Name: "sr0", Path: "/dev/sr0", BusPath: "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0", Transport: "sata",
			Size: 1073741312,
		}, {
			Name: "vda", Path: "/dev/vda", Serial: "disk0", BusPath: "pci0000:00/0000:00:03.0/virtio1", ByPath: "pci-0000:00:03.0", Transport: "virtio",
			Size: 8 << 30, SectorSize: 512, PhysicalSectorSize: 512, Rotational: true,
		}},
		NICs: []netconfig.NIC{{
			Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, Driver: "virtio_net", PCI: "0000:00:02.0",
			Carrier: true, MTU: 1500,
		}},
	}
	if d := cmp.Diff(want, got, prefixes); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestServerWithEveryKindOfDisk(t *testing.T) {
	sys := tree(t, "testdata/server.sysfs")
	got, err := Read(sys)
	if err != nil {
		t.Fatal(err)
	}
	if got.Firmware != storage.UEFI || !got.SecureBoot {
		t.Errorf("firmware %s, Secure Boot %v: want uefi, on", got.Firmware, got.SecureBoot)
	}
	if d := cmp.Diff(&TPM{Version: 2}, got.TPM); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(DMI{Vendor: "Supermicro", Product: "X11", ChassisType: "17"}, got.DMI); d != "" {
		t.Errorf("junk was not dropped: %s", d)
	}
	want := []storage.Disk{
		{Name: "mmcblk0", Path: "/dev/mmcblk0", Model: "DA4064", Serial: "0x1c2d3e4f", BusPath: "pci0000:00/0000:00:1c.0/mmc_host/mmc0/mmc0:0001", ByPath: "pci-0000:00:1c.0", Transport: "mmc", Size: 62537072640, SectorSize: 512, PhysicalSectorSize: 512},
		{Name: "mmcblk0boot0", Path: "/dev/mmcblk0boot0", BusPath: "pci0000:00/0000:00:1c.0/mmc_host/mmc0/mmc0:0001/block/mmcblk0", ByPath: "pci-0000:00:1c.0", Transport: "mmc", Size: 4194304},
		{Name: "nvme0n1", Path: "/dev/nvme0n1", Model: "SAMSUNG MZVL2512", Serial: "S64KNX0T", WWN: "eui.002538b231b4c9b1", BusPath: "pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0", ByPath: "pci-0000:03:00.0-nvme-1", Transport: "nvme", Size: 4096 * 512, SectorSize: 4096, PhysicalSectorSize: 4096, OptimalIOSize: 131072},
		{Name: "sda", Path: "/dev/sda", Model: "ST4000NM0035-1V4", Serial: "ZC1A2B3C", WWN: "naa.5000c500a1b2c3d4", BusPath: "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0", ByPath: "pci-0000:00:17.0-ata-3", Transport: "sata", Size: 7814037168 * 512, SectorSize: 512, PhysicalSectorSize: 4096, Rotational: true},
		{Name: "sdaa", Path: "/dev/sdaa", Model: "SEAGATE ST1200", BusPath: "pci0000:00/0000:02:00.0/host1/port-1:0/end_device-1:0/target1:0:0/1:0:0:0", ByPath: "pci-0000:02:00.0-sas-phy4-lun-0", Transport: "sas", Size: 1 << 30, SectorSize: 512, PhysicalSectorSize: 512, ReadOnly: true},
		{Name: "sdb", Path: "/dev/sdb", Model: "SanDisk Ultra", BusPath: "pci0000:00/0000:00:14.0/usb1/1-3/1-3:1.0/host2/target2:0:0/2:0:0:0", ByPath: "pci-0000:00:14.0-usb-0:3:1.0-scsi-0:0:0:0", Transport: "usb", SectorSize: 512, PhysicalSectorSize: 512, Removable: true},
	}
	if d := cmp.Diff(want, got.Disks); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	nics := []netconfig.NIC{
		{Name: "eno1", MAC: netconfig.MAC{0xac, 0x1f, 0x6b, 0, 0, 1}, Driver: "ixgbe", PCI: "0000:01:00.0", Carrier: true, SpeedMbps: 10000, MTU: 1500},
		{Name: "eno2", MAC: netconfig.MAC{0xac, 0x1f, 0x6b, 0, 0, 2}, Driver: "ixgbe", PCI: "0000:01:00.1", MTU: 1500},
	}
	if d := cmp.Diff(nics, got.NICs, prefixes); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if got.Warnings != nil {
		t.Errorf("warnings: %q", got.Warnings)
	}
	delete(sys, "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
	if got, err = Read(sys); err != nil || got.SecureBoot || len(got.Warnings) != 1 {
		t.Errorf("unreadable EFI variables: Secure Boot %v, warnings %q, error %v", got.SecureBoot, got.Warnings, err)
	}
}

func TestThisMachine(t *testing.T) {
	d, err := Read(os.DirFS("/sys"))
	if err != nil {
		t.Fatal(err)
	}
	for _, disk := range d.Disks {
		if disk.Path != "/dev/"+disk.Name || disk.SectorSize < 512 || path.IsAbs(disk.BusPath) || strings.Contains(disk.BusPath, "..") {
			t.Errorf("implausible disk %+v", disk)
		}
	}
}

func TestNoSysfs(t *testing.T) {
	if _, err := Read(fstest.MapFS{}); err == nil {
		t.Error("an empty tree was taken for /sys")
	}
}

func TestJunk(t *testing.T) {
	for _, value := range []string{"", " ", "To Be Filled By O.E.M.", "to be filled by O.E.M", "0123456789", "Not Specified", "Default string", "N/A", "None", "00000000", "XXXXXXXX", "System Serial Number", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "00000000-0000-0000-0000-000000000000", "03000200-0400-0500-0006-000700080009"} {
		if !junk(value) {
			t.Errorf("%q was taken for an identity", value)
		}
	}
	for _, value := range []string{"17", "3", "disk0", "C02XL0GTJGH5", "4f2c8a52-9b3e-4b7a-8f44-0c8d9a7b1e10", "111", "QEMU"} {
		if junk(value) {
			t.Errorf("%q was taken for junk", value)
		}
	}
}

func TestJSONRoundTrip(t *testing.T) {
	d, err := Read(tree(t, "testdata/server.sysfs"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range d.Seed {
		d.Seed[i] = byte(i)
	}
	d.Selected = []string{} // none chosen is not the same as no selector
	data, err := d.JSON()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, back, prefixes); diff != "" {
		t.Errorf("-written +read:\n%s", diff)
	}
	for name, bad := range map[string]string{
		"newer":    strings.Replace(string(data), `"format": 1`, `"format": 2`, 1),
		"unknown":  strings.Replace(string(data), `"arch"`, `"archh"`, 1),
		"trailing": string(data) + "x",
		"seed":     strings.Replace(string(data), "000102", "0001", 1),
		"not JSON": "{",
	} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
