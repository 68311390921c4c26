package inventory

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/storage"
)

// disks are all block devices that have something to them: a loop or network
// block device that nothing is attached to is none, and memory is no disk.
func (r *reader) disks() []storage.Disk {
	var disks []storage.Disk
	for _, name := range r.entries("block") {
		if hidden(name) {
			continue
		}
		d := r.disk(name)
		if d.Size == 0 && unattached(name) {
			continue
		}
		disks = append(disks, d)
	}
	return disks
}

// hidden are block devices in memory, and the single ways to an NVMe disk that
// has several of them: the disk itself is there too.
func hidden(name string) bool {
	return strings.HasPrefix(name, "ram") || strings.HasPrefix(name, "zram") || pathName.MatchString(name)
}

var pathName = regexp.MustCompile(`^nvme\d+c\d+n\d+$`)

// unattached says that a device of this name exists before anything is behind
// it.
func unattached(name string) bool {
	for _, prefix := range []string{"loop", "nbd", "md", "dm-", "fd"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func (r *reader) disk(name string) storage.Disk {
	dir := "block/" + name
	d := storage.Disk{
		Name: name,
		Path: "/dev/" + strings.ReplaceAll(name, "!", "/"), // sysfs: cciss!c0d0
		// The kernel counts in units of 512 bytes whatever the sector size
		// (Documentation/ABI/stable/sysfs-block).
		Size:               r.number(dir+"/size") * 512,
		SectorSize:         uint32(r.number(dir + "/queue/logical_block_size")),
		PhysicalSectorSize: uint32(r.number(dir + "/queue/physical_block_size")),
		OptimalIOSize:      uint32(r.number(dir + "/queue/optimal_io_size")),
		Rotational:         r.number(dir+"/queue/rotational") == 1,
		ReadOnly:           r.number(dir+"/ro") == 1,
		Removable:          r.number(dir+"/removable") == 1,
		Discards:           r.number(dir+"/queue/discard_max_bytes") > 0,
	}
	if where := r.device(dir); where != "" {
		d.BusPath = r.throughController(strings.TrimSuffix(strings.TrimSuffix(where, "/"+name), "/block"), name)
		d.Transport = transport(d.BusPath)
		d.ByPath = r.byPath(d.BusPath, name)
	}
	d.Model = r.text(dir + "/device/model")
	if d.Model == "" && strings.HasPrefix(name, "mmcblk") {
		d.Model = r.text(dir + "/device/name")
	}
	// SCSI splits the name; for ATA the vendor is just that, "ATA". Of virtio it
	// is a number.
	if vendor := r.text(dir + "/device/vendor"); d.Model != "" && vendor != "" && vendor != "ATA" && !strings.HasPrefix(vendor, "0x") {
		d.Model = vendor + " " + d.Model
	}
	d.Serial = r.firstOf(dir+"/serial", dir+"/device/serial")
	if d.Serial == "" {
		d.Serial = unitSerial(r.bytes(dir + "/device/vpd_pg80"))
	}
	if junk(d.Serial) {
		d.Serial = ""
	}
	d.WWN = r.firstOf(dir+"/wwid", dir+"/device/wwid")
	if _, number, _ := strings.Cut(d.WWN, "."); junk(number) {
		d.WWN = ""
	}
	return d
}

// throughController is where an NVMe disk with several ways to it is plugged in.
// sysfs shows such a disk below virtual/nvme-subsystem, where nothing tells its
// place: the place is that of its first controller. Other disks keep theirs.
func (r *reader) throughController(where, name string) string {
	if !strings.HasPrefix(where, "virtual/nvme-subsystem/") {
		return where
	}
	var places []string
	for _, entry := range r.entries("devices/" + where) {
		if controllerName.MatchString(entry) {
			if place := r.device("devices/" + where + "/" + entry); place != "" {
				places = append(places, place)
			}
		}
	}
	if len(places) == 0 {
		return where
	}
	slices.Sort(places)
	return places[0]
}

var controllerName = regexp.MustCompile(`^nvme\d+$`)

// firstOf is the first attribute that says something. Of disks that have no such
// number the kernel fails to read it.
func (r *reader) firstOf(names ...string) string {
	quiet := &reader{sys: r.sys}
	for _, name := range names {
		if text := quiet.text(name); text != "" {
			return text
		}
	}
	return ""
}

// unitSerial is the serial number of SCSI's vital product data page 0x80
// (SPC-4, 7.8.15): four bytes of head, the last two of them the length.
func unitSerial(page []byte) string {
	if len(page) < 4 || page[1] != 0x80 {
		return ""
	}
	length := int(page[2])<<8 | int(page[3])
	serial := page[4:]
	if length < len(serial) {
		serial = serial[:length]
	}
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return -1
		}
		return c
	}, string(serial)))
}

// transports are found as path elements of a device; the first that matches
// counts: a USB disk is also a SCSI host's.
var transports = []struct {
	element *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`^usb\d+$`), "usb"},
	{regexp.MustCompile(`^session\d+$`), "iscsi"},
	{regexp.MustCompile(`^rport-`), "fc"},
	{regexp.MustCompile(`^(end_device-|sas_)`), "sas"},
	{regexp.MustCompile(`^ata\d+$`), "sata"},
	{regexp.MustCompile(`^(nvme\d+|nvme-subsystem)$`), "nvme"},
	{regexp.MustCompile(`^mmc\d+$`), "mmc"},
	{regexp.MustCompile(`^virtio\d+$`), "virtio"},
	{regexp.MustCompile(`^vbd-\d+$`), "xen"},
	{regexp.MustCompile(`^(VMBUS:|vmbus_)`), "hyperv"},
	{regexp.MustCompile(`^host\d+$`), "scsi"},
}

func transport(busPath string) string {
	elements := strings.Split(busPath, "/")
	for _, t := range transports {
		if slices.ContainsFunc(elements, t.element.MatchString) {
			return t.name
		}
	}
	return ""
}

// byPath is the name that udev gives the disk below /dev/disk/by-path
// (systemd, udev-builtin-path_id.c), empty for a disk to which it gives none.
func (r *reader) byPath(busPath, name string) string {
	elements := strings.Split(busPath, "/")
	at := slices.IndexFunc(elements, func(e string) bool { return strings.HasPrefix(e, "host") })
	var place string
	for i := len(elements) - 1; i >= 0 && place == ""; i-- {
		switch e := elements[i]; {
		case pciAddress.MatchString(e):
			place = "pci-" + e
		case strings.HasPrefix(e, "vbd-"):
			place = "xen-" + e
		case i > 0 && elements[i-1] == "platform":
			place = "platform-" + e
		}
	}
	if place == "" {
		return ""
	}
	if usb := slices.IndexFunc(elements, usbInterface.MatchString); usb >= 0 {
		// 1-4.2:1.0 is port 4.2, configuration 1, interface 0; the bus's number
		// may change and counts as 0.
		_, port, _ := strings.Cut(elements[usb], "-")
		place += "-usb-0:" + port
	}
	switch {
	case strings.HasPrefix(name, "nvme"):
		if id := r.text("block/" + name + "/nsid"); id != "" {
			return place + "-nvme-" + id
		}
		return place
	case at < 0 || at+1 >= len(elements):
		return place // virtio, Xen, an SD card: one disk a device
	}
	address := strings.Split(elements[len(elements)-1], ":")
	if len(address) != 4 {
		return ""
	}
	host, target, lun := elements[at], address[1:3], address[3]
	switch transport(busPath) {
	case "sata":
		port := r.text(fmt.Sprintf("devices/%s/ata_port/%s/port_no", strings.Join(elements[:at], "/"), elements[at-1]))
		if port == "" {
			return ""
		}
		return place + "-ata-" + port
	case "sas":
		end := slices.IndexFunc(elements, func(e string) bool { return strings.HasPrefix(e, "end_device-") })
		if end < 0 {
			return ""
		}
		device := "devices/" + strings.Join(elements[:end+1], "/") + "/sas_device/" + elements[end]
		phy, sas := r.text(device+"/phy_identifier"), r.text(device+"/sas_address")
		if strings.Count(elements[end], ":") > 1 && sas != "" { // behind an expander
			return fmt.Sprintf("%s-sas-%s-lun-%s", place, sas, lun)
		}
		if phy == "" {
			return ""
		}
		return fmt.Sprintf("%s-sas-phy%s-lun-%s", place, phy, lun)
	case "iscsi", "fc":
		return "" // their places are in the network, not on a bus
	}
	return fmt.Sprintf("%s-scsi-%d:%s:%s", place, r.hostNumber(elements[:at], host), strings.Join(target, ":"), lun)
}

var usbInterface = regexp.MustCompile(`^\d+-[0-9.]+:\d+\.\d+$`)

// hostNumber counts the SCSI hosts of one controller from 0: the kernel's own
// numbers depend on which driver was faster.
func (r *reader) hostNumber(above []string, host string) int {
	var number, least int
	_, _ = fmt.Sscanf(host, "host%d", &number) // the caller found it by its prefix
	least = number
	for _, entry := range r.entries("devices/" + strings.Join(above, "/")) {
		var n int
		if _, err := fmt.Sscanf(entry, "host%d", &n); err == nil {
			least = min(least, n)
		}
	}
	return number - least
}

// MarkBootMedium marks the disks that the running system uses: those on which
// something is mounted, and the one from whose partition a boot loader says that
// it was started, unless there is an operating system on it (a system that hands
// over to the installer by kexec leaves its own loader's word behind). mounted
// are the numbers ("8:1") or nodes of devices.
func (d *Document) MarkBootMedium(sys fs.FS, mounted []string) {
	r := &reader{sys: sys}
	used := make(map[string]bool)
	for _, device := range mounted {
		r.underlying(device, used, 0)
	}
	started := r.loaderPartition()
	for i := range d.Disks {
		disk := &d.Disks[i]
		from := slices.ContainsFunc(disk.Contents, func(c storage.Content) bool {
			return c.Kind == storage.KindPartition && started != "" && strings.EqualFold(c.UUID, started)
		})
		system := slices.ContainsFunc(disk.Contents, func(c storage.Content) bool {
			return !slices.Contains([]string{"gpt", "mbr", storage.KindPartition, storage.VFAT, "iso9660"}, c.Kind)
		})
		disk.BootMedium = used[disk.Name] || from && !system
	}
}

// loaderPartition is the UUID of the partition from which systemd-boot, or the
// stub of a unified kernel image, was loaded (the Boot Loader Interface); empty
// where none says so. The variable has four bytes of attributes, then UTF-16.
func (r *reader) loaderPartition() string {
	data := r.bytes("firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
	if len(data) < 4 {
		return ""
	}
	var id strings.Builder
	for i := 4; i+1 < len(data); i += 2 {
		if data[i] == 0 || data[i] > '~' || data[i+1] != 0 {
			break
		}
		id.WriteByte(data[i])
	}
	return id.String()
}

// underlying adds the disks that a device is made of.
func (r *reader) underlying(device string, used map[string]bool, depth int) {
	const deepest = 16
	var where string
	if name, ok := strings.CutPrefix(device, "/dev/"); ok {
		where = r.device("class/block/" + path.Base(name))
	} else {
		where = r.device("dev/block/" + device)
	}
	if where == "" || depth > deepest {
		return
	}
	// A partition lies in the directory of its disk.
	if r.exists("devices/" + where + "/partition") {
		where = path.Dir(where)
	}
	name := path.Base(where)
	used[name] = true
	for _, below := range r.entries("devices/" + where + "/slaves") {
		r.underlying("/dev/"+below, used, depth+1)
	}
}
