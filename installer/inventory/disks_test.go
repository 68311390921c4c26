package inventory

import (
	"encoding/binary"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf16"

	"github.com/firstlight/firstlight/storage"
)

// sysfs is a tree of disks, each given by its place below devices.
func sysfs(places ...string) fstest.MapFS {
	sys := fstest.MapFS{"class/x": {}}
	for _, place := range places {
		name := place[strings.LastIndexByte(place, '/')+1:]
		sys["block/"+name] = &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte("../devices/" + place)}
		sys["devices/"+place+"/size"] = &fstest.MapFile{Data: []byte("2048\n")}
		sys["devices/"+place+"/queue/logical_block_size"] = &fstest.MapFile{Data: []byte("512\n")}
	}
	return sys
}

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func link(target string) *fstest.MapFile {
	return &fstest.MapFile{Mode: fs.ModeSymlink, Data: []byte(target)}
}

// TestEveryBlockDevice: whatever has something to it is listed, with its place;
// what is no disk is none that an installation would use.
func TestEveryBlockDevice(t *testing.T) {
	sys := sysfs(
		"pci0000:00/0000:00:04.0/virtio2/host2/target2:0:1/2:0:1:3/block/sdc",
		"pci0000:00/0000:00:01.1/ata2/host1/target1:0:0/1:0:0:0/block/sr0",
		"pci0000:00/0000:05:00.0/host4/port-4:0/expander-4:0/port-4:0:2/end_device-4:0:2/target4:0:2/4:0:2:0/block/sdd",
		"virtual/nvme-subsystem/nvme-subsys0/nvme0n1",
		"virtual/nvme-subsystem/nvme-subsys0/nvme0c0n1",
		"virtual/block/dm-0", "virtual/block/md127", "virtual/block/loop0", "virtual/block/loop1", "virtual/block/zram0", "virtual/block/ram0",
		"platform/fe2e0000.mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0",
		"platform/fe2e0000.mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0/mmcblk0boot0",
	)
	sys["devices/virtual/block/loop1/size"] = file("0\n")
	// A second host of the same controller has a higher number.
	sys["devices/pci0000:00/0000:00:04.0/virtio2/host1/x"] = file("")
	sys["devices/virtual/nvme-subsystem/nvme-subsys0/nvme1"] = link("../../../pci0000:80/0000:81:00.0/nvme/nvme1")
	sys["devices/virtual/nvme-subsystem/nvme-subsys0/nvme0"] = link("../../../pci0000:00/0000:02:00.0/nvme/nvme0")
	sys["devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nsid"] = file("1\n")
	end := "devices/pci0000:00/0000:05:00.0/host4/port-4:0/expander-4:0/port-4:0:2/end_device-4:0:2/sas_device/end_device-4:0:2/"
	sys[end+"phy_identifier"] = file("7\n")
	sys[end+"sas_address"] = file("0x5000c500a1b2c3d5\n")

	d, err := Read(sys)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{ // name → by-path, or nothing for what is no disk
		"sdc": "pci-0000:00:04.0-scsi-1:0:1:3", "sdd": "pci-0000:05:00.0-sas-0x5000c500a1b2c3d5-lun-0",
		"nvme0n1": "pci-0000:02:00.0-nvme-1", "mmcblk0": "platform-fe2e0000.mmc",
		"sr0": "", "dm-0": "", "md127": "", "loop0": "", "mmcblk0boot0": "",
	}
	for _, disk := range d.Disks {
		path, listed := want[disk.Name]
		if !listed {
			t.Errorf("%s is listed", disk.Name)
			continue
		}
		delete(want, disk.Name)
		if ok, why := disk.Usable(); ok != (path != "") {
			t.Errorf("%s: usable %t (%s)", disk.Name, ok, why)
		}
		if path != "" && disk.ByPath != path {
			t.Errorf("%s: by-path %q, want %q", disk.Name, disk.ByPath, path)
		}
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
	if i := slices.IndexFunc(d.Disks, func(d storage.Disk) bool { return d.Name == "nvme0n1" }); d.Disks[i].BusPath != "pci0000:00/0000:02:00.0/nvme/nvme0" || d.Disks[i].Transport != "nvme" {
		t.Errorf("a disk with two controllers is at %s, %s", d.Disks[i].BusPath, d.Disks[i].Transport)
	}
}

// TestMarkBootMedium: by what is mounted, through mappings too, and by what the
// boot loader says of itself.
func TestMarkBootMedium(t *testing.T) {
	loader := func(id string) *fstest.MapFile {
		data := []byte{6, 0, 0, 0}
		for _, u := range utf16.Encode([]rune(id + "\x00")) {
			data = binary.LittleEndian.AppendUint16(data, u)
		}
		return &fstest.MapFile{Data: data}
	}
	const variable = "firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
	const id = "0a0b0c0d-1111-2222-3333-444455556666"
	started := []storage.Content{
		{Where: "vdb", Kind: "gpt"}, {Where: "vdb1", Kind: storage.KindPartition, UUID: id}, {Where: "vdb1", Kind: "vfat"},
	}
	for _, x := range []struct {
		name     string
		mounted  []string
		contents []storage.Content
		loader   string
		want     []string
	}{
		{"nothing", nil, started, "", nil},
		{"a partition by number", []string{"252:1"}, nil, "", []string{"vda"}},
		{"a partition by node", []string{"/dev/vda1"}, nil, "", []string{"vda"}},
		{"a mapping", []string{"/dev/mapper/dm-0"}, nil, "", []string{"vda", "vdb"}},
		{"a device that is gone", []string{"252:99", "/dev/vdx"}, nil, "", nil},
		{"the loader's partition", nil, started, strings.ToUpper(id), []string{"vdb"}},
		{"the loader of a system on the disk", nil, append(slices.Clone(started), storage.Content{Where: "vdb2", Kind: "ext4"}), id, nil},
		{"the loader of another disk", nil, started, "11111111-1111-2222-3333-444455556666", nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			const a, b = "pci0000:00/0000:00:04.0/virtio1/block/vda", "pci0000:00/0000:00:05.0/virtio2/block/vdb"
			sys := sysfs(a, b, "virtual/block/dm-0")
			sys["dev/block/252:1"] = link("../../devices/" + a + "/vda1")
			sys["class/block/vda1"] = link("../../devices/" + a + "/vda1")
			sys["class/block/vdb"] = link("../../devices/" + b)
			sys["class/block/dm-0"] = link("../../devices/virtual/block/dm-0")
			sys["devices/"+a+"/vda1/partition"] = file("1\n")
			sys["devices/virtual/block/dm-0/slaves/vda1"] = link("../x")
			sys["devices/virtual/block/dm-0/slaves/vdb"] = link("../x")
			if x.loader != "" {
				sys[variable] = loader(x.loader)
			}
			d, err := Read(sys)
			if err != nil {
				t.Fatal(err)
			}
			for i := range d.Disks {
				if d.Disks[i].Name == "vdb" {
					d.Disks[i].Contents = x.contents
				}
			}
			d.MarkBootMedium(sys, x.mounted)
			var got []string
			for _, disk := range d.Disks {
				if disk.BootMedium && disk.Physical() {
					got = append(got, disk.Name)
				}
			}
			if !slices.Equal(got, x.want) {
				t.Errorf("marked %q, want %q", got, x.want)
			}
		})
	}
}
