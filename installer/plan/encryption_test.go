package plan

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/storage"
)

const recipient = "age1gdrpuawclwlpw25el7tpxvan2lz80gewj53zamcmvyevy6txvc0qhehwas"

// sealed is what it takes to open everything by TPM: a site, a machine and an
// image that fit.
func sealed(t *testing.T) (config.Config, inventory.Document, Image) {
	t.Helper()
	c, m, img := siteConfig(), machine(), debian(t)
	c.SiteServer = "https://site.example.com:8080"
	c.Storage.Encryption = storage.Encryption{
		Root: true, Unlock: []storage.Unlock{storage.UnlockTPM2}, RecoveryRecipients: []string{recipient}, RecoveryRequired: true,
	}
	m.SecureBoot = true
	m.TPM = &inventory.TPM{Version: 2}
	for n := range 24 {
		digit := "0"
		if n < 8 && n != 5 {
			digit = "7"
		}
		m.TPM.PCRs = append(m.TPM.PCRs, strings.Repeat(digit, 64))
	}
	a := img.Manifest.Attributes
	a[image.AttrInitramfs], a[image.AttrUnlock], a[image.AttrInitrdUnlock] = "dracut", "passphrase,keyfile,tpm2", "passphrase,tpm2"
	for _, path := range []string{"usr/lib/systemd/systemd-cryptsetup", "usr/lib/x86_64-linux-gnu/libtss2-esys.so.0", "usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0"} {
		img.Manifest.Entries = append(img.Manifest.Entries, image.Entry{Path: path, Type: image.File, Mode: 0o755, Size: 1, Digest: object.Of([]byte(path))})
	}
	for _, path := range []string{"usr/lib", "usr/lib/systemd", "usr/lib/x86_64-linux-gnu"} {
		img.Manifest.Entries = append(img.Manifest.Entries, image.Entry{Path: path, Type: image.Dir, Mode: 0o755})
	}
	slices.SortFunc(img.Manifest.Entries, func(a, b image.Entry) int { return image.Compare(a.Path, b.Path) })
	if err := img.Manifest.Validate(); err != nil {
		t.Fatal(err)
	}
	return c, m, img
}

func without(img Image, name string) {
	img.Manifest.Entries = slices.DeleteFunc(img.Manifest.Entries, func(e image.Entry) bool { return strings.HasSuffix(e.Path, name) })
}

// TestSealed: how the volumes are opened, what a firmware update does, and who
// has the recovery key is said, and stands in what is done.
func TestSealed(t *testing.T) {
	p, err := New(sealed(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := p.Encryption; len(got.Opened) != 1 || got.RecoveryFile != "/boot/firstlight/recovery.age" || !got.RecoveryRequired || !slices.Equal(got.RecoveryRecipients, []string{recipient}) {
		t.Errorf("%+v", got)
	}
	text := strings.Join(strings.Fields(p.Text()), " ")
	for _, want := range []string{
		"ext4, encrypted / ", "/boot", "by the TPM (PCR 7)", "A firmware update leaves PCR 7 as it is, unless it changes Secure Boot",
		recipient, "the site server must have it first", "vouched for by the same certificates",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the text does not say %q:\n%s", want, p.Text())
		}
	}
	root := p.Layout.Encrypted()[0]
	if root.MountPoint() != "/" || !slices.Equal(root.Partition.LUKS.Slots, []storage.Slot{storage.SlotTPM2, storage.SlotRecovery}) || !slices.Equal(root.Partition.LUKS.PCRs, []uint{7}) {
		t.Errorf("%+v", root.Partition.LUKS)
	}
	if !strings.Contains(p.Boot.CommandLine, "rd.luks.options="+root.Partition.LUKS.UUID+"=tpm2-device=auto") {
		t.Errorf("command line %q", p.Boot.CommandLine)
	}
	if p.Boot.NewInitrd != "" {
		t.Errorf("the initrd, which opens the root as it is, is made again by %q", p.Boot.NewInitrd)
	}
	if tab := string(p.Layout.Crypttab()); strings.Count(tab, "none luks,tpm2-device=auto") != len(p.Layout.Encrypted()) {
		t.Errorf("crypttab:\n%s", tab)
	}

	c, m, img := sealed(t)
	delete(img.Manifest.Attributes, image.AttrInitrdUnlock)
	if p, err = New(c, m, img); err != nil || p.Boot.NewInitrd != boot.Dracut {
		t.Errorf("an initrd that does not open the root: made again by %q, %v", p.Boot.NewInitrd, err)
	}
}

// TestPassphrase is what Debian's own initramfs can do.
func TestPassphrase(t *testing.T) {
	c, m, img := sealed(t)
	c.Storage.Encryption.Unlock = []storage.Unlock{storage.UnlockPassphrase}
	m.TPM, m.SecureBoot = nil, false
	img.Manifest.Attributes[image.AttrInitramfs], img.Manifest.Attributes[image.AttrUnlock] = "initramfs-tools", "passphrase"
	delete(img.Manifest.Attributes, image.AttrInitrdUnlock)
	p, err := New(c, m, img)
	if err != nil {
		t.Fatal(err)
	}
	if p.Boot.NewInitrd != boot.InitramfsTools || !strings.Contains(strings.Join(strings.Fields(p.Text()), " "), "by the recovery key, typed at every start") {
		t.Errorf("initrd by %q:\n%s", p.Boot.NewInitrd, p.Text())
	}
}

// TestEncryptionRefusals: what would lock people out, or anybody in, is refused.
func TestEncryptionRefusals(t *testing.T) {
	cases := map[string]struct {
		change func(c *config.Config, m *inventory.Document, img Image)
		code   string
	}{
		"no TPM":          {func(c *config.Config, m *inventory.Document, img Image) { m.TPM = nil }, CodeNoTPM},
		"TPM 1.2":         {func(c *config.Config, m *inventory.Document, img Image) { m.TPM.Version = 1 }, CodeNoTPM},
		"no bank":         {func(c *config.Config, m *inventory.Document, img Image) { m.TPM.PCRs = nil }, storage.CodePCR},
		"all zeros":       {func(c *config.Config, m *inventory.Document, img Image) { m.TPM.PCRs[7] = strings.Repeat("0", 64) }, storage.CodePCR},
		"all ones":        {func(c *config.Config, m *inventory.Document, img Image) { m.TPM.PCRs[7] = strings.Repeat("f", 64) }, storage.CodePCR},
		"damaged value":   {func(c *config.Config, m *inventory.Document, img Image) { m.TPM.PCRs[7] = "7" }, storage.CodePCR},
		"unstable PCR":    {func(c *config.Config, m *inventory.Document, img Image) { c.Storage.Encryption.PCRs = []uint{4, 7} }, CodeUnstablePCR},
		"Secure Boot off": {func(c *config.Config, m *inventory.Document, img Image) { m.SecureBoot = false }, CodeSecureBoot},
		"initramfs-tools": {func(c *config.Config, m *inventory.Document, img Image) {
			img.Manifest.Attributes[image.AttrInitramfs], img.Manifest.Attributes[image.AttrUnlock] = "initramfs-tools", "passphrase,clevis"
		}, CodeRootUnlock},
		"no initramfs": {func(c *config.Config, m *inventory.Document, img Image) {
			delete(img.Manifest.Attributes, image.AttrInitramfs)
			delete(img.Manifest.Attributes, image.AttrUnlock)
		}, CodeRootUnlock},
		"no site server": {func(c *config.Config, m *inventory.Document, img Image) { c.SiteServer = "" }, CodeNoEscrow},
		"no esys":        {func(c *config.Config, m *inventory.Document, img Image) { without(img, "libtss2-esys.so.0") }, CodeUnlock},
		"no opener":      {func(c *config.Config, m *inventory.Document, img Image) { without(img, "systemd-cryptsetup") }, CodeUnlock},
		"no recipient": {func(c *config.Config, m *inventory.Document, img Image) {
			c.Storage.Encryption.RecoveryRecipients = []string{"age1x"}
		}, storage.CodeRecipient},
		"no cryptsetup": {func(c *config.Config, m *inventory.Document, img Image) {
			delete(img.Manifest.Attributes, image.AttrCryptsetup)
		}, CodeNoCryptsetup},
	}
	for name, x := range cases {
		t.Run(name, func(t *testing.T) {
			c, m, img := sealed(t)
			x.change(&c, &m, img)
			_, err := New(c, m, img)
			var all Refusals
			if !errors.As(err, &all) {
				t.Fatalf("planned: %v", err)
			}
			if all.Code() != x.code {
				t.Errorf("refused with %s, want %s: %v", all.Code(), x.code, err)
			}
		})
	}
}

// TestEncryptionWarnings: what is possible, and should be known.
func TestEncryptionWarnings(t *testing.T) {
	for name, x := range map[string]struct {
		change func(c *config.Config, m *inventory.Document)
		says   string
	}{
		"Secure Boot off": {func(c *config.Config, m *inventory.Document) {
			m.SecureBoot, c.Storage.Encryption.AllowWithoutSecureBoot = false, true
		}, "whoever can start a program of his own"},
		"no recovery": {func(c *config.Config, m *inventory.Document) {
			c.Storage.Encryption.RecoveryRecipients, c.Storage.Encryption.RecoveryRequired = nil, false
		}, "nothing but the TPM opens the volumes"},
		"no recovery of the root": {func(c *config.Config, m *inventory.Document) {
			c.Storage.Encryption.RecoveryRecipients, c.Storage.Encryption.RecoveryRequired = nil, false
			c.Storage.Encryption.Unlock = []storage.Unlock{storage.UnlockTPM2, storage.UnlockKeyFile}
		}, "nothing but the TPM opens the volumes"},
		"no site server": {func(c *config.Config, m *inventory.Document) {
			c.SiteServer, c.Storage.Encryption.RecoveryRequired = "", false
		}, "There is no site server to keep the recovery key"},
		"firmware's own PCR": {func(c *config.Config, m *inventory.Document) {
			c.Storage.Encryption.PCRs = []uint{7, 0}
		}, "A firmware update changes PCR 0+7"},
		"nothing to encrypt": {func(c *config.Config, m *inventory.Document) {
			c.Storage.Encryption, c.Storage.ExtraMountPointsBasename = storage.Encryption{}, ""
			c.Storage.Volumes = []storage.VolumeSpec{{MountPoint: "/"}}
		}, "Encrypt is true, and nothing will be encrypted"},
		"data by key file": {func(c *config.Config, m *inventory.Document) {
			c.Storage.Encryption.Unlock = []storage.Unlock{storage.UnlockKeyFile, storage.UnlockTPM2}
		}, "by key files in /etc/keys"},
	} {
		t.Run(name, func(t *testing.T) {
			c, m, img := sealed(t)
			x.change(&c, &m)
			p, err := New(c, m, img)
			if err != nil {
				t.Fatal(err)
			}
			if text := strings.Join(strings.Fields(p.Text()), " "); !strings.Contains(text, x.says) {
				t.Errorf("the text does not say %q:\n%s", x.says, p.Text())
			}
		})
	}
}

// TestKeptWithoutRecovery: where every encrypted volume is kept there is no
// recovery key, whatever the layout asks for, and the plan says so.
func TestKeptWithoutRecovery(t *testing.T) {
	c, m, img := sealed(t)
	c.Storage.Encryption.Root = false
	p, err := New(c, m, img)
	if err != nil {
		t.Fatal(err)
	}
	// As the next installation would find them, all of them labelled for Preserve.
	layout := p.Layout
	for d := range layout.Disks {
		for n := range layout.Disks[d].Partitions {
			if part := &layout.Disks[d].Partitions[n]; part.LUKS != nil {
				part.Kept, part.LUKS.Slots, part.LUKS.Unlock = true, []storage.Slot{storage.SlotKeyFile}, storage.UnlockKeyFile
			}
		}
	}
	again := &decision{config: c, machine: m, image: img}
	again.decideEncryption(layout)
	if e := again.plan.Encryption; e.RecoveryRequired || e.RecoveryFile != "" {
		t.Errorf("%+v", e)
	}
	if said := strings.Join(again.plan.Warnings, "\n"); !strings.Contains(said, "no recovery key is made and the site server is sent none") || !strings.Contains(said, "/home") {
		t.Errorf("it is not said: %q", said)
	}
}

// TestMirroredRoot: dracut is told which arrays and groups the root file system
// lies on, and no more: what it finds by itself it would open, too.
func TestMirroredRoot(t *testing.T) {
	c, m, img := sealed(t)
	c.Storage.Mirror, c.Storage.VolumeGroup = true, "vg0"
	layout, err := storage.Resolve(c.Storage, []storage.Disk{
		{Name: "vda", Path: "/dev/vda", BusPath: "pci0/a", Transport: "virtio", Size: 64 << 30, SectorSize: 512},
		{Name: "vdb", Path: "/dev/vdb", BusPath: "pci0/b", Transport: "virtio", Size: 64 << 30, SectorSize: 512},
	}, nil, storage.Need{}, storage.UEFI, func(name string) (id [16]byte) { copy(id[:], name); return id })
	if err != nil {
		t.Fatal(err)
	}
	d := &decision{config: c, machine: m, image: img}
	options := d.rootOptions(layout)
	group := layout.Groups[0]
	at := slices.IndexFunc(layout.Arrays, func(a storage.Array) bool { return a.Node == group.Device })
	for _, want := range []string{"rd.lvm.vg=vg0", "rd.md.uuid=" + layout.Arrays[at].UUID} {
		if !slices.Contains(options, want) {
			t.Errorf("%q lack %q", options, want)
		}
	}
	arrays := 0
	for _, o := range options {
		if strings.HasPrefix(o, "rd.auto") {
			t.Errorf("%q open what they find", options)
		}
		if strings.HasPrefix(o, "rd.md.uuid=") {
			arrays++
		}
	}
	if arrays != 1 || len(layout.Arrays) < 3 {
		t.Errorf("%q name %d arrays of %d", options, arrays, len(layout.Arrays))
	}
}
