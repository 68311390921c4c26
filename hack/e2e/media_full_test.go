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

// TestMediaFirmwares: every medium starts in every firmware that it is for.
func TestMediaFirmwares(t *testing.T) {
	iso, usb := makeBootable(t, "iso", "--append", "installer.dryRun"), makeBootable(t, "usb", "--append", "installer.dryRun")
	atMost(t, usb, 40)
	atMost(t, makeBootable(t, "usb", "--modules", "all"), 120)
	for _, c := range []struct {
		name   string
		uefi   bool
		insert inserted
		medium string
	}{ // the ISO image as a CD by BIOS is TestMediaISO
		{"iso-cd-ovmf", true, asCD, iso},
		{"iso-stick-seabios", false, asStick, iso},
		{"iso-stick-ovmf", true, asStick, iso},
		{"usb-stick-seabios", false, asStick, usb},
		{"usb-stick-ovmf", true, asStick, usb},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := keepLines(t)
			m := powerOn(t, mediumMachine(t, c.uefi, c.insert(c.medium)), lines)
			await(t, m, 3*time.Minute, firstPhase)
			untouched(t, m)
		})
	}
}

// TestMediaVolume: the configuration of a machine lies on a volume beside the
// medium, or on the stick itself, or inside; each time it is found and nothing
// is asked of the network.
func TestMediaVolume(t *testing.T) {
	server := serve(t, site, copyStore(t))
	files, err := site.NewConfig(lab.InGuest(server.Port))
	if err != nil {
		t.Fatal(err)
	}
	machine := writeFiles(t, files)
	beside := makeBootable(t, "iso", "--append", "installer.dryRun", "--files", machine, "--beside")
	volume := beside + ".volume"
	second := []string{"-device", "qemu-xhci,id=second", "-drive", "if=none,id=volume,format=raw,readonly=on,file=" + volume,
		"-device", "usb-storage,bus=second.0,drive=volume,removable=on"}
	stick := makeBootable(t, "usb", "--append", "installer.dryRun", "--files", machine, "--beside")
	inside := makeBootable(t, "iso", "--append", "installer.dryRun", "--files", machine)
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"iso-and-volume", append(asCD(beside), second...), " is labelled FIRSTLIGHT"},
		{"stick", asStick(stick), " is labelled FIRSTLIGHT"},
		{"inside", asCD(inside), "the configuration is in /tftpdata"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := keepLines(t)
			m := powerOn(t, mediumMachine(t, true, c.args), lines)
			await(t, m, 4*time.Minute, regexp.MustCompile(dryPlan.String()+`|`+failedLine.String()))
			says(t, m, c.says, "plan: dry run: stopping here")
			if strings.Contains(m.Text(), "config: fetching from tftp") {
				t.Error("the network was asked for a configuration")
			}
			untouched(t, m)
		})
	}
}

// TestMediaOffline: a machine without a network is installed from a stick that
// carries the image, and starts the new system.
func TestMediaOffline(t *testing.T) {
	server := serve(t, site, copyStore(t))
	files, err := site.NewConfig("192.0.2.1:6971")
	if err != nil {
		t.Fatal(err)
	}
	delete(files, "imageserver")
	stick := makeBootable(t, "usb", "--files", writeFiles(t, files), "--image", site.Image, "--imageserver", server.Address(), "--site", site.Dir)
	atMost(t, stick, 400)
	server.Stop()
	c := mediumMachine(t, false, asStick(stick))
	c.Net = qemu.Net{Silent: true}
	lines := keepLines(t)
	m := powerOn(t, c, lines)
	found := await(t, m, 10*time.Minute, regexp.MustCompile(`finish: handing over to \S+ by kexec|`+failedLine.String()))
	t.Logf("%s", found[0])
	says(t, m, " is labelled FIRSTLIGHT", "stage: from medium: ", "finish: handing over to "+site.Image)
	if strings.Contains(m.Text(), "stage: from server: ") {
		t.Error("objects came from a server")
	}
	await(t, m, 4*time.Minute, regexp.MustCompile(`(?m)^`+lab.Hostname+` login: `))
}

// TestMediaARM64: UKI and ISO image for arm64 start in AAVMF.
func TestMediaARM64(t *testing.T) {
	build := filepath.Join(checkout, "build")
	flags := []string{"--arch", "arm64", "--append", "installer.dryRun", "--kernel", filepath.Join(build, "kernel", "arm64"),
		"--base", filepath.Join(build, "initramfs-arm64.cpio.zst"), "--boot-files", filepath.Join(build, "root", "arm64")}
	uki, iso := makeBootable(t, "uki", flags...), makeBootable(t, "iso", flags...)
	for _, c := range []struct {
		name   string
		kernel string
		args   []string
	}{
		{"uki", uki, nil},
		{"iso-cd", "", []string{"-device", "virtio-scsi-pci", "-drive", "if=none,id=medium,media=cdrom,readonly=on,format=raw,file=" + iso, "-device", "scsi-cd,drive=medium,bootindex=0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			disk, vars := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "vars.fd")
			if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
				t.Fatal(err)
			}
			if err := qemu.CreateVarsARM64(vars); err != nil {
				t.Fatal(err)
			}
			lines := keepLines(t)
			m := powerOn(t, qemu.Config{ARM64: true, Vars: vars, Kernel: c.kernel, Disks: []qemu.Disk{{Path: disk}}, Args: c.args}, lines)
			await(t, m, 5*time.Minute, regexp.MustCompile(`config: asking for a lease`))
			untouched(t, m)
		})
	}
}

// TestMediaPXE: a UEFI firmware gets the UKI by TFTP, with no boot loader, and
// the installer its configuration from there too.
func TestMediaPXE(t *testing.T) {
	server := serve(t, site, copyStore(t))
	files, err := site.NewConfig(lab.InGuest(server.Port))
	if err != nil {
		t.Fatal(err)
	}
	tftp := writeFiles(t, files)
	if err := os.Rename(makeBootable(t, "uki", "--append", "installer.dryRun"), filepath.Join(tftp, "firstlight.efi")); err != nil {
		t.Fatal(err)
	}
	c := mediumMachine(t, true, nil)
	c.FromNetwork, c.Net = true, qemu.Net{TFTP: tftp, BootFile: "firstlight.efi"}
	lines := keepLines(t)
	m := powerOn(t, c, lines)
	await(t, m, 6*time.Minute, regexp.MustCompile(dryPlan.String()+`|`+failedLine.String()))
	says(t, m, "config: fetching from tftp", "plan: dry run: stopping here")
	untouched(t, m)
}

// TestMediaSecureBoot: with Secure Boot on, a stick starts by Debian's shim and
// GRUB; it still starts by BIOS.
func TestMediaSecureBoot(t *testing.T) {
	root := t.TempDir()
	for _, from := range [][]string{
		{"tar", "-C", root, "-xf", dracutRoot, "./usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "./usr/lib/shim/shimx64.efi.signed"},
		{"cp", "-r", "--parents", "/usr/lib/ISOLINUX", "/usr/lib/syslinux/modules/bios/ldlinux.c32", root},
	} {
		if out, err := exec.Command(from[0], from[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", from, err, out)
		}
	}
	flags := []string{"--append", "installer.dryRun", "--secure-boot", "--boot-files", root}
	usb := makeBootable(t, "usb", flags...)
	for _, c := range []struct {
		name string
		uefi bool
		args []string
	}{
		{"ovmf", true, asStick(usb)}, {"seabios", false, asStick(usb)},
	} {
		t.Run(c.name, func(t *testing.T) {
			machine := mediumMachine(t, c.uefi, c.args)
			if c.uefi {
				machine.SecureBoot = true
				if err := qemu.CreateVars(machine.Vars, true); err != nil {
					t.Fatal(err)
				}
			}
			lines := keepLines(t)
			m := powerOn(t, machine, lines)
			await(t, m, 4*time.Minute, firstPhase)
			if c.uefi && !strings.Contains(m.Text(), "Secure boot enabled") {
				t.Error("the kernel does not say that Secure Boot is on")
			}
			untouched(t, m)
		})
	}
}
