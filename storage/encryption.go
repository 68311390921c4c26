package storage

import (
	"path"
	"slices"
	"strings"
)

// KeyDirectory is where the root file system keeps the key files of the
// encrypted volumes: directory mode 0700, files mode 0400.
const KeyDirectory = "/etc/keys"

// bootMountPoint is where kernel, initrd and boot loader are found by what
// cannot open an encrypted root file system.
const bootMountPoint = "/boot"

// defaultPCR is the TPM's register of Secure Boot: whether it is on, its keys,
// and which of them vouched for what was started (TCG PC Client Platform
// Firmware Profile, 3.3.4.8).
const defaultPCR = 7

// LUKS is the encryption of one volume. Its keys are made for one installation
// and stand nowhere in a layout.
type LUKS struct {
	UUID string `json:"uuid"`
	// Mapping is the name below /dev/mapper, here and in the new OS.
	Mapping string `json:"mapping"`
	// Unlock is how the new OS opens the volume when it starts.
	Unlock Unlock `json:"unlock"`
	// Slots say what each key slot, from 0, is opened with.
	Slots []Slot `json:"slots"`
	// KeyFile is the absolute path of the key file in the new root; empty when
	// no slot has one.
	KeyFile string `json:"keyFile,omitempty"`
	// PCRs are the registers of the TPM (SHA-256 bank) to which its key is bound,
	// sorted; empty when no slot is the TPM's.
	PCRs []uint `json:"pcrs,omitempty"`
}

// Slot is what a key slot is opened with.
type Slot string

// The kinds of key slots.
const (
	SlotKeyFile  Slot = "keyfile"
	SlotTPM2     Slot = "tpm2"
	SlotRecovery Slot = "recovery" // the machine's recovery key, typed or read
)

// check finds what contradicts itself in how volumes are opened.
func (e Encryption) check(encrypt bool, wrong func(format string, args ...any)) {
	switch {
	case !encrypt && (e.Root || len(e.Unlock) > 0 || len(e.RecoveryRecipients) > 0 || e.RecoveryRequired):
		wrong("Encryption is described, and Encrypt is false")
	case e.Root && !slices.Contains(e.Unlock, UnlockTPM2) && !slices.Contains(e.Unlock, UnlockPassphrase):
		wrong("Encryption.Root needs tpm2 or passphrase in Unlock: a key file for the root file system has no place that is encrypted itself")
	}
	if slices.Contains(e.Unlock, UnlockPassphrase) && len(e.RecoveryRecipients) == 0 {
		wrong("the passphrase of Encryption.Unlock is the machine's recovery key, and without RecoveryRecipients nobody would know it")
	}
	if e.RecoveryRequired && len(e.RecoveryRecipients) == 0 {
		wrong("Encryption.RecoveryRequired needs RecoveryRecipients")
	}
}

// withBoot adds the volume that an encrypted root file system needs beside it.
func (s Spec) withBoot() Spec {
	if s.Encryption.Root && !slices.ContainsFunc(s.Volumes, func(v VolumeSpec) bool { return strings.TrimSuffix(v.MountPoint, "/") == bootMountPoint }) {
		// Room for two more kernels with their initrds.
		boot := VolumeSpec{FileSystem: Ext4, MountPoint: bootMountPoint, MinimumFreeBytes: 384 * MiB}
		s.Volumes = append([]VolumeSpec{boot}, s.Volumes...)
	}
	return s
}

// encrypted says whether a volume is.
func (s Spec) encrypted(mountPoint string) bool {
	switch mountPoint {
	case "/":
		return s.Encrypt && s.Encryption.Root
	case bootMountPoint, ESPMountPoint:
		return false
	}
	return s.Encrypt
}

// luks is the encryption of a volume.
func (r *resolver) luks(mountPoint string) *LUKS {
	l := &LUKS{UUID: formatUUID(r.ids("luks:" + mountPoint)), Mapping: r.mapping(mountPoint)}
	ways := r.spec.Encryption.Unlock
	if len(ways) == 0 {
		ways = []Unlock{UnlockKeyFile}
	}
	for _, way := range ways {
		switch way {
		case UnlockKeyFile:
			if mountPoint == "/" {
				continue // it would have to lie in itself
			}
			l.KeyFile = path.Join(KeyDirectory, l.Mapping+".key")
			l.Slots = append(l.Slots, SlotKeyFile)
		case UnlockTPM2:
			l.PCRs = slices.Sorted(slices.Values(r.spec.Encryption.PCRs))
			if len(l.PCRs) == 0 {
				l.PCRs = []uint{defaultPCR}
			}
			l.Slots = append(l.Slots, SlotTPM2)
		}
		if l.Unlock == "" {
			l.Unlock = way
		}
	}
	if len(r.spec.Encryption.RecoveryRecipients) > 0 {
		l.Slots = append(l.Slots, SlotRecovery)
	}
	return l
}

// unlockOptions are the kernel's words by which an initrd of systemd's or
// dracut's opens the volume (systemd-cryptsetup-generator(8)); that of
// initramfs-tools has crypttab in it, and passes over them.
func (v Volume) unlockOptions() []string {
	l := v.Partition.LUKS
	if l == nil {
		return nil
	}
	options := []string{"rd.luks.name=" + l.UUID + "=" + l.Mapping}
	if l.Unlock == UnlockTPM2 {
		options = append(options, "rd.luks.options="+l.UUID+"=tpm2-device=auto")
	}
	return options
}

// Encrypted are the volumes with LUKS, in the order of Mounts.
func (l Layout) Encrypted() []Volume {
	volumes := slices.DeleteFunc(l.Volumes(), func(v Volume) bool { return v.Partition.LUKS == nil })
	slices.SortStableFunc(volumes, func(a, b Volume) int {
		if a.MountPoint() == "" || b.MountPoint() == "" { // swap comes last
			return strings.Compare(b.MountPoint(), a.MountPoint())
		}
		return slices.Compare(components(a.MountPoint()), components(b.MountPoint()))
	})
	return volumes
}

// Uses says whether a slot of one of the volumes is of that kind.
func (l Layout) Uses(slot Slot) bool {
	return slices.ContainsFunc(l.Encrypted(), func(v Volume) bool { return slices.Contains(v.Partition.LUKS.Slots, slot) })
}
