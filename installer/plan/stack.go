package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/storage"
)

// checkStack compares arrays and volume groups with what the new OS can do with
// them.
func (d *decision) checkStack(layout storage.Layout) {
	for _, need := range []struct {
		there         bool
		program, what string
		pkg           string
	}{
		{len(layout.Arrays) > 0, "mdadm", "a RAID", "mdadm"},
		{len(layout.Groups) > 0, "lvm", "a volume group", "lvm2"},
	} {
		if need.there && !hasProgram(d.image.Manifest, need.program) {
			d.refuse(CodeNoAssembler, "the layout wants %s, and image %s has no %s to find it with: install %s in the image, or change the layout", need.what, d.image.Name, need.program, need.pkg)
		}
	}
	d.checkKernel(layout)
}

// checkKernel compares the layout with the file systems and drivers of the
// image's kernel. An image that was added before these were noted has no such
// attribute; nothing is known then.
func (d *decision) checkKernel(layout storage.Layout) {
	attribute, known := d.image.Manifest.Attributes[image.AttrKernelModules]
	if !known {
		return
	}
	has := strings.Split(attribute, ",")
	var lacks []string
	need := func(module string) {
		if !slices.Contains(has, module) && !slices.Contains(lacks, module) {
			lacks = append(lacks, module)
		}
	}
	for _, v := range layout.Volumes() {
		if v.Partition.FileSystem != storage.Swap {
			need(v.Partition.FileSystem)
		}
		if v.Partition.LUKS != nil {
			need("dm-crypt")
		}
	}
	for _, a := range layout.Arrays {
		need(fmt.Sprint("raid", a.Level))
	}
	if len(layout.Groups) > 0 {
		need("dm-mod")
	}
	if len(lacks) > 0 {
		d.refuse(CodeKernel, "the layout needs %s, and the kernel of image %s has no such module: change the layout, or the image's kernel", strings.Join(lacks, ", "), d.image.Name)
	}
}

// rootOptions are the kernel's words by which the initrd finds the root file
// system.
func (d *decision) rootOptions(layout storage.Layout) []string {
	options := layout.RootOptions()
	if d.image.Manifest.Attributes[image.AttrInitramfs] != boot.Dracut {
		return options
	}
	// dracut assembles only what it is told to (dracut.cmdline(7)). Not by rd.auto:
	// that would also open every encrypted volume that it meets, by another name,
	// and ask for its passphrase.
	needed := func(p storage.Partition) bool { return p.MountPoint == "/" || p.MountPoint == "/usr" }
	below := make(map[string]bool) // devices that these lie on
	for _, g := range layout.Groups {
		if slices.ContainsFunc(g.Volumes, func(v storage.LogicalVolume) bool { return needed(v.Volume) }) {
			options = append(options, "rd.lvm.vg="+g.Name)
			below[g.Device] = true
		}
	}
	for _, a := range layout.Arrays {
		if needed(a.Volume) || below[a.Node] {
			options = append(options, "rd.md.uuid="+a.UUID)
		}
	}
	return options
}

// checkESP sees to it that kernels fit where the boot loader wants them: on the
// EFI system partition, the next one beside this one.
func (d *decision) checkESP(layout storage.Layout, choice boot.Choice) {
	uefi := choice.UEFI()
	if uefi != boot.SystemdBoot && uefi != boot.EFIStub {
		return
	}
	var need uint64
	for _, file := range []string{choice.Kernel, choice.Initrd} {
		if e, ok := d.image.Manifest.Resolve(file); ok {
			need += e.Size
		}
	}
	for _, v := range layout.Mounts() {
		if v.MountPoint() == storage.ESPMountPoint && v.Partition.Bytes < 2*need+16*storage.MiB {
			d.refuse(CodeESP, "%s keeps kernels on the EFI system partition, which has %s: two kernels with their initrds take %s. Give %s its own MinimumBytes in BootDriveLayout",
				uefi, storage.Bytes(v.Partition.Bytes), storage.Bytes(2*need), storage.ESPMountPoint)
		}
	}
	if uefi == boot.EFIStub {
		d.warn("the image has no boot loader for UEFI: the firmware starts the kernel itself, from a copy on the EFI system partition. Nothing in the new OS renews that copy when a kernel is installed")
	}
}

// members says of each device of the layout in what it lies: node → "RAID root".
func members(layout storage.Layout) map[string]string {
	lies := make(map[string]string)
	for _, a := range layout.Arrays {
		for _, m := range a.Members {
			lies[m] = fmt.Sprintf("RAID %d %s", a.Level, a.Name)
		}
	}
	for _, g := range layout.Groups {
		lies[g.Device] = "volume group " + g.Name
	}
	return lies
}

// stack writes what lies on several disks, or in a volume group.
func (p Plan) stack(t *text) {
	lies := members(p.Layout)
	for _, a := range p.Layout.Arrays {
		t.line("", fmt.Sprintf("RAID %d %s of %s", a.Level, a.Name, strings.Join(a.Members, " ")))
		t.made(a.Node[len("/dev/"):], a.Bytes, a.Volume, lies[a.Node])
	}
	for _, g := range p.Layout.Groups {
		t.line("", fmt.Sprintf("volume group %s on %s", g.Name, g.Device))
		for _, v := range g.Volumes {
			t.made(v.Name, v.Volume.Bytes, v.Volume, "")
		}
	}
	if len(p.Layout.Arrays)+len(p.Layout.Groups) > 0 {
		t.line("", "")
	}
}

// made writes what is made in a device, or in what it lies.
func (t *text) made(name string, bytes uint64, p storage.Partition, lies string) {
	fileSystem, where := p.FileSystem, p.MountPoint
	switch {
	case lies != "":
		fileSystem, where = "-", lies
	case fileSystem == "":
		fileSystem, where = "-", "(boot loader)"
	}
	if p.LUKS != nil {
		fileSystem += ", encrypted"
	}
	head := "new: "
	if p.Kept {
		head = "KEPT:"
	}
	sectors := ""
	if p.LastSector > 0 {
		sectors = fmt.Sprintf("%d-%d", p.FirstSector, p.LastSector)
	}
	t.line("  ", fmt.Sprintf("%s %-9s %21s %9s  %-15s %s", head, name, sectors, storage.Bytes(bytes), fileSystem, where))
	for _, s := range p.Subvolumes {
		t.line("  ", fmt.Sprintf("      %-9s %21s %9s  %-15s %s", "", "", "", "subvolume "+s.Name, s.MountPoint))
	}
}
