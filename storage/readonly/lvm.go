package readonly

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/storage/lvm"
	"github.com/firstlight/firstlight/storage/tool"
)

const (
	sector      = 512 // LVM counts in these, whatever the disk's are
	mostNesting = 8   // of volumes in volumes
)

// lvmText is the description that the physical volume r holds.
func (r region) lvmText() (string, error) {
	f, err := os.Open(r.path)
	if err != nil {
		return "", err
	}
	defer f.Close() // only read from
	return lvm.Text(section{f, r.offset, r.size}, r.size)
}

// group is a volume group.
type group struct {
	name    string
	extent  uint64   // bytes
	volumes lvm.Node // logical volumes by name
	// physical volumes by the name that this text gives them.
	uuids   map[string]string
	begin   map[string]uint64 // bytes, where the extents begin
	present map[string]place  // by UUID
}

// segment is a run of a logical volume.
type segment struct {
	size    uint64 // bytes
	stripe  uint64 // bytes of each stripe; 0 when there is only one
	devices []region
}

// newGroup takes a volume group out of a parsed text.
func newGroup(text lvm.Node, present map[string]place) (*group, error) {
	for name, v := range text {
		vg, ok := v.(lvm.Node)
		if !ok {
			continue
		}
		extent, err := vg.Number("extent_size")
		if err != nil {
			return nil, err
		}
		if extent == 0 || extent > 1<<40 {
			return nil, errors.New("LVM metadata: no extents")
		}
		g := &group{name: name, extent: extent * sector, volumes: vg.Child("logical_volumes"),
			uuids: map[string]string{}, begin: map[string]uint64{}, present: present}
		for name, v := range vg.Child("physical_volumes") {
			pv, _ := v.(lvm.Node)
			begin, err := pv.Number("pe_start")
			if err != nil {
				return nil, err
			}
			g.uuids[name], g.begin[name] = pv.Text("id"), begin*sector
		}
		return g, nil
	}
	return nil, errors.New("LVM metadata: no volume group")
}

// errAbsent is why a volume cannot be mapped that may be mapped later.
var errAbsent = errors.New("a physical volume is missing")

// segments of a logical volume in order, with no gap.
func (g *group) segments(name string, depth int) ([]segment, error) {
	lv := g.volumes.Child(name)
	if lv == nil || depth > mostNesting {
		return nil, fmt.Errorf("LVM metadata: there is no volume %s", name)
	}
	type part struct {
		start uint64
		lvm.Node
	}
	var parts []part
	for name, v := range lv {
		s, ok := v.(lvm.Node)
		if !ok || !strings.HasPrefix(name, "segment") {
			continue
		}
		start, err := s.Number("start_extent")
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{start, s})
	}
	slices.SortFunc(parts, func(x, y part) int { return cmp.Compare(x.start, y.start) })
	var all []segment
	var end uint64
	for _, p := range parts {
		count, err := p.Number("extent_count")
		if err != nil {
			return nil, err
		}
		if p.start != end || count == 0 || count > 1<<40/sector {
			return nil, errors.New("LVM metadata: segments that do not fit together")
		}
		end += count
		some, err := g.segment(p.Node, count, depth)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if len(all) == 0 {
		return nil, errors.New("LVM metadata: a volume without segments")
	}
	return all, nil
}

func (g *group) segment(s lvm.Node, count uint64, depth int) ([]segment, error) {
	// Of a mirror any leg will do, of a cached volume what lies behind the
	// cache: what is read is verified anyway.
	switch kind := s.Text("type"); kind {
	case "striped", "linear":
		return g.striped(s, count)
	case "raid1", "mirror":
		legs, _ := s["raids"].([]any)
		if kind == "mirror" {
			legs, _ = s["mirrors"].([]any)
		}
		err := errors.New("LVM metadata: a mirror without legs")
		for _, leg := range legs {
			name, ok := leg.(string)
			if !ok || strings.Contains(name, "_rmeta_") {
				continue
			}
			var all []segment
			if all, err = g.segments(name, depth+1); err == nil {
				return all, nil
			}
		}
		return nil, err
	case "cache", "writecache":
		return g.segments(s.Text("origin"), depth+1)
	default:
		return nil, fmt.Errorf("LVM volumes of type %s are not read", kind)
	}
}

func (g *group) striped(s lvm.Node, count uint64) ([]segment, error) {
	stripes, _ := s["stripes"].([]any)
	n := uint64(len(stripes) / 2)
	if n == 0 || len(stripes)%2 != 0 || count%n != 0 {
		return nil, errors.New("LVM metadata: a segment without stripes")
	}
	out := segment{size: count * g.extent}
	if n > 1 {
		size, err := s.Number("stripe_size")
		if err != nil || size == 0 {
			return nil, errors.New("LVM metadata: stripes without a size")
		}
		out.stripe = size * sector
	}
	for i := uint64(0); i < n; i++ {
		name, _ := stripes[2*i].(string)
		first, ok := stripes[2*i+1].(int64)
		uuid, known := g.uuids[name]
		if !ok || first < 0 || first > 1<<40/sector || !known {
			return nil, fmt.Errorf("LVM metadata: no physical volume %s", name)
		}
		pv, here := g.present[uuid]
		if !here {
			return nil, errAbsent
		}
		at, size := g.begin[name]+uint64(first)*g.extent, count/n*g.extent
		if at > pv.size || size > pv.size-at {
			return nil, errors.New("LVM metadata: extents outside of their physical volume")
		}
		out.devices = append(out.devices, region{pv.path, pv.offset + at, size})
	}
	return []segment{out}, nil
}

// mapVolumes looks into the logical volumes whose physical volumes are here.
func (a *Attached) mapVolumes(ctx context.Context, partial bool) (any bool) {
	newest := map[string]lvm.Node{} // by the group's UUID
	for _, id := range sorted(a.volumes) {
		pv := a.volumes[id]
		text, err := pv.region.lvmText()
		var parsed lvm.Node
		if err == nil {
			parsed, err = lvm.Parse(text)
		}
		if err != nil {
			if partial {
				a.warn("%s: %v", pv.name, err)
				delete(a.volumes, id)
			}
			continue
		}
		for _, v := range parsed {
			if vg, ok := v.(lvm.Node); ok {
				id := vg.Text("id")
				if old := newest[id]; old == nil || sequence(parsed) > sequence(old) {
					newest[id] = parsed
				}
			}
		}
	}
	for _, id := range sorted(newest) {
		g, err := newGroup(newest[id], a.volumes)
		if err != nil {
			if partial && !a.mapped[id] {
				a.mapped[id] = true
				a.warn("an LVM volume group cannot be read: %v", err)
			}
			continue
		}
		for _, name := range sorted(g.volumes) {
			any = a.mapVolume(ctx, g, name, partial) || any
		}
	}
	return any
}

func sequence(text lvm.Node) int64 {
	for _, v := range text {
		if vg, ok := v.(lvm.Node); ok {
			n, _ := vg["seqno"].(int64)
			return n
		}
	}
	return 0
}

func (a *Attached) mapVolume(ctx context.Context, g *group, name string, partial bool) bool {
	lv := g.volumes.Child(name)
	status, _ := lv["status"].([]any)
	id := lv.Text("id")
	if a.mapped[id] || !slices.Contains(status, any("VISIBLE")) {
		return false // the parts of a mirror, a pool, …
	}
	full := "/dev/" + g.name + "/" + name
	segments, err := g.segments(name, 0)
	if errors.Is(err, errAbsent) && !partial {
		return false
	}
	a.mapped[id] = true
	if err == nil {
		err = a.mapSegments(ctx, full, segments)
	}
	if err != nil {
		a.warn("%s cannot be read: %s", full, short(err))
	}
	return true
}

// mapSegments looks into a logical volume. One that lies in one piece is read
// where it is; others are put together by the device mapper.
func (a *Attached) mapSegments(ctx context.Context, full string, segments []segment) error {
	if len(segments) == 1 && len(segments[0].devices) == 1 {
		a.look(ctx, segments[0].devices[0], full)
		return nil
	}
	// Documentation/admin-guide/device-mapper/{linear,striped}.rst
	var table strings.Builder
	var at uint64
	for _, s := range segments {
		fmt.Fprintf(&table, "%d %d ", at/sector, s.size/sector)
		if s.stripe == 0 {
			table.WriteString("linear")
		} else {
			fmt.Fprintf(&table, "striped %d %d", len(s.devices), s.stripe/sector)
		}
		for _, d := range s.devices {
			device, err := a.loop(d)
			if err != nil {
				return err
			}
			fmt.Fprintf(&table, " %s 0", device)
		}
		table.WriteString("\n")
		at += s.size
	}
	name := a.mapName()
	create := tool.Cmd{Name: "dmsetup", Args: []string{"create", name, "--readonly", "--noudevsync"}, Stdin: []byte(table.String())}
	if err := a.tool(ctx, create); err != nil {
		return err
	}
	return a.mapping(ctx, func() (string, error) { return dmNode(name) }, full, tool.Cmd{Name: "dmsetup", Args: []string{"remove", "--noudevsync", name}})
}
