// Packages makes the Debian and RPM packages of what was built: both programs
// for servers, the installer's initramfs, units, manual pages and completions.
// `make packages` runs it.
package main

import (
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/goreleaser/nfpm/v2"
	_ "github.com/goreleaser/nfpm/v2/deb" // registers itself
	"github.com/goreleaser/nfpm/v2/files"
	_ "github.com/goreleaser/nfpm/v2/rpm" // registers itself
)

//go:embed files
var units embed.FS

func main() {
	var o options
	flag.StringVar(&o.version, "version", "", "version of the packages")
	flag.StringVar(&o.arch, "arch", "amd64", "architecture of the programs")
	flag.StringVar(&o.programs, "programs", "bin", "directory with firstlight and imageserver for that architecture")
	flag.StringVar(&o.here, "firstlight", "bin/firstlight", "firstlight for this machine, which writes manual pages and completions")
	flag.StringVar(&o.build, "build", "build", "directory with the initramfs")
	flag.StringVar(&o.out, "out", "build/packages", "directory to write to")
	flag.Int64Var(&o.date, "date", 0, "time of all files, in seconds since 1970")
	flag.Parse()
	if err := o.run(); err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
}

type options struct {
	version, arch              string
	programs, here, build, out string
	date                       int64
}

// run writes one package of each kind and says what it wrote.
func (o options) run() (err error) {
	if o.version == "" {
		return errors.New("-version is needed")
	}
	scratch, err := os.MkdirTemp("", "firstlight-packages-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	contents, err := o.contents(scratch)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	for _, kind := range []string{"deb", "rpm"} {
		if err := o.write(kind, scratch, contents); err != nil {
			return fmt.Errorf("making the %s package: %w", kind, err)
		}
	}
	return nil
}

// contents prepares in scratch what is not built yet, and lists all files.
func (o options) contents(scratch string) (files.Contents, error) {
	var all files.Contents
	add := func(from, to string, mode os.FileMode) {
		all = append(all, &files.Content{Source: from, Destination: to, FileInfo: &files.ContentFileInfo{Mode: mode, MTime: o.time(), Owner: "root", Group: "root"}})
	}
	for _, program := range []string{"firstlight", "imageserver"} {
		add(filepath.Join(o.programs, program), "/usr/bin/"+program, 0o755)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		initramfs := filepath.Join(o.build, "initramfs-"+arch+".cpio.zst")
		if _, err := os.Stat(initramfs); err == nil {
			add(initramfs, "/usr/share/firstlight/"+filepath.Base(initramfs), 0o644)
		} else if arch == o.arch {
			return nil, fmt.Errorf("%w (make initramfs makes it)", err)
		}
	}
	for _, unit := range []string{"firstlight.service", "firstlight-imageserver.service"} {
		file, err := embedded(scratch, unit)
		if err != nil {
			return nil, err
		}
		add(file, "/usr/lib/systemd/system/"+unit, 0o644)
	}
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		return nil, err
	}
	for _, page := range append(pages, "README.md", "LICENSE") {
		add(page, "/usr/share/doc/firstlight/"+filepath.Base(page), 0o644)
	}
	manuals, err := o.manuals(scratch)
	if err != nil {
		return nil, err
	}
	for _, manual := range manuals {
		add(manual, "/usr/share/man/man1/"+filepath.Base(manual), 0o644)
	}
	for shell, to := range map[string]string{
		"bash": "/usr/share/bash-completion/completions/firstlight",
		"zsh":  "/usr/share/zsh/vendor-completions/_firstlight",
		"fish": "/usr/share/fish/vendor_completions.d/firstlight.fish",
	} {
		script, err := exec.Command(o.here, "completion", shell).Output()
		if err != nil {
			return nil, fmt.Errorf("making the completion for %s: %w", shell, err)
		}
		file := filepath.Join(scratch, path.Base(to)+"."+shell)
		if err := os.WriteFile(file, script, 0o644); err != nil {
			return nil, err
		}
		add(file, to, 0o644)
	}
	return all, nil
}

// manuals are the manual pages, compressed as Debian wants them.
func (o options) manuals(scratch string) ([]string, error) {
	dir := filepath.Join(scratch, "man")
	if out, err := exec.Command(o.here, "man", "--out", dir, "--date", fmt.Sprint(o.date)).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("making the manual pages: %w: %s", err, bytes.TrimSpace(out))
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil {
		return nil, err
	}
	var packed []string
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return nil, err
		}
		var out bytes.Buffer
		w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(text); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		if err := os.WriteFile(page+".gz", out.Bytes(), 0o644); err != nil {
			return nil, err
		}
		packed = append(packed, page+".gz")
	}
	return packed, nil
}

// embedded writes one of our files where nfpm can read it.
func embedded(scratch, name string) (string, error) {
	data, err := units.ReadFile("files/" + name)
	if err != nil {
		return "", err
	}
	file := filepath.Join(scratch, name)
	return file, os.WriteFile(file, data, 0o755)
}

func (o options) time() time.Time { return time.Unix(o.date, 0).UTC() }

// write makes one package.
func (o options) write(kind, scratch string, contents files.Contents) (err error) {
	info := nfpm.WithDefaults(&nfpm.Info{
		Name: "firstlight", Arch: o.arch, Platform: "linux", Version: o.version, MTime: o.time(),
		Section: "admin", Priority: "optional", License: "Apache-2.0",
		Maintainer:  "The Firstlight authors <firstlight@localhost>",
		Description: "Installs operating systems on bare machines\nSite server, image server and the operator's command: DHCP and network boot,\nboot media, images, rules, a fleet page.",
		Overridables: nfpm.Overridables{
			Contents:   contents,
			Recommends: []string{"isolinux", "syslinux-common", "systemd-boot-efi"},
		},
	})
	if kind == "rpm" {
		info.Recommends = nil // the boot files have other names there
		info.RPM.BuildHost = "localhost"
	}
	for name, script := range map[string]*string{
		"preinstall.sh": &info.Scripts.PreInstall, "postinstall.sh": &info.Scripts.PostInstall,
		"preremove.sh": &info.Scripts.PreRemove, "postremove.sh": &info.Scripts.PostRemove,
	} {
		if *script, err = embedded(scratch, name); err != nil {
			return err
		}
	}
	if err := nfpm.PrepareForPackager(info, kind); err != nil {
		return err
	}
	packager, err := nfpm.Get(kind)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := packager.Package(info, &out); err != nil {
		return err
	}
	name := filepath.Join(o.out, packager.ConventionalFileName(info))
	if err := os.WriteFile(name, out.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %.1f MB\n", strings.TrimPrefix(name, "./"), float64(out.Len())/1e6)
	return nil
}
