package readonly

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/storage/tool"
)

var le = binary.LittleEndian

// member is a device of an md RAID.
type member struct {
	place
	level      int32
	disks      uint32 // of the whole array
	active     bool   // neither spare nor faulty
	dataOffset uint64 // bytes
	dataSize   uint64 // bytes of each device that are used
	events     uint64 // the more, the newer
}

const mdMagic = 0xa92b4efc

// readMember reads a super block: include/uapi/linux/raid/md_p.h, struct
// mdp_superblock_1 (versions 1.0, 1.1, 1.2), mdp_super_t (0.90).
func readMember(p place) (member, error) {
	m := member{place: p}
	places := []uint64{0, 4096}
	if sectors := p.size / 512; sectors > 16 {
		places = append(places, (sectors-16)&^7*512)
	}
	for _, at := range places {
		b, err := p.read(at, 4096)
		if err != nil {
			return m, err
		}
		if le.Uint32(b) != mdMagic || le.Uint32(b[4:]) != 1 {
			continue
		}
		m.level, m.disks = int32(le.Uint32(b[72:])), le.Uint32(b[92:])
		m.dataSize, m.dataOffset = le.Uint64(b[80:])*512, le.Uint64(b[128:])*512
		m.events = le.Uint64(b[200:])
		if number := uint64(le.Uint32(b[160:])); 256+2*number+2 <= uint64(len(b)) {
			m.active = le.Uint16(b[256+2*number:]) < 0xfffd // spare, faulty, journal
		}
		return m, m.check()
	}
	if p.size < 128<<10 {
		return m, fmt.Errorf("it is too small")
	}
	b, err := p.read(p.size&^0xffff-64<<10, 4096)
	if err != nil {
		return m, err
	}
	if le.Uint32(b) != mdMagic {
		return m, fmt.Errorf("its format is not known")
	}
	word := func(n int) uint32 { return le.Uint32(b[4*n:]) }
	m.level, m.dataSize, m.disks = int32(word(7)), uint64(word(8))<<10, word(10)
	m.active = true
	return m, m.check()
}

func (m member) check() error {
	if m.dataOffset > m.size || m.level == 1 && m.dataSize > m.size-m.dataOffset {
		return fmt.Errorf("its data lie outside of it")
	}
	return nil
}

// assembleArrays looks into the RAIDs. A mirror needs no RAID driver: each
// member has everything, the newest is read. The others are assembled by mdadm,
// read-only over read-only devices.
func (a *Attached) assembleArrays(ctx context.Context, partial bool) (any bool) {
	for _, id := range sorted(a.arrays) {
		group := slices.Clone(a.arrays[id])
		slices.SortStableFunc(group, func(x, y member) int { return cmp.Compare(y.events, x.events) })
		group = slices.DeleteFunc(group, func(m member) bool { return !m.active })
		if len(group) == 0 {
			delete(a.arrays, id) // spares only
			continue
		}
		first := group[0]
		if first.level == 1 {
			delete(a.arrays, id)
			any = true
			a.look(ctx, region{first.path, first.offset + first.dataOffset, first.dataSize}, "RAID 1 on "+first.name)
			continue
		}
		if uint32(len(group)) < first.disks && !partial {
			continue
		}
		delete(a.arrays, id)
		any = true
		if err := a.assemble(ctx, group); err != nil {
			a.warn("the RAID %d on %s cannot be read: %s", first.level, first.name, short(err))
		}
	}
	return any
}

func (a *Attached) assemble(ctx context.Context, group []member) error {
	a.number++
	node := fmt.Sprintf("/dev/md%d", 200+a.number)
	args := []string{"--assemble", "--readonly", "--run", "--config=/dev/null", node}
	var names []string
	for _, m := range group {
		device, err := a.loop(m.region)
		if err != nil {
			return err
		}
		args, names = append(args, device), append(names, m.name)
	}
	stop := tool.Cmd{Name: "mdadm", Args: []string{"--stop", node}}
	if err := a.tool(ctx, tool.Cmd{Name: "mdadm", Args: args}); err != nil {
		_ = a.tool(ctx, stop) // there may be nothing to stop
		return err
	}
	return a.mapping(ctx, func() (string, error) { return node, nil }, fmt.Sprintf("RAID %d on %s", group[0].level, strings.Join(names, " and ")), stop)
}
