package plan

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

var update = flag.Bool("update", false, "write the golden files")

// secret stands for everything that must never be in a plan.
const secret = "correct horse battery staple"

func siteConfig() config.Config {
	return config.Config{
		Machine: config.Machine{Location: "rack 7"},
		Storage: config.Default(),
		Network: netconfig.Spec{
			Hostname: "hyper0",
			Entries: []netconfig.Entry{{
				Hostname: "hyper0",
				IP:       netip.MustParseAddr("192.168.1.2"),
				MAC:      netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56},
			}},
			Subnets: []netconfig.Subnet{{
				ID:      "Hypervisors",
				Gateway: netip.MustParseAddr("192.168.1.1"),
				Prefix:  netip.MustParsePrefix("192.168.1.0/24"),
				Domain:  "hypervisors.example.com",
				DNS:     []netip.Addr{netip.MustParseAddr("192.168.1.53")},
			}},
		},
		Image:        "debian/12",
		ImageServers: []string{"images.example.com:6971"},
		RandomSeed:   []byte(secret),
		Warnings:     []string{"config.json:3: field Machine.Rack is not used"},
	}
}

func machine() inventory.Document {
	d := inventory.Document{
		Format:               inventory.Format,
		Arch:                 "amd64",
		Firmware:             storage.BIOS,
		MemoryBytes:          4 << 30,
		MemoryAvailableBytes: 3800 << 20,
		CPUs:                 2,
		DMI:                  inventory.DMI{Vendor: "QEMU", Product: "Standard PC", Serial: "C0FFEE"},
		Consoles:             []string{"tty0", "ttyS0"},
		Disks: []storage.Disk{
			{
				Name: "vda", Path: "/dev/vda", Serial: "disk0", BusPath: "pci0000:00/0000:00:03.0/virtio1", Transport: "virtio",
				Size: 16 << 30, SectorSize: 512, PhysicalSectorSize: 512,
				Contents: []storage.Content{
					{Where: "vda", Kind: "gpt", UUID: "aaaaaaaa-0000-0000-0000-000000000000", Size: 16 << 30},
					{Where: "vda1", Kind: "ext4", Label: "accounts \x1b[2J", UUID: "bbbbbbbb-0000-0000-0000-000000000000", Offset: 1 << 20, Size: 15 << 30},
				},
			},
			{Name: "vdb", Path: "/dev/vdb", Model: "Data Disk", BusPath: "pci0000:00/0000:00:04.0/virtio2", Transport: "virtio", Size: 4 << 30, SectorSize: 512},
			{Name: "sda", Path: "/dev/sda", Model: "SanDisk Ultra", BusPath: "pci0000:00/0000:00:14.0/usb1", Transport: "usb", Size: 4 << 30, SectorSize: 512},
		},
		NICs: []netconfig.NIC{{Name: "eth0", MAC: netconfig.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}, Driver: "virtio_net", PCI: "0000:00:02.0", Carrier: true, Lease: true, Address: netip.MustParsePrefix("192.168.1.2/24")}},
	}
	for i := range d.Seed {
		d.Seed[i] = byte(i)
	}
	return d
}

func debian(t testing.TB) Image {
	t.Helper()
	file := func(path string, size uint64) image.Entry {
		return image.Entry{Path: path, Type: image.File, Mode: 0o644, Size: size, Digest: object.Of([]byte(path))}
	}
	dir := func(path string) image.Entry { return image.Entry{Path: path, Type: image.Dir, Mode: 0o755} }
	m := &image.Manifest{
		Attributes: map[string]string{
			image.AttrArch:           "amd64",
			image.AttrOSName:         "Debian GNU/Linux 12 (bookworm)",
			image.AttrKernel:         "boot/vmlinuz-6.1.0-26-cloud-amd64",
			image.AttrKernelVersion:  "6.1.0-26-cloud-amd64",
			image.AttrInitrd:         "boot/initrd.img-6.1.0-26-cloud-amd64",
			image.AttrBootloaders:    "grub-pc",
			image.AttrNetwork:        "ifupdown,networkd",
			image.AttrNetworkEnabled: "ifupdown",
			image.AttrCryptsetup:     "usr/sbin/cryptsetup",
			image.AttrFileSystems:    "ext4,vfat",
		},
		Entries: []image.Entry{
			dir("."), dir("boot"),
			file("boot/initrd.img-6.1.0-26-cloud-amd64", 24<<20),
			file("boot/vmlinuz-6.1.0-26-cloud-amd64", 7<<20),
			dir("usr"), file("usr/big", 300<<20),
			{Path: "usr/big2", Type: image.Hardlink, Target: "usr/big"},
			dir("usr/sbin"), file("usr/sbin/cryptsetup", 200<<10),
		},
	}
	slices.SortFunc(m.Entries, func(a, b image.Entry) int { return image.Compare(a.Path, b.Path) })
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	digest, err := m.Digest()
	if err != nil {
		t.Fatal(err)
	}
	stored := make(map[object.Digest]uint64)
	for _, o := range m.Objects() {
		stored[o.Digest] = o.Size / 2
	}
	return Image{Name: "debian/12/2026-11-20", Digest: digest, Manifest: m, Stored: stored}
}

func TestGolden(t *testing.T) {
	p, err := New(siteConfig(), machine(), debian(t))
	if err != nil {
		t.Fatal(err)
	}
	data, err := p.JSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"testdata/plan.json": data, "testdata/plan.txt": []byte(p.Text())} {
		if *update {
			if err := os.WriteFile(name, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-update writes it) -want +got:\n%s", name, diff)
		}
	}
}

func TestSameInputsSameBytes(t *testing.T) {
	hash := func(c config.Config, d inventory.Document, img Image) string {
		t.Helper()
		p, err := New(c, d, img)
		if err != nil {
			t.Fatal(err)
		}
		h, err := p.Hash()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	first := hash(siteConfig(), machine(), debian(t))
	if !strings.HasPrefix(first, "sha256:") || len(first) != 71 {
		t.Errorf("hash %q", first)
	}
	for range 5 {
		if again := hash(siteConfig(), machine(), debian(t)); again != first {
			t.Fatalf("the same inputs gave %s and %s", first, again)
		}
	}
	// An inventory that went through JSON, as on a laptop.
	data, err := machine().JSON()
	if err != nil {
		t.Fatal(err)
	}
	read, err := inventory.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if again := hash(siteConfig(), read, debian(t)); again != first {
		t.Error("the inventory's JSON gives another plan than the inventory")
	}
	reseeded := machine()
	reseeded.Seed[0]++
	if hash(siteConfig(), reseeded, debian(t)) == first {
		t.Error("another seed gives the same plan")
	}
}

func TestUUIDs(t *testing.T) {
	p, err := New(siteConfig(), machine(), debian(t))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, d := range p.Layout.Disks {
		ids := []string{d.UUID}
		for _, v := range d.Partitions {
			ids = append(ids, v.UUID)
			if v.FSUUID != "" {
				ids = append(ids, v.FSUUID)
			}
			if v.LUKS != nil {
				ids = append(ids, v.LUKS.UUID)
			}
		}
		for _, id := range ids {
			if seen[strings.ToLower(id)] {
				t.Errorf("UUID %s stands twice", id)
			}
			seen[strings.ToLower(id)] = true
			// RFC 9562: version 8 in the third group, variant 8 to b in the fourth.
			if len(id) == 36 && (id[14] != '8' || !strings.ContainsRune("89abAB", rune(id[19]))) {
				t.Errorf("%s is no UUID of version 8", id)
			}
		}
	}
	if len(seen) < 8 {
		t.Errorf("only %d UUIDs: %v", len(seen), slices.Collect(maps.Keys(seen)))
	}
	root := rootUUID(p.Layout)
	if root == "" || !strings.HasPrefix(p.Boot.CommandLine, "root=UUID="+root+" ro console=tty0 console=ttyS0") {
		t.Errorf("command line %q does not name the root file system %s", p.Boot.CommandLine, root)
	}
}

func TestBounds(t *testing.T) {
	img := debian(t)
	p, err := New(siteConfig(), machine(), img)
	if err != nil {
		t.Fatal(err)
	}
	var half uint64
	for _, o := range img.Manifest.Objects() {
		half += o.Size / 2
	}
	if p.FetchObjects != 4 || p.FetchBytes != half {
		t.Errorf("fetch %d objects, %d bytes: want 4, %d", p.FetchObjects, p.FetchBytes, half)
	}
	if p.StageBytes < half || p.MemoryNeed < p.StageBytes {
		t.Errorf("stage %d, memory %d: want both above %d", p.StageBytes, p.MemoryNeed, half)
	}
	// Without stored sizes, and with absurd ones, the unpacked size is the bound.
	whole := img.Manifest.Bytes()
	for name, stored := range map[string]map[object.Digest]uint64{"none": nil, "absurd": {img.Manifest.Objects()[0].Digest: 1 << 60}} {
		img.Stored = stored
		if p, err = New(siteConfig(), machine(), img); err != nil {
			t.Fatal(err)
		}
		if p.FetchBytes != whole {
			t.Errorf("%s: fetch %d bytes: want %d", name, p.FetchBytes, whole)
		}
	}
}

func TestTools(t *testing.T) {
	c, d, img := siteConfig(), machine(), debian(t)
	plain, err := New(c, d, img)
	if err != nil {
		t.Fatal(err)
	}
	if plain.Tools != nil {
		t.Error("tools that nobody asked for")
	}
	self := img
	self.Tools = &img
	asked, err := New(c, d, self)
	if err != nil {
		t.Fatal(err)
	}
	if asked.Tools == nil || asked.Tools.Name != img.Name || asked.FetchBytes != plain.FetchBytes || asked.MemoryNeed+1<<20 < plain.MemoryNeed+img.Manifest.Bytes() {
		t.Errorf("the image as its own tools: %+v, %d bytes to fetch, %d of memory", asked.Tools, asked.FetchBytes, asked.MemoryNeed)
	}
	// A tools image shares an object, and brings one.
	tools := Image{Name: "tools/1", Digest: object.Of([]byte("tools/1")), Manifest: &image.Manifest{
		Attributes: map[string]string{image.AttrArch: "amd64"},
		Entries: []image.Entry{
			{Path: ".", Type: image.Dir},
			{Path: "a", Type: image.File, Size: 300 << 20, Digest: object.Of([]byte("usr/big"))},
			{Path: "b", Type: image.File, Size: 100 << 20, Digest: object.Of([]byte("tool"))},
		},
	}}
	img.Tools = &tools
	separate, err := New(c, d, img)
	if err != nil {
		t.Fatal(err)
	}
	if separate.FetchObjects != plain.FetchObjects+1 || separate.FetchBytes != plain.FetchBytes+100<<20 || separate.StageBytes < plain.StageBytes+100<<20 {
		t.Errorf("with a tools image %d objects, %d bytes, stage %d; without %d, %d, %d",
			separate.FetchObjects, separate.FetchBytes, separate.StageBytes, plain.FetchObjects, plain.FetchBytes, plain.StageBytes)
	}
	if !strings.Contains(separate.Text(), "Tools    tools/1") {
		t.Error("the text does not name the tools image")
	}
	tools.Manifest.Attributes[image.AttrArch] = "arm64"
	if _, err := New(c, d, img); codeOf(err) != CodeArch {
		t.Errorf("tools for another architecture: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		change func(*config.Config, *inventory.Document, *Image)
		code   string
		want   []string // words of the error
	}{
		"another architecture": {
			func(_ *config.Config, d *inventory.Document, _ *Image) { d.Arch = "arm64" },
			CodeArch, []string{"amd64", "arm64"},
		},
		"no architecture": {
			func(_ *config.Config, _ *inventory.Document, i *Image) { delete(i.Manifest.Attributes, image.AttrArch) },
			CodeArch, []string{"does not say"},
		},
		"too little memory": {
			func(_ *config.Config, d *inventory.Document, _ *Image) { d.MemoryAvailableBytes = 256 << 20 },
			CodeMemory, []string{"256.0 MiB are free", "more memory"},
		},
		"no DHCP client": {
			func(c *config.Config, _ *inventory.Document, _ *Image) {
				c.Network.Entries = []netconfig.Entry{{}}
			},
			CodeNoClient, []string{"dhclient"},
		},
		"no VLANs and no bridges": {
			func(c *config.Config, _ *inventory.Document, i *Image) {
				i.Manifest.Attributes[image.AttrKernelNetwork] = "bonding"
				c.Network.Entries[0].VlanTrunk = true
				c.Network.Subnets = append(c.Network.Subnets, netconfig.Subnet{ID: "guests", Prefix: netip.MustParsePrefix("10.9.0.0/24"), Manage: true, VlanID: 9})
			},
			CodeNoDriver, []string{"8021q, bridge"},
		},
		"foreign MAC address": {
			func(c *config.Config, _ *inventory.Document, _ *Image) { c.Network.Entries[0].MAC[5]++ },
			"CNF-", []string{"52:54:00:12:34:57"},
		},
		"no disk": {
			func(_ *config.Config, d *inventory.Document, _ *Image) { d.Disks = nil },
			storage.CodeNoDisk, nil,
		},
		"none selected": {
			func(_ *config.Config, d *inventory.Document, _ *Image) { d.Selected = []string{} },
			storage.CodeSelection, nil,
		},
		"disk too small": {
			func(_ *config.Config, d *inventory.Document, _ *Image) { d.Disks[0].Size = 1 << 30 },
			storage.CodeTooSmall, []string{"/dev/vda"},
		},
		"default layout on a disk in use": {
			func(c *config.Config, _ *inventory.Document, _ *Image) { c.LayoutFromDefault = true },
			storage.CodeForeign, []string{"vda1 ext4"},
		},
		"BIOS without its boot loader": {
			func(_ *config.Config, d *inventory.Document, img *Image) {
				img.Manifest.Attributes[image.AttrBootloaders] = "grub-efi"
			},
			"BOO-003", []string{"BIOS", "grub-pc", "grub-efi"},
		},
		"Secure Boot without a signed boot loader": {
			func(_ *config.Config, d *inventory.Document, _ *Image) { d.Firmware, d.SecureBoot = storage.UEFI, true },
			"BOO-006", []string{"shim"},
		},
		"a mirror without mdadm": {
			func(c *config.Config, d *inventory.Document, img *Image) {
				c.Storage.Mirror = true
				d.Disks[1].Size = d.Disks[0].Size
				img.Manifest.Attributes[image.AttrInitramfs] = boot.InitramfsTools
			},
			CodeNoAssembler, []string{"mdadm"},
		},
		"a kernel without a module": {
			func(_ *config.Config, _ *inventory.Document, img *Image) {
				img.Manifest.Attributes[image.AttrKernelModules] = "dm-mod,ext4"
			},
			CodeKernel, []string{"dm-crypt"},
		},
		"no kernel": {
			func(_ *config.Config, _ *inventory.Document, i *Image) {
				delete(i.Manifest.Attributes, image.AttrKernel)
			},
			"BOO-001", nil,
		},
		"no initrd": {
			func(_ *config.Config, _ *inventory.Document, i *Image) {
				delete(i.Manifest.Attributes, image.AttrInitrd)
			},
			"BOO-002", nil,
		},
		"kernel that is not there": {
			func(_ *config.Config, _ *inventory.Document, i *Image) {
				i.Manifest.Attributes[image.AttrKernel] = "boot/vmlinuz"
			},
			CodeDamaged, []string{"/boot/vmlinuz"},
		},
		"file system that the image does not know": {
			func(c *config.Config, _ *inventory.Document, i *Image) {
				c.Storage.Volumes[1].FileSystem = storage.XFS
				mkfs := image.Entry{Path: "usr/sbin/mkfs.xfs", Type: image.File, Mode: 0o755, Size: 1, Digest: object.Of([]byte("mkfs.xfs"))}
				i.Manifest.Entries = append(i.Manifest.Entries, mkfs)
			},
			CodeFileSystem, []string{"xfs", "xfsprogs"},
		},
		"mkfs that nobody has": {
			func(c *config.Config, _ *inventory.Document, i *Image) {
				c.Storage.Volumes[1].FileSystem = storage.XFS
				i.Manifest.Attributes[image.AttrFileSystems] += ",xfs" // it can check it
			},
			CodeNoProgram, []string{"mkfs.xfs"},
		},
		"no cryptsetup in the image": {
			func(_ *config.Config, _ *inventory.Document, i *Image) {
				delete(i.Manifest.Attributes, image.AttrCryptsetup)
			},
			CodeNoCryptsetup, []string{"Encrypt"},
		},
		"no network programs in the image": {
			func(_ *config.Config, _ *inventory.Document, i *Image) {
				delete(i.Manifest.Attributes, image.AttrNetwork)
			},
			CodeNoRenderer, []string{"ifupdown", "networkd"},
		},
		"another renderer than the image has": {
			func(c *config.Config, _ *inventory.Document, _ *Image) { c.Install.NetworkRenderer = "netplan" },
			CodeNoRenderer, []string{"netplan", "ifupdown, networkd"},
		},
		"a renderer that the image does not start": {
			func(c *config.Config, _ *inventory.Document, _ *Image) { c.Install.NetworkRenderer = "networkd" },
			CodeNotEnabled, []string{"networkd", "NetworkRenderer to ifupdown"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, d, img := siteConfig(), machine(), debian(t)
			test.change(&c, &d, &img)
			p, err := New(c, d, img)
			if err == nil {
				t.Fatalf("accepted:\n%s", p.Text())
			}
			refusals, ok := err.(Refusals)
			if !ok || len(refusals) != 1 || !strings.HasPrefix(refusals.Code(), test.code) {
				t.Errorf("%T %s: %v: want one refusal with %s", err, codeOf(err), err, test.code)
			}
			for _, word := range test.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error %q does not say %q", err, word)
				}
			}
		})
	}
}

func TestEveryRefusalAtOnce(t *testing.T) {
	c, d, img := siteConfig(), machine(), debian(t)
	d.Arch, d.Disks, d.MemoryAvailableBytes = "arm64", nil, 1<<20
	c.Network.Entries[0].MAC[5]++
	img.Manifest.Attributes[image.AttrKernel] = ""
	img.Manifest.Attributes[image.AttrInitrd] = ""
	_, err := New(c, d, img)
	refusals, ok := err.(Refusals)
	if !ok {
		t.Fatalf("%T: %v", err, err)
	}
	var codes []string
	for _, one := range refusals {
		codes = append(codes, codeOf(one))
	}
	want := []string{CodeArch, storage.CodeNoDisk, "BOO-001", "BOO-002", "CNF-001", CodeMemory}
	if diff := cmp.Diff(want, codes); diff != "" {
		t.Errorf("-want +got:\n%s\n%v", diff, err)
	}
	if lines := strings.Split(err.Error(), "\n"); len(lines) < 6 || !strings.HasPrefix(lines[1], storage.CodeNoDisk+": ") {
		t.Errorf("not a line for each, with its code:\n%v", err)
	}
}

func TestSkipped(t *testing.T) {
	c, d, img := siteConfig(), machine(), debian(t)
	d.Disks = nil
	c.Network.Entries[0].MAC[5]++
	img.Manifest.Attributes[image.AttrKernel] = ""
	p, err := New(c, d, img, SkipStorage, SkipNetwork)
	if err != nil {
		t.Fatal(err)
	}
	if text := p.Text(); !strings.Contains(text, "no disk is touched") || !strings.Contains(text, "is not configured") {
		t.Errorf("the text does not say what is skipped:\n%s", text)
	}
}

func TestUEFIAndKexec(t *testing.T) {
	c, d, img := siteConfig(), machine(), debian(t)
	c.Storage.UseKexec = true
	d.Firmware, d.SecureBoot = storage.UEFI, true
	img.Manifest.Attributes[image.AttrBootloaders] = "grub-pc,grub-efi,shim"
	p, err := New(c, d, img)
	if err != nil {
		t.Fatal(err)
	}
	if p.HandOver != Kexec || !slices.Equal(p.Boot.Loaders, []string{"grub-efi"}) {
		t.Errorf("hand-over %s, loaders %v", p.HandOver, p.Boot.Loaders)
	}
	if !slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "Secure Boot") }) {
		t.Errorf("no warning about Secure Boot and kexec: %q", p.Warnings)
	}
	if !slices.ContainsFunc(p.Layout.Mounts(), func(v storage.Volume) bool { return v.MountPoint() == storage.ESPMountPoint }) {
		t.Error("no ESP")
	}
}

func TestRecordsOfAnotherMachine(t *testing.T) {
	c := siteConfig()
	c.Warnings = nil
	c.Machine = config.Machine{Architecture: "x86_64", MemoryMiB: 4096, CPUs: 2, VolumeBytes: 20 << 30}
	p, err := New(c, machine(), debian(t))
	if err != nil || len(p.Warnings) != 0 {
		t.Errorf("warnings %q, error %v: want none", p.Warnings, err)
	}
	c.Machine = config.Machine{Architecture: "aarch64", MemoryMiB: 65536, CPUs: 64, VolumeBytes: 1 << 40}
	if p, err = New(c, machine(), debian(t)); err != nil || len(p.Warnings) != 4 {
		t.Errorf("warnings %q, error %v: want four", p.Warnings, err)
	}
}

// TestTextNamesWhatIsLost: a tired person must see it.
func TestTextNamesWhatIsLost(t *testing.T) {
	p, err := New(siteConfig(), machine(), debian(t))
	if err != nil {
		t.Fatal(err)
	}
	text := p.Text()
	for _, want := range []string{"WILL BE ERASED: /dev/vda", "WILL BE ERASED: /dev/vdb (Data Disk", `lost: vda1  ext4 "accounts`, "chosen by: first usable disk on the bus", "chosen by: every usable disk", "erased by: metadata", "new:  vda1                  2048-4095", "nothing was recognised", "/var/log", "ext4, encrypted", "/dev/sda: it is connected by USB", "192.168.1.2/24", "at most"} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not say %q", want)
		}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("control character in %q", line)
		}
	}
	if t.Failed() {
		t.Log("\n" + text)
	}
}

// TestNoSecret puts the secret wherever a configuration can carry one: none of
// its spellings may come out.
func TestNoSecret(t *testing.T) {
	for _, spec := range []bool{true, false} {
		c := siteConfig()
		c.Storage.Encrypt = spec
		p, err := New(c, machine(), debian(t))
		if err != nil {
			t.Fatal(err)
		}
		data, err := p.JSON()
		if err != nil {
			t.Fatal(err)
		}
		encoded, err := json.Marshal([]byte(secret)) // base64
		if err != nil {
			t.Fatal(err)
		}
		for _, out := range [][]byte{data, []byte(p.Text())} {
			for _, form := range [][]byte{[]byte(secret), bytes.Trim(encoded, `"`), []byte(hexText(secret))} {
				if bytes.Contains(bytes.ToLower(out), bytes.ToLower(form)) {
					t.Errorf("the plan holds random-seed as %s", form)
				}
			}
		}
	}
}

func hexText(s string) string {
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte("0123456789abcdef"[s[i]>>4])
		b.WriteByte("0123456789abcdef"[s[i]&15])
	}
	return b.String()
}

// TestRenderer chooses one writer of the network, and tells of the others.
func TestRenderer(t *testing.T) {
	for name, test := range map[string]struct {
		have, enabled, wanted, want string
		warnings                    []string
	}{
		"the only one":               {"ifupdown", "ifupdown", "", "ifupdown", nil},
		"the first that is enabled":  {"networkd,ifupdown", "networkd", "", "networkd", nil},
		"as asked for":               {"ifupdown,networkmanager", "ifupdown,networkmanager", "networkmanager", "networkmanager", []string{"starts ifupdown as well as networkmanager"}},
		"netplan works by networkd":  {"netplan,networkd", "netplan,networkd", "", "netplan", nil},
		"networkd beside netplan":    {"netplan,networkd", "netplan,networkd", "networkd", "networkd", []string{"starts netplan as well"}},
		"one that nobody knows here": {"wicked,ifupdown", "wicked,ifupdown", "", "ifupdown", []string{"starts wicked"}},
	} {
		t.Run(name, func(t *testing.T) {
			c, d, img := siteConfig(), machine(), debian(t)
			c.Warnings = nil
			c.Install.NetworkRenderer = test.wanted
			img.Manifest.Attributes[image.AttrNetwork] = test.have
			img.Manifest.Attributes[image.AttrNetworkEnabled] = test.enabled
			img.Manifest.Attributes[image.AttrCloudInit] = "usr/bin/cloud-init"
			p, err := New(c, d, img)
			if err != nil {
				t.Fatal(err)
			}
			if p.Network.Renderer != test.want || !p.Network.WithoutCloudInit {
				t.Errorf("network %+v; want renderer %s, without cloud-init", p.Network, test.want)
			}
			if len(p.Warnings) != len(test.warnings) {
				t.Fatalf("warnings %q, want %d", p.Warnings, len(test.warnings))
			}
			for i, want := range test.warnings {
				if !strings.Contains(p.Warnings[i], want) {
					t.Errorf("warning %q, want %q", p.Warnings[i], want)
				}
			}
		})
	}
}

func TestNameServersByDHCPReachSomebody(t *testing.T) {
	c, d, img := siteConfig(), machine(), debian(t)
	c.Network.Entries = []netconfig.Entry{{}}
	img.Manifest.Attributes[image.AttrNetwork] = "networkd"
	img.Manifest.Attributes[image.AttrNetworkEnabled] = "networkd"
	p, err := New(c, d, img)
	if err != nil || !slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "systemd-resolved") }) {
		t.Errorf("warnings %q, error %v: want one of systemd-resolved", p.Warnings, err)
	}
	img.Manifest.Attributes[image.AttrResolver] = "resolved"
	p, err = New(c, d, img)
	if err != nil || slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "systemd-resolved") }) {
		t.Errorf("warnings %q, error %v: want none of systemd-resolved", p.Warnings, err)
	}
}
