// Package storage decides how disks are divided. It takes what is wanted
// ([Spec]) and what was found ([Disk]) and resolves them into a [Layout]: real
// devices, sectors and UUIDs, together with what will be lost. It also renders
// a layout's fstab and crypttab.
//
// It never opens, reads or writes a disk: package storage/apply alone does, and
// it does what the layout says without deciding anything again.
package storage

import (
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Sizes that the layout is made of, in bytes.
const (
	MiB = 1 << 20
	GiB = 1 << 30
)

// Names of the file systems that this package can lay out.
const (
	Ext4  = "ext4"
	VFAT  = "vfat"
	XFS   = "xfs"
	Btrfs = "btrfs"
	Swap  = "swap"
)

// NamePrefix begins the GPT name of every partition that we make, so that a
// later run recognises its own work ([Disk.Foreign]).
const NamePrefix = "firstlight:"

// MediumLabel is the label of the file system on a medium that carries
// configuration for the installer. A disk with it is never erased.
const MediumLabel = "FIRSTLIGHT"

// ESPMountPoint is where the EFI system partition is mounted in the new OS.
const ESPMountPoint = "/boot/efi"

// Disk is one block device as it was found, with what lies on it.
type Disk struct {
	Name      string `json:"name"`                // kernel name: vda, nvme0n1
	Path      string `json:"path"`                // device node: /dev/vda
	Model     string `json:"model,omitempty"`     //
	Serial    string `json:"serial,omitempty"`    //
	WWN       string `json:"wwn,omitempty"`       //
	BusPath   string `json:"busPath,omitempty"`   // where it is plugged in: the sysfs device path
	ByPath    string `json:"byPath,omitempty"`    // its name below /dev/disk/by-path, as udev makes it
	Transport string `json:"transport,omitempty"` // virtio, nvme, sata, sas, usb, mmc, …

	Size               uint64 `json:"size"`                         // bytes
	SectorSize         uint32 `json:"sectorSize"`                   // logical, bytes
	PhysicalSectorSize uint32 `json:"physicalSectorSize,omitempty"` // bytes
	OptimalIOSize      uint32 `json:"optimalIoSize,omitempty"`      // bytes; 0 unknown

	Rotational bool `json:"rotational,omitempty"`
	ReadOnly   bool `json:"readOnly,omitempty"`
	Removable  bool `json:"removable,omitempty"`
	// Discards says that the disk takes discards (TRIM, UNMAP, Deallocate).
	Discards bool `json:"discards,omitempty"`
	// CryptoErase is how the disk itself forgets its contents, one of those that
	// package sanitize knows; empty when it cannot. NoCryptoErase says why not.
	CryptoErase   string `json:"cryptoErase,omitempty"`
	NoCryptoErase string `json:"noCryptoErase,omitempty"`
	// BootMedium says that the running system was started from this disk, or
	// uses something on it: its root, its configuration.
	BootMedium bool `json:"bootMedium,omitempty"`

	// Contents is what package storage/signature found on it.
	Contents []Content `json:"contents,omitempty"`
}

// Content is one thing that was recognised on a disk: a partition table, a
// partition of it, or a file system, RAID member, volume-manager member,
// encrypted container.
type Content struct {
	// Where is the kernel name of the disk or partition: "vda", "vda1".
	Where string `json:"where"`
	// Kind is gpt, mbr, partition, ext4, xfs, btrfs, vfat, swap, luks, lvm, md,
	// zfs, ntfs, iso9660, bitlocker, bluestore, …
	Kind string `json:"kind"`
	// Label is the label of a file system or the name of a partition.
	Label string `json:"label,omitempty"`
	UUID  string `json:"uuid,omitempty"`
	// Offset and Size are bytes of the whole disk.
	Offset uint64 `json:"offset"`
	Size   uint64 `json:"size"`
}

// KindPartition is the [Content.Kind] of an entry of a partition table.
const KindPartition = "partition"

// KindUnreadable is the [Content.Kind] of a disk that could not be read; such a
// disk is not used.
const KindUnreadable = "unreadable"

// Foreign reports whether the disk holds something that is not recognisably an
// earlier installation of ours: anything beside a GPT whose partitions bear our
// names, and what is in those.
func (d Disk) Foreign() bool { return foreign(d.Name, d.Contents) }

func foreign(disk string, contents []Content) bool {
	ours := make(map[string]bool)
	for _, c := range contents {
		if c.Kind == KindPartition && strings.HasPrefix(c.Label, NamePrefix) {
			ours[c.Where] = true
		}
	}
	for _, c := range contents {
		switch {
		case ours[c.Where]:
		case c.Where == disk && c.Kind == "gpt" && len(ours) > 0:
		default:
			return true
		}
	}
	return false
}

// PartitionName is the kernel's name of a partition: vda1, nvme0n1p1. It takes
// kernel names and paths of device nodes alike.
func PartitionName(disk string, number int) string {
	if n := len(disk); n > 0 && disk[n-1] >= '0' && disk[n-1] <= '9' {
		disk += "p"
	}
	return disk + strconv.Itoa(number)
}

// Firmware says which firmware must be able to boot the disk.
type Firmware string

// The kinds of firmware.
const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
	Both Firmware = "both"
)

// Layout is what will be made, completely decided.
type Layout struct {
	Firmware Firmware `json:"firmware"`
	// Disks that will be erased and written; the first is the boot disk.
	Disks []DiskLayout `json:"disks"`
	// Mirror says that the first two disks are equal, and the machine starts
	// from either.
	Mirror bool `json:"mirror,omitempty"`
	// Arrays lie on partitions, Groups on partitions or arrays.
	Arrays []Array `json:"arrays,omitempty"`
	Groups []Group `json:"groups,omitempty"`
	// Skipped disks stay as they are.
	Skipped []SkippedDisk `json:"skipped,omitempty"`
	// Lost has one line for each thing that is on the disks now and will not be
	// afterwards.
	Lost []string `json:"lost"`
	// Kept has one line for each thing on these disks that stays.
	Kept []string `json:"kept,omitempty"`
}

// DiskLayout is one disk as it will be.
type DiskLayout struct {
	Name               string `json:"name"`
	Path               string `json:"path"`
	Model              string `json:"model,omitempty"`
	Serial             string `json:"serial,omitempty"`
	WWN                string `json:"wwn,omitempty"`
	Size               uint64 `json:"size"`       // bytes
	SectorSize         uint32 `json:"sectorSize"` // bytes
	PhysicalSectorSize uint32 `json:"physicalSectorSize,omitempty"`
	// Contents is what was there when the layout was decided; apply refuses a
	// disk on which it finds something else.
	Contents []Content `json:"contents,omitempty"`
	// ChosenBy says by what the disk was chosen.
	ChosenBy string `json:"chosenBy"`
	// Erase is how the old contents are erased, CryptoErase by what means, as in
	// Disk, when it is EraseCrypto.
	Erase       Erase  `json:"erase"`
	CryptoErase string `json:"cryptoErase,omitempty"`
	// UUID is the disk GUID of the partition table.
	UUID       string      `json:"uuid"`
	Partitions []Partition `json:"partitions"`
}

// Foreign is [Disk.Foreign] of what was found on the disk.
func (d DiskLayout) Foreign() bool { return foreign(d.Name, d.Contents) }

// Node is the device node of a partition of the disk. The only partition of an
// array or a logical volume, with the number 0, is all of it.
func (d DiskLayout) Node(p Partition) string {
	if p.Number == 0 {
		return d.Path
	}
	return PartitionName(d.Path, p.Number)
}

// Partition is one partition and what is made in it.
type Partition struct {
	Number int `json:"number"` // from 1; 0 for all of an array or a logical volume
	// Name is the GPT name, at most 36 UTF-16 units.
	Name     string `json:"name"`
	TypeGUID string `json:"typeGuid"` // upper case
	UUID     string `json:"uuid"`     // lower case
	// FirstSector and LastSector are logical sectors of the disk; both belong
	// to the partition.
	FirstSector uint64 `json:"firstSector"`
	LastSector  uint64 `json:"lastSector"`
	Bytes       uint64 `json:"bytes"`
	// Kept says that the partition is there already, at these sectors, and stays
	// as it is: nothing in it is erased, encrypted or formatted.
	Kept bool `json:"kept,omitempty"`

	// FileSystem is empty for a partition that only holds boot-loader code; then
	// all that follows is empty too.
	FileSystem string `json:"fileSystem,omitempty"`
	Label      string `json:"label,omitempty"`
	// FSUUID is written as blkid writes it: xxxx-xxxx for vfat.
	FSUUID     string `json:"fsUuid,omitempty"`
	MountPoint string `json:"mountPoint,omitempty"`
	// Subvolumes are those of btrfs. One with the MountPoint of the volume is
	// mounted there in place of the whole.
	Subvolumes []Subvolume `json:"subvolumes,omitempty"`
	// LUKS is nil when the volume is not encrypted.
	LUKS *LUKS `json:"luks,omitempty"`

	BytesPerInode            uint64 `json:"bytesPerInode,omitempty"`
	ReservedBlocksPercentage uint   `json:"reservedBlocksPercentage,omitempty"`
	RootUserID               uint32 `json:"rootUserId,omitempty"`
	RootGroupID              uint32 `json:"rootGroupId,omitempty"`
}

// Device is the node on which the file system of p is made and mounted: the
// partition, or its mapping.
func (d DiskLayout) Device(p Partition) string {
	if p.LUKS != nil {
		return path.Join("/dev/mapper", p.LUKS.Mapping)
	}
	return d.Node(p)
}

// SkippedDisk is a disk that is left alone, and why.
type SkippedDisk struct {
	Disk   string `json:"disk"` // path
	Reason string `json:"reason"`
}

// Volume is one file system of a layout with the place where it is. For an
// array or a logical volume Disk is that, as if it were a disk.
type Volume struct {
	Disk      DiskLayout
	Partition Partition
	// Subvolume is mounted instead of the whole file system; the MountPoint is
	// its own.
	Subvolume string
}

// MountPoint of the volume in the new OS.
func (v Volume) MountPoint() string { return v.Partition.MountPoint }

// Device is the node of the volume's file system.
func (v Volume) Device() string { return v.Disk.Device(v.Partition) }

// BootDisk is the disk that holds the root file system and the boot loader. ok
// is false for the zero layout.
func (l Layout) BootDisk() (d DiskLayout, ok bool) {
	if len(l.Disks) == 0 {
		return DiskLayout{}, false
	}
	return l.Disks[0], true
}

// Need is what the image puts on the volumes.
type Need struct {
	// RootBytes are the bytes on the root file system, below no other mount
	// point, each file rounded up to its blocks.
	RootBytes uint64 `json:"rootBytes"`
	// Inodes on the root file system.
	Inodes uint64 `json:"inodes"`
	// BytesBelow are the bytes below each other mount point.
	BytesBelow map[string]uint64 `json:"bytesBelow,omitempty"`
	// InodesBelow are the inodes below each other mount point.
	InodesBelow map[string]uint64 `json:"inodesBelow,omitempty"`
}

// Codes of the errors of storage and the packages below it.
const (
	CodeNoDisk        = "STO-001"
	CodeTooSmall      = "STO-002"
	CodeLayout        = "STO-003"
	CodeFileSystem    = "STO-004"
	CodeSelection     = "STO-005"
	CodeChanged       = "STO-006"
	CodeBusy          = "STO-007"
	CodeIO            = "STO-008"
	CodeNoNode        = "STO-009"
	CodeTable         = "STO-010"
	CodeFormat        = "STO-011"
	CodeMount         = "STO-012"
	CodeUnmount       = "STO-013"
	CodeNoProgram     = "STO-014"
	CodeProgram       = "STO-015"
	CodeUnreadable    = "STO-016"
	CodeForeign       = "STO-017"
	CodeMultipath     = "STO-018"
	CodeOverwrite     = "STO-019"
	CodePreserve      = "STO-020"
	CodeErase         = "STO-021"
	CodeNotErased     = "STO-022"
	CodeKept          = "STO-023"
	CodeAssemble      = "STO-025"
	CodeLost          = "STO-026"
	CodeLUKSParameter = "LUK-001"
	CodeLUKSKey       = "LUK-002"
	CodeLUKSMemory    = "LUK-003"
	CodeLUKSDevice    = "LUK-004"
	CodeLUKSBusy      = "LUK-005"
	CodeLUKS          = "LUK-006"
	CodeKeyMemory     = "LUK-007"
	CodeTPM           = "LUK-008"
	CodePCR           = "LUK-009"
	CodeSealed        = "LUK-010"
	CodeToken         = "LUK-011"
	CodeProof         = "LUK-012"
	CodeRecipient     = "LUK-013"
)

// Error is an error about disks or encryption with its stable code.
type Error struct {
	ID   string // one of the Code constants
	Text string // what happened, lower case; several lines when several things did
	Err  error  // the cause, may be nil
}

// Errorf makes an [Error]; as with [fmt.Errorf], an error given for %w is its
// cause.
func Errorf(code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{ID: code, Text: err.Error()}
	if _, one := err.(interface{ Unwrap() error }); one {
		e.Err = err
	} else if _, many := err.(interface{ Unwrap() []error }); many {
		e.Err = err
	}
	return e
}

// Error is the text without the code.
func (e *Error) Error() string { return e.Text }

// Code is the stable code, as in docs/errors.md.
func (e *Error) Code() string { return e.ID }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }
