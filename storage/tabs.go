package storage

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// Mounts are the volumes with a mount point, each after those that it lies
// below; / is the first.
func (l Layout) Mounts() []Volume {
	var volumes []Volume
	for _, v := range l.Volumes() {
		volumes = append(volumes, v.Mounts()...)
	}
	slices.SortStableFunc(volumes, func(a, b Volume) int {
		return slices.Compare(components(a.MountPoint()), components(b.MountPoint()))
	})
	return volumes
}

// Programs are the names of the programs that making the layout needs, sorted:
// those that make what is new, and those that take down what may be active of the
// old.
func (l Layout) Programs() []string {
	var names []string
	for _, v := range l.Volumes() {
		if v.Partition.FileSystem == Swap {
			names = append(names, "mkswap")
		} else {
			names = append(names, "mkfs."+v.Partition.FileSystem)
		}
		if v.Partition.LUKS != nil {
			names = append(names, "cryptsetup")
		}
	}
	if len(l.Arrays) > 0 {
		names = append(names, "mdadm")
	}
	if len(l.Groups) > 0 {
		names = append(names, "dmsetup")
	}
	for _, d := range l.Disks {
		for _, c := range d.Contents {
			switch c.Kind {
			case "md", "isw-raid", "ddf-raid":
				names = append(names, "mdadm")
			case "lvm", "luks":
				names = append(names, "dmsetup")
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Fstab renders /etc/fstab of the new OS, fstab(5); file systems are named by
// UUID.
func (l Layout) Fstab() []byte {
	var b bytes.Buffer
	b.WriteString("# <file system> <mount point> <type> <options> <dump> <pass>\n")
	for _, v := range l.Mounts() {
		p := v.Partition
		options, pass := "defaults", 2
		switch {
		case p.MountPoint == "/" && p.FileSystem == Ext4:
			options, pass = "errors=remount-ro", 1
		case p.FileSystem == VFAT:
			options = "umask=0077"
		case v.Subvolume != "":
			options = "subvol=" + v.Subvolume
		}
		if p.FileSystem == XFS || p.FileSystem == Btrfs {
			pass = 0 // their fsck.* does nothing at boot
		}
		source := "UUID=" + p.FSUUID
		if p.FSUUID == "" { // of a kept volume, whose container was not open when this was decided
			source = v.Device()
		}
		fmt.Fprintf(&b, "%s %s %s %s 0 %d\n", source, escapeTab(p.MountPoint), p.FileSystem, options, pass)
	}
	for _, v := range l.Volumes() {
		if v.Partition.FileSystem == Swap {
			fmt.Fprintf(&b, "UUID=%s none swap sw 0 0\n", v.Partition.FSUUID)
		}
	}
	return b.Bytes()
}

// Crypttab renders /etc/crypttab of the new OS, crypttab(5); nil when nothing is
// encrypted. A volume that the TPM does not open is asked for at the console.
func (l Layout) Crypttab() []byte {
	var b bytes.Buffer
	for _, v := range l.Encrypted() {
		luks := v.Partition.LUKS
		key, options := "none", "luks"
		switch luks.Unlock {
		case UnlockKeyFile:
			key = luks.KeyFile
		case UnlockTPM2:
			options += ",tpm2-device=auto"
		}
		if v.MountPoint() == "/" {
			options += ",x-initrd.attach"
		}
		fmt.Fprintf(&b, "%s UUID=%s %s %s\n", luks.Mapping, luks.UUID, key, options)
	}
	if b.Len() == 0 {
		return nil
	}
	return append([]byte("# <target> <source> <key file> <options>\n"), b.Bytes()...)
}

// components of a clean absolute path: none for "/".
func components(p string) []string {
	return strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
}

// escapeTab writes white space and backslashes as getmntent(3) reads them.
func escapeTab(s string) string {
	return strings.NewReplacer(`\`, `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(s)
}
