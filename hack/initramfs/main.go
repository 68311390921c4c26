// Initramfs builds the part of the installer's initramfs that is the same for
// every machine: a u-root busybox with the installer and uinit in it, and the
// few Debian programs that the installer runs (storage/tool) with their
// libraries. Kernel modules, certificates and configuration never go in here:
// `firstlight media` appends those as further archives.
//
// Two builds of one commit give the same bytes.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/gobusybox/src/pkg/golang"
	"github.com/u-root/mkuimage/cpio"
	"github.com/u-root/mkuimage/uimage"
	"github.com/u-root/mkuimage/uimage/initramfs"
	"github.com/u-root/uio/llog"

	"github.com/firstlight/firstlight/storage/tool"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "initramfs:", err)
		os.Exit(1)
	}
}

// run builds what args ask for and says on stdout what came out.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("initramfs", flag.ContinueOnError)
	arch := flags.String("arch", "amd64", "architecture (GOARCH)")
	out := flags.String("out", "", "file to write (default build/initramfs-<arch>.cpio.zst)")
	root := flags.String("root", "/", "root of a Debian system of that architecture that has the programs")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" {
		*out = filepath.Join("build", "initramfs-"+*arch+".cpio.zst")
	}

	built, err := buildTime(ctx)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "initramfs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	commands, err := busybox(*arch, work)
	if err != nil {
		return err
	}
	from := tree{*root}
	system, err := programs(from, append(tool.Programs(), shell()))
	if err != nil {
		return err
	}
	sh, err := shellLink(from)
	if err != nil {
		return err
	}
	archive := merge(built, skeleton(version(ctx)), commands, system, sh)
	raw, err := encode(archive)
	if err != nil {
		return err
	}
	packed, err := compress(raw)
	if err != nil {
		return err
	}
	if err := writeWhole(*out, packed); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: %.1f MB, %.1f MB unpacked, %d files\n", *out, float64(len(packed))/1e6, float64(len(raw))/1e6, len(archive))
	return nil
}

// buildTime is the time that /build-timestamp carries: SOURCE_DATE_EPOCH
// (seconds; reproducible-builds.org) where it is set, else the time of the
// commit that is checked out.
func buildTime(ctx context.Context) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct").Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("asking git for the time of the commit (or set SOURCE_DATE_EPOCH): %w", err)
		}
		text = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("time of the build: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// commands are the busybox's, ours first. tools.go lists the same u-root
// commands for the module files; a test compares the two.
func commands() []string {
	all := []string{"github.com/firstlight/firstlight/installer", "github.com/firstlight/firstlight/uinit"}
	for name := range strings.FieldsSeq(`backoff base64 basename blkid cat chmod chroot cmp cp cpio date dd df dhclient
		dirname dmesg du echo false find free gosh grep gzip head hexdump hostname hwclock id init insmod ip kexec kill ln
		losetup ls lsdrivers lsmod md5sum mkdir mknod mktemp more mount mv netcat netstat ntpdate pci pidof ping poweroff
		ps pwd readlink rm rmmod seq shasum shutdown sleep sort stty sync tail tar tee time timeout touch tr true tty umount
		uname uptime wc wget which xargs`) {
		all = append(all, "github.com/u-root/u-root/cmds/core/"+name)
	}
	for name := range strings.FieldsSeq(`dmidecode ed modprobe partprobe tftp`) {
		all = append(all, "github.com/u-root/u-root/cmds/exp/"+name)
	}
	return all
}

// busybox builds all commands into one program, /bbin/bb, and links to it.
// The records read their content from dir when they are written.
func busybox(arch, dir string) ([]cpio.Record, error) {
	archive := cpio.InMemArchive()
	options := &golang.BuildOpts{
		EnableInlining: true,                 // hashing and unpacking are what the machine does most
		ExtraArgs:      []string{"-a=false"}, // gobusybox says -a; the cache is sound, and a minute faster
	}
	err := uimage.Create(llog.Default(),
		uimage.WithEnv(golang.DisableCGO(), golang.WithGOOS("linux"), golang.WithGOARCH(arch),
			// The shell's line editor asks the terminal questions that a serial
			// console does not answer.
			golang.WithBuildTag("goshsmall")),
		uimage.WithBusyboxCommands(commands()...),
		uimage.WithBusyboxBuildOpts(options),
		uimage.WithTempDir(dir),
		uimage.WithInit("init"),
		uimage.WithShell("gosh"),
		uimage.WithSkipLDD(),
		uimage.WithOutput(&initramfs.Archive{Archive: archive}),
	)
	if err != nil {
		return nil, fmt.Errorf("building the busybox: %w", err)
	}
	return cpio.ReadAllRecords(archive.Reader())
}

// version is the commit that is built, as git describes it; "unknown" outside
// of a checkout.
func version(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// skeleton is what a root file-system needs besides programs. There is no
// resolv.conf: name servers come with the lease. A busybox has no version of
// its own; os-release(5) has it.
func skeleton(version string) []cpio.Record {
	const script = "#!/bbin/gosh\nexec /bbin/shutdown -r\n"
	return []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.CharDev("dev/null", 0o666, 1, 3),
		cpio.CharDev("dev/tty", 0o666, 5, 0),
		cpio.Directory("etc", 0o755),
		cpio.StaticFile("etc/group", "root:x:0:\ndisk:x:6:\n", 0o644),
		cpio.StaticFile("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644),
		cpio.StaticFile("etc/nsswitch.conf", "hosts: files dns\n", 0o644),
		cpio.StaticFile("etc/os-release", fmt.Sprintf("NAME=Firstlight\nID=firstlight\nVERSION_ID=%s\n", version), 0o644),
		cpio.StaticFile("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644),
		cpio.Directory("etc/ssl", 0o755),
		cpio.Directory("mnt", 0o755),
		cpio.Directory("proc", 0o555),
		cpio.Directory("root", 0o700),
		cpio.Directory("run", 0o755),
		cpio.Directory("sbin", 0o755),
		cpio.StaticFile("sbin/reboot", script, 0o755),
		cpio.Directory("sys", 0o555),
		cpio.Directory("tmp", 0o1777),
		cpio.Directory("var/log", 0o755),
		cpio.StaticFile(timestamp, "", 0o644),
	}
}

// timestamp is the file whose modification time is the time of the build; the
// installer sets a clock that is behind it.
const timestamp = "build-timestamp"

// shell is /bin/sh, for people and for scripts: u-root's own knows no
// arguments of a script, which the operator's programmes are given.
func shell() tool.Program { return tool.Program{Name: "dash", Package: "dash"} }

// shellLink makes /bin/sh the shell.
func shellLink(t tree) ([]cpio.Record, error) {
	file, err := t.find(shell().Name)
	if err != nil {
		return nil, err
	}
	target, err := filepath.Rel("/bin", path.Join("/", file))
	if err != nil {
		return nil, err
	}
	return []cpio.Record{cpio.Symlink("bin/sh", target)}, nil
}

// programs are those that the installer runs, with all that they need: what
// their ELF headers name, and what storage/tool says beyond that.
func programs(t tree, wanted []tool.Program) ([]cpio.Record, error) {
	var records []cpio.Record
	var files []string
	for _, program := range wanted {
		file, err := t.find(program.Name)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
		files = append(files, program.Files...)
		for _, library := range program.Libraries {
			found, err := t.libraryFor(file, library)
			if err != nil {
				return nil, fmt.Errorf("%s loads %s: %w", program.Name, library, err)
			}
			files = append(files, found)
		}
		for _, dir := range program.Directories {
			records = append(records, cpio.Directory(cpio.Normalize(dir), 0o755))
		}
	}
	files, err := t.closure(files)
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		real, err := t.resolve(file)
		if err != nil {
			return nil, err
		}
		content, err := os.ReadFile(filepath.Join(t.dir, real))
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(filepath.Join(t.dir, real))
		if err != nil {
			return nil, err
		}
		records = append(records, cpio.StaticFile(file, string(content), uint64(info.Mode().Perm())))
	}
	return records, nil
}

// merge joins the lists into one archive: sorted by name, every parent
// directory before its entries, everything owned by root with the time of the
// build, links to nothing outside. Of two records with one name the later
// list's stays.
func merge(built time.Time, lists ...[]cpio.Record) []cpio.Record {
	byName := map[string]cpio.Record{}
	for _, list := range lists {
		for _, r := range list {
			r.Name = cpio.Normalize(r.Name)
			for dir := path.Dir(r.Name); dir != "."; dir = path.Dir(dir) {
				if _, there := byName[dir]; !there {
					byName[dir] = cpio.Directory(dir, 0o755)
				}
			}
			if old, there := byName[r.Name]; there && old.Mode&cpio.S_IFMT == cpio.S_IFDIR && r.Mode&cpio.S_IFMT == cpio.S_IFDIR {
				continue
			}
			byName[r.Name] = r
		}
	}
	delete(byName, ".")
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	records := make([]cpio.Record, 0, len(names))
	for i, name := range names {
		r := byName[name]
		r.Ino = uint64(i + 1)
		r.UID, r.GID = 0, 0
		r.MTime = uint64(built.Unix())
		r.Dev, r.Major, r.Minor = 0, 0, 0
		r.NLink = 1
		records = append(records, r)
	}
	return records
}

// encode writes records in the kernel's "newc" format
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func encode(records []cpio.Record) ([]byte, error) {
	var raw bytes.Buffer
	w := cpio.Newc.Writer(&raw)
	if err := cpio.WriteRecords(w, records); err != nil {
		return nil, err
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, err
	}
	return raw.Bytes(), nil
}

// compress packs raw with zstd, in a window that the kernel's unpacker takes.
func compress(raw []byte) ([]byte, error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(8<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return w.EncodeAll(raw, nil), w.Close()
}

// writeWhole writes a file so that a reader finds the old one or the new one.
func writeWhole(name string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
