// Package lvm reads and makes LVM's metadata: the label and the text in which
// each physical volume describes its volume group. It also makes the
// device-mapper tables by which the volumes are used before the new OS has its
// own LVM.
//
// It trusts nothing of what it reads, and writes to nothing: bytes are returned
// with their places.
package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// LVM's metadata are text in each physical volume (lvm2: lib/format_text). We
// read them ourselves: lvm2 would bring 4 MB, and its own ideas of locks,
// archives and repairs, for what is in the end a list of extents.

const (
	mostBytes   = 16 << 20 // of text; a large group has some hundred KiB
	mostNesting = 8        // of braces
	sector      = 512      // LVM counts in these, whatever the disk's are
)

var le = binary.LittleEndian

// region is a physical volume.
type region struct {
	io.ReaderAt
	size uint64
}

func (r region) read(at, n uint64) ([]byte, error) {
	if n > r.size || at > r.size-n {
		return nil, errors.New("LVM metadata: they lie outside of the volume")
	}
	b := make([]byte, n)
	if got, err := r.ReadAt(b, int64(at)); got < len(b) {
		return nil, err
	}
	return b, nil
}

// Node is a section of LVM's text: its values are string, int64, []any and
// Node.
type Node map[string]any

// Child is a section of n, nil when there is none.
func (n Node) Child(name string) Node { c, _ := n[name].(Node); return c }

// Text is a text of n, empty when there is none.
func (n Node) Text(name string) string {
	s, _ := n[name].(string)
	return s
}

// Number is a value that must be there and not be negative.
func (n Node) Number(name string) (uint64, error) {
	v, ok := n[name].(int64)
	if !ok || v < 0 {
		return 0, fmt.Errorf("LVM metadata: no %s", name)
	}
	return uint64(v), nil
}

// Text returns the description that a physical volume holds; "" when it holds
// none, as not every one must.
func Text(r io.ReaderAt, size uint64) (string, error) {
	volume := region{r, size}
	head, err := volume.read(0, 4*sector)
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
				return readMetadata(volume, offset, size)
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
	if size < sector || size > r.size || at < sector || at >= size || length > min(size-sector, mostBytes) {
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

// Parse reads what [Text] returns.
func Parse(text string) (Node, error) {
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

func (p *parser) section(depth int) (Node, error) {
	if depth > mostNesting {
		return nil, errors.New("LVM metadata: too deep")
	}
	n := Node{}
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

// Volume is a logical volume, as one of the physical volumes under it sees it.
type Volume struct {
	Name string
	UUID string
	Size uint64 // bytes, of the whole volume
	// Begin is where the volume's first byte lies on the physical volume, when it
	// lies there; Here says so.
	Begin uint64
	Here  bool
}

// Volumes are the name of the group that a text describes and its logical
// volumes of which something lies on the physical volume with this UUID, by name.
func Volumes(text, physical string) (group string, volumes []Volume, err error) {
	root, err := Parse(text)
	if err != nil {
		return "", nil, err
	}
	for name, v := range root {
		vg, ok := v.(Node)
		if !ok {
			continue
		}
		extent, err := vg.Number("extent_size")
		if err != nil || extent == 0 || extent > 1<<40 {
			return name, nil, errors.New("LVM metadata: no extents")
		}
		for short, v := range vg.Child("physical_volumes") {
			pv, _ := v.(Node)
			if pv.Text("id") != physical {
				continue
			}
			begin, err := pv.Number("pe_start")
			if err != nil {
				return name, nil, err
			}
			for title, v := range vg.Child("logical_volumes") {
				lv, _ := v.(Node)
				if volume, on := on(short, begin*sector, extent*sector, lv); on {
					volume.Name, volume.UUID = title, lv.Text("id")
					volumes = append(volumes, volume)
				}
			}
		}
		slices.SortFunc(volumes, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
		return name, volumes, nil
	}
	return "", nil, errors.New("LVM metadata: no volume group")
}

// on looks for extents of a logical volume on a physical one.
func on(physical string, begin, extent uint64, lv Node) (v Volume, found bool) {
	for _, part := range lv {
		segment, ok := part.(Node)
		if !ok {
			continue
		}
		start, err1 := segment.Number("start_extent")
		count, err2 := segment.Number("extent_count")
		if err1 != nil || err2 != nil || count > 1<<40 {
			continue
		}
		v.Size += count * extent
		stripes, _ := segment["stripes"].([]any)
		for i := 0; i+1 < len(stripes); i += 2 {
			if stripes[i] != physical {
				continue
			}
			found = true
			if at, ok := stripes[i+1].(int64); ok && start == 0 && i == 0 && at >= 0 && at < 1<<40 {
				v.Begin, v.Here = begin+uint64(at)*extent, true
			}
		}
	}
	return v, found
}
