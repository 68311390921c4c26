//go:build full

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestImagesSources: parts of the image lie in a RAID 1 and a RAID 5 that mdadm
// made, in a LUKS1 and a LUKS2 volume whose key files lie in the first, and in a
// vfat; all of them are found, and nothing is written to a disk.
func TestImagesSources(t *testing.T) {
	root := t.TempDir()
	command(t, "tar", "-C", root, "-xf", site.Products.Root)
	dir := t.TempDir()
	disk := func(name string, size int64) string {
		path := filepath.Join(dir, name)
		if err := qemu.CreateDisk(path, size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const (
		size  = 500 << 20
		luks1 = "11111111-1111-4111-8111-111111111111"
		luks2 = "22222222-2222-4222-8222-222222222222"
		key   = "the key of both volumes"
	)
	for name, text := range map[string]string{
		"etc/keys/old": key,
		"etc/crypttab": "one UUID=" + luks1 + " /etc/keys/old luks\ntwo UUID=" + luks2 + " /etc/keys/old luks\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The disks, as the machine that prepares them and the one that is installed
	// see them: vda to vdh; behind them what is to be in the volumes.
	disks := []string{disk("vda", lab.DiskBytes)} // the new system shall lie here
	for _, name := range []string{"vdb", "vdc", "vdd", "vde", "vdf", "vdg"} {
		disks = append(disks, disk(name, 1200<<20))
	}
	vfat := disk("vdh", 1200<<20)
	command(t, "mkfs.vfat", "-F", "32", vfat)
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz*"))
	if err != nil || len(kernels) == 0 {
		t.Fatalf("no kernel in the image: %v", err)
	}
	command(t, "mmd", "-i", vfat, "::EFI")
	command(t, "mcopy", "-i", vfat, kernels[0], "::EFI/linux.efi")
	volumes := []string{}
	for n, parts := range [][]string{{"etc", "usr/lib/x86_64-linux-gnu"}, {"usr/lib", "usr/bin", "usr/sbin"}, {"usr/share"}, {"boot", "var"}} {
		volume := disk(fmt.Sprint("volume", n), size)
		command(t, "mkfs.ext4", "-q", "-F", volume)
		copyInto(t, volume, root, "", parts...)
		volumes = append(volumes, volume)
	}
	prepare(t, append(append(append([]string{}, disks...), vfat), volumes...), strings.Join([]string{
		"set -e",
		"mkdir -p /run/cryptsetup",
		"printf '" + key + "' > /run/key",
		// mdadm asks what it would ask a person, unless --run.
		"mdadm --create /dev/md90 --run --level=1 --raid-devices=2 --metadata=1.2 --assume-clean --size=600M /dev/vda /dev/vdb",
		"dd if=/dev/vdi of=/dev/md90 bs=1M count=500",
		"mdadm --create /dev/md91 --run --level=5 --raid-devices=3 --metadata=1.2 --assume-clean --size=300M /dev/vdc /dev/vdd /dev/vde",
		"dd if=/dev/vdj of=/dev/md91 bs=1M count=500",
		"mdadm --stop /dev/md90", "mdadm --stop /dev/md91",
		"cryptsetup luksFormat --batch-mode --type luks1 --pbkdf-force-iterations 1000 --uuid " + luks1 + " --key-file /run/key /dev/vdf",
		"cryptsetup open --key-file /run/key /dev/vdf one",
		"cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --uuid " + luks2 + " --key-file /run/key /dev/vdg",
		"cryptsetup open --key-file /run/key /dev/vdg two",
		"dd if=/dev/vdk of=/dev/mapper/one bs=1M count=500", "dd if=/dev/vdl of=/dev/mapper/two bs=1M count=500",
		"cryptsetup close one", "cryptsetup close two",
		"sync",
	}, "\n"))

	trees := []string{"RAID 1 on /dev/vda (ext4)", "RAID 5 on /dev/vdc and /dev/vdd and /dev/vde (ext4)",
		"/dev/vdf, decrypted (ext4)", "/dev/vdg, decrypted (ext4)", "/dev/vdh (vfat)"}
	r := reuseFrom(t, append(disks, vfat)...)
	r.check(t, trees...)
	for _, tree := range trees {
		if r.lines.index("] stage: 0 objects from "+tree) >= 0 {
			t.Errorf("nothing came from %s", tree)
		}
	}
}

// prepare runs a script as root in the installer's environment, with the disks
// vda, vdb and so on; the installer itself has ended with an error.
func prepare(t *testing.T, disks []string, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	port, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	server := serve(t, site, copyStore(t))
	m, _ := startInstaller(t, site, func(c lab.Config) {
		c["imageserver"] = []byte(lab.InGuest(server.Port) + "\n")
		c["imagename"] = []byte("none/at/all\n")
	}, func(c *qemu.Config) {
		c.Net.Forwards = map[int]int{port: 6978}
		c.Disks = nil
		for n, path := range disks {
			c.Disks = append(c.Disks, qemu.Disk{Path: path, Serial: fmt.Sprint("old-", n)})
		}
	})
	wait(t, m, `FAILED IMG-032`)
	fingerprint, err := shownFingerprint(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(checkout, "bin", "firstlight"), "--site", site.Dir, "installer-shell",
		"--port", fmt.Sprint(port), "--fingerprint", fingerprint, "127.0.0.1", "--", "sh", "-c", script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := m.Stop(ctx); err != nil {
		t.Fatal(err)
	}
}
