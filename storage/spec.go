package storage

// Spec is what the site wants: storage-layout.json after it was parsed.
type Spec struct {
	// Volumes of the boot disk, in the order of their partitions.
	Volumes []VolumeSpec `json:"volumes"`
	// ExtraMountPointsBasename, with a number appended, names the mount points
	// of the volumes that nobody listed: 0 is the rest of the boot disk, n the
	// n-th further disk. When it is empty there are no such volumes: the last
	// listed volume takes the rest of the boot disk, and further disks are left
	// alone.
	ExtraMountPointsBasename string `json:"extraMountPointsBasename"`
	// Encrypt puts everything but /, /boot and the ESP into LUKS volumes.
	Encrypt bool `json:"encrypt"`
	// UseKexec asks for the hand-over by kexec. The layout does not depend on it.
	UseKexec bool `json:"useKexec"`
	// RequireKexec refuses the installation when the running kernel does not take
	// the new one; without it such a machine reboots. It needs UseKexec.
	RequireKexec bool `json:"requireKexec,omitempty"`
	// Architecture is the GOARCH of the image, for the type of the root
	// partition; empty means amd64.
	Architecture string `json:"architecture,omitempty"`

	// BootDisk chooses the disk of Volumes; nil means the first usable disk by
	// its place on the bus.
	BootDisk *Selector `json:"bootDisk,omitempty"`
	// DataDisks choose the further disks, in the order of their volumes. One with
	// Pick gives one disk, one without gives all that fit. nil means every usable
	// disk, an empty slice none.
	DataDisks []Selector `json:"dataDisks,omitzero"`
	// Overwrite says what may lie on the chosen disks; empty means OverwriteAny.
	Overwrite Overwrite `json:"overwrite,omitempty"`
	// Preserve are labels of volumes that keep what is in them.
	Preserve []string `json:"preserve,omitempty"`
	// Erase says how thoroughly the old contents go; empty means EraseMetadata.
	Erase Erase `json:"erase,omitempty"`
	// Mirror makes the boot disk a pair: every volume is RAID 1, the EFI system
	// partition too.
	Mirror bool `json:"mirror,omitempty"`
	// VolumeGroup names a volume group of LVM that holds every volume of the boot
	// disk but /boot and the EFI system partition; empty means none.
	VolumeGroup string `json:"volumeGroup,omitempty"`
	// DataRAID makes one array, and one volume, of all data disks.
	DataRAID RAID `json:"dataRaid,omitempty"`
	// Firmware is Both for disks that must start under either kind, empty for the
	// kind that the machine has now.
	Firmware Firmware `json:"firmware,omitempty"`
	// Encryption says how encrypted volumes are opened. It needs Encrypt.
	Encryption Encryption `json:"encryption,omitzero"`
}

// Selector describes disks. A field that is empty says nothing; all that are
// not must fit. Text is compared without regard to case and to spaces at its
// ends.
type Selector struct {
	Serial string `json:"serial,omitempty"`
	// WWN may be written with or without its prefix (naa., eui., nvme., 0x).
	WWN string `json:"wwn,omitempty"`
	// Model may have * for any run of characters.
	Model     string `json:"model,omitempty"`
	Transport string `json:"transport,omitempty"` // as Disk.Transport
	// MinimumBytes and MaximumBytes bound the size; both belong to the range.
	MinimumBytes uint64 `json:"minimumBytes,omitempty"`
	MaximumBytes uint64 `json:"maximumBytes,omitempty"` // 0: no bound
	// Path is a device node or a name below /dev/disk/by-path; it may have * as
	// Model has.
	Path string `json:"path,omitempty"`
	// Pick chooses one of the disks that fit.
	Pick Pick `json:"pick,omitempty"`
}

// Pick chooses one of several disks.
type Pick string

// What can be picked. Of two equally small or large disks neither is picked:
// the choice is refused.
const (
	Smallest Pick = "smallest"
	Largest  Pick = "largest"
	First    Pick = "first" // by place on the bus
)

// Overwrite says what may be lost.
type Overwrite string

// The rules for overwriting, from the most to the least.
const (
	// OverwriteAny takes a chosen disk whatever is on it, as the model does.
	OverwriteAny Overwrite = "any"
	// OverwriteNeverForeign takes blank disks and those with an earlier
	// installation of ours.
	OverwriteNeverForeign Overwrite = "never-foreign"
	// OverwriteOwn takes only disks with an earlier installation of ours.
	OverwriteOwn Overwrite = "own"
)

// Erase says how the old contents of a disk are erased.
type Erase string

// The ways of erasing. None of them stands in for another: a disk that cannot do
// what is asked for is refused.
const (
	// EraseMetadata removes all by which old contents are recognised, and the key
	// slots of old encrypted volumes. What was in files can still be read with
	// the right programs.
	EraseMetadata Erase = "metadata"
	// EraseDiscard tells the disk that no sector is in use any more; what it
	// returns for them is up to the disk.
	EraseDiscard Erase = "discard"
	// EraseCrypto has the disk itself forget its contents: NVMe sanitize or
	// format, ATA secure erase.
	EraseCrypto Erase = "crypto"
	// EraseOverwrite writes zeroes to every sector and reads them back.
	EraseOverwrite Erase = "overwrite"
)

// Encryption says how encrypted volumes are opened. The zero value is the
// model's way: the root file system is plain and has the key files of the others.
type Encryption struct {
	// Root encrypts the root file system too.
	Root bool `json:"root,omitempty"`
	// Unlock are the ways by which the installed system opens its volumes; empty
	// means UnlockKeyFile.
	Unlock []Unlock `json:"unlock,omitempty"`
	// PCRs are the TPM's registers (SHA-256 bank) to which UnlockTPM2 binds;
	// empty means 7.
	PCRs []uint `json:"pcrs,omitempty"`
	// RecoveryRecipients are the age recipients who can open the machine's
	// recovery key; with none there is no recovery key.
	RecoveryRecipients []string `json:"recoveryRecipients,omitempty"`
	// RecoveryRequired stops the installation before any disk is touched when
	// the site server did not acknowledge the recovery key.
	RecoveryRequired bool `json:"recoveryRequired,omitempty"`
	// AllowWithoutSecureBoot permits UnlockTPM2 on a machine whose firmware
	// starts unsigned programs.
	AllowWithoutSecureBoot bool `json:"allowWithoutSecureBoot,omitempty"`
}

// Unlock is a way of opening an encrypted volume.
type Unlock string

// The ways of opening encrypted volumes.
const (
	UnlockKeyFile    Unlock = "keyfile"
	UnlockTPM2       Unlock = "tpm2"
	UnlockPassphrase Unlock = "passphrase"
)

// VolumeSpec is one wanted file system of the boot disk. Sizes are bytes and
// minimums.
type VolumeSpec struct {
	// FileSystem is ext4, vfat, xfs, btrfs or swap; empty means ext4.
	FileSystem string `json:"fileSystem"`
	// Label of the file system; empty means one made from the mount point.
	Label string `json:"label,omitempty"`
	// MountPoint is an absolute, clean path; empty for swap.
	MountPoint string `json:"mountPoint"`
	// MinimumBytes is the least size of the partition.
	MinimumBytes uint64 `json:"minimumBytes,omitempty"`
	// MinimumFreeBytes is the least that an unprivileged user can still write
	// after the installation.
	MinimumFreeBytes uint64 `json:"minimumFreeBytes,omitempty"`
	// BytesPerInode is ext4's inode ratio; 0 means mke2fs's 16384.
	BytesPerInode uint64 `json:"bytesPerInode,omitempty"`
	// ReservedBlocksPercentage is ext4's share for root, at most 50; 0 means
	// mke2fs's 5.
	ReservedBlocksPercentage uint `json:"reservedBlocksPercentage,omitempty"`
	// RootUserID and RootGroupID own the top directory of the file system.
	RootUserID  uint32 `json:"rootUserId,omitempty"`
	RootGroupID uint32 `json:"rootGroupId,omitempty"`
	// Subvolumes are for btrfs.
	Subvolumes []Subvolume `json:"subvolumes,omitempty"`
}

// Subvolume is a part of a btrfs that is mounted by itself
// (btrfs-subvolume(8)).
type Subvolume struct {
	// Name is what the subvolume is called at the top of the file system: @home.
	Name       string `json:"name"`
	MountPoint string `json:"mountPoint"`
}
