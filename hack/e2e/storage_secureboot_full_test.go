//go:build full

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// signedMedium is a disk from which a machine, with Secure Boot or without, starts
// the installer: Debian's shim, signed by Microsoft, its GRUB and its kernel, and our
// initramfs. It is a removable disk, which no installation uses.
func signedMedium(t *testing.T, commandLine string) qemu.Disk {
	t.Helper()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "medium.raw")
	run("tar", "-C", dir, "-xf", dracutRoot, "./usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "./usr/lib/shim/shimx64.efi.signed")
	menu := filepath.Join(dir, "grub.cfg")
	text := "serial --unit=0 --speed=115200\nterminal_output serial\nlinux /vmlinuz " + commandLine + "\ninitrd /initramfs\nboot\n"
	if err := os.WriteFile(menu, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// A file-system on the whole disk: the firmware needs no more of a removable one.
	run("mkfs.vfat", "-C", "-F", "32", "-n", "MEDIUM", path, "131072")
	run("mmd", "-i", path, "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
	for from, to := range map[string]string{
		filepath.Join(dir, "usr/lib/shim/shimx64.efi.signed"):                   "::/EFI/BOOT/BOOTX64.EFI",
		filepath.Join(dir, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"): "::/EFI/BOOT/grubx64.efi",
		menu:             "::/EFI/debian/grub.cfg",
		site.Kernel():    "::/vmlinuz",
		site.Initramfs(): "::/initramfs",
	} {
		run("mcopy", "-i", path, from, to)
	}
	return qemu.Disk{Path: path, Serial: "medium", Bus: qemu.SCSI, Properties: []string{"removable=on"}}
}

// started is the machine as its firmware starts the installer on it, from a
// medium.
func (v *vault) started(t *testing.T) qemu.Config {
	t.Helper()
	if err := site.WriteTFTP(v.tftp, v.files); err != nil {
		t.Fatal(err)
	}
	c := v.machine
	c.Disks = append([]qemu.Disk{signedMedium(t, lab.CommandLine)}, c.Disks...)
	return c
}

// TestStorageSecureBoot installs, with Secure Boot on, a root that the TPM opens:
// after kexec and after a start from the disk. Somebody who switches Secure Boot
// off to start his own program gets nothing from the same TPM.
func TestStorageSecureBoot(t *testing.T) {
	v := newVault(t, map[string]any{"Root": true, "Unlock": []string{"tpm2"}, "RecoveryRequired": true})
	v.machine.Vars, v.machine.SecureBoot = filepath.Join(v.dir, "vars.fd"), true
	if err := qemu.CreateVars(v.machine.Vars, true); err != nil {
		t.Fatal(err)
	}
	lines := keepLines(t)
	v.install(t, v.started(t), lines)
	if lines.index("UEFI firmware, Secure Boot on") < 0 {
		t.Error("the installer did not see Secure Boot")
	}

	m := powerOn(t, v.machine, lines)
	v.newSystem(t, m)
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	v.checkSecrets(t)

	t.Run("attacker", func(t *testing.T) {
		c := v.installer(t, v.machine)
		c.Vars = filepath.Join(v.dir, "off.fd")
		if err := qemu.CreateVars(c.Vars, false); err != nil {
			t.Fatal(err)
		}
		lines := v.searched(t, c)
		if lines.index("the TPM does not release the key: PCR 7") < 0 || lines.index(", decrypted (") >= 0 {
			t.Error("with Secure Boot off the TPM opens the disk, or nothing says that it does not")
		}
	})
}

// TestStorageUnlock is TestStorageEncryption with UEFI firmware, and with the data
// volumes opened by key files on an encrypted root; the systemd of Debian 13 opens
// one of them by its token. The next installation searches what the TPM opens.
func TestStorageUnlock(t *testing.T) {
	v := newVault(t, map[string]any{
		"Root": true, "Unlock": []string{"keyfile", "tpm2"}, "AllowWithoutSecureBoot": true,
	})
	v.machine.Vars = filepath.Join(v.dir, "vars.fd")
	if err := qemu.CreateVars(v.machine.Vars, false); err != nil {
		t.Fatal(err)
	}
	lines := keepLines(t)
	v.install(t, v.installer(t, v.machine), lines)
	c := v.machine
	c.Disks = append(c.Disks, qemu.Disk{Path: newerSystemd(t), Serial: "newer"})
	m := powerOn(t, c, lines)
	v.newSystem(t, m)
	awaitLogin(t, m)
	for _, step := range []struct{ says, answer string }{
		{"root\n", `Password: `},
		{"firstlight\n", `(?m)^root@` + lab.Hostname + `:~# `},
		{"umount /home; /lib/systemd/systemd-cryptsetup detach home; echo closed-$?\n", `closed-0`},
		{"mount /dev/disk/by-id/virtio-newer /mnt; for d in dev proc sys run; do mount --rbind /$d /mnt/$d; done; echo bound-$?\n", `bound-0`},
		{"timeout 90 chroot /mnt /usr/bin/systemd-cryptsetup attach newer /dev/vda4 none tpm2-device=auto,headless=true; echo opened-$?-$(blkid -o value -s TYPE /dev/mapper/newer)\n", `opened-\d+-\w*\s`},
	} {
		if err := m.Send(step.says); err != nil {
			t.Fatal(err)
		}
		if found := await(t, m, 4*time.Minute, regexp.MustCompile(step.answer)); strings.HasPrefix(found[0], "opened-") && strings.TrimSpace(found[0]) != "opened-0-ext4" {
			t.Errorf("systemd 257 does not open /home: %s\n%s", found[0], m.Tail(20))
		}
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	v.checkSecrets(t)
	t.Run("old-volumes", func(t *testing.T) {
		lines := v.searched(t, v.installer(t, v.machine))
		if lines.index("/dev/vda3, decrypted (ext4)") < 0 {
			t.Error("the old root file system, which the TPM opens, was not searched")
		}
	})
}

// newerSystemd is a disk with systemd-cryptsetup of Debian 13 and what it needs,
// to be run in a system of Debian 12.
func newerSystemd(t *testing.T) string {
	t.Helper()
	root, path := filepath.Join(t.TempDir(), "root"), filepath.Join(t.TempDir(), "newer.raw")
	script := `set -e
timeout 900 mmdebstrap --quiet --mode=root --variant=extract --aptopt='Acquire::Retries "3"' \
	--include=systemd-cryptsetup,cryptsetup-bin,libtss2-esys-3.0.2-0t64,libtss2-rc0t64,libtss2-tcti-device0t64 trixie "$1"
for d in bin lib lib64 sbin; do ln -sfn usr/$d "$1/$d"; done
mkdir -p "$1/dev" "$1/proc" "$1/sys" "$1/run"
truncate -s 512M "$2"
mkfs.ext4 -q -F -d "$1" "$2"`
	if out, err := exec.Command("sh", "-c", script, "sh", root, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// TestStoragePassphrase opens everything by typing the recovery key that the site
// server keeps, on a machine without a TPM.
func TestStoragePassphrase(t *testing.T) {
	v := newVault(t, map[string]any{"Root": true, "Unlock": []string{"passphrase"}, "RecoveryRequired": true})
	v.machine.TPM = ""
	v.typed = func() []byte { return v.recoveryKey(t) }
	lines := keepLines(t)
	v.install(t, v.installer(t, v.machine), lines)
	m := powerOn(t, v.machine, lines)
	v.newSystem(t, m)
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	v.checkSecrets(t)
}

// TestStorageRefused: a machine without Secure Boot, and a site server that does
// not keep the recovery key, end the installation with every disk as it was.
func TestStorageRefused(t *testing.T) {
	for name, x := range map[string]struct {
		encryption map[string]any
		code       string
	}{
		"Secure-Boot-off": {map[string]any{"Unlock": []string{"tpm2"}}, "LUK-022"},
		"not-kept":        {map[string]any{"RecoveryRequired": true}, "LUK-040"},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVault(t, x.encryption)
			v.site.Close() // nobody answers
			before, err := lab.HashDisk(v.machine.Disks[0].Path)
			if err != nil {
				t.Fatal(err)
			}
			m := powerOn(t, v.installer(t, v.machine), keepLines(t))
			found := await(t, m, 12*time.Minute, failedLine)
			if found[1] != x.code || !strings.HasSuffix(found[2], "; disks untouched") {
				t.Errorf("it failed with %s, want %s: %s", found[1], x.code, found[2])
			}
			m.Kill()
			after, err := lab.HashDisk(v.machine.Disks[0].Path)
			if err != nil || before != after {
				t.Errorf("the disk was written to (%v)", err)
			}
		})
	}
}
