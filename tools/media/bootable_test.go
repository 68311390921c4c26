package media

import (
	"bytes"
	"context"
	"debug/pe"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
)

// bootOptions are those of a small medium. Its kernel is an EFI program, as a
// real one is: systemd's stub.
func bootOptions(t *testing.T) BootOptions {
	t.Helper()
	kernel := kernelDir(t)
	stub, err := os.ReadFile(filepath.Join("/", stubOf["amd64"].path))
	if err != nil {
		t.Fatalf("hack/setup installs it: %v", err)
	}
	write(t, filepath.Join(kernel, "vmlinuz"), stub)
	files := t.TempDir()
	write(t, filepath.Join(files, "config.json"), []byte("{}\n"))
	write(t, filepath.Join(files, "storage-layout.json"), []byte("{}\n"))
	return BootOptions{
		Options:     Options{Base: baseFile(t), KernelDir: kernel, Arch: "amd64", Modules: SetVM, Files: files, Out: filepath.Join(t.TempDir(), "medium")},
		CommandLine: "installer.dryRun",
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// makeTwice makes a medium twice and returns its bytes, which are the same.
func makeTwice(t *testing.T, options *BootOptions, write func(context.Context, BootOptions) (Report, error)) []byte {
	t.Helper()
	first := options.Out
	if _, err := write(t.Context(), *options); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // FAT counts time in steps of two seconds
	options.Out += ".again"
	if _, err := write(t.Context(), *options); err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(first)
	b, err2 := os.ReadFile(options.Out)
	if err != nil || err2 != nil || !bytes.Equal(a, b) {
		t.Errorf("the same inputs made other bytes: %v %v", err, err2)
	}
	options.Out = first
	return a
}

func TestUKIHoldsKernelInitramfsAndCommandLine(t *testing.T) {
	t.Parallel()
	options := bootOptions(t)
	if _, err := UKI(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(options.Out)
	if err != nil {
		t.Fatal(err)
	}
	b, err := prepare(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	file, err := pe.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	var end uint32
	for _, s := range file.Sections {
		if s.VirtualAddress < end {
			t.Errorf("%s lies in memory where another section is", s.Name)
		}
		end = s.VirtualAddress + s.VirtualSize
	}
	if size := file.OptionalHeader.(*pe.OptionalHeader64).SizeOfImage; size < end {
		t.Errorf("the image has %d bytes of memory, its sections end at %d", size, end)
	}
	for name, want := range map[string][]byte{
		".linux": b.kernel, ".initrd": b.initramfs, ".uname": []byte(release),
		".cmdline": []byte("console=tty0 console=ttyS0,115200 installer.dryRun\x00"),
	} {
		section := file.Section(name)
		if section == nil {
			t.Errorf("there is no section %s", name)
			continue
		}
		data, err := section.Data()
		if err != nil || !bytes.Equal(data[:section.VirtualSize], want) {
			t.Errorf("%s is not what was given: %v", name, err)
		}
	}
}

func TestISOHasOneCopyOfEverything(t *testing.T) {
	t.Parallel()
	options := bootOptions(t)
	disc := makeTwice(t, &options, ISO)
	b, err := prepare(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run(t, "xorriso", "-osirrox", "on", "-indev", options.Out, "-extract", "/", dir)
	for name, want := range map[string][]byte{kernelName: b.kernel, initrdName: b.initramfs} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s on the CD is not what was given: %v", name, err)
		}
		if n := bytes.Count(disc, want); n != 1 {
			t.Errorf("%s lies on the CD %d times", name, n)
		}
	}
	menu, err := os.ReadFile(filepath.Join(dir, "isolinux.cfg"))
	if err != nil || !strings.Contains(string(menu), "append console=tty0 console=ttyS0,115200 installer.dryRun\n") {
		t.Errorf("isolinux.cfg: %v\n%s", err, menu)
	}
	report := run(t, "xorriso", "-indev", options.Out, "-report_el_torito", "plain", "-report_system_area", "plain")
	for _, want := range []string{"1  BIOS  y   none", "2  UEFI  y   none", "boot-info-table isohybrid-suitable", "0x80  0xef"} {
		if !strings.Contains(report, want) {
			t.Errorf("xorriso does not see %q:\n%s", want, report)
		}
	}
	checkFAT(t, disc)
}

// TestSecureBootStick: with a signed boot loader the CD's directory points at
// kernel and initramfs in the EFI file system, too.
func TestSecureBootStick(t *testing.T) {
	t.Parallel()
	options := bootOptions(t)
	options.SecureBoot, options.Root = true, t.TempDir()
	for _, file := range []debianFile{isolinuxBin, hybridMBR, ldlinux} {
		data, err := os.ReadFile(filepath.Join("/", file.path))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(options.Root, file.path), data)
	}
	if _, err := USB(t.Context(), options); err == nil || !strings.Contains(err.Error(), "shim-signed") {
		t.Errorf("without shim: %v", err)
	}
	write(t, filepath.Join(options.Root, signed["amd64"].shim.path), []byte("shim"))
	write(t, filepath.Join(options.Root, signed["amd64"].grub.path), bytes.Repeat([]byte("grub"), 1234))
	if _, err := USB(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	disc, err := os.ReadFile(options.Out)
	if err != nil {
		t.Fatal(err)
	}
	b, err := prepare(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run(t, "xorriso", "-osirrox", "on", "-indev", options.Out, "-extract", "/", dir)
	for name, want := range map[string][]byte{kernelName: b.kernel, initrdName: b.initramfs} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s on the CD is not what was given: %v", name, err)
		}
		if n := bytes.Count(disc, want); n != 1 {
			t.Errorf("%s lies on the CD %d times", name, n)
		}
	}
	for name, write := range map[string]func(context.Context, BootOptions) (Report, error){"UKI": UKI, "ISO image": ISO} {
		if _, err := write(t.Context(), options); err == nil {
			t.Errorf("a %s with a signed boot loader was made", name)
		}
	}
}

// checkFAT has fsck.fat look at the EFI file system of an image, which begins
// where the MBR's first entry says.
func checkFAT(t *testing.T, image []byte) {
	t.Helper()
	start := int(image[446+8]) | int(image[446+9])<<8
	volume := write(t, filepath.Join(t.TempDir(), "esp"), image[start*sector:])
	run(t, "fsck.fat", "-n", volume)
	if listing := run(t, "mdir", "-b", "-/", "-i", volume, "::"); !strings.Contains(listing, "EFI/BOOT/BOOTX64.EFI") {
		t.Errorf("there is no program for UEFI:\n%s", listing)
	}
}

func TestStickHasATableAndAVolume(t *testing.T) {
	t.Parallel()
	options := bootOptions(t)
	options.Beside = true
	image := makeTwice(t, &options, USB)
	checkStick(t, options.Out, image)
	if bytes.Contains(image[:1<<20], []byte("tftpdata")) {
		t.Error("the configuration is in the initramfs too")
	}
}

func checkStick(t *testing.T, name string, image []byte) {
	t.Helper()
	if out := run(t, "sgdisk", "-v", name); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk: %s", out)
	}
	table := run(t, "sfdisk", "--json", name)
	if !strings.Contains(table, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B") || !strings.Contains(table, "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7") {
		t.Errorf("the partitions are not an ESP and data:\n%s", table)
	}
	boot := bytes.Index(image, []byte("FIRSTLIGHT "))
	if boot < 0 {
		t.Fatal("no volume is labelled FIRSTLIGHT")
	}
	start := boot / sector * sector
	volume := write(t, filepath.Join(t.TempDir(), "volume"), image[start:])
	run(t, "fsck.fat", "-n", volume)
	listing := run(t, "mdir", "-b", "-i", volume, "::")
	for _, want := range []string{"config.json", "storage-layout.json"} {
		if !strings.Contains(listing, want) {
			t.Errorf("%s is not on the volume:\n%s", want, listing)
		}
	}
}

// TestStickIsWritten writes to a file that stands for a disk, larger than the
// medium and full of old data.
func TestStickIsWritten(t *testing.T) {
	t.Parallel()
	options := bootOptions(t)
	options.Beside = true
	disk := write(t, filepath.Join(t.TempDir(), "disk"), bytes.Repeat([]byte("old data"), 48<<20/8))
	var last, total int64
	sure := func() error { return nil }
	another := errors.New("another disk has its name")
	if _, err := WriteStick(t.Context(), options, disk, func() error { return another }, nil); !errors.Is(err, another) {
		t.Errorf("another disk: %v", err)
	}
	if data, err := os.ReadFile(disk); err != nil || !bytes.HasPrefix(data, []byte("old data")) {
		t.Errorf("another disk was written to: %v", err)
	}
	report, err := WriteStick(t.Context(), options, disk, sure, func(done, of int64) { last, total = done, of })
	if err != nil {
		t.Fatal(err)
	}
	if last != total || report.Bytes != total {
		t.Errorf("written %d of %d bytes, reported %d", last, total, report.Bytes)
	}
	image, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	checkStick(t, disk, image)

	small := write(t, filepath.Join(t.TempDir(), "small"), bytes.Repeat([]byte("old data"), 1<<20/8))
	_, err = WriteStick(t.Context(), options, small, sure, nil)
	var coded *Error
	if !errors.As(err, &coded) || coded.Code() != CodeTarget {
		t.Errorf("a disk that is too small: %v", err)
	}
	if data, err := os.ReadFile(small); err != nil || !bytes.HasPrefix(data, []byte("old data")) {
		t.Errorf("it was written to: %v", err)
	}
}

// TestAWornOutStickIsNoticed has the disk give back something else than was
// written.
func TestAWornOutStickIsNoticed(t *testing.T) {
	name := write(t, filepath.Join(t.TempDir(), "disk"), make([]byte, 4<<20))
	disk, err := block.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	image := bytes.NewReader(bytes.Repeat([]byte{7}, 4<<20))
	err = copyToStick(t.Context(), forgetful{disk}, image, 4<<20, 2<<20, nil)
	var coded *Error
	if !errors.As(err, &coded) || coded.Code() != CodeTarget {
		t.Errorf("got %v", err)
	}
}

// forgetful is a disk that keeps nothing behind its first megabyte.
type forgetful struct{ block.Device }

func (f forgetful) WriteAt(p []byte, off int64) (int, error) {
	if off >= 1<<20 {
		return len(p), nil
	}
	return f.Device.WriteAt(p, off)
}

func TestOnlySticksAreWrittenTo(t *testing.T) {
	// Devices that every machine has stand for disks.
	sys := fstest.MapFS{
		"class/x":                             {},
		"block/null/size":                     {Data: []byte("2048\n")},
		"block/null/ro":                       {Data: []byte("0\n")},
		"block/null/removable":                {Data: []byte("0\n")},
		"block/null/device/model":             {Data: []byte("Built in\n")},
		"block/null/device/serial":            {Data: []byte("S1\n")},
		"block/zero/size":                     {Data: []byte("2048\n")},
		"block/zero/removable":                {Data: []byte("1\n")},
		"block/zero/device/model":             {Data: []byte("Stick\n")},
		"block/zero/device/serial":            {Data: []byte("S2\n")},
		"block/zero/queue/logical_block_size": {Data: []byte("512\n")},
	}
	stick, err := FindStick(sys, "/dev/zero")
	if err != nil || stick.Serial != "S2" {
		t.Errorf("a removable disk: %+v, %v", stick, err)
	}
	if err := SameStick(sys, stick); err != nil {
		t.Error(err)
	}
	sys["block/zero/device/serial"] = &fstest.MapFile{Data: []byte("S3\n")}
	if err := SameStick(sys, stick); err == nil || !strings.Contains(err.Error(), "another disk") {
		t.Errorf("another disk has taken its name: %v", err)
	}
	for path, want := range map[string]string{"/dev/null": "built into this machine", "/dev/full": "no whole disk", "/dev/there-is-none": "no such disk"} {
		if _, err := FindStick(sys, path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func TestVolumeIsLabelled(t *testing.T) {
	t.Parallel()
	options := bootOptions(t)
	if _, err := Volume(t.Context(), options.Files, options.Out); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.fat", "-n", options.Out)
	if got := strings.TrimSpace(run(t, "blkid", "-p", "-o", "value", "-s", "LABEL", options.Out)); got != storage.MediumLabel {
		t.Errorf("its label is %q", got)
	}
}

func TestMediaThatCannotBeMade(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*BootOptions)
		code   string
	}{
		"a kernel for another machine": {func(o *BootOptions) { o.Arch = "arm64" }, CodeArch},
		"no such architecture":         {func(o *BootOptions) { o.Arch = "sparc" }, codeUsage},
		"a kernel that is none":        {func(o *BootOptions) { o.KernelDir = kernelDir(t) }, codeKernel},
		"no boot files":                {func(o *BootOptions) { o.Root = t.TempDir() }, codeBootFile},
		"nothing to put beside":        {func(o *BootOptions) { o.Beside, o.Files = true, t.TempDir() }, codeUsage},
	} {
		options := bootOptions(t)
		c.change(&options)
		_, err := ISO(t.Context(), options)
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != c.code {
			t.Errorf("%s: got %v, want %s", name, err, c.code)
		}
		if left, err := os.ReadDir(filepath.Dir(options.Out)); err != nil || len(left) != 0 {
			t.Errorf("%s: left behind: %v %v", name, left, err)
		}
	}
}
