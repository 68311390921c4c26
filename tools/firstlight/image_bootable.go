package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/server"
	"github.com/firstlight/firstlight/imageserver/upstream"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/bootdisk"
	"github.com/firstlight/firstlight/tools/media"
)

// bootable are the flags of an export to a disk that boots.
type bootable struct {
	size     string
	base     string
	kernel   string
	config   string
	firmware string
	accel    string
	network  bool
	mac      string
	memory   int
}

const (
	firmwareBIOS = "bios"
	firmwareUEFI = "uefi"
)

// room is what a disk has besides its root: tables, and with UEFI an ESP.
const (
	roomBIOS = 32 << 20
	roomUEFI = 1 << 30
)

// exportDisk installs the image in a virtual machine, whose disk is what is exported.
func (c *common) exportDisk(ctx context.Context, connection *client.Client, name, format, file string, b bootable) (err error) {
	found, manifest, err := decoded(ctx, connection, name)
	if err != nil {
		return err
	}
	uefi, err := b.uefi(found)
	if err != nil {
		return err
	}
	disk, err := diskSize(b.size, manifest)
	if err != nil {
		return err
	}
	var stored uint64
	for _, n := range found.Stored {
		stored += n
	}
	scratch, err := os.MkdirTemp(scratchParent(file), ".firstlight-disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()

	address, stop, err := c.serveOne(filepath.Join(scratch, "objects"), connection)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	initramfs, kernel, err := b.medium(ctx, scratch, found, net.JoinHostPort(bootdisk.Host, address), disk, uefi)
	if err != nil {
		return err
	}
	raw := filepath.Join(scratch, "disk")
	options := bootdisk.Options{
		Kernel: kernel, Initramfs: initramfs, Disk: raw, Bytes: disk, UEFI: uefi, MAC: b.mac, Accel: b.accel,
		// The machine keeps the packed objects in memory while it installs.
		MemoryMiB: max(b.memory, 1536+int(stored>>20)*5/4),
		Said:      func(line string) { c.note("  %s", line) },
	}
	if !b.network {
		options.CommandLine = "installer.skipNetwork"
	}
	c.note("installing %s in a virtual machine; this takes minutes", found.Name)
	if err := bootdisk.Make(ctx, options); err != nil {
		return fmt.Errorf("exporting %s: %w", found.Name, err)
	}
	done := raw
	if format == "qcow2" {
		done = raw + ".qcow2"
		if err := bootdisk.Convert(ctx, raw, done); err != nil {
			return fmt.Errorf("exporting %s: %w", found.Name, err)
		}
	}
	if file == "-" {
		return copyTo(c.out, done)
	}
	if err := errors.Join(os.Chmod(done, 0o644), os.Rename(done, file)); err != nil {
		return err
	}
	return c.print(exported{found.Image, format, file}, func(w io.Writer) {
		firmware := firmwareBIOS
		if uefi {
			firmware = firmwareUEFI
		}
		fmt.Fprintf(w, "image\t%s\nfile\t%s\ndisk\t%s, boots by %s\n", found.Name, file, size(uint64(disk)), firmware)
	})
}

// scratchParent is where the disk is made: beside the file that it becomes, so that it
// only has to be renamed.
func scratchParent(file string) string {
	if file == "-" {
		return ""
	}
	return filepath.Dir(file)
}

func copyTo(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return errors.Join(err, f.Close())
}

// uefi says which firmware the disk is for. An image that has no boot loader for it
// is refused before anything is done.
func (b bootable) uefi(found client.Found) (bool, error) {
	has := strings.Split(found.Attributes[image.AttrBootloaders], ",")
	bios := slices.Contains(has, "grub-pc")
	efi := slices.ContainsFunc(has, func(one string) bool { return slices.Contains([]string{"grub-efi", "systemd-boot", "shim-grub"}, one) })
	refuse := func(text string) error {
		return &refusedError{fmt.Sprintf("image %s cannot be made a bootable disk: %s", found.Name, text)}
	}
	switch {
	case found.Attributes[image.AttrArch] != "amd64":
		return false, refuse("it is for " + found.Attributes[image.AttrArch] + ", and only amd64 is installed in a virtual machine")
	case found.Attributes[image.AttrKernel] == "":
		return false, refuse("it has no kernel; add it again with --kernel-image")
	case b.firmware == firmwareBIOS && !bios, b.firmware == firmwareUEFI && !efi, !bios && !efi:
		return false, refuse(fmt.Sprintf("it has no boot loader for that firmware (it has: %s)", found.Attributes[image.AttrBootloaders]))
	}
	return b.firmware == firmwareUEFI || b.firmware == "" && !bios, nil
}

// diskSize is the disk's size in bytes: what is asked for, or enough for the image and
// some room.
func diskSize(asked string, manifest *image.Manifest) (int64, error) {
	if asked != "" {
		return parseSize(asked)
	}
	const gib = 1 << 30
	needed := int64(unpackedBytes(manifest))*6/5 + 2*gib
	return (needed + gib - 1) / gib * gib, nil
}

// parseSize reads a size such as 8GiB, 20GB or 8589934592.
func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "KMGTiB")
	n, err := strconv.ParseInt(digits, 10, 64)
	units := map[string]int64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
		"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
	unit, known := units[text[len(digits):]]
	if err != nil || !known || n < 1 || n > (1<<60)/unit {
		return 0, &usageError{fmt.Sprintf("--size %s is no size; write 8GiB", text)}
	}
	return n * unit / 512 * 512, nil
}

// medium is the initramfs with the configuration on board, and the kernel.
func (b bootable) medium(ctx context.Context, scratch string, found client.Found, imageserver string, disk int64, uefi bool) (initramfs, kernel string, err error) {
	options := media.Options{
		Base: b.base, KernelDir: b.kernel, Modules: media.SetVM,
		Files: filepath.Join(scratch, "config"), Out: filepath.Join(scratch, "initramfs"),
	}
	if options.Base == "" {
		options.Base = filepath.Join("build", "initramfs-amd64.cpio.zst")
	}
	if options.KernelDir == "" {
		options.KernelDir = filepath.Join("build", "kernel", "amd64")
	}
	for _, one := range []struct{ path, flag, target string }{{options.Base, "--base", "make initramfs"}, {options.KernelDir, "--kernel", "make initramfs"}} {
		if _, err := os.Stat(one.path); err != nil {
			return "", "", &usageError{fmt.Sprintf("a bootable disk is made by the installer, which is not there (%v); build it with %s, or name it with %s", err, one.target, one.flag)}
		}
	}
	if err := b.writeConfig(options.Files, found, imageserver, disk, uefi); err != nil {
		return "", "", err
	}
	report, err := media.Initramfs(ctx, options)
	return options.Out, report.Kernel, err
}

// writeConfig writes the configuration: the operator's files, and ours where there is
// none of theirs.
func (b bootable) writeConfig(directory string, found client.Found, imageserver string, disk int64, uefi bool) error {
	room := int64(roomBIOS)
	if uefi {
		room = roomUEFI
	}
	type object = map[string]any
	config, err1 := json.Marshal(object{"Machine": object{"Hostname": "localhost"}})
	layout, err2 := json.Marshal(object{"BootDriveLayout": []object{{"FileSystemType": "ext4", "MountPoint": "/", "MinimumBytes": max(disk-room, 0)}}})
	if err := errors.Join(err1, err2, os.Mkdir(directory, 0o700)); err != nil {
		return err
	}
	files := map[string][]byte{"config.json": config, "storage-layout.json": layout}
	if b.config != "" {
		names, err := os.ReadDir(b.config)
		if err != nil {
			return err
		}
		for _, name := range names {
			if name.Type().IsRegular() {
				if files[name.Name()], err = os.ReadFile(filepath.Join(b.config, name.Name())); err != nil {
					return err
				}
			}
		}
	}
	files["imagename"] = []byte(found.Name + "@" + found.Digest.String() + "\n")
	files["imageserver"] = []byte(imageserver + "\n")
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(directory, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// serveOne gives out what the connection gives, on a port of this host's loopback and
// without TLS, so that a machine behind that needs no certificate. Nothing can be
// changed through it. It returns the port; stop ends it.
func (c *common) serveOne(directory string, connection *client.Client) (port string, stop func() error, err error) {
	log := slog.New(slog.DiscardHandler)
	objects, err := dir.Open(directory)
	if err != nil {
		return "", nil, err
	}
	images, err := store.Open(directory, store.Options{Disposable: true, Log: log})
	if err != nil {
		return "", nil, errors.Join(err, objects.Close())
	}
	cache := upstream.New(upstream.Options{
		Dial:    func(context.Context) (upstream.Source, error) { return connection, nil },
		Objects: objects, Begin: func() upstream.Batch { return objects.Begin() }, Log: log,
	})
	service := server.New(server.Options{
		Objects: cache, Images: upstream.NewImages(images, cache, log), Metrics: server.NewMetrics("firstlight", images.Len), Log: log,
		Ready: func(context.Context) error { return nil }, Workers: max(2, runtime.GOMAXPROCS(0)), Started: time.Now(),
		ReadOnly: "this is only for the machine that makes a disk",
	})
	mux := &auth.Mux{Log: log, RPC: auth.NewServer(server.Policy(), true, server.Tuning()...), Calls: service.Calls(true)}
	service.Register(mux.RPC)
	if mux.Pages, err = service.Pages(); err == nil {
		var listener net.Listener
		if listener, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			ctx, cancel := context.WithCancel(context.Background())
			served := make(chan error, 1)
			go func() { served <- mux.Serve(ctx, listener) }()
			_, port, err := net.SplitHostPort(listener.Addr().String())
			return port, func() error {
				cancel()
				err := <-served
				cache.Close()
				return errors.Join(err, images.Close(), objects.Close())
			}, err
		}
	}
	cache.Close()
	return "", nil, errors.Join(err, images.Close(), objects.Close())
}
