package bootloader_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/bootloader"
	"github.com/firstlight/firstlight/installer/efiboot"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/tool"
)

const rootUUID = "3f1c8a52-6f0e-4b8e-9d10-0c8f5a7c1d2e"

func choice(loaders ...string) boot.Choice {
	return boot.Choice{
		Kernel: "/boot/vmlinuz-6.1.0-99-test", Initrd: "/boot/initrd.img-6.1.0-99-test",
		Consoles: []string{"console=tty0", "console=ttyS0,115200n8"}, Options: `quiet dyndbg="file x +p"`,
		CommandLine: "root=UUID=" + rootUUID + ` ro console=tty0 console=ttyS0,115200n8 quiet dyndbg="file x +p"`,
		Loaders:     loaders,
	}
}

// run runs a real program for a test.
// synced is a disk that has taken everything.
func synced() error {
	unix.Sync()
	return nil
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// disk is a loop device with a BIOS boot partition and a root
// file-system, which has the programs of this machine and a kernel that is
// none. It returns the device and where its root is mounted.
func disk(t *testing.T) (device, root string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("loop devices and mounts need root: run this test as root")
	}
	for _, program := range []string{"grub-install", "grub-mkconfig", "sgdisk", "mkfs.ext4", "losetup", "partx"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: hack/setup installs it", err)
		}
	}
	image := filepath.Join(t.TempDir(), "disk")
	run(t, "truncate", "-s", "160M", image)
	run(t, "sgdisk", "-n1:0:+1M", "-t1:ef02", "-n2:0:0", "-t2:8300", image)
	device = run(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() {
		run(t, "partx", "--delete", device)
		run(t, "losetup", "-d", device)
	})
	// Not every kernel reads a GPT by itself; partx does.
	run(t, "partx", "--update", device)
	run(t, "mkfs.ext4", "-q", "-U", rootUUID, device+"p2")

	root = t.TempDir()
	var mounts mount.Stack
	t.Cleanup(func() {
		if err := mounts.Close(); err != nil {
			t.Error(err)
		}
		os.Remove("/dev/disk/by-uuid/" + rootUUID)
	})
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	try(mounts.Mount(device+"p2", root, "ext4", 0, ""))
	for _, d := range []string{"usr", "etc/default", "boot", "dev", "proc", "sys", "tmp", "var/lib"} {
		try(os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		try(os.Symlink("usr/"+link, filepath.Join(root, link)))
	}
	run(t, "cp", "-a", "/etc/grub.d", "/etc/ld.so.cache", root+"/etc/")
	try(os.WriteFile(root+"/etc/default/grub", []byte("GRUB_CMDLINE_LINUX_DEFAULT=\"splash\"\nGRUB_DISTRIBUTOR=Test\n"), 0o644))
	try(os.WriteFile(root+choice().Kernel, []byte("no kernel"), 0o644))
	try(os.WriteFile(root+choice().Initrd, []byte("no initrd"), 0o644))
	try(mounts.Mount("/usr", root+"/usr", "", unix.MS_BIND|unix.MS_RDONLY, ""))
	try(mounts.System(root, "/dev", "/proc", "/sys"))
	return device, root
}

// The real GRUB on a real disk. That of UEFI wants a mounted FAT file-system,
// which the kernel of a container host may not have: it is tried in a VM.
func TestInstall(t *testing.T) {
	device, root := disk(t)
	target := bootloader.Target{Sync: synced, Root: root, Arch: "amd64", Disks: []string{device}, RootDevice: device + "p2", RootUUID: rootUUID, Choice: choice(boot.GrubPC)}
	var warnings []string
	if err := bootloader.Install(t.Context(), tool.Exec{}, target, func(w string) { warnings = append(warnings, w) }); err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Log("warning:", w)
	}
	menu, err := os.ReadFile(root + "/boot/grub/grub.cfg")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`root=UUID=` + rootUUID + ` ro console=tty0 console=ttyS0,115200n8 quiet dyndbg="file x +p"`,
		"serial --unit=0 --speed=115200", "terminal_input console serial", "set timeout=2",
	} {
		if !bytes.Contains(menu, []byte(want)) {
			t.Errorf("grub.cfg lacks %q", want)
		}
	}
	if bytes.Contains(menu, []byte("splash")) {
		t.Error("grub.cfg has the image's own option, which kexec does not have")
	}
	run(t, "grub-script-check", root+"/boot/grub/grub.cfg")

	// boot.img in the first sector, core.img in the BIOS boot partition.
	for part, at := range map[string]int64{device: 0, device + "p1": 0} {
		f, err := os.Open(part)
		if err != nil {
			t.Fatal(err)
		}
		sector := make([]byte, 512)
		if _, err := f.ReadAt(sector, at); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		f.Close()
		if bytes.Count(sector, []byte{0}) > 400 {
			t.Errorf("%s has no code in its first sector", part)
		}
	}
}

// recorder is a Runner that notes the commands and does what it is told.
type recorder struct {
	commands []string
	do       func(tool.Cmd) error
}

func (r *recorder) Run(_ context.Context, c tool.Cmd) (tool.Output, error) {
	r.commands = append(r.commands, c.String())
	return tool.Output{}, r.do(c)
}

// plain is a root with programs that are never run.
func plain(t *testing.T, programs ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"dev/x", "proc/x", "sys/firmware/efi", "usr/sbin", "boot/grub", "boot/grub2"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range programs {
		if err := os.WriteFile(filepath.Join(root, "usr/sbin", p), []byte("#!/bin/sh\n# /etc/default/grub.d\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// espWith puts what grub-install would put there.
func espWith(t *testing.T, root string, files ...string) {
	t.Helper()
	for _, f := range files {
		name := filepath.Join(root, "boot/efi/EFI", f)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(filepath.Base(f)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// menuFor is a grub.cfg that boots choice().
const menuFor = "menuentry x {\n\tlinux\t/vmlinuz-6.1.0-99-test root=UUID=" + rootUUID + ` ro  console=tty0 console=ttyS0,115200n8 quiet dyndbg="file x +p"` + "\n\tinitrd\t/initrd.img-6.1.0-99-test\n}\n"

func TestInstallErrors(t *testing.T) {
	broken := errors.New("broken")
	good := menuFor
	for name, c := range map[string]struct {
		loader, code string
		fails        string // program, or part of its arguments
		menu         string
		programs     []string
		notMounted   bool
		esp          []string
		variables    string
		warns        bool
		newInitrd    string
	}{
		"good":               {menu: good},
		"no programs":        {programs: []string{"grub-install"}, code: bootloader.CodeNoProgram},
		"nothing mounted":    {notMounted: true, code: bootloader.CodeNotMounted},
		"install fails":      {menu: good, fails: "grub-install", code: bootloader.CodeInstall},
		"boot sector fails":  {menu: good, fails: "grub-bios-setup", code: bootloader.CodeInstall},
		"menu fails":         {fails: "grub-mkconfig", code: bootloader.CodeConfigure},
		"no menu":            {code: bootloader.CodeConfigure},
		"another kernel":     {menu: strings.ReplaceAll(good, "-99-", "-98-"), code: bootloader.CodeWrong},
		"root by its device": {menu: strings.ReplaceAll(good, "UUID="+rootUUID, "/dev/vda3"), code: bootloader.CodeWrong},
		"no initrd":          {menu: strings.ReplaceAll(good, "initrd", "# initrd"), code: bootloader.CodeWrong},
		"console missing":    {menu: strings.ReplaceAll(good, "console=ttyS0,115200n8", ""), code: bootloader.CodeWrong},
		"UEFI":               {loader: boot.GrubEFI, menu: good, esp: []string{"test/grubx64.efi"}},
		"UEFI, no NVRAM":     {loader: boot.GrubEFI, menu: good, esp: []string{"test/grubx64.efi"}, variables: "/nowhere", warns: true},
		"UEFI fails":         {loader: boot.GrubEFI, menu: good, fails: "--efi-directory", code: bootloader.CodeInstall},
		"UEFI, nothing done": {loader: boot.GrubEFI, menu: good, code: bootloader.CodeInstall},
		"systemd-boot":       {loader: boot.SystemdBoot, code: bootloader.CodeInstall},
		"stub, no kernel":    {loader: boot.EFIStub, code: bootloader.CodeInstall},
		"unknown loader":     {loader: "lilo", code: bootloader.CodeInstall},
		"initrd":             {menu: good, newInitrd: boot.InitramfsTools},
		"initrd fails":       {newInitrd: boot.Dracut, fails: "dracut", code: bootloader.CodeInitrd},
		"unknown initrd":     {newInitrd: "none", code: bootloader.CodeInitrd},
	} {
		t.Run(name, func(t *testing.T) {
			if c.programs == nil {
				c.programs = []string{"grub-install", "grub-mkconfig", "grub-bios-setup"}
			}
			if c.loader == "" {
				c.loader = boot.GrubPC
			}
			root := plain(t, c.programs...)
			espWith(t, root, c.esp...)
			if c.notMounted {
				if err := os.Remove(filepath.Join(root, "dev/x")); err != nil {
					t.Fatal(err)
				}
			}
			r := &recorder{do: func(cmd tool.Cmd) error {
				if cmd.Root != root {
					t.Errorf("%s runs in %q", cmd.Name, cmd.Root)
				}
				if c.fails != "" && strings.Contains(cmd.String(), c.fails) {
					return broken
				}
				if cmd.Name == "grub-mkconfig" && c.menu != "" {
					return os.WriteFile(root+"/boot/grub/grub.cfg", []byte(c.menu), 0o600)
				}
				return nil
			}}
			warned := false
			target := bootloader.Target{
				Sync: synced, Root: root, Arch: "amd64", Name: "Test", Disks: []string{"/dev/vda", "/dev/vdb"}, RootDevice: "/dev/vda3", RootUUID: rootUUID,
				ESPs: []efiboot.Partition{{Number: 1, UUID: rootUUID}}, Variables: c.variables, Choice: choice(c.loader),
			}
			target.Choice.NewInitrd, target.Choice.KernelVersion = c.newInitrd, "6.1.0-99-test"
			err := bootloader.Install(t.Context(), r, target, func(string) { warned = true })
			var coded *bootloader.Error
			switch {
			case c.code == "" && err != nil:
				t.Fatal(err)
			case c.code != "" && (!errors.As(err, &coded) || coded.Code() != c.code):
				t.Fatalf("error %v", err)
			}
			if c.fails != "" && c.code != "" && !errors.Is(err, broken) {
				t.Errorf("the program's error is lost: %v", err)
			}
			if warned != c.warns {
				t.Errorf("warned: %v", warned)
			}
			if c.code == "" && c.loader == boot.GrubPC {
				want := []string{
					"grub-mkconfig -o /boot/grub/grub.cfg",
					"grub-install --target=i386-pc --boot-directory=/boot --recheck --no-bootsector /dev/vda",
					"/usr/sbin/grub-bios-setup --directory=/boot/grub/i386-pc /dev/vda",
					"/usr/sbin/grub-bios-setup --directory=/boot/grub/i386-pc /dev/vdb",
				}
				if c.newInitrd != "" {
					want = append([]string{"mkinitramfs -o /boot/initrd.img-6.1.0-99-test 6.1.0-99-test"}, want...)
				}
				if !slices.Equal(r.commands, want) {
					t.Errorf("commands %q", r.commands)
				}
				if link, err := os.Readlink(root + "/dev/disk/by-uuid/" + rootUUID); err != nil || link != "../../vda3" {
					t.Errorf("by-uuid: %q, %v", link, err)
				}
			}
		})
	}
}

// TestUEFI: each way ends with a program that firmware finds by itself and an
// entry of the boot menu for each disk; no earlier step leaves one.
func TestUEFI(t *testing.T) {
	for name, c := range map[string]struct {
		loader string
		image  []string          // files of the image below /
		esp    []string          // what grub-install, or the image, puts there
		want   map[string]string // files on the ESP and how they begin
		entry  string
	}{
		"GRUB": {
			boot.GrubEFI, nil, []string{"debian/grubx64.efi"},
			map[string]string{"EFI/BOOT/BOOTX64.EFI": "grubx64.efi"}, `\EFI\debian\grubx64.efi`,
		},
		"shim": {
			boot.GrubEFI, nil, []string{"debian/grubx64.efi", "debian/shimx64.efi", "debian/mmx64.efi", "debian/fbx64.efi", "debian/grub.cfg"},
			map[string]string{"EFI/BOOT/BOOTX64.EFI": "shimx64.efi", "EFI/BOOT/grub.cfg": "grub.cfg", "EFI/BOOT/grubx64.efi": "grubx64.efi", "EFI/BOOT/mmx64.efi": "mmx64.efi"}, `\EFI\debian\shimx64.efi`,
		},
		"shim and GRUB of the vendor": {
			boot.ShimGrub, nil, []string{"fedora/grubx64.efi", "fedora/shimx64.efi"},
			map[string]string{"EFI/BOOT/BOOTX64.EFI": "shimx64.efi", "EFI/BOOT/grubx64.efi": "grubx64.efi", "EFI/BOOT/grub.cfg": "search --no-floppy --fs-uuid --set=root " + rootUUID, "EFI/fedora/grub.cfg": "search --no-floppy --fs-uuid --set=root " + rootUUID + "\nset prefix=($root)/boot/grub\n"}, `\EFI\fedora\shimx64.efi`,
		},
		"systemd-boot": {
			boot.SystemdBoot, []string{"usr/lib/systemd/boot/efi/systemd-bootx64.efi"}, nil,
			map[string]string{
				"EFI/BOOT/BOOTX64.EFI": "systemd-bootx64.efi", "EFI/systemd/systemd-bootx64.efi": "systemd-bootx64.efi",
				"test/6.1/linux": "vmlinuz", "test/6.1/initrd.img": "initrd.img",
				"loader/entries/test-6.1.conf": "title Test\nversion 6.1\nsort-key test\nlinux /test/6.1/linux\ninitrd /test/6.1/initrd.img\noptions root=UUID=" + rootUUID + " ro ",
			}, `\EFI\systemd\systemd-bootx64.efi`,
		},
		"systemd-boot, signed": {
			boot.SystemdBoot, []string{"usr/lib/systemd/boot/efi/systemd-bootx64.efi", "usr/lib/systemd/boot/efi/systemd-bootx64.efi.signed"}, nil,
			map[string]string{"EFI/BOOT/BOOTX64.EFI": "systemd-bootx64.efi.signed"}, `\EFI\systemd\systemd-bootx64.efi`,
		},
		"the kernel itself": {
			boot.EFIStub, nil, nil,
			map[string]string{"EFI/BOOT/BOOTX64.EFI": "MZ", "EFI/Linux-stub/vmlinuz.efi": "vmlinuz", "EFI/Linux-stub/initrd.img": "initrd.img"}, `\EFI\Linux-stub\vmlinuz.efi`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := plain(t, "grub-install", "grub-mkconfig")
			variables := t.TempDir()
			for _, f := range append(c.image, "boot/vmlinuz-6.1.0-99-test", "boot/initrd.img-6.1.0-99-test") {
				if err := os.MkdirAll(filepath.Join(root, filepath.Dir(f)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, f), []byte(filepath.Base(f)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			espWith(t, root, c.esp...)
			r := &recorder{do: func(cmd tool.Cmd) error {
				if _, err := os.Stat(root + "/boot/efi/EFI/BOOT"); err == nil {
					t.Errorf("before %s is run, firmware would find something", cmd.Name)
				}
				if cmd.Name == "grub-mkconfig" {
					return os.WriteFile(root+"/boot/grub/grub.cfg", []byte(menuFor), 0o600)
				}
				return nil
			}}
			target := bootloader.Target{
				Sync: synced, Root: root, Arch: "amd64", Name: "Test", ID: "test", Disks: []string{"/dev/vda", "/dev/vdb"}, RootDevice: "/dev/vda3", RootUUID: rootUUID,
				ESPs: []efiboot.Partition{{Number: 1, UUID: rootUUID}, {Number: 2, UUID: rootUUID}}, Variables: variables, Choice: choice(c.loader),
			}
			target.Choice.KernelVersion = "6.1"
			if err := bootloader.Install(t.Context(), r, target, func(w string) { t.Error(w) }); err != nil {
				t.Fatal(err)
			}
			for file, begin := range c.want {
				data, err := os.ReadFile(filepath.Join(root, "boot/efi", file))
				if err != nil || !strings.HasPrefix(string(data), begin) {
					t.Errorf("%s: %.200q, %v", file, data, err)
				}
			}
			cmd := exec.Command("efibootmgr", "-v")
			cmd.Env = append(os.Environ(), "EFIVARFS_PATH="+variables+"/")
			menu, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, menu)
			}
			for _, want := range []string{"BootOrder: 0000,0001", "Firstlight Test (disk 1)\tHD(1,", "Firstlight Test (disk 2)\tHD(2,", "File(" + c.entry + ")"} {
				if !bytes.Contains(menu, []byte(want)) {
					t.Errorf("the boot menu lacks %q:\n%s", want, menu)
				}
			}
		})
	}
}

// An image whose GRUB has other names and reads no grub.d.
func TestInstallWithoutDirectory(t *testing.T) {
	root := plain(t, "grub2-install", "grub2-mkconfig")
	if err := os.WriteFile(root+"/usr/sbin/grub2-mkconfig", []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := &recorder{do: func(cmd tool.Cmd) error {
		if cmd.Name == "grub2-mkconfig" {
			return os.WriteFile(root+"/boot/grub2/grub.cfg", []byte("insmod blscfg\nblscfg\n"), 0o600)
		}
		return nil
	}}
	warned := false
	err := bootloader.Install(t.Context(), r, bootloader.Target{Sync: synced, Root: root, Arch: "amd64", Disks: []string{"/dev/vda"}, RootDevice: "/dev/vda3", RootUUID: rootUUID, Choice: choice(boot.GrubPC)},
		func(string) { warned = true })
	if err != nil || !warned {
		t.Fatalf("warned %v, error %v", warned, err)
	}
	data, err := os.ReadFile(root + "/etc/default/grub")
	if err != nil || !strings.Contains(string(data), "GRUB_CMDLINE_LINUX='console=tty0") {
		t.Errorf("%q, %v", data, err)
	}
}

// TestNoLoaderOverWhatIsNotThere: where a disk has not taken what a loader
// finds, nothing that firmware starts is written.
func TestNoLoaderOverWhatIsNotThere(t *testing.T) {
	root := plain(t, "grub-install", "grub-mkconfig")
	lost := errors.New("lost")
	r := &recorder{do: func(cmd tool.Cmd) error {
		if cmd.Name == "grub-mkconfig" {
			return os.WriteFile(root+"/boot/grub/grub.cfg", []byte(menuFor), 0o600)
		}
		if slices.Contains(cmd.Args, "/dev/vda") && !slices.Contains(cmd.Args, "--no-bootsector") && !slices.Contains(cmd.Args, "--grub-setup=/bin/true") {
			t.Errorf("the boot sector is written: %s", cmd)
		}
		return nil
	}}
	err := bootloader.Install(t.Context(), r, bootloader.Target{
		Root: root, Arch: "amd64", Disks: []string{"/dev/vda"}, RootDevice: "/dev/vda3", RootUUID: rootUUID, Choice: choice(boot.GrubPC),
		Sync: func() error { return lost },
	}, func(string) {})
	if !errors.Is(err, lost) {
		t.Errorf("got %v, want what the disk said", err)
	}
}
