package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/receipt"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/recovery"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// codeNotDeposited: the recovery key that must be kept by the site server is not.
const codeNotDeposited = "LUK-040"

// makeKeys makes the keys of the new system's volumes, while no disk has been
// touched: a TPM that does not take them, or a site server that does not take the
// recovery key where it has to, ends the installation with every disk as it was.
func (i *installation) makeKeys(ctx context.Context) error {
	made, err := keys.New(i.plan.Layout, i.env.random)
	if err != nil {
		return err
	}
	i.keys = made
	i.opened.push("the keys", made.Wipe)
	if err := i.adoptKept(ctx); err != nil {
		return err
	}
	if i.plan.Layout.Uses(storage.SlotTPM2) {
		tpm, err := tpm2.Open(i.env.tpm)
		if err != nil {
			return err
		}
		i.tpm = tpm
		i.opened.push("the TPM", tpm.Close)
		i.model.Log(progress.Commit, "sealing the keys of encrypted volumes to the TPM")
		if err := made.Seal(ctx, tpm); err != nil {
			return err
		}
	}
	return i.depositRecoveryKey(ctx)
}

// How often, and how long apart, the site server is asked to keep the recovery
// key.
const (
	depositTries = 4
	depositPause = 3 * time.Second
)

// depositRecoveryKey encrypts the recovery key to its recipients and gives it to
// the site server.
func (i *installation) depositRecoveryKey(ctx context.Context) error {
	key := i.keys.Recovery()
	if key == nil {
		return nil
	}
	wanted := i.config.Storage.Encryption
	sealed, err := recovery.Seal(key, wanted.RecoveryRecipients)
	if err != nil {
		return err
	}
	i.escrowed = sealed
	if err := i.deposit(ctx, sealed); err != nil {
		if wanted.RecoveryRequired {
			return refuse(codeNotDeposited, "the recovery key must be kept by the site server before any disk is touched: %w", err)
		}
		i.model.Warn(progress.Commit, fmt.Sprintf("%s: %v; the recovery key will be in %s only", codeNotDeposited, err, i.plan.Encryption.RecoveryFile))
		return nil
	}
	i.model.Logf(progress.Commit, "the site server keeps the recovery key, for %d recipients", len(wanted.RecoveryRecipients))
	return nil
}

func (i *installation) deposit(ctx context.Context, sealed []byte) (err error) {
	if i.site == nil {
		return fmt.Errorf("there is no site server")
	}
	escrow := i.escrow(sealed)
	for try := range depositTries {
		if try > 0 {
			select {
			case <-time.After(depositPause):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err = i.site.Deposit(ctx, escrow); err == nil {
			return nil
		}
	}
	return err
}

func (i *installation) escrow(sealed []byte) recovery.Escrow {
	m := i.plan.Machine
	e := recovery.Escrow{
		Format: recovery.Format, Hostname: m.Hostname, Serial: m.Serial, UUID: m.UUID, MACs: m.MACs,
		Recipients: i.config.Storage.Encryption.RecoveryRecipients, Sealed: string(sealed),
	}
	for _, v := range i.plan.Layout.Encrypted() {
		if !slices.Contains(v.Partition.LUKS.Slots, storage.SlotRecovery) {
			continue // it is kept, with the keys that it had
		}
		disk := v.Disk.Path
		if v.Disk.Serial != "" {
			disk += ", serial " + v.Disk.Serial
		}
		e.Volumes = append(e.Volumes, recovery.Volume{UUID: v.Partition.LUKS.UUID, MountPoint: v.MountPoint(), Disk: disk})
	}
	return e
}

// initrdSettings have programs that make initrds put into them, now and with
// each new kernel, what opens the root file system.
func (i *installation) initrdSettings() []target.File {
	layout := i.plan.Layout
	if !slices.ContainsFunc(layout.Encrypted(), func(v storage.Volume) bool { return v.MountPoint() == "/" }) || i.image.Manifest.Attributes[image.AttrInitramfs] != boot.Dracut {
		return nil // initramfs-tools looks into crypttab itself
	}
	modules := "crypt"
	if layout.Uses(storage.SlotTPM2) {
		modules += " tpm2-tss"
	}
	return []target.File{{
		Path: "/etc/dracut.conf.d/firstlight.conf", Mode: 0o644,
		Data: []byte("# The root file system is encrypted.\nadd_dracutmodules+=\" " + modules + " \"\n"),
	}}
}

// keyFileMode is that of what opens a volume.
const keyFileMode = 0o400

// writeKeys writes what opens the volumes into the new system, and opens every
// key slot once: a system whose volumes would stay closed never gets a boot
// loader.
func (i *installation) writeKeys(ctx context.Context) error {
	if err := i.disks.WriteKeys(i.root); err != nil {
		return err
	}
	if i.escrowed != nil {
		file := target.File{Path: i.plan.Encryption.RecoveryFile, Mode: 0o600, Data: i.escrowed}
		if strings.HasPrefix(file.Path, storage.ESPMountPoint+"/") {
			file.Mode = 0o700 // vfat has one mode for all, and takes no other
		}
		if err := i.placeSecret(file); err != nil {
			return err
		}
	}
	encrypted := i.plan.Layout.Encrypted()
	for _, v := range encrypted {
		if file := v.Partition.LUKS.KeyFile; file != "" {
			i.written = append(i.written, receipt.WrittenFile(file, keyFileMode, nil, true))
		}
	}
	if len(encrypted) == 0 {
		return nil
	}
	var tpm keys.TPM
	if i.tpm != nil {
		tpm = i.tpm
	}
	if err := i.disks.Prove(ctx, i.opt.mountPoint, tpm); err != nil {
		return err
	}
	i.model.Logf(progress.Identity, "every key slot of %d encrypted volumes was opened once", len(encrypted))
	return nil
}
