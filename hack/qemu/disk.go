package qemu

import (
	"encoding/json"
	"fmt"
)

// Bus is how a disk is connected to a machine.
type Bus string

// The buses. Disks on SCSI and AHCI are numbered in order, as sda, sdb …;
// those on NVMe are nvme0n1, nvme1n1 …
const (
	Virtio Bus = "virtio" // virtio-blk, /dev/vda …; the default
	NVMe   Bus = "nvme"
	SCSI   Bus = "scsi" // virtio-scsi
	AHCI   Bus = "ahci"
	USB    Bus = "usb" // usb-storage
)

// Disk is a disk in a file.
type Disk struct {
	Path   string
	Format string // "raw" (default) or "qcow2"
	Serial string // at most 20 bytes
	Bus    Bus    // "" is Virtio
	// SectorSize is that of a logical and physical sector in bytes, 512 by
	// default. AHCI has none but that.
	SectorSize int
	// BytesPerSecond is the most that it reads and writes; 0 is no limit.
	BytesPerSecond int64
	// WriteLog is a file that gets everything the machine writes to the disk,
	// in order and with its flushes, in the format of dm-log-writes; package
	// writelog reads it.
	WriteLog string
	// Faults are sectors of 512 bytes that cannot be written.
	Faults []Fault
	// Properties are further properties of the QEMU device, as name=value.
	Properties []string
}

// Fault is a sector on which writing fails.
type Fault struct {
	Sector int64 // of 512 bytes
	Errno  int   // as the host numbers them: 5 is EIO, 28 ENOSPC
}

// name of the n-th disk's device and topmost block node.
func diskName(n int) string { return fmt.Sprintf("disk%d", n) }

// arguments are those that make the n-th disk of a machine, with its place in
// the order in which the firmware tries them.
func (d Disk) arguments(n, bootIndex int) ([]string, error) {
	if len(d.Serial) > 20 {
		return nil, fmt.Errorf("the serial number %q of a disk may have at most 20 bytes", d.Serial)
	}
	nodes, objects, err := d.nodes(diskName(n))
	if err != nil {
		return nil, err
	}
	device, controller, err := d.device(n)
	if err != nil {
		return nil, err
	}
	device += fmt.Sprintf(",drive=%s,id=%s,bootindex=%d", diskName(n), diskName(n), bootIndex)
	if d.Serial != "" {
		device += ",serial=" + escape(d.Serial)
	}
	if d.SectorSize != 0 && d.SectorSize != 512 {
		device += fmt.Sprintf(",logical_block_size=%d,physical_block_size=%d", d.SectorSize, d.SectorSize)
	}
	if len(d.Faults) > 0 {
		// Where it is full QEMU would hold the machine, for a person to help.
		device += ",werror=report"
	}
	for _, p := range d.Properties {
		device += "," + p
	}
	var args []string
	for _, o := range objects {
		args = append(args, "-object", o)
	}
	for _, node := range nodes {
		args = append(args, "-blockdev", node)
	}
	if controller != "" {
		args = append(args, "-device", controller)
	}
	return append(args, "-device", device), nil
}

// device is the beginning of the argument that makes the device, and the
// controller that it needs of its own, if any.
func (d Disk) device(n int) (device, controller string, err error) {
	switch d.Bus {
	case Virtio, "":
		return "virtio-blk-pci", "", nil
	case NVMe:
		return "nvme", "", nil
	case SCSI:
		return fmt.Sprintf("scsi-hd,bus=scsi%d.0", n), fmt.Sprintf("virtio-scsi-pci,id=scsi%d", n), nil
	case AHCI:
		return fmt.Sprintf("ide-hd,bus=ahci%d.0", n), fmt.Sprintf("ich9-ahci,id=ahci%d", n), nil
	case USB:
		return fmt.Sprintf("usb-storage,bus=usb%d.0", n), fmt.Sprintf("qemu-xhci,id=usb%d", n), nil
	}
	return "", "", fmt.Errorf("a disk on %q: there is no such bus here", d.Bus)
}

// nodes are the disk's block nodes from the file up; the last one has the name
// that is given. objects are what they need.
func (d Disk) nodes(name string) (nodes, objects []string, err error) {
	type node = map[string]any
	// The host's page cache is as good as a disk here, unless the host itself
	// dies; waiting for its real disk would only cost time. A log of writes
	// has to see the flushes, so only the file itself ignores them.
	unsafe := node{"direct": false, "no-flush": true}
	format := d.Format
	if format == "" {
		format = "raw"
	}
	chain := []node{
		{"driver": "file", "filename": d.Path, "cache": unsafe, "discard": "unmap"},
		{"driver": format, "discard": "unmap"},
	}
	if len(d.Faults) > 0 {
		var rules []node
		for _, f := range d.Faults {
			rules = append(rules, node{"event": "none", "iotype": "write", "sector": f.Sector, "errno": f.Errno})
		}
		chain = append(chain, node{"driver": "blkdebug", "inject-error": rules, "discard": "unmap"})
	}
	if d.BytesPerSecond != 0 {
		group := name + "-limit"
		objects = append(objects, fmt.Sprintf("throttle-group,id=%s,x-bps-total=%d", group, d.BytesPerSecond))
		chain = append(chain, node{"driver": "throttle", "throttle-group": group, "discard": "unmap"})
	}
	if d.WriteLog != "" {
		chain = append(chain, node{"driver": "blklogwrites", "discard": "unmap", "log-super-update-interval": 1,
			"log": node{"driver": "file", "filename": d.WriteLog, "cache": unsafe}})
	}
	below := ""
	for n, part := range chain {
		part["node-name"] = name
		if n < len(chain)-1 {
			part["node-name"] = fmt.Sprintf("%s-%d", name, n)
		}
		switch {
		case below == "":
		case part["driver"] == "blkdebug":
			part["image"] = below
		default:
			part["file"] = below
		}
		below = part["node-name"].(string)
		encoded, err := json.Marshal(part)
		if err != nil {
			return nil, nil, fmt.Errorf("describing a disk: %w", err)
		}
		nodes = append(nodes, string(encoded))
	}
	return nodes, objects, nil
}
