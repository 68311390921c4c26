package plan

import (
	"cmp"
	"fmt"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/storage"
)

// Memory that an installation needs besides what it stages, in bytes. The first
// is for the installer itself with its decoders, cryptsetup and mkfs, and the
// pages on their way to the disks; the second for each entry of the manifest.
const (
	workingBytes  = 160 << 20
	bytesPerEntry = 1 << 10
	pageBytes     = 4 << 10
)

// What the stage takes beside the objects: the frame of each, and room for what
// arrives damaged and is fetched again.
const (
	frameBytes = 64
	stageSlack = 16 << 20
)

// streamingBytes is what writing an image while it comes takes besides: what the
// server sends ahead, and what is being unpacked.
const streamingBytes = 48 << 20

// decideMemory says how much is held in memory before a disk is touched: all
// objects, or with LowMemory what fits.
func (d *decision) decideMemory() {
	p := &d.plan
	tools := newCount()
	if d.tools != nil {
		tools.add(d.image.toolsImage())
	}
	// The image first: of an object that both have, its server knows the size.
	count := newCount()
	count.add(d.image)
	if d.image.Tools != nil {
		count.add(*d.image.Tools)
	}
	p.FetchObjects, p.FetchBytes = count.objects, count.bytes

	working := d.workingMemory()
	p.MemoryHave = cmp.Or(d.machine.MemoryAvailableBytes, d.machine.MemoryBytes)
	p.StageBytes = count.stage()
	p.MemoryNeed = roundUp(working+p.StageBytes, 1<<20)
	if p.MemoryNeed <= p.MemoryHave {
		return
	}
	// What custom programmes run from is unpacked before a disk is touched.
	least := uint64(0)
	if d.tools != nil {
		least = tools.stage()
	}
	low := roundUp(working+streamingBytes+least, 1<<20)
	if d.config.Install.LowMemory && low <= p.MemoryHave {
		p.LowMemory = true
		p.StageBytes = least + (p.MemoryHave-low)>>20<<20
		p.MemoryNeed = low + p.StageBytes - least
		d.warn("the memory cannot hold the image: most of it is fetched and written after the disks have been erased. If the image server is away for long then, the machine is left without a system")
		return
	}
	remedy := fmt.Sprintf("Give the machine more memory, make the image smaller, or set \"LowMemory\": true in Install of config.json: then %s are enough, and most of the image is fetched after the disks have been erased", storage.Bytes(low))
	switch {
	case d.config.Install.LowMemory:
		remedy = fmt.Sprintf("With LowMemory it still needs %s. Give the machine more memory", storage.Bytes(low))
	case low > p.MemoryHave:
		remedy = fmt.Sprintf("Give the machine more memory, or make the image smaller. Install.LowMemory would not help: it needs %s", storage.Bytes(low))
	}
	d.refuse(CodeMemory, "the installation needs %s of memory and %s are free: %s hold the image's objects. %s",
		storage.Bytes(p.MemoryNeed), storage.Bytes(p.MemoryHave), storage.Bytes(p.StageBytes), remedy)
}

// workingMemory is what the installation needs besides what it stages, in bytes.
func (d *decision) workingMemory() uint64 {
	need := uint64(workingBytes) + uint64(len(d.image.Manifest.Entries))*bytesPerEntry
	if d.plan.HandOver == Kexec {
		for _, file := range []string{d.plan.Boot.Kernel, d.plan.Boot.Initrd} {
			if e, ok := d.image.Manifest.Resolve(file); ok {
				need += 2 * e.Size // in the page cache, and where the next kernel will find it
			}
		}
	}
	if d.tools != nil {
		for i := range d.tools.Entries {
			if e := &d.tools.Entries[i]; e.Type != image.Hardlink {
				need += roundUp(e.Size, pageBytes) + bytesPerEntry
			}
		}
	}
	return need
}

// toolsImage is what is unpacked to memory, if something is.
func (i Image) toolsImage() Image {
	if i.Tools != nil {
		return *i.Tools
	}
	return i
}

// count adds up distinct objects.
type count struct {
	seen    map[object.Digest]bool
	objects int
	bytes   uint64 // as they travel
	staged  uint64
	largest uint64
}

func newCount() *count { return &count{seen: map[object.Digest]bool{}} }

func (c *count) add(img Image) {
	for _, o := range img.Manifest.Objects() {
		if c.seen[o.Digest] {
			continue
		}
		c.seen[o.Digest] = true
		stored, known := img.Stored[o.Digest]
		if !known || stored > o.Size {
			stored = o.Size // never sent larger than it is
		}
		c.objects++
		c.bytes += stored
		// What is found on an old disk is compressed here, not by the server.
		c.staged += min(o.Size, stored+stored/16) + frameBytes
		c.largest = max(c.largest, stored)
	}
}

// stage bounds the tmpfs that holds all of them, in bytes.
func (c *count) stage() uint64 { return roundUp(c.staged+c.largest+stageSlack, 1<<20) }

func roundUp(n, unit uint64) uint64 { return (n + unit - 1) / unit * unit }
