package lvm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tool"
)

// Region is a run of bytes at a place of the physical volume.
type Region struct {
	Offset uint64 // bytes
	Data   []byte
}

// Places on a physical volume, in bytes. The label lies in the second sector of
// 512 whatever the disk's sectors are, the metadata behind one page.
const (
	labelSector   = 1
	areaOffset    = 4096
	areaSize      = storage.GroupStart - areaOffset
	textOffset    = 512
	headerVersion = 1
)

// Describe returns what is written to the device of a group, in this order: the
// label, by which it is found, comes last.
func Describe(g storage.Group) []Region {
	text := append([]byte(description(g)), 0)

	header := make([]byte, sector) // struct mda_header
	copy(header[4:], "\x20\x4c\x56\x4d\x32\x20\x78\x5b\x35\x41\x25\x72\x30\x4e\x2a\x3e")
	binary.LittleEndian.PutUint32(header[20:], headerVersion)
	binary.LittleEndian.PutUint64(header[24:], areaOffset)
	binary.LittleEndian.PutUint64(header[32:], areaSize)
	binary.LittleEndian.PutUint64(header[40:], textOffset)
	binary.LittleEndian.PutUint64(header[48:], uint64(len(text)))
	binary.LittleEndian.PutUint32(header[56:], checksum(text))
	binary.LittleEndian.PutUint32(header, checksum(header[4:]))

	return []Region{{areaOffset + textOffset, text}, {areaOffset, header}, {0, label(g)}}
}

// label is the first page: struct label_header and, behind it, struct pv_header.
func label(g storage.Group) []byte {
	page := make([]byte, areaOffset)
	at := page[labelSector*sector : (labelSector+1)*sector]
	copy(at, "LABELONE")
	binary.LittleEndian.PutUint64(at[8:], labelSector)
	binary.LittleEndian.PutUint32(at[20:], 32) // where the next part begins
	copy(at[24:], "LVM2 001")

	pv := at[32:]
	copy(pv, g.DeviceUUID)
	binary.LittleEndian.PutUint64(pv[32:], g.Bytes)
	binary.LittleEndian.PutUint64(pv[40:], storage.GroupStart) // data: from there to the end
	// A pair of zeroes ends the list of data areas, and one that of the metadata's.
	binary.LittleEndian.PutUint64(pv[72:], areaOffset)
	binary.LittleEndian.PutUint64(pv[80:], areaSize)
	// struct pv_header_extension: version 2, "in use", no boot loader area.
	binary.LittleEndian.PutUint32(pv[104:], 2)
	binary.LittleEndian.PutUint32(pv[108:], 1)

	binary.LittleEndian.PutUint32(at[16:], checksum(at[20:]))
	return page
}

// checksum is LVM's: CRC-32 with a start of its own and no end (lib/misc/crc.c).
func checksum(data []byte) uint32 {
	const start = 0xf597a6cf
	return ^crc32.Update(^uint32(start), crc32.IEEETable, data)
}

// description is the group in LVM's text format.
func description(g storage.Group) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%s {", g.Name)
	line("id = %q", hyphens(g.UUID))
	line("seqno = 1")
	line(`format = "lvm2"`)
	line(`status = ["RESIZEABLE", "READ", "WRITE"]`)
	line("flags = []")
	line("extent_size = %d", storage.GroupExtent/sector)
	line("max_lv = 0")
	line("max_pv = 0")
	line("metadata_copies = 0")
	line("\nphysical_volumes {\n\npv0 {")
	line("id = %q", hyphens(g.DeviceUUID))
	line("device = %q", g.Device)
	line(`status = ["ALLOCATABLE"]`)
	line("flags = []")
	line("dev_size = %d", g.Bytes/sector)
	line("pe_start = %d", storage.GroupStart/sector)
	line("pe_count = %d", g.Extents)
	line("}\n}")
	line("\nlogical_volumes {")
	for _, v := range g.Volumes {
		line("\n%s {", v.Name)
		line("id = %q", hyphens(v.UUID))
		line(`status = ["READ", "WRITE", "VISIBLE"]`)
		line("flags = []")
		line("segment_count = 1")
		line("\nsegment1 {")
		line("start_extent = 0")
		line("extent_count = %d", v.Extents)
		line("\ntype = \"striped\"")
		line("stripe_count = 1")
		line("\nstripes = [\n\"pv0\", %d\n]", v.FirstExtent)
		line("}\n}")
	}
	line("}\n}")
	line("# Written when this system was installed")
	line("\ncontents = \"Text Format Volume Group\"\nversion = 1\n\ndescription = \"\"\n")
	line("creation_host = \"installer\"\ncreation_time = 1\n")
	return b.String()
}

// hyphens writes a UUID as LVM shows it.
func hyphens(id string) string {
	return strings.Join([]string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}, "-")
}

// Activate makes the device of a volume, dmsetup(8), with the name and UUID that
// LVM itself would give it: its own programs then know it.
func Activate(g storage.Group, v storage.LogicalVolume) tool.Cmd {
	table := fmt.Sprintf("0 %d linear %s %d", v.Extents*storage.GroupExtent/sector, g.Device, (storage.GroupStart+v.FirstExtent*storage.GroupExtent)/sector)
	return tool.Cmd{Name: "dmsetup", Args: []string{"create", g.Mapping(v), "--uuid", "LVM-" + g.UUID + v.UUID, "--table", table}}
}

// Deactivate takes it away; its contents stay.
func Deactivate(g storage.Group, v storage.LogicalVolume) tool.Cmd {
	return tool.Cmd{Name: "dmsetup", Args: []string{"remove", "--retry", g.Mapping(v)}}
}
