package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/firstlight/firstlight/installer/bootloader"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/receipt"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/renderer"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/tool"
)

// writeIdentity writes what makes the new system this machine and no other:
// its file-systems, keys, names and randomness.
func (i *installation) writeIdentity(ctx context.Context) error {
	files := targetFiles(netconfig.Identity(i.plan.Network.Config))
	if !i.opt.skipStorage {
		files = append(files,
			target.File{Path: "/etc/fstab", Mode: 0o644, Data: i.plan.Layout.Fstab()},
			target.File{Path: "/etc/crypttab", Mode: 0o644, Data: i.plan.Layout.Crypttab()})
		files = append(files, i.arrays()...)
		files = append(files, i.watchdogTaker()...)
		files = append(files, i.initrdSettings()...)
		if err := i.writeKeys(ctx); err != nil {
			return err
		}
	}
	machineID, err := i.freshMachineID()
	if err != nil {
		return err
	}
	seed, err := i.randomSeed()
	if err != nil {
		return err
	}
	return errors.Join(i.place(append(files, machineID...)...), i.placeSecret(append(i.secrets, seed)...))
}

// place writes files of our own into the new system, and keeps for the receipt
// which they were.
func (i *installation) place(files ...target.File) error { return i.placeAs(false, files) }

// placeSecret is place for what the receipt must say nothing of but the name.
func (i *installation) placeSecret(files ...target.File) error { return i.placeAs(true, files) }

func (i *installation) placeAs(secret bool, files []target.File) error {
	for _, file := range files {
		i.written = append(i.written, receipt.WrittenFile(file.Path, file.Mode, file.Data, secret))
	}
	return target.Write(i.root, files...)
}

// arrays tells the new system's mdadm which arrays are its own, in the file
// that its distribution has for that.
func (i *installation) arrays() []target.File {
	config := i.plan.Layout.MDConfig()
	if config == nil {
		return nil
	}
	file := "/etc/mdadm.conf"
	if info, err := i.root.Stat("etc/mdadm"); err == nil && info.IsDir() {
		file = "/etc/mdadm/mdadm.conf"
	}
	return []target.File{{Path: file, Mode: 0o644, Data: config}}
}

// watchdogTaker has the new system load the watchdog's driver early, which stops
// or feeds what was armed for the hand-over. A distribution's blacklist, which
// many have for these drivers, does not hold here (modules-load.d(5)).
func (i *installation) watchdogTaker() []target.File {
	if i.plan.Watchdog == "" {
		return nil
	}
	return []target.File{{Path: "/etc/modules-load.d/firstlight-watchdog.conf", Mode: 0o644, Data: []byte(i.plan.Watchdog + "\n")}}
}

// freshMachineID empties a machine-id that came with the image: two machines
// with one id would share DHCP leases and journals. systemd makes a new one at
// first boot (machine-id(5)).
func (i *installation) freshMachineID() ([]target.File, error) {
	info, err := i.root.Lstat("etc/machine-id")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || info.Size() == 0 {
		return nil, err
	}
	return []target.File{{Path: "/etc/machine-id", Mode: 0o444}}, nil
}

// randomSeedBytes is the size of systemd's seed: the kernel's pool
// (systemd-random-seed.service(8)).
const randomSeedBytes = 512

// randomSeed gives the new system's first boot its own randomness.
func (i *installation) randomSeed() (target.File, error) {
	seed := make([]byte, randomSeedBytes)
	if _, err := io.ReadFull(i.env.random, seed); err != nil {
		return target.File{}, fmt.Errorf("making the random seed: %w", err)
	}
	return target.File{Path: "/var/lib/systemd/random-seed", Mode: 0o600, Data: seed}, nil
}

// writeNetwork writes the new system's network configuration, or lets
// -networkConfigurator do it.
func (i *installation) writeNetwork(ctx context.Context) error {
	switch {
	case i.opt.skipNetwork:
		return skip{"-skipNetwork"}
	case i.opt.networkConfigurator != "":
		i.model.Log(progress.Network, "running "+i.opt.networkConfigurator)
		return i.runProgramme(ctx, progress.Network, tool.Cmd{
			Name: i.opt.networkConfigurator,
			Args: []string{i.configDir, i.opt.mountPoint, i.nic.Name, i.opt.tmpRoot},
		})
	}
	return i.place(targetFiles(networkFiles(i.plan.Network))...)
}

// networkFiles are the files of the one program that the plan names.
func networkFiles(network plan.Network) []netconfig.File {
	render, ok := renderer.Named(network.Renderer)
	if !ok {
		panic("the plan names the network renderer " + network.Renderer) // plan.New knows the table
	}
	files := render(network.Config, network.Resolver)
	if network.WithoutCloudInit {
		files = append(files, renderer.WithoutCloudInit())
	}
	return files
}

// targetFiles are netconfig's files as package target writes them.
func targetFiles(files []netconfig.File) []target.File {
	var all []target.File
	for _, file := range files {
		all = append(all, target.File(file))
	}
	return all
}

// installBootLoader makes the disk bootable, last of all, and loads the next
// kernel while the new root is still mounted.
func (i *installation) installBootLoader(ctx context.Context) error {
	if i.opt.skipStorage {
		return skip{"-skipStorage: the boot loader stays as it is"}
	}
	if err := i.runBootLoader(ctx); err != nil {
		return err
	}
	if err := i.noteBootSettings(); err != nil {
		return err
	}
	if i.by != plan.Kexec {
		return nil
	}
	if err := i.loadNextKernel(); err != nil {
		// The disk is bootable: a firmware reboot is slower, and as good.
		i.model.Warn(progress.Boot, fmt.Sprintf("%s: %v; the machine will reboot through its firmware", progress.Code(err), err))
		i.by = plan.Reboot
	}
	return nil
}

// noteBootSettings keeps for the receipt what the boot loader was told.
func (i *installation) noteBootSettings() error {
	for _, name := range bootloader.SettingsFiles() {
		file := target.Name(name)
		info, err := i.root.Lstat(file)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return err
		}
		data, err := i.root.ReadFile(file)
		if err != nil {
			return err
		}
		i.written = append(i.written, receipt.WrittenFile(name, uint32(info.Mode().Perm()), data, false))
	}
	return nil
}

// runBootLoader runs the image's own programs in the new root, which sees the
// running system's /dev, /proc and /sys for that time only.
func (i *installation) runBootLoader(ctx context.Context) (err error) {
	var system mount.Stack
	defer func() { err = errors.Join(err, system.Close()) }()
	if err := system.System(i.opt.mountPoint, "/dev", "/proc", "/sys"); err != nil {
		return err
	}
	return bootloader.Install(ctx, i.env.runner, i.bootLoaderTarget(), func(text string) { i.model.Warn(progress.Boot, text) })
}

func (i *installation) loadNextKernel() error {
	kernel, err := i.openInRoot(i.plan.Boot.Kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initrd, err := i.openInRoot(i.plan.Boot.Initrd)
	if err != nil {
		return err
	}
	defer initrd.Close()
	return i.env.loadNext(kernel, initrd, i.plan.Boot.CommandLine)
}

// openInRoot opens a regular file of the new root; the plan has resolved the
// links on the way.
func (i *installation) openInRoot(path string) (*os.File, error) {
	f, err := i.root.Open(target.Name(path))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", filepath.Join(i.opt.mountPoint, path), err)
	}
	return f, nil
}
