package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

const machineJSON = `{
  "Machine": {"Hostname": "hyper0", "HostIpAddress": "192.168.1.2", "HostMacAddress": "52:54:00:12:34:56"},
  "Subnets": [
    {"Id": "Hosts", "IpGateway": "192.168.1.1", "IpMask": "255.255.255.0", "DomainName": "example.com", "DomainNameServers": ["192.168.1.53"]},
    {"Id": "Dev", "IpGateway": "192.168.100.1", "IpMask": "255.255.255.0", "Manage": true, "VlanId": 100}
  ]
}`

// configDir writes configuration files to a new directory.
func configDir(t *testing.T, files map[string]string) string {
	t.Helper()
	directory := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}

func TestConfigCheck(t *testing.T) {
	l := &lab{site: t.TempDir()}
	good := configDir(t, map[string]string{"config.json": machineJSON, "imagename": "debian/12\n"})
	if out := l.must(t, "config", "check", good); !strings.Contains(out, "hyper0") || !strings.Contains(out, "no mistake") {
		t.Errorf("check printed %q", out)
	}
	bad := configDir(t, map[string]string{
		"config.json":         `{"Machine": {"HostIpAdress": "1.2.3.4", "HostMacAddress": "xx"}}`,
		"storage-layout.json": `{"Foo": 1}`,
	})
	_, stderr, code := l.run(t, "config", "check", bad)
	for _, want := range []string{"HostIpAdress", "HostMacAddress", "Foo", "imagename", "CFG-003", "CFG-006"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("check does not speak of %s:\n%s", want, stderr)
		}
	}
	if code != exitInvalid {
		t.Errorf("exit %d", code)
	}
	stdout, _, code := l.run(t, "config", "check", bad, "--json")
	var result checked
	decode(t, stdout, &result)
	if code != exitInvalid || len(result.Mistakes) < 4 || result.Mistakes[0].ID == "" {
		t.Errorf("exit %d, %+v", code, result)
	}
	if _, _, code := l.run(t, "config", "check"); code != exitUsage {
		t.Errorf("without DIR: exit %d", code)
	}
}

func TestConfigShowNetwork(t *testing.T) {
	l := &lab{site: t.TempDir()}
	directory := configDir(t, map[string]string{"config.json": machineJSON, "imagename": "debian/12\n"})
	out := l.must(t, "config", "show", "--network", "--renderer", "all", "--config", directory)
	for _, want := range []string{
		"ifupdown: /etc/network/interfaces", "networkd: /etc/systemd/network/10-firstlight-br100.netdev",
		"netplan: /etc/netplan/99-firstlight.yaml 0600", "networkmanager: /etc/NetworkManager/system-connections/lan1.100.nmconnection 0600",
		"/etc/hostname", "192.168.1.2",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out := l.must(t, "config", "show", "--network", "--config", directory); !strings.Contains(out, "VLAN 100 on lan1") {
		t.Errorf("the network in words:\n%s", out)
	}
	machine := inventory.Document{Format: inventory.Format, NICs: []netconfig.NIC{{Name: "eth7", MAC: netconfig.MAC{2, 0, 0, 0, 0, 9}, Carrier: true}}}
	data, err := machine.JSON()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "inventory.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := l.run(t, "config", "show", "--network", "--config", directory, "--inventory", file)
	if code != exitInvalid || !strings.Contains(stderr, "CNF-001") || !strings.Contains(stderr, "eth7") {
		t.Errorf("a NIC that is not there: exit %d\n%s", code, stderr)
	}
	for _, args := range [][]string{{"--config", directory}, {"--network"}, {"--network", "--config", directory, "--renderer", "wicked"}} {
		if _, _, code := l.run(t, append([]string{"config", "show"}, args...)...); code != exitUsage {
			t.Errorf("%q: exit %d", args, code)
		}
	}
}

// The plan on a laptop is that of the machine, to the byte.
func TestPlan(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	for name, text := range map[string]string{
		"boot/vmlinuz-6.1.0": "kernel", "boot/initrd.img-6.1.0": "initrd", "sbin/ifup": "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 11) + "\x3e\x00" + strings.Repeat("\x00", 100),
		"sbin/init": "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 11) + "\x3e\x00" + strings.Repeat("\x00", 100), "sbin/fsck.ext4": "#!", "sbin/grub-install": "#!",
		"usr/lib/grub/i386-pc/modinfo.sh":                               "",
		"etc/systemd/system/multi-user.target.wants/networking.service": "",
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/lib/modules/6.1.0"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.must(t, "image", "add", "debian/12/1", root, "--quiet")

	machine := inventory.Document{
		Format: inventory.Format, Arch: "amd64", Firmware: storage.BIOS, MemoryBytes: 4 << 30, CPUs: 2,
		Disks: []storage.Disk{{Name: "vda", Path: "/dev/vda", Size: 16 << 30, SectorSize: 512, Transport: "virtio"}},
		NICs:  []netconfig.NIC{{Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, Carrier: true}},
	}
	data, err := machine.JSON()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "inventory.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	layout := `{"BootDriveLayout": [{"MountPoint": "/"}]}`
	directory := configDir(t, map[string]string{"config.json": machineJSON, "imagename": "debian/12\n", "storage-layout.json": layout})
	args := []string{"plan", "--inventory", file, "--config", directory}
	text := l.must(t, args...)
	encoded := l.must(t, append(args, "--json", "--quiet")...)

	// What the machine does with the same inputs.
	found, err := (&common{imageserver: l.address, site: l.site, getenv: func(string) string { return "" }}).planImage(t.Context(), "debian/12/1", "")
	if err != nil {
		t.Fatal(err)
	}
	read, err := config.Parse(map[string][]byte{"config.json": []byte(machineJSON), "imagename": []byte("debian/12\n"), "storage-layout.json": []byte(layout)}, config.DefaultPort)
	if err != nil {
		t.Fatal(err)
	}
	reread, err := inventory.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	want, err := plan.New(read, reread, found)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := want.Hash()
	if err != nil {
		t.Fatal(err)
	}
	bytes, err := want.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if encoded != string(bytes) || !strings.HasSuffix(text, "plan "+hash+"\n") || !strings.Contains(text, "WILL BE ERASED: /dev/vda") {
		t.Errorf("another plan:\n%s\n%s", text, encoded)
	}
	if want.Image.Name != "debian/12/1" || found.Manifest.Attributes[image.AttrNetworkEnabled] != "ifupdown" {
		t.Errorf("planned for %s", want.Image.Name)
	}

	machine.Disks = nil
	if data, err = machine.JSON(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := l.run(t, args...); code != exitRefused || !strings.Contains(stderr, "STO-") {
		t.Errorf("without a disk: exit %d\n%s", code, stderr)
	}
	if _, _, code := l.run(t, append(args, "--image", "debian/13")...); code != exitNotFound {
		t.Errorf("an image that is not there: exit %d", code)
	}
}
