package ingest_test

import (
	"archive/tar"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
)

// The first bytes of programs, as elf(5) lays them out.
const (
	elfAMD64 = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x3e\x00rest"
	elfARM64 = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\xb7\x00rest"
	elfS390X = "\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x16rest"
)

func program(name, content string) entry {
	return with(regular(name, content), func(h *tar.Header) { h.Mode = 0o755 })
}

func symlink(name, target string) entry { return special(tar.TypeSymlink, name, target) }

func directory(name string) entry {
	return with(special(tar.TypeDir, name, ""), func(h *tar.Header) { h.Mode = 0o755 })
}

// fixtures have the shape of the named distributions: what the packages there
// install, and where.
func TestAttributes(t *testing.T) {
	lines := func(l ...string) string { return object.Of([]byte(strings.Join(l, "\n") + "\n")).String() }
	merged := []entry{symlink("bin", "usr/bin"), symlink("sbin", "usr/sbin"), symlink("lib", "usr/lib")}
	for name, test := range map[string]struct {
		entries []entry
		want    map[string]string
	}{
		"Debian 12": {append(merged,
			symlink("etc/os-release", "../usr/lib/os-release"),
			regular("usr/lib/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nID=debian\n"),
			symlink("usr/sbin/init", "/lib/systemd/systemd"), program("usr/lib/systemd/systemd", elfAMD64),
			symlink("vmlinuz", "boot/vmlinuz-6.1.0-9-amd64"),
			regular("boot/vmlinuz-6.1.0-9-amd64", "old"), regular("boot/vmlinuz-6.1.0-27-amd64", "new"), regular("boot/vmlinuz-6.9.0-rc1", "no modules"),
			regular("boot/initrd.img-6.1.0-9-amd64", "old"), regular("boot/initrd.img-6.1.0-27-amd64", "new"),
			directory("usr/lib/modules/6.1.0-9-amd64"), directory("usr/lib/modules/6.1.0-27-amd64"),
			regular("usr/lib/modules/6.1.0-9-amd64/xfs.ko", "x"), regular("usr/lib/modules/6.1.0-27-amd64/kernel/fs/btrfs/btrfs.ko", "x"), regular("usr/lib/modules/6.1.0-27-amd64/kernel/drivers/md/dm-mod.ko.xz", "x"),
			regular("usr/lib/modules/6.1.0-27-amd64/modules.builtin", "kernel/fs/ext4/ext4.ko\nkernel/drivers/md/dm_crypt.ko\nkernel/net/bridge/bridge.ko\n"),
			regular("usr/lib/modules/6.1.0-27-amd64/kernel/drivers/net/bonding/bonding.ko.xz", "x"),
			program("usr/sbin/grub-install", elfAMD64), regular("usr/lib/grub/i386-pc/modinfo.sh", "x"), regular("usr/lib/grub/x86_64-efi/modinfo.sh", "x"),
			regular("etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet splash\"\nGRUB_CMDLINE_LINUX=\"\"\nGRUB_DISTRIBUTOR=`lsb_release -i`\n"),
			regular("etc/default/grub.d/kdump.cfg", "GRUB_CMDLINE_LINUX='crashkernel=256M'\n"), regular("etc/default/grub.d/note.txt", "GRUB_CMDLINE_LINUX=no\n"),
			regular("usr/lib/shim/shimx64.efi.signed", "x"), regular("usr/lib/systemd/boot/efi/systemd-bootx64.efi", "x"),
			program("usr/sbin/ifup", elfAMD64), program("usr/lib/systemd/systemd-networkd", elfAMD64),
			symlink("etc/systemd/system/multi-user.target.wants/networking.service", "/lib/systemd/system/networking.service"),
			program("usr/sbin/mkinitramfs", "#!"), program("usr/sbin/update-initramfs", "#!"),
			regular("usr/share/initramfs-tools/hooks/cryptroot", "x"), regular("etc/cryptsetup-initramfs/conf-hook", "#KEYFILE_PATTERN=\nKEYFILE_PATTERN=\"/etc/keys/*.key\"\n"),
			program("usr/sbin/cryptsetup", elfAMD64),
			program("usr/sbin/mke2fs", elfAMD64), special(tar.TypeLink, "usr/sbin/mkfs.ext4", "usr/sbin/mke2fs"), program("usr/sbin/fsck.vfat", elfAMD64),
			symlink("usr/sbin/mkfs.gone", "missing"), program("usr/sbin/mkswap", elfAMD64), regular("usr/sbin/mkfs.noexec", "x"),
			regular("var/lib/dpkg/status", "Package: b\nStatus: install ok installed\nArchitecture: all\nVersion: 2\nDescription: x\n more: y\n\n"+
				"Package: a\nStatus: install ok installed\nVersion: 1:1-1\nArchitecture: amd64\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 3\n"),
		), map[string]string{
			image.AttrArch: "amd64", image.AttrOSID: "debian", image.AttrOSVersion: "12", image.AttrOSName: "Debian GNU/Linux 12 (bookworm)",
			image.AttrKernel: "boot/vmlinuz-6.1.0-27-amd64", image.AttrKernelVersion: "6.1.0-27-amd64", image.AttrInitrd: "boot/initrd.img-6.1.0-27-amd64",
			image.AttrKernelModules: "btrfs,dm-crypt,dm-mod,ext4", image.AttrKernelNetwork: "bonding,bridge",
			image.AttrKernelOptions: "crashkernel=256M quiet splash",
			image.AttrBootloaders:   "grub-pc,grub-efi,systemd-boot,shim", image.AttrNetwork: "ifupdown,networkd", image.AttrNetworkEnabled: "ifupdown",
			image.AttrInitramfs: "initramfs-tools", image.AttrUnlock: "passphrase,keyfile", image.AttrCryptsetup: "usr/sbin/cryptsetup",
			image.AttrPackages: lines("a 1:1-1 amd64", "b 2 all"), image.AttrPackageCount: "2", image.AttrPackageDatabase: "dpkg", image.AttrFileSystems: "ext4,swap,vfat",
		}},
		"Ubuntu": {append(merged,
			regular("etc/os-release", "ID=ubuntu\nVERSION_ID='24.04'\n"), program("usr/bin/sh", elfARM64),
			symlink("boot/vmlinuz", "vmlinuz-6.8.0-31-generic"), regular("boot/vmlinuz-6.8.0-31-generic", "k"), regular("boot/initrd.img-6.8.0-31-generic", "i"),
			program("usr/sbin/netplan", "#!"), program("usr/lib/systemd/systemd-networkd", elfARM64), program("usr/sbin/NetworkManager", elfARM64),
			program("usr/lib/systemd/systemd", elfARM64),
			symlink("etc/systemd/system/multi-user.target.wants/systemd-networkd.service", "/lib/systemd/system/systemd-networkd.service"),
			symlink("etc/systemd/system/multi-user.target.wants/NetworkManager.service", "/lib/systemd/system/NetworkManager.service"),
			symlink("etc/systemd/system/NetworkManager.service", "/dev/null"),
			symlink("etc/systemd/system/sysinit.target.wants/systemd-resolved.service", "/usr/lib/systemd/system/systemd-resolved.service"),
			symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"), program("usr/bin/cloud-init", "#!"),
		), map[string]string{
			image.AttrArch: "arm64", image.AttrOSID: "ubuntu", image.AttrOSVersion: "24.04",
			image.AttrKernel: "boot/vmlinuz-6.8.0-31-generic", image.AttrKernelVersion: "6.8.0-31-generic", image.AttrInitrd: "boot/initrd.img-6.8.0-31-generic",
			image.AttrNetwork: "netplan,networkd,networkmanager", image.AttrNetworkEnabled: "netplan,networkd",
			image.AttrResolver: "resolved", image.AttrCloudInit: "usr/bin/cloud-init",
		}},
		"Fedora": {append(merged,
			regular("usr/lib/os-release", "ID=fedora\nVERSION_ID=41\n"), program("usr/bin/bash", elfS390X),
			regular("boot/vmlinuz-6.11.4-301.fc41.x86_64", "k"), regular("boot/vmlinuz-0-rescue-0123456789abcdef", "k"), regular("boot/initramfs-6.11.4-301.fc41.x86_64.img", "i"),
			directory("usr/lib/modules/6.11.4-301.fc41.x86_64"),
			program("usr/bin/dracut", "#!"), directory("usr/lib/dracut/modules.d/90crypt"), directory("usr/lib/dracut/modules.d/91tpm2-tss"),
			program("usr/sbin/cryptsetup", elfS390X), regular("usr/lib64/cryptsetup/libcryptsetup-token-systemd-tpm2.so", "x"),
			program("usr/sbin/grub2-install", elfS390X), regular("usr/lib/grub/i386-pc/modinfo.sh", "x"), regular("boot/efi/EFI/fedora/shimx64.efi", "x"),
			regular("boot/efi/EFI/fedora/grubx64.efi", "x"), program("usr/sbin/grub2-mkconfig", "#!"),
			regular("etc/kernel/cmdline", "root=UUID=x ro  rhgb\n"), regular("etc/default/grub", "GRUB_CMDLINE_LINUX=no\n"),
		), map[string]string{
			image.AttrArch: "s390x", image.AttrOSID: "fedora", image.AttrOSVersion: "41",
			image.AttrKernel: "boot/vmlinuz-6.11.4-301.fc41.x86_64", image.AttrKernelVersion: "6.11.4-301.fc41.x86_64", image.AttrInitrd: "boot/initramfs-6.11.4-301.fc41.x86_64.img",
			image.AttrKernelOptions: "root=UUID=x ro rhgb",
			image.AttrBootloaders:   "grub-pc,shim-grub,shim", image.AttrInitramfs: "dracut", image.AttrUnlock: "passphrase,keyfile,tpm2", image.AttrCryptsetup: "usr/sbin/cryptsetup",
		}},
		"Alpine": {[]entry{
			regular("etc/os-release", "ID=alpine\nVERSION_ID=3.20.3\n"), program("bin/busybox", elfAMD64), symlink("bin/sh", "/bin/busybox"), symlink("sbin/init", "/bin/busybox"),
			regular("boot/vmlinuz-lts", "k"), regular("boot/initramfs-lts", "i"), directory("lib/modules/6.6.58-0-lts"),
			symlink("sbin/ifup", "/bin/busybox"), symlink("etc/runlevels/boot/networking", "/etc/init.d/networking"), regular("etc/init.d/networking", "x"),
			program("sbin/mkinitfs", "#!"), regular("lib/apk/db/installed", "P:musl\nV:1.2.5-r0\nA:x86_64\nF:lib\n\nP:busybox\nV:1.36-r2\nA:x86_64\n\n"),
		}, map[string]string{
			image.AttrArch: "amd64", image.AttrOSID: "alpine", image.AttrOSVersion: "3.20.3",
			image.AttrKernel: "boot/vmlinuz-lts", image.AttrKernelVersion: "6.6.58-0-lts", image.AttrInitrd: "boot/initramfs-lts",
			image.AttrNetwork: "ifupdown", image.AttrNetworkEnabled: "ifupdown", image.AttrInitramfs: "mkinitfs", image.AttrPackages: lines("busybox 1.36-r2 x86_64", "musl 1.2.5-r0 x86_64"), image.AttrPackageCount: "2", image.AttrPackageDatabase: "apk",
		}},
		"Arch": {append(merged,
			regular("boot/vmlinuz-linux", "k"), regular("boot/initramfs-linux.img", "i"), directory("usr/lib/modules/6.11.5-arch1-1"),
			program("usr/bin/mkinitcpio", "#!"), regular("etc/mkinitcpio.conf", "MODULES=()\nHOOKS=(base systemd autodetect block sd-encrypt filesystems)\n"), regular("usr/lib/cryptsetup/libcryptsetup-token-systemd-tpm2.so", "x"),
			regular("var/lib/pacman/local/bash-5.2-1/desc", "%NAME%\nbash\n\n%VERSION%\n5.2-1\n\n%ARCH%\nx86_64\n\n"),
		), map[string]string{
			image.AttrKernel: "boot/vmlinuz-linux", image.AttrKernelVersion: "6.11.5-arch1-1", image.AttrInitrd: "boot/initramfs-linux.img",
			image.AttrInitramfs: "mkinitcpio", image.AttrUnlock: "passphrase,keyfile,tpm2", image.AttrPackages: lines("bash 5.2-1 x86_64"), image.AttrPackageCount: "1", image.AttrPackageDatabase: "pacman",
		}},
		"kernel by link only": {[]entry{
			symlink("vmlinuz", "usr/share/kernels/vmlinuz-6.1.0-27-amd64"), regular("usr/share/kernels/vmlinuz-6.1.0-27-amd64", "k"),
			regular("boot/initrd.img-6.1.0-27-amd64", "i"),
		}, map[string]string{
			image.AttrKernel: "usr/share/kernels/vmlinuz-6.1.0-27-amd64", image.AttrKernelVersion: "6.1.0-27-amd64", image.AttrInitrd: "boot/initrd.img-6.1.0-27-amd64",
		}},
		"kernel with its modules": {append(merged,
			regular("usr/lib/modules/6.11.4/vmlinuz", "k"), regular("usr/lib/modules/6.9.1/vmlinuz", "k"), regular("usr/lib/modules/6.11.4/initrd", "i"),
			regular("usr/lib/modules/6.10.0/vmlinuz", "k"),
		), map[string]string{
			image.AttrKernel: "usr/lib/modules/6.11.4/vmlinuz", image.AttrKernelVersion: "6.11.4", image.AttrInitrd: "usr/lib/modules/6.11.4/initrd",
		}},
		"nothing": {[]entry{regular("data", "x")}, map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := fromTar(t, makeTar(t, test.entries...), ingest.Options{})
			must(t, err)
			if diff := cmp.Diff(test.want, m.Attributes); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The architecture that is wanted must be the one that is there; where nothing
// says which that is, it is believed.
func TestArch(t *testing.T) {
	b := makeTar(t, program("bin/sh", elfARM64))
	if _, err := fromTar(t, b, ingest.Options{Arch: "amd64"}); !errors.Is(err, ingest.ErrArch) || !strings.Contains(err.Error(), "bin/sh") {
		t.Errorf("%v", err)
	}
	for _, options := range []ingest.Options{{}, {Arch: "arm64"}} {
		m, err := fromTar(t, b, options)
		must(t, err)
		if got := m.Attributes[image.AttrArch]; got != "arm64" {
			t.Errorf("%+v: %s", options, got)
		}
	}
	m, err := fromTar(t, makeTar(t, regular("data", "x")), ingest.Options{Arch: "riscv64"})
	must(t, err)
	if got := m.Attributes[image.AttrArch]; got != "riscv64" {
		t.Errorf("%s", got)
	}
	// A real program, not one made up here.
	self, err := os.ReadFile("/bin/true")
	must(t, err)
	m, err = fromTar(t, makeTar(t, program("bin/sh", string(self))), ingest.Options{})
	must(t, err)
	want := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[strings.TrimSpace(string(run(t, "uname", "-m")))]
	if got := m.Attributes[image.AttrArch]; got != want {
		t.Errorf("/bin/true is for %q, uname says %q", got, want)
	}
}
