package signature

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/lvm"
)

// probes in the order in which their findings are reported. Each reports what it
// recognises and adds the places that lie beyond the edges of the area.
func probes() []func(area) {
	return []func(area){
		luks, physicalVolume, md, firmwareRAID, zfs, bluestore, swap,
		ext, xfs, btrfs, microsoft, fat, iso9660, others,
	}
}

// ext: fs/ext4/ext4.h, struct ext4_super_block at 1024.
func ext(a area) {
	b := a.bytes(1024, 1024)
	if b == nil || le.Uint16(b[0x38:]) != 0xef53 {
		return
	}
	compat, incompat, ro := le.Uint32(b[0x5c:]), le.Uint32(b[0x60:]), le.Uint32(b[0x64:])
	kind := "ext2"
	switch {
	case incompat&0x8 != 0:
		kind = "jbd"
	case incompat&^0x16 != 0 || ro&^0x7 != 0:
		kind = storage.Ext4
	case compat&0x4 != 0:
		kind = "ext3"
	}
	blocks := uint64(le.Uint32(b[4:]))
	if incompat&0x80 != 0 {
		blocks |= uint64(le.Uint32(b[0x150:])) << 32
	}
	var size uint64
	if shift := le.Uint32(b[0x18:]); shift <= 6 && blocks < 1<<44 {
		size = blocks << (10 + shift)
	}
	a.found(storage.Content{Kind: kind, Label: text(b[0x78:0x88]), UUID: uuid(b[0x68:]), Size: size})
}

// xfs: fs/xfs/libxfs/xfs_format.h, struct xfs_dsb.
func xfs(a area) {
	if b := a.bytes(0, 512); b != nil && string(b[:4]) == "XFSB" {
		a.found(storage.Content{Kind: storage.XFS, Label: text(b[108:120]), UUID: uuid(b[32:])})
	}
}

// btrfs has super blocks at 64 KiB, 64 MiB and 256 GiB. blkid looks at the first
// only, but rescue tools find the others.
func btrfs(a area) {
	for i, at := range []uint64{64 << 10, 64 << 20, 256 << 30} {
		b := a.bytes(at, 4096)
		if b == nil || string(b[0x40:0x48]) != "_BHRfS_M" {
			continue
		}
		a.erase(at, 4096)
		if i == 0 {
			a.found(storage.Content{Kind: storage.Btrfs, Label: text(b[0x12b : 0x12b+256]), UUID: uuid(b[0x20:])})
		}
	}
}

// fat: ECMA-107 and Microsoft's FAT32 specification.
func fat(a area) {
	b := a.bytes(0, 512)
	if b == nil {
		return
	}
	var serial, label []byte
	switch {
	case string(b[0x52:0x57]) == "FAT32":
		serial, label = b[0x43:0x47], b[0x47:0x52]
	case string(b[0x36:0x3b]) == "FAT12", string(b[0x36:0x3b]) == "FAT16", string(b[0x36:0x3b]) == "FAT  ":
		serial, label = b[0x27:0x2b], b[0x2b:0x36]
	default:
		return
	}
	c := storage.Content{Kind: storage.VFAT, Label: text(label)}
	id := le.Uint32(serial)
	c.UUID = fmt.Sprintf("%04X-%04X", id>>16, id&0xffff)
	if c.Label == "NO NAME" {
		c.Label = ""
	}
	if root := a.fatRootLabel(b); root != "" {
		c.Label = root
	}
	a.found(c)
}

// fatRootLabel reads the label from the root directory: that is the one that
// operating systems show and change.
func (a area) fatRootLabel(b []byte) string {
	sector, cluster := uint64(le.Uint16(b[11:])), uint64(b[13])
	reserved, tables := uint64(le.Uint16(b[14:])), uint64(b[16])
	at := (reserved + tables*uint64(le.Uint16(b[22:]))) * sector
	size := uint64(le.Uint16(b[17:])) * 32
	if string(b[0x52:0x57]) == "FAT32" {
		first := uint64(le.Uint32(b[44:]))
		if first < 2 {
			return ""
		}
		at = (reserved + tables*uint64(le.Uint32(b[36:])) + (first-2)*cluster) * sector
		size = cluster * sector
	}
	directory := a.bytes(at, min(size, 64<<10))
	for len(directory) >= 32 && directory[0] != 0 {
		if e := directory[:32]; e[0] != 0xe5 && e[11]&0x3f != 0x0f && e[11]&0x08 != 0 {
			return text(e[:11])
		}
		directory = directory[32:]
	}
	return ""
}

// microsoft: file systems and BitLocker are named in the boot sector.
func microsoft(a area) {
	b := a.bytes(0, 512)
	if b == nil {
		return
	}
	switch string(b[3:11]) {
	case "NTFS    ":
		a.found(storage.Content{Kind: "ntfs", UUID: fmt.Sprintf("%016X", le.Uint64(b[0x48:]))})
	case "EXFAT   ":
		id := le.Uint32(b[100:])
		a.found(storage.Content{Kind: "exfat", UUID: fmt.Sprintf("%04X-%04X", id>>16, id&0xffff)})
	case "-FVE-FS-":
		a.found(storage.Content{Kind: "bitlocker"})
		// The metadata blocks hold the wrapped keys; their places are in the
		// header (libbde's description of the format).
		for _, field := range []int{0xb0, 0xb8, 0xc0} {
			if at := le.Uint64(b[field:]); at > 0 && a.has(at, "-FVE-FS-") {
				a.erase(at, 64<<10)
			}
		}
	case "ReFS\x00\x00\x00\x00":
		a.found(storage.Content{Kind: "refs"})
	}
}

// swap: the last ten bytes of the first page; hibernation replaces them.
func swap(a area) {
	for _, page := range []uint64{4096, 8192, 16384, 65536} {
		b := a.bytes(page-10, 10)
		if b == nil {
			return
		}
		c := storage.Content{}
		switch magic := string(b); {
		case magic == "SWAPSPACE2", magic == "SWAP-SPACE":
			c.Kind = "swap"
		case strings.HasPrefix(magic, "S1SUSPEND"), strings.HasPrefix(magic, "S2SUSPEND"), strings.HasPrefix(magic, "ULSUSPEND"), magic == "LINHIB0001":
			c.Kind = "swsuspend"
		default:
			continue
		}
		if h := a.bytes(1024, 44); h != nil {
			c.UUID, c.Label = uuid(h[12:]), text(h[28:44])
		}
		a.found(c)
		return
	}
}

// luks: "LUKS1 On-Disk Format" and "LUKS2 On-Disk Format", both by Brož. All key
// slots go with the header, so that a passphrase found later opens nothing.
func luks(a area) {
	b := a.bytes(0, 4096)
	second := uint64(0)
	if b == nil || string(b[:6]) != "LUKS\xba\xbe" {
		b = nil
		// The second header of LUKS2 stands where the first one ends: at one of
		// these places (section 2.1).
		for at := uint64(0x4000); at <= 0x400000; at *= 2 {
			if h := a.bytes(at, 4096); h != nil && string(h[:6]) == "SKUL\xba\xbe" {
				b, second = h, at
				break
			}
		}
	}
	if b == nil {
		return
	}
	c := storage.Content{Kind: "luks", UUID: text(b[0xa8 : 0xa8+40])}
	const atMost = 128<<20 + 8<<20 // two headers of 4 MiB and the key slots
	end := uint64(16 << 20)
	if binary.BigEndian.Uint16(b[6:]) == 1 {
		end = min(uint64(binary.BigEndian.Uint32(b[104:]))*512, atMost)
	} else {
		c.Label = text(b[0x18 : 0x18+48])
		if n := binary.BigEndian.Uint64(b[8:]); n >= 16<<10 && n <= 4<<20 {
			end = max(end, min(a.luksData(second, n), atMost))
		}
	}
	if end == 0 {
		end = 2 << 20 // detached data: only the header is here
	}
	a.erase(0, end)
	a.found(c)
}

// luksData is where the data begin according to the metadata of LUKS2.
func (a area) luksData(at, headerSize uint64) uint64 {
	var metadata struct {
		Segments map[string]struct {
			Offset uint64 `json:"offset,string"`
		} `json:"segments"`
	}
	area, _, _ := bytes.Cut(a.bytes(at+4096, headerSize-4096), []byte{0})
	if json.Unmarshal(area, &metadata) != nil || len(metadata.Segments) == 0 {
		return 0
	}
	least := uint64(math.MaxUint64)
	for _, s := range metadata.Segments {
		least = min(least, s.Offset)
	}
	return least
}

// physicalVolume is one of LVM: its label is in one of the first four sectors.
// Where logical volumes begin on it, something may lie in them that is older than
// they are or that comes to light again when they are made anew.
func physicalVolume(a area) {
	for at := uint64(0); at < 4*512; at += 512 {
		b := a.bytes(at, 512)
		if b == nil || string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" {
			continue
		}
		id := text(b[32:64])
		if len(id) == 32 {
			id = strings.Join([]string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}, "-")
		}
		// A volume of which the metadata are damaged is one all the same.
		metadata, _ := lvm.Text(io.NewSectionReader(a.r, int64(a.offset), int64(a.size)), a.size)
		group, volumes, _ := lvm.Volumes(metadata, id)
		a.found(storage.Content{Kind: "lvm", Label: printable(group), UUID: id})
		for _, v := range volumes {
			a.contents = append(a.contents, storage.Content{
				Where: a.where, Kind: "lv", Label: printable(group + "/" + v.Name), UUID: v.UUID,
				Offset: a.offset, Size: min(v.Size, a.size),
			})
			if v.Here && v.Begin < a.size {
				a.within(v.Begin, min(v.Size, a.size-v.Begin))
			}
		}
		return
	}
}

// md: include/uapi/linux/raid/md_p.h. The super block of 1.0 stands 8 KiB from
// the end, that of 0.90 in the last whole 64 KiB but one.
func md(a area) {
	places := []uint64{0, 4096}
	if sectors := a.size / 512; sectors > 16 {
		places = append(places, (sectors-16)&^7*512)
	}
	for _, at := range places {
		b := a.bytes(at, 256)
		if b != nil && le.Uint32(b) == 0xa92b4efc && le.Uint32(b[4:]) == 1 {
			a.erase(at, 4096)
			a.found(storage.Content{Kind: "md", Label: text(b[32:64]), UUID: uuid(b[16:])})
			a.member(le.Uint64(b[128:]), le.Uint64(b[136:]))
			return
		}
	}
	if a.size < 128<<10 {
		return
	}
	at := a.size&^0xffff - 64<<10
	b := a.bytes(at, 4096)
	if b == nil {
		return
	}
	if le.Uint32(b) != 0xa92b4efc && binary.BigEndian.Uint32(b) != 0xa92b4efc {
		return
	}
	a.erase(at, 4096)
	// What lies in a RAID 1 of that format begins where the disk does.
	id := append(append([]byte(nil), b[20:24]...), b[52:64]...)
	a.found(storage.Content{Kind: "md", UUID: uuid(id)})
}

// member looks into the data of a member of a RAID, given in sectors of 512
// bytes. In a mirror, what begins there is what lies in the RAID; in a stripe, a
// part of it is, and key slots of LUKS can be in any of them.
func (a area) member(first, sectors uint64) {
	const keys = 32 << 20
	if first >= a.size/512 {
		return
	}
	begin := first * 512
	size := a.size - begin
	if sectors < size/512 {
		size = sectors * 512
	}
	a.within(begin, size)
	if first > 0 { // the beginning of the area is looked at by itself
		a.erase(begin, min(keys, size))
	}
}

// firmwareRAID keeps its records in the last sectors: Intel's in the last but
// one, those of DDF in the last.
func firmwareRAID(a area) {
	if a.size < 2*a.sector || a.sector == 0 {
		return
	}
	switch {
	case a.has(a.size-2*a.sector, "Intel Raid ISM Cfg Sig. "):
		a.found(storage.Content{Kind: "isw-raid"})
	case a.has(a.size-512, "\xde\x11\xde\x11"):
		a.found(storage.Content{Kind: "ddf-raid"})
	}
}

// zfs has four labels of 256 KiB, two at each end; in each, the second half is a
// ring of uberblocks (ZFS on-disk specification, 1.2).
func zfs(a area) {
	const label = 256 << 10
	end := a.size / label * label
	if end < 4*label {
		return
	}
	for _, at := range []uint64{0, label, end - 2*label, end - label} {
		ring := a.bytes(at+label/2, label/2)
		for i := 0; i+1024 <= len(ring); i += 1024 {
			magic := le.Uint64(ring[i:])
			if magic != 0x00bab10c && magic != 0x0cb1ba0000000000 {
				continue
			}
			pool, id := a.zfsPool(at)
			a.found(storage.Content{Kind: "zfs", Label: pool, UUID: id})
			return
		}
	}
}

// zfsPool reads a pool's name and number from the list of names and values of a
// label, XDR of RFC 4506: each pair begins with its length and the length of
// what it is unpacked, then comes the name.
func (a area) zfsPool(label uint64) (name, id string) {
	const at, size = 16 << 10, 112 << 10
	b := a.bytes(label+at, size)
	if len(b) < 12 {
		return "", ""
	}
	be := binary.BigEndian
	for b = b[12:]; len(b) >= 12; { // encoding and byte order; version and flags
		length := be.Uint32(b)
		if length < 24 || uint64(length) > uint64(len(b)) {
			return name, id
		}
		pair := b[8:length]
		b = b[length:]
		n := int(be.Uint32(pair))
		padded := (n + 3) &^ 3
		if n < 0 || padded+12 > len(pair)-4 {
			return name, id
		}
		key, kind, value := string(pair[4:4+n]), be.Uint32(pair[4+padded:]), pair[12+padded:]
		switch {
		case key == "name" && kind == 9 && len(value) >= 4: // a text
			if n := int(be.Uint32(value)); n >= 0 && n <= len(value)-4 {
				name = printable(string(value[4 : 4+n]))
			}
		case key == "pool_guid" && kind == 8 && len(value) >= 8: // a number of 64 bits
			id = fmt.Sprint(be.Uint64(value))
		}
	}
	return name, id
}

// bluestore: Ceph writes a readable first line.
func bluestore(a area) {
	const line = "bluestore block device\n"
	b := a.bytes(0, 4096)
	if b == nil || !strings.HasPrefix(string(b), line) {
		return
	}
	a.found(storage.Content{Kind: "bluestore", UUID: text(b[len(line) : len(line)+36])})
	// Newer releases keep copies (src/os/bluestore, BDEV_LABEL_POSITIONS).
	for _, gib := range []uint64{1, 10, 100, 1000} {
		if a.has(gib<<30, line) {
			a.erase(gib<<30, 4096)
		}
	}
}

// iso9660: ECMA-119, the primary volume descriptor in sector 16.
func iso9660(a area) {
	b := a.bytes(32<<10, 2048)
	switch {
	case b == nil:
	case string(b[1:6]) == "CD001":
		a.found(storage.Content{Kind: "iso9660", Label: text(b[40:72])})
	case string(b[1:6]) == "BEA01":
		a.found(storage.Content{Kind: "udf"})
	}
}

// others are known by their magic alone.
func others(a area) {
	for _, m := range []struct {
		kind  string
		at    uint64
		magic string
	}{
		{"f2fs", 1024, "\x10\x20\xf5\xf2"},
		{"erofs", 1024, "\xe2\xe1\xf5\xe0"},
		{"hfsplus", 1024, "H+\x00\x04"},
		{"hfsplus", 1024, "HX\x00\x05"},
		{"nilfs2", 1024 + 6, "\x34\x34"},
		{"squashfs", 0, "hsqs"},
		{"vdo", 0, "dmvdo001"},
		{"apfs", 32, "NXSB"},
		{"bcache", 0x1018, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
		{"bcachefs", 0x1018, "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef"},
		{"stratis", 0x204, "!Stra0tis\x86\xff\x02^\x41rh"},
		{"jfs", 32 << 10, "JFS1"},
		{"reiserfs", 0x10034, "ReIsErFs"},
		{"reiserfs", 0x10034, "ReIsEr2Fs"},
		{"reiserfs", 0x10034, "ReIsEr3Fs"},
		{"gfs2", 64 << 10, "\x01\x16\x19\x70"},
		{"vmfs", 1 << 20, "\x0d\xd0\x01\xc0"},
		{"vmfs", 2 << 20, "\x5e\xf1\xab\x2f"},
	} {
		if !a.has(m.at, m.magic) {
			continue
		}
		if m.kind == "nilfs2" {
			// Two bytes prove little: its checksum covers them.
			if b := a.bytes(1024, 1024); b == nil || le.Uint16(b[8:]) < 64 || le.Uint16(b[8:]) > 1024 {
				continue
			}
		}
		c := storage.Content{Kind: m.kind}
		if m.kind == "f2fs" {
			if b := a.bytes(1024+108, 16); b != nil {
				c.UUID = uuid(b)
			}
		}
		a.erase(m.at, 4096)
		a.found(c)
	}
}
