//go:build full

package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/qemu"
)

// These belong to the long series, `make test-full`.

// TestStorageLoaders: every kind of boot loader under UEFI, with the firmware's
// memory kept and lost.
func TestStorageLoaders(t *testing.T) {
	for image, menu := range map[string]string{"storage/shim": "GRUB", "storage/grub": "GRUB", "storage/systemd-boot": "", "storage/stub": ""} {
		t.Run(strings.TrimPrefix(image, "storage/"), func(t *testing.T) {
			b := (&bootable{image: image, layout: plain(nil), machine: qemu.Config{
				Disks: []qemu.Disk{newDisk(t, 3<<30, qemu.Disk{Serial: "uefi"})},
			}}).uefi(t)
			b.install(t)
			text := b.byEntry(t)
			if !strings.Contains(text, menu) {
				t.Errorf("the console lacks %q", menu)
			}
			t.Log("again, with a firmware that has forgotten everything")
			b.forget(t)
			mounted(t, b.boot(t), "/ ext4", "/boot/efi vfat")
		})
	}
}

// byEntry boots, and checks that the firmware took the entry of ours.
func (b *bootable) byEntry(t *testing.T) (console string) {
	t.Helper()
	c := b.machine
	c.Accel, _ = probe.Accel(t.Context())
	m := powerOn(t, c, keepLines(t))
	r := newSystem(t, m)
	if text := m.Text(); !regexp.MustCompile(`starting Boot[0-9A-F]{4} "Firstlight `).MatchString(text) {
		t.Errorf("the firmware did not start the entry of ours:\n%s", firmwareLines(text))
	}
	m.Kill()
	mounted(t, r, "/ ext4", "/boot/efi vfat")
	return m.Text()
}

// mirrored is a machine with a pair of NVMe disks.
func mirrored(t *testing.T, layout object) *bootable {
	t.Helper()
	return &bootable{image: "storage/shim", layout: layout, machine: qemu.Config{
		Disks: []qemu.Disk{
			newDisk(t, 4<<30, qemu.Disk{Bus: qemu.NVMe, Serial: "first"}),
			newDisk(t, 4<<30, qemu.Disk{Bus: qemu.NVMe, Serial: "second"}),
		},
	}}
}

// TestStorageWatchdog: where the kernel that is started by kexec hangs, the
// hardware watchdog brings the machine to its disk. The firmware started the
// installer from a medium, as it found nothing on the disk; the medium stays in.
func TestStorageWatchdog(t *testing.T) {
	b := (&bootable{image: tinyImage, layout: plain(object{"RequireKexec": true}), options: "hang-after-kexec", kexec: true, medium: signedMedium, machine: qemu.Config{
		MemoryMiB: 1024, Disks: []qemu.Disk{newDisk(t, 1<<30, qemu.Disk{Serial: "uefi"})},
		Args: []string{"-device", "i6300esb", "-action", "watchdog=reset"},
	}}).uefi(t)
	m := b.install(t)
	await(t, m, 3*time.Minute, regexp.MustCompile(`NEW SYSTEM hangs`))
	if text := "the hardware watchdog (i6300esb) resets the machine unless"; !strings.Contains(m.Text(), text) {
		t.Fatalf("the console lacks %q", text)
	}
	bootsByItsEntry(t, m)
	m.Kill()
}

// TestStorageMirrorUEFI: the machine boots from the pair, and from either disk
// alone.
func TestStorageMirrorUEFI(t *testing.T) {
	b := mirrored(t, plain(object{"Mirror": true, "Encrypt": true, "ExtraMountPointsBasename": "/data/"})).uefi(t)
	b.survives(t, "/ ext4", "/boot/efi vfat", "/data/0 ext4")
}

// TestStorageMirrorBIOS is the same with BIOS and a volume group on the mirror.
func TestStorageMirrorBIOS(t *testing.T) {
	b := mirrored(t, plain(object{"Mirror": true, "VolumeGroup": "vg0", "ExtraMountPointsBasename": "/data/"}))
	b.survives(t, "/ ext4", "/data/0 ext4")
}

// survives installs, boots from both disks and from each alone.
func (b *bootable) survives(t *testing.T, mounts ...string) {
	t.Helper()
	b.install(t)
	mounted(t, b.boot(t), mounts...)
	both := b.machine.Disks
	t.Log("the first disk is pulled")
	b.machine.Disks = both[1:]
	mounted(t, b.boot(t), mounts...)
	t.Log("the second disk is pulled, the first is back")
	b.machine.Disks = both[:1]
	mounted(t, b.boot(t), mounts...)
}

// TestStorageBoth: one layout boots under UEFI and under BIOS, whichever the
// machine was installed with.
func TestStorageBoth(t *testing.T) {
	b := &bootable{image: "storage/grub", layout: plain(object{"Firmware": "both"}), machine: qemu.Config{
		Disks: []qemu.Disk{newDisk(t, 3<<30, qemu.Disk{Serial: "both"})},
	}}
	b.install(t)
	mounted(t, b.boot(t), "/ ext4", "/boot/efi vfat")
	t.Log("the same disk in a machine with UEFI")
	mounted(t, b.uefi(t).boot(t), "/ ext4", "/boot/efi vfat")
}

// TestStorageFileSystems: every file system, swap and subvolumes, on disks of
// every bus and sector size.
func TestStorageFileSystems(t *testing.T) {
	b := (&bootable{image: "storage/grub", layout: object{
		"BootDriveLayout": []object{
			{"FileSystemType": "btrfs", "MountPoint": "/", "MinimumFreeBytes": 512 << 20, "Subvolumes": []object{
				{"Name": "@", "MountPoint": "/"}, {"Name": "@home", "MountPoint": "/home"}}},
			{"FileSystemType": "xfs", "MountPoint": "/srv", "MinimumBytes": 512 << 20},
			{"FileSystemType": "swap", "MinimumBytes": 128 << 20},
			{"FileSystemType": "vfat", "MountPoint": "/media"},
		},
		"ExtraMountPointsBasename": "/data/", "DataRAID": "raid10", "Encrypt": false,
	}, machine: qemu.Config{Disks: []qemu.Disk{
		newDisk(t, 5<<30, qemu.Disk{Bus: qemu.NVMe, SectorSize: 4096, Serial: "boot"}),
		newDisk(t, 1<<30, qemu.Disk{Bus: qemu.SCSI, SectorSize: 4096, Serial: "a"}),
		newDisk(t, 1<<30, qemu.Disk{Bus: qemu.Virtio, SectorSize: 4096, Serial: "b"}),
		newDisk(t, 1<<30, qemu.Disk{Bus: qemu.SCSI, SectorSize: 4096, Serial: "c"}),
	}}}).uefi(t)
	b.layout["BootDisk"] = object{"Serial": "boot"}
	b.install(t)
	mounted(t, b.boot(t), "/ btrfs", "/home btrfs", "/srv xfs", "/media vfat", "/data/0 ext4", "/data/1 ext4", "/boot/efi vfat")
}
