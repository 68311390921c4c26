package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/firstlight/firstlight/storage/block"
)

// BootOptions say what goes into a medium that a firmware starts.
type BootOptions struct {
	Options // what goes into its initramfs; Out is the medium
	// CommandLine are further options for the kernel, behind those for the
	// consoles; installer.<flag>=<value> among them.
	CommandLine string
	// Beside puts the configuration (Files) not into the initramfs but onto a
	// volume labelled FIRSTLIGHT: of a stick, its second partition. All other
	// media leave it out, and Volume makes one that is carried beside them.
	Beside bool
	// SecureBoot starts a stick by Debian's signed shim and GRUB instead of a
	// unified kernel image, which nobody has signed. The kernel must be one that
	// Debian has signed.
	SecureBoot bool
	// Images are carried by the medium with all their objects, for machines with
	// no network; an ISO image and a stick can do that. They come from Source.
	Images []string
	Source ImageSource

	noVolume  bool // nobody puts a volume beside this medium: it comes by the network
	ownVolume bool // the medium itself has one
	// Root is where Debian's packages isolinux, syslinux-common and
	// systemd-boot-efi are installed or unpacked; empty means this machine's
	// own root.
	Root string
}

// How long the installer waits for a volume labelled FIRSTLIGHT: where there
// certainly is one, until the slowest stick has been found; where somebody may
// have put one in, not so long.
const (
	volumeSurely = "60s"
	volumeMaybe  = "5s"
)

// volumePatience is how long it waits; empty for not at all.
func (o BootOptions) volumePatience() string {
	switch {
	case o.Beside || len(o.Images) > 0 || o.Files == "" && o.ownVolume:
		return volumeSurely
	case o.Files == "" && !o.noVolume:
		return volumeMaybe
	}
	return ""
}

// Architectures that media can be made for, in Go's words.
func Architectures() []string { return []string{"amd64", "arm64"} }

// consoles are the kernel's consoles of a medium: the screen, and the serial
// port that servers of the architecture have; the last one is /dev/console.
var consoles = map[string]string{
	"amd64": "console=tty0 console=ttyS0,115200",
	"arm64": "console=tty0 console=ttyAMA0,115200",
}

// Debian's boot files.
var stubOf = map[string]debianFile{
	"amd64": {"systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub"},
	"arm64": {"systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxaa64.efi.stub"},
}

// debianFile is a file of a Debian package.
type debianFile struct{ pkg, path string }

// debianRoot is the root below which packages of Debian lie.
type debianRoot string

func (r debianRoot) read(file debianFile) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(string(r), file.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{code: codeBootFile, text: fmt.Sprintf("a boot file of Debian's package %s is not there", file.pkg), err: err}
	}
	return data, err
}

// bootable is everything that a firmware has to find on a medium.
type bootable struct {
	arch              string
	kernel, initramfs []byte
	commandLine       string
	beside, carried   []volumeFile // for a volume labelled FIRSTLIGHT: configuration, images
	scratch           string       // directory of files that are carried; "" for none
	files             debianRoot
	secureBoot        bool
	mode              os.FileMode       // of the file that is made
	partitions        []block.Partition // of the stick that was made last
	report            Report
}

// prepare reads the kernel and makes the initramfs.
func prepare(ctx context.Context, options BootOptions) (*bootable, error) {
	volume := options.volumePatience()
	var beside []volumeFile
	if options.Beside {
		var err error
		if beside, err = configuration(options.Files); err != nil {
			return nil, err
		}
		options.Files = ""
	}
	if volume != "" {
		options.options = "installer.volumePatience=" + volume + " "
	}
	// Also in the initramfs: some loaders hand over a command line of their own
	// in place of the one in a unified kernel image.
	options.options = strings.TrimSpace(options.options + options.CommandLine)
	parts, report, err := assemble(ctx, options.Options)
	if err != nil {
		return nil, err
	}
	if report.Kernel == "" { // SetNone
		k, err := openKernel(options.KernelDir)
		if err != nil {
			return nil, err
		}
		report.Kernel, report.Release = k.image, k.release
	}
	b := &bootable{
		arch: options.arch(), initramfs: bytes.Join(parts, nil), files: debianRoot(options.Root), beside: beside, secureBoot: options.SecureBoot,
		mode: options.mode(), report: report,
	}
	if b.files == "" {
		b.files = "/"
	}
	if b.kernel, err = readKernel(report.Kernel, b.arch); err != nil {
		return nil, err
	}
	b.report.part("kernel", int64(len(b.kernel)))
	b.commandLine = strings.TrimSpace(consoles[b.arch] + " " + options.options)
	if len(options.Images) == 0 {
		return b, nil
	}
	place := os.TempDir()
	if options.Out != "" { // where the medium has room, its parts have it too
		place = filepath.Dir(options.Out)
	}
	if b.scratch, err = os.MkdirTemp(place, ".images-*"); err != nil {
		return nil, err
	}
	if b.carried, err = carryImages(ctx, options.Source, options.Images, b.arch, b.scratch); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

// close gives up what was fetched.
func (b *bootable) close() {
	if b.scratch != "" {
		_ = os.RemoveAll(b.scratch) // nothing of it is in the medium any more
	}
}

// finished is the report of a medium that has been written.
func (b *bootable) finished(name string) (Report, error) {
	written, err := os.Stat(name)
	if err != nil {
		return Report{}, err
	}
	b.report.Bytes = written.Size()
	return b.report, nil
}
