package e2e

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// storageRoot is the root file-system with every boot loader and every program
// for disks.
const storageRoot = checkout + "/build/demo/debian-12-storage.tar"

// The images that are made of it, by what they lack.
var storageImages = map[string]*regexp.Regexp{
	"storage/shim":         regexp.MustCompile(`^$`),
	"storage/grub":         regexp.MustCompile(`^usr/lib/(shim/|grub/x86_64-efi-signed/)`),
	"storage/systemd-boot": regexp.MustCompile(`^usr/lib/(shim/|grub/x86_64-efi)`),
	"storage/stub":         regexp.MustCompile(`^usr/lib/(shim/|grub/x86_64-efi|systemd/boot/)`),
}

// storageServer serves these images. Each is added once, when it is asked for
// first.
var storageServer struct {
	sync.Mutex
	server *lab.Server
	added  map[string]bool
}

// serveStorage returns the port of a server that has the image.
func serveStorage(t *testing.T, image string) int {
	t.Helper()
	s := &storageServer
	s.Lock()
	defer s.Unlock()
	if s.server == nil {
		dir, err := os.MkdirTemp("", "storage-")
		if err != nil {
			t.Fatal(err)
		}
		// It ends with the process, as its files do.
		if s.server, err = site.Serve(t.Context(), filepath.Join(dir, "store")); err != nil {
			t.Fatal(err)
		}
		s.added = make(map[string]bool)
	}
	if !s.added[image] {
		source := storageRoot
		if image == tinyImage || image == refusedImage {
			source = filepath.Join(t.TempDir(), "root.tar")
			makeTinyImage(t, source, image == tinyImage)
		} else if lacks := storageImages[image]; lacks.String() != "^$" {
			source = filepath.Join(t.TempDir(), "root.tar")
			if err := without(source, storageRoot, lacks); err != nil {
				t.Fatalf("%v (make roots makes the root)", err)
			}
		}
		if err := site.Add(t.Context(), s.server, image+"/1", source); err != nil {
			t.Fatalf("%v (make roots makes the root)", err)
		}
		s.added[image] = true
	}
	return s.server.Port
}

// without copies a tar less some of its files.
func without(to, from string, lacks *regexp.Regexp) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return errors.Join(w.Close(), out.Close())
		}
		if err == nil && !lacks.MatchString(strings.TrimPrefix(h.Name, "./")) {
			if err = w.WriteHeader(h); err == nil {
				_, err = io.Copy(w, r)
			}
		}
		if err != nil {
			return errors.Join(err, out.Close())
		}
	}
}

type object = map[string]any

// bootable is a machine that is installed and then started by its own firmware.
type bootable struct {
	image   string
	layout  object
	options string // KernelOptions
	machine qemu.Config
	kexec   bool // the hand-over; by reboot otherwise
	// medium makes what the firmware starts the installer from, once it finds
	// nothing on the disks; nil has QEMU start it without the firmware's help.
	medium func(t *testing.T, commandLine string) qemu.Disk
	// console is what the installer said.
	console string
}

// newDisk makes an empty disk of a machine.
func newDisk(t *testing.T, size int64, d qemu.Disk) qemu.Disk {
	t.Helper()
	d.Path = filepath.Join(t.TempDir(), "disk.raw")
	if err := qemu.CreateDisk(d.Path, size); err != nil {
		t.Fatal(err)
	}
	return d
}

// uefi gives the machine a firmware with UEFI whose memory is blank.
func (b *bootable) uefi(t *testing.T) *bootable {
	t.Helper()
	b.machine.Vars = filepath.Join(t.TempDir(), "vars.fd")
	return b.forget(t)
}

// forget makes the firmware forget its boot menu.
func (b *bootable) forget(t *testing.T) *bootable {
	t.Helper()
	if err := qemu.CreateVars(b.machine.Vars, false); err != nil {
		t.Fatal(err)
	}
	return b
}

// plain is a layout with little in it.
func plain(more object) object {
	layout := object{
		"BootDriveLayout": []object{{"MountPoint": "/", "MinimumFreeBytes": 256 << 20}},
		"Encrypt":         false, "UseKexec": false,
	}
	for name, value := range more {
		layout[name] = value
	}
	return layout
}

// install runs the installer up to its hand-over.
func (b *bootable) install(t *testing.T) *qemu.Machine {
	t.Helper()
	m := b.installer(t)
	over := await(t, m, 15*time.Minute, regexp.MustCompile(`finish: handing over to \S+ by (kexec|reboot)\n|FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`))
	b.console = m.Text()
	if over[2] != "" {
		t.Fatalf("%s; the console's last lines:\n%s", over[0], m.Tail(60))
	}
	for line := range strings.Lines(b.console) {
		if strings.Contains(line, "firmware took no boot entry") {
			t.Error(line)
		}
	}
	if b.kexec {
		return m
	}
	await(t, m, time.Minute, regexp.MustCompile(`reboot: Restarting system|Rebooting`))
	m.Kill()
	return nil
}

// installer starts the installer.
func (b *bootable) installer(t *testing.T) *qemu.Machine {
	t.Helper()
	port := serveStorage(t, b.image)
	files, err := site.NewConfig(lab.InGuest(port))
	if err != nil {
		t.Fatal(err)
	}
	b.layout["UseKexec"] = b.kexec
	if files["storage-layout.json"], err = json.Marshal(b.layout); err != nil {
		t.Fatal(err)
	}
	files["imagename"] = []byte(b.image + "/1\n")
	// The kernel's check of its timer fails on a host that is busy.
	options := strings.TrimSpace(b.options + " no_timer_check")
	files["config.json"] = slices.Concat(files["config.json"][:len(files["config.json"])-2], fmt.Appendf(nil, ", \"Install\": {\"KernelOptions\": %q}}\n", options))
	c := b.machine
	c.Net.TFTP = filepath.Join(t.TempDir(), "tftp")
	if err := site.WriteTFTP(c.Net.TFTP, files); err != nil {
		t.Fatal(err)
	}
	c.Accel, _ = probe.Accel(t.Context())
	c.NoReboot = !b.kexec
	commandLine := lab.CommandLine + " no_timer_check installer.kexecPatience=2m"
	if b.medium != nil {
		c.Disks = append(slices.Clone(c.Disks), b.medium(t, commandLine))
	} else {
		c.Kernel, c.Initrd, c.CommandLine = site.Kernel(), site.Initramfs(), commandLine
	}
	return powerOn(t, c, keepLines(t))
}

// boot starts the machine from its disks alone, and returns what the new system
// says of itself once it asks for a login.
func (b *bootable) boot(t *testing.T) lab.Report {
	t.Helper()
	c := b.machine
	c.Accel, _ = probe.Accel(t.Context())
	m := powerOn(t, c, keepLines(t))
	r := newSystem(t, m)
	m.Kill()
	return r
}

var (
	loginPrompt = regexp.MustCompile(`(?m)^` + lab.Hostname + ` login: `)
	reportEnd   = regexp.MustCompile(`DEMO-REPORT done`)
)

func newSystem(t *testing.T, m *qemu.Machine) lab.Report {
	t.Helper()
	await(t, m, 10*time.Minute, reportEnd)
	if !loginPrompt.MatchString(m.Text()) {
		await(t, m, 2*time.Minute, loginPrompt)
	}
	r := lab.ParseReport(m.Text())
	for _, units := range r["failed"] {
		if strings.TrimSpace(units) != "" {
			t.Errorf("units of the new system failed: %s", units)
		}
	}
	return r
}

// mounted fails unless the new system has all of these mounted: "/home xfs".
func mounted(t *testing.T, r lab.Report, want ...string) {
	t.Helper()
	for _, w := range want {
		point, kind, _ := strings.Cut(w, " ")
		if !slices.ContainsFunc(r["mount"], func(m string) bool {
			fields := strings.Fields(m)
			return len(fields) == 3 && fields[0] == point && fields[2] == kind
		}) {
			t.Errorf("%s is not mounted: %q", w, r["mount"])
		}
	}
}

// TestStorageUEFI: a machine that is installed under UEFI boots its disk by the
// boot menu's entry, and without it by \EFI\BOOT. Here the image has no boot
// loader at all.
func TestStorageUEFI(t *testing.T) {
	b := (&bootable{image: tinyImage, layout: plain(nil), options: "hang-after-kexec", machine: qemu.Config{
		MemoryMiB: 1024, Disks: []qemu.Disk{newDisk(t, 1<<30, qemu.Disk{Serial: "uefi"})},
	}}).uefi(t)
	b.install(t)
	c := b.machine
	c.Accel, _ = probe.Accel(t.Context())
	m := powerOn(t, c, keepLines(t))
	bootsByItsEntry(t, m)
	m.Kill()
	t.Log("again, with a firmware that has forgotten everything")
	b.forget(t)
	m = powerOn(t, c, keepLines(t))
	await(t, m, 5*time.Minute, tinyBooted)
	m.Kill()
}

// bootsByItsEntry waits until the firmware has started the tiny image.
func bootsByItsEntry(t *testing.T, m *qemu.Machine) {
	t.Helper()
	before := len(m.Text())
	await(t, m, 5*time.Minute, tinyBooted)
	if text := m.Text()[before:]; !strings.Contains(text, `"Firstlight Faces 1"`) {
		t.Errorf("the firmware did not start the entry of ours:\n%s", firmwareLines(text))
	}
}

// tinyBooted is what the tiny image says when firmware has started its kernel
// by its EFI stub.
var tinyBooted = regexp.MustCompile(`NEW SYSTEM cmdline=\S*initrd=\\EFI\\\S+ root=UUID=\S+ ro .*hang-after-kexec`)

// firmwareLines are what OVMF says of its choice.
func firmwareLines(console string) string {
	return strings.Join(regexp.MustCompile(`(?m)^.*BdsDxe.*$`).FindAllString(console, -1), "\n")
}

// tinyImage is one program, which is installed and boots in no time, and has no
// boot loader for UEFI.
const tinyImage = "storage/tiny"

// refusedImage is the same with a kernel that no kernel takes.
const refusedImage = "storage/refused"

// TestStorageKexecRefused: a kernel that kexec does not take is known before a
// disk is touched.
func TestStorageKexecRefused(t *testing.T) {
	b := &bootable{image: refusedImage, layout: plain(object{"RequireKexec": true}), kexec: true, machine: qemu.Config{
		MemoryMiB: 1024, Disks: []qemu.Disk{newDisk(t, 1<<30, qemu.Disk{Serial: "refused"})},
	}}
	m := b.installer(t)
	found := await(t, m, 10*time.Minute, failedLine)
	if found[1] != "BOO-036" || !strings.HasSuffix(strings.TrimSpace(found[2]), "; disks untouched") {
		t.Errorf("%s", found[0])
	}
	writes, err := m.Writes(t.Context())
	if err != nil || !writes[0].None() {
		t.Errorf("the disk was written to: %+v, %v", writes, err)
	}
	m.Kill()
}

func makeTinyImage(t *testing.T, path string, goodKernel bool) {
	t.Helper()
	f := &faces{dir: t.TempDir()}
	program := filepath.Join(f.dir, "newsystem")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./testdata/newsystem")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f.program = readFile(t, program)
	files := f.system(t, archive(t, nil, initramfs{"init": {f.program, 0o755}, "dev/console": {}}))
	if !goodKernel {
		files["boot/vmlinuz-"+kernelVersion] = []byte("no kernel\n")
	}
	// By their names the plan knows that it would take the watchdog over.
	files["lib/modules/"+kernelVersion+"/kernel/drivers/watchdog/i6300esb.ko"] = []byte("x\n")
	for name := range strings.FieldsSeq("lib/systemd/systemd-modules-load sbin/cryptsetup sbin/mdadm") {
		files["usr/"+name] = f.program
	}
	files["etc/systemd/system/multi-user.target.wants/networking.service"] = []byte("x\n")
	f.writeImage(t, path, files)
}
