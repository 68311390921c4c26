package signature

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"

	"github.com/firstlight/firstlight/storage"
)

// entry is a partition in a table; offset and size are bytes of the area.
type entry struct {
	number       int
	name, uuid   string
	offset, size uint64
	extended     bool // a container of logical partitions
}

var le = binary.LittleEndian

// gpt reads a GUID partition table (UEFI specification, chapter 5) for sectors
// of the device's size and of the other usual one: a disk may have been written
// behind another adapter. The copy at the end is used when the first is damaged.
func (a area) gpt() (entries []entry, ok bool) {
	sizes := []uint64{a.sector, 512, 4096}
	for i, sector := range sizes {
		if sector < 512 || i > 0 && sector == a.sector || a.size < 4*sector {
			continue
		}
		seen := false
		last := a.size/sector - 1
		for _, lba := range []uint64{1, last} {
			h, good := a.gptHeader(lba, sector)
			if h == nil {
				continue
			}
			seen = true
			// A disk that grew has its second copy somewhere inside.
			if other := le.Uint64(h[32:]); other != 0 && other < last {
				a.erase(other*sector, sector)
			}
			if !good {
				continue
			}
			if entries, good = a.gptEntries(h, sector); good {
				a.found(storage.Content{Kind: "gpt", UUID: guid(h[56:72])})
				return entries, true
			}
		}
		if seen {
			a.found(storage.Content{Kind: "gpt", Label: "damaged"})
			return nil, true
		}
	}
	return nil, false
}

func (a area) gptHeader(lba, sector uint64) (h []byte, good bool) {
	h = a.bytes(lba*sector, sector)
	if h == nil || string(h[:8]) != "EFI PART" {
		return nil, false
	}
	n := le.Uint32(h[12:])
	if n < 92 || uint64(n) > sector {
		return h, false
	}
	sum := le.Uint32(h[16:])
	c := append([]byte(nil), h[:n]...)
	clear(c[16:20])
	return h, crc32.ChecksumIEEE(c) == sum && le.Uint64(h[24:]) == lba
}

func (a area) gptEntries(h []byte, sector uint64) (entries []entry, ok bool) {
	first, count, each := le.Uint64(h[72:]), uint64(le.Uint32(h[80:])), uint64(le.Uint32(h[84:]))
	if each < 128 || each > 4096 || count > 4096 || first > a.size/sector {
		return nil, false
	}
	table := a.bytes(first*sector, count*each)
	if table == nil || crc32.ChecksumIEEE(table) != le.Uint32(h[88:]) {
		return nil, false
	}
	for i := range count {
		e := table[i*each : (i+1)*each]
		start, end := le.Uint64(e[32:]), le.Uint64(e[40:])
		if le.Uint64(e) == 0 && le.Uint64(e[8:]) == 0 {
			continue
		}
		if start == 0 || start > end || end >= a.size/sector {
			continue
		}
		name := make([]uint16, 0, 36)
		for j := 56; j < 128; j += 2 {
			c := le.Uint16(e[j:])
			if c == 0 {
				break
			}
			name = append(name, c)
		}
		entries = append(entries, entry{
			number: int(i) + 1,
			name:   printable(string(utf16.Decode(name))),
			uuid:   guid(e[16:32]),
			offset: start * sector,
			size:   (end - start + 1) * sector,
		})
	}
	return entries, true
}

// guid writes the mixed-endian form that GPT stores.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%s-%s", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), hex.EncodeToString(b[8:10]), hex.EncodeToString(b[10:16]))
}

// mbr reads a DOS partition table with its chain of extended ones. It is
// believed only when its entries make sense: boot sectors of file systems and
// boot loaders end with the same two bytes.
func (a area) mbr() []entry {
	b := a.bytes(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xaa {
		return nil
	}
	// LBA in a DOS table counts the device's sectors.
	sector := a.sector
	var entries []entry
	var extended entry
	for i := range 4 {
		e := b[446+16*i:]
		status, kind := e[0], e[4]
		start, size := uint64(le.Uint32(e[8:]))*sector, uint64(le.Uint32(e[12:]))*sector
		if status != 0 && status != 0x80 {
			return nil
		}
		if kind == 0 || size == 0 {
			continue
		}
		if kind == 0xee {
			// The rest of a GPT whose headers are gone.
			a.found(storage.Content{Kind: "mbr", Label: "protective"})
			return nil
		}
		if start == 0 || start >= a.size {
			return nil
		}
		p := entry{number: i + 1, offset: start, size: min(size, a.size-start)}
		if id := le.Uint32(b[440:]); id != 0 {
			p.uuid = fmt.Sprintf("%08x-%02x", id, p.number)
		}
		if kind == 0x05 || kind == 0x0f || kind == 0x85 {
			p.extended = true
			extended = p
		}
		entries = append(entries, p)
	}
	if entries == nil {
		return nil
	}
	c := storage.Content{Kind: "mbr"}
	if id := le.Uint32(b[440:]); id != 0 {
		c.UUID = fmt.Sprintf("%08x", id)
	}
	a.found(c)
	if extended.extended {
		entries = append(entries, a.logical(extended, sector)...)
	}
	return entries
}

// logical follows the chain of extended boot records.
func (a area) logical(ext entry, sector uint64) []entry {
	var entries []entry
	at := ext.offset
	for number := 5; number < 5+128; number++ {
		b := a.bytes(at, 512)
		if b == nil || b[510] != 0x55 || b[511] != 0xaa {
			break
		}
		a.erase(at, max(sector, 512))
		e, next := b[446:], b[462:]
		start, size := at+uint64(le.Uint32(e[8:]))*sector, uint64(le.Uint32(e[12:]))*sector
		if e[4] != 0 && size > 0 && start > at && start < a.size {
			entries = append(entries, entry{number: number, offset: start, size: min(size, a.size-start)})
		}
		following := ext.offset + uint64(le.Uint32(next[8:]))*sector
		if next[4] == 0 || following <= at {
			break
		}
		at = following
	}
	return entries
}

// printable makes text from a disk fit for consoles and pages.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(s, "?")))
}

// text is a fixed field that ends at its first NUL.
func text(b []byte) string {
	if b == nil {
		return ""
	}
	s, _, _ := strings.Cut(string(b), "\x00")
	return printable(s)
}

// uuid writes 16 bytes in the order in which they stand; none for zeroes.
func uuid(b []byte) string {
	if len(b) < 16 || [16]byte(b) == [16]byte{} {
		return ""
	}
	s := hex.EncodeToString(b[:16])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
