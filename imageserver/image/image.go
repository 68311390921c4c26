// Package image describes an operating-system image: the tree of its inodes
// and what is known of it, without the content of its files.
//
// A manifest names each file's content by the digest of an object. Its
// encoding (see Encode) is deterministic, so the digest of the encoded bytes
// names the whole image. The package reads and writes bytes only; it never
// touches a file-system, and it never trusts what it decodes.
package image

import (
	"github.com/firstlight/firstlight/imageserver/object"
)

// Attributes that ingest computes once, so that nobody later needs to read
// file contents to decide something. A missing attribute means "not found in
// this image". Lists are joined with commas.
const (
	// AttrArch is the architecture as Go names it: amd64, arm64, …
	AttrArch = "arch"
	// AttrOSID is ID of os-release(5), for example debian.
	AttrOSID = "os-release.id"
	// AttrOSVersion is VERSION_ID of os-release(5).
	AttrOSVersion = "os-release.version_id"
	// AttrOSName is PRETTY_NAME of os-release(5).
	AttrOSName = "os-release.pretty_name"
	// AttrKernel is the path of the newest kernel, without a leading slash.
	AttrKernel = "kernel"
	// AttrKernelVersion is that kernel's version, the name of its directory
	// below lib/modules.
	AttrKernelVersion = "kernel.version"
	// AttrInitrd is the path of that kernel's initrd.
	AttrInitrd = "initrd"
	// AttrKernelModules lists those of ext4, xfs, btrfs, vfat, dm-mod, dm-crypt,
	// raid0, raid1 and raid10 that this kernel has, built in or as modules.
	AttrKernelModules = "kernel.modules"
	// AttrKernelNetwork lists those of 8021q, bonding and bridge that this
	// kernel has; it is missing where nothing is known of its modules.
	AttrKernelNetwork = "kernel.network"
	// AttrBootloaders lists what can be installed from the image:
	// grub-pc, grub-efi, systemd-boot, shim; shim-grub where the vendor's shim
	// and GRUB lie in boot/efi.
	AttrBootloaders = "bootloaders"
	// AttrNetwork lists network stacks, enabled ones first: ifupdown,
	// networkd, netplan, networkmanager.
	AttrNetwork = "network"
	// AttrNetworkEnabled lists those of AttrNetwork that start with the
	// system, in the same order.
	AttrNetworkEnabled = "network.enabled"
	// AttrResolver is "resolved" where systemd-resolved is enabled and owns
	// /etc/resolv.conf.
	AttrResolver = "resolver"
	// AttrCloudInit is the path of the cloud-init program, which writes a
	// network configuration of its own unless it is told not to.
	AttrCloudInit = "cloud-init"
	// AttrInitramfs is the program that makes initrds: initramfs-tools,
	// dracut, mkinitcpio.
	AttrInitramfs = "initramfs"
	// AttrKernelOptions are the image's own words for the kernel's command line:
	// those of /etc/kernel/cmdline, else of /etc/default/grub.
	AttrKernelOptions = "kernel.options"
	// AttrUnlock lists how an initrd of this image can open a LUKS volume:
	// passphrase, keyfile, tpm2, clevis.
	AttrUnlock = "initramfs.unlock"
	// AttrInitrdUnlock lists how the initrd of AttrInitrd itself opens a LUKS
	// volume that the kernel's command line names: passphrase, tpm2.
	AttrInitrdUnlock = "initrd.unlock"
	// AttrCryptsetup is the path of the cryptsetup program.
	AttrCryptsetup = "cryptsetup"
	// AttrPackages is the digest of the sorted list of "name version
	// architecture" lines of the package database. The list itself is an
	// object of that digest.
	AttrPackages = "packages"
	// AttrPackageCount is the number of lines of that list.
	AttrPackageCount = "packages.count"
	// AttrPackageDatabase lists what the packages were read from: dpkg, apk,
	// pacman, rpm; "rpm (not read)" is one in a form that is not read.
	AttrPackageDatabase = "packages.database"
	// AttrFileSystems lists the file-systems that the image can make or
	// check (mkfs.X or fsck.X is there).
	AttrFileSystems = "filesystems"
)

// Manifest is an image without its objects.
type Manifest struct {
	// Attributes say what ingest found out about the image.
	Attributes map[string]string
	// Entries are sorted by Compare: the root "." first, then by the bytes
	// of the path, so that a directory stands before what is in it.
	Entries []Entry
}

// Type is the type of an inode. The numbers are part of the encoding.
type Type uint8

// The types of inodes. Hardlink is a further name of an earlier entry.
const (
	File Type = iota
	Dir
	Symlink
	Hardlink
	CharDevice
	BlockDevice
	FIFO
	Socket
)

// Entry is one name in the tree. For a Hardlink only Path and Target are set:
// everything else is that of the target's entry.
type Entry struct {
	// Path is relative, without a leading slash, in raw bytes; "." is the
	// root.
	Path string
	Type Type
	// Mode holds the permission, set-id and sticky bits: 07777.
	Mode     uint32
	UID, GID uint32
	// Seconds and Nanoseconds are the time of modification since the epoch.
	Seconds     int64
	Nanoseconds uint32
	// Size is the number of bytes of a File.
	Size uint64
	// Digest names the content of a File; it is zero if Size is 0.
	Digest object.Digest
	// Target is the text of a Symlink, or the path of the entry that a
	// Hardlink is another name of. That entry stands earlier.
	Target string
	// Major and Minor number a device.
	Major, Minor uint32
	// Xattrs are sorted by name, without duplicates.
	Xattrs []Xattr
}

// Xattr is an extended attribute (xattr(7)), for example
// security.capability, system.posix_acl_access or user.mime_type. The value
// is the kernel's bytes.
type Xattr struct {
	Name  string
	Value []byte
}

// Object is one object that an image needs.
type Object struct {
	Digest object.Digest
	// Size is the number of unpacked bytes.
	Size uint64
}

// Error is an error with a stable code, explained in docs/errors.md.
type Error struct {
	code, text string
}

// Error returns the message without its code.
func (e *Error) Error() string { return e.text }

// Code returns the stable code, for example "IMG-005".
func (e *Error) Code() string { return e.code }

var (
	// ErrMalformed (IMG-005): bytes are no manifest, or one that breaks its
	// own rules.
	ErrMalformed = &Error{"IMG-005", "not a valid manifest"}
	// ErrFormat (IMG-006): a manifest has a format that is newer than this
	// program.
	ErrFormat = &Error{"IMG-006", "manifest has a newer format than this program reads"}
)
