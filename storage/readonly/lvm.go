package readonly

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/storage/tool"
)

// LVM's metadata are text in each physical volume (lvm2: lib/format_text). We
// read them ourselves: lvm2 would bring 4 MB, and its own ideas of locks,
// archives and repairs, for what is in the end a list of extents.

const (
	mostLVMBytes = 16 << 20 // of text; a large group has some hundred KiB
	mostNesting  = 8        // of braces, and of volumes in volumes
	sector       = 512      // LVM counts in these, whatever the disk's are
)

// node is a section of LVM's text: its values are string, int64, []any and
// node.
type node map[string]any

func (n node) child(name string) node { c, _ := n[name].(node); return c }
func (n node) text(name string) string {
	s, _ := n[name].(string)
	return s
}

// number is a value that must be there and not be negative.
func (n node) number(name string) (uint64, error) {
	v, ok := n[name].(int64)
	if !ok || v < 0 {
		return 0, fmt.Errorf("LVM metadata: no %s", name)
	}
	return uint64(v), nil
}

// readLVM returns the description that a physical volume holds; "" when it holds
// none, as not every one must.
func readLVM(r region) (string, error) {
	head, err := r.read(0, 4*sector)
	if err != nil {
		return "", err
	}
	for at := 0; at < len(head); at += sector {
		label := head[at : at+sector] // struct label_header, then pv_header
		if string(label[:8]) != "LABELONE" {
			continue
		}
		header := le.Uint32(label[20:])
		if header > sector-40 {
			return "", errors.New("LVM label: the header lies outside of it")
		}
		list := label[header+40:] // disk_locn: data areas, 0 0, metadata areas, 0 0
		areas := false
		for ; len(list) >= 16; list = list[16:] {
			offset, size := le.Uint64(list), le.Uint64(list[8:])
			switch {
			case offset == 0 && areas:
				return "", nil
			case offset == 0:
				areas = true
			case areas:
				return readMetadata(r, offset, size)
			}
		}
	}
	return "", nil
}

// readMetadata reads the text of a metadata area, a ring behind a header of one
// sector (struct mda_header).
func readMetadata(r region, offset, size uint64) (string, error) {
	head, err := r.read(offset, sector)
	if err != nil {
		return "", err
	}
	if string(head[4:20]) != " LVM2 x[5A%r0N*>" {
		return "", errors.New("LVM metadata: no header")
	}
	at, length := le.Uint64(head[40:]), le.Uint64(head[48:])
	if at == 0 {
		return "", nil
	}
	if size < sector || size > r.size || at < sector || at >= size || length > min(size-sector, mostLVMBytes) {
		return "", errors.New("LVM metadata: the text lies outside of its area")
	}
	first := min(length, size-at)
	text, err := r.read(offset+at, first)
	if err != nil {
		return "", err
	}
	rest, err := r.read(offset+sector, length-first)
	if err != nil {
		return "", err
	}
	return string(bytes.TrimRight(append(text, rest...), "\x00")), nil
}

// parser reads the text of lvm.conf(5).
type parser struct {
	left string
}

func parseLVM(text string) (node, error) {
	p := &parser{left: text}
	return p.section(0)
}

// next is the next token: punctuation, a quoted string with its quotes, or a
// word; "" at the end.
func (p *parser) next() string {
	for {
		p.left = strings.TrimLeft(p.left, " \t\r\n")
		if !strings.HasPrefix(p.left, "#") {
			break
		}
		_, p.left, _ = strings.Cut(p.left, "\n")
	}
	if p.left == "" {
		return ""
	}
	n := 1
	switch c := p.left[0]; {
	case c == '"':
		for n < len(p.left) && p.left[n] != '"' {
			if p.left[n] == '\\' {
				n++
			}
			n++
		}
		n = min(n+1, len(p.left))
	case strings.IndexByte("{}[]=,", c) >= 0:
	default:
		for n < len(p.left) && strings.IndexByte("{}[]=,\"# \t\r\n", p.left[n]) < 0 {
			n++
		}
	}
	token := p.left[:n]
	p.left = p.left[n:]
	return token
}

func (p *parser) section(depth int) (node, error) {
	if depth > mostNesting {
		return nil, errors.New("LVM metadata: too deep")
	}
	n := node{}
	for {
		name := p.next()
		if name == "" && depth == 0 || name == "}" && depth > 0 {
			return n, nil
		}
		if name == "" || strings.ContainsAny(name, "{}[]=,") {
			return nil, fmt.Errorf("LVM metadata: %q where a name should be", name)
		}
		var value any
		var err error
		switch token := p.next(); token {
		case "{":
			value, err = p.section(depth + 1)
		case "=":
			value, err = p.value(p.next())
		default:
			err = fmt.Errorf("LVM metadata: %q after %s", token, name)
		}
		if err != nil {
			return nil, err
		}
		n[strings.Trim(name, `"`)] = value
	}
}

func (p *parser) value(token string) (any, error) {
	switch {
	case token == "[":
		list := []any{}
		for {
			switch token := p.next(); token {
			case "]":
				return list, nil
			case ",":
			case "[":
				return nil, errors.New("LVM metadata: a list in a list")
			default:
				v, err := p.value(token)
				if err != nil {
					return nil, err
				}
				list = append(list, v)
			}
		}
	case len(token) >= 2 && token[0] == '"' && token[len(token)-1] == '"':
		return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(token[1 : len(token)-1]), nil
	case token == "", strings.ContainsAny(token[:1], `{}]=,"`):
		return nil, fmt.Errorf("LVM metadata: %q where a value should be", token)
	}
	if v, err := strconv.ParseInt(token, 10, 64); err == nil {
		return v, nil
	}
	return token, nil // a float, of which we need none
}

// group is a volume group.
type group struct {
	name    string
	extent  uint64 // bytes
	volumes node   // logical volumes by name
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
func newGroup(text node, present map[string]place) (*group, error) {
	for name, v := range text {
		vg, ok := v.(node)
		if !ok {
			continue
		}
		extent, err := vg.number("extent_size")
		if err != nil {
			return nil, err
		}
		if extent == 0 || extent > 1<<40 {
			return nil, errors.New("LVM metadata: no extents")
		}
		g := &group{name: name, extent: extent * sector, volumes: vg.child("logical_volumes"),
			uuids: map[string]string{}, begin: map[string]uint64{}, present: present}
		for name, v := range vg.child("physical_volumes") {
			pv, _ := v.(node)
			begin, err := pv.number("pe_start")
			if err != nil {
				return nil, err
			}
			g.uuids[name], g.begin[name] = pv.text("id"), begin*sector
		}
		return g, nil
	}
	return nil, errors.New("LVM metadata: no volume group")
}

// errAbsent is why a volume cannot be mapped that may be mapped later.
var errAbsent = errors.New("a physical volume is missing")

// segments of a logical volume in order, with no gap.
func (g *group) segments(name string, depth int) ([]segment, error) {
	lv := g.volumes.child(name)
	if lv == nil || depth > mostNesting {
		return nil, fmt.Errorf("LVM metadata: there is no volume %s", name)
	}
	type part struct {
		start uint64
		node
	}
	var parts []part
	for name, v := range lv {
		s, ok := v.(node)
		if !ok || !strings.HasPrefix(name, "segment") {
			continue
		}
		start, err := s.number("start_extent")
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{start, s})
	}
	slices.SortFunc(parts, func(x, y part) int { return cmp.Compare(x.start, y.start) })
	var all []segment
	var end uint64
	for _, p := range parts {
		count, err := p.number("extent_count")
		if err != nil {
			return nil, err
		}
		if p.start != end || count == 0 || count > 1<<40/sector {
			return nil, errors.New("LVM metadata: segments that do not fit together")
		}
		end += count
		some, err := g.segment(p.node, count, depth)
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

func (g *group) segment(s node, count uint64, depth int) ([]segment, error) {
	// Of a mirror any leg will do, of a cached volume what lies behind the
	// cache: what is read is verified anyway.
	switch kind := s.text("type"); kind {
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
		return g.segments(s.text("origin"), depth+1)
	default:
		return nil, fmt.Errorf("LVM volumes of type %s are not read", kind)
	}
}

func (g *group) striped(s node, count uint64) ([]segment, error) {
	stripes, _ := s["stripes"].([]any)
	n := uint64(len(stripes) / 2)
	if n == 0 || len(stripes)%2 != 0 || count%n != 0 {
		return nil, errors.New("LVM metadata: a segment without stripes")
	}
	out := segment{size: count * g.extent}
	if n > 1 {
		size, err := s.number("stripe_size")
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
	newest := map[string]node{} // by the group's UUID
	for _, id := range sorted(a.volumes) {
		pv := a.volumes[id]
		text, err := readLVM(pv.region)
		var parsed node
		if err == nil {
			parsed, err = parseLVM(text)
		}
		if err != nil {
			if partial {
				a.warn("%s: %v", pv.name, err)
				delete(a.volumes, id)
			}
			continue
		}
		for _, v := range parsed {
			if vg, ok := v.(node); ok {
				id := vg.text("id")
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

func sequence(text node) int64 {
	for _, v := range text {
		if vg, ok := v.(node); ok {
			n, _ := vg["seqno"].(int64)
			return n
		}
	}
	return 0
}

func (a *Attached) mapVolume(ctx context.Context, g *group, name string, partial bool) bool {
	lv := g.volumes.child(name)
	status, _ := lv["status"].([]any)
	id := lv.text("id")
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
