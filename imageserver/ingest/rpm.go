package ingest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// rpmDatabases is where rpm keeps its database, the newer form of each place
// first. Only that in SQLite is read: Berkeley DB and NDB are not.
func rpmDatabases() []string {
	return []string{
		"usr/lib/sysimage/rpm/rpmdb.sqlite", "var/lib/rpm/rpmdb.sqlite",
		"usr/lib/sysimage/rpm/Packages.db", "var/lib/rpm/Packages.db", "var/lib/rpm/Packages",
	}
}

// The file format of SQLite: https://www.sqlite.org/fileformat2.html
const (
	sqliteMagic     = "SQLite format 3\x00"
	sqliteHeader    = 100
	sqliteInterior  = 5
	sqliteLeaf      = 13
	sqliteMaxDepth  = 20
	maxRPMHeader    = 32 << 20
	maxRPMPackages  = 200_000
	rpmIndexEntry   = 16
	rpmTypeString   = 6
	rpmTypeI18N     = 9
	rpmTagName      = 1000
	rpmTagVersion   = 1001
	rpmTagRelease   = 1002
	rpmTagArch      = 1022
	rpmIntroSize    = 8
	rpmMaxEntries   = 65536
	sqlitePayload64 = 9 // longest varint
)

var errRPM = errors.New("not a database of rpm that can be read")

// rpmPackages reads the lines of the packages in an rpmdb.sqlite. A database that
// was not closed cleanly has a journal beside it, which is not read.
func rpmPackages(db []byte) ([]string, error) {
	if len(db) < sqliteHeader || string(db[:len(sqliteMagic)]) != sqliteMagic {
		return nil, errRPM
	}
	page := int(binary.BigEndian.Uint16(db[16:]))
	if page == 1 {
		page = 65536
	}
	if page < 512 || page&(page-1) != 0 || int(db[20]) > page-480 {
		return nil, errRPM
	}
	s := &sqlite{db: db, page: page, usable: page - int(db[20]), pages: map[uint32]bool{}}
	// The schema: type, name, table, root page, SQL.
	var root uint32
	err := s.table(1, 0, func(columns []column) error {
		if len(columns) >= 4 && columns[0].text() == "table" && columns[1].text() == "Packages" {
			root = uint32(columns[3].number())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if root == 0 {
		return nil, errRPM
	}
	var lines []string
	s.pages = map[uint32]bool{}
	err = s.table(root, 0, func(columns []column) error {
		if len(columns) < 2 || len(lines) == maxRPMPackages {
			return errRPM
		}
		line, err := rpmHeader(columns[1].bytes)
		if line != "" && !strings.HasPrefix(line, "gpg-pubkey ") { // keys are kept as packages
			lines = append(lines, line)
		}
		return err
	})
	return lines, err
}

// sqlite reads tables of a database in memory.
type sqlite struct {
	db           []byte
	page, usable int
	pages        map[uint32]bool // that were read: none may come twice
}

func (s *sqlite) get(n uint32) ([]byte, error) {
	if n == 0 || s.pages[n] || uint64(n)*uint64(s.page) > uint64(len(s.db)) {
		return nil, errRPM
	}
	s.pages[n] = true
	return s.db[(int(n)-1)*s.page : int(n)*s.page], nil
}

// column is a value: an integer or bytes.
type column struct {
	integer int64
	bytes   []byte
}

func (c column) text() string  { return string(c.bytes) }
func (c column) number() int64 { return c.integer }

// table calls f for each row of the B-tree below page n.
func (s *sqlite) table(n uint32, depth int, f func([]column) error) error {
	if depth > sqliteMaxDepth {
		return errRPM
	}
	p, err := s.get(n)
	if err != nil {
		return err
	}
	header := 0
	if n == 1 {
		header = sqliteHeader
	}
	kind := p[header]
	cells := int(binary.BigEndian.Uint16(p[header+3:]))
	first := header + 8
	if kind == sqliteInterior {
		first += 4
	}
	if kind != sqliteInterior && kind != sqliteLeaf || first+2*cells > len(p) {
		return errRPM
	}
	for i := range cells {
		at := int(binary.BigEndian.Uint16(p[first+2*i:]))
		if at+4 > len(p) {
			return errRPM
		}
		if kind == sqliteInterior {
			if err := s.table(binary.BigEndian.Uint32(p[at:]), depth+1, f); err != nil {
				return err
			}
			continue
		}
		payload, err := s.payload(p, at)
		if err != nil {
			return err
		}
		columns, err := record(payload)
		if err != nil {
			return err
		}
		if err := f(columns); err != nil {
			return err
		}
	}
	if kind == sqliteInterior {
		return s.table(binary.BigEndian.Uint32(p[header+8:]), depth+1, f)
	}
	return nil
}

// payload is the row of a cell, with its overflow pages.
func (s *sqlite) payload(p []byte, at int) ([]byte, error) {
	size, n := varint(p[at:])
	if n == 0 || size > maxRPMHeader {
		return nil, errRPM
	}
	at += n
	_, n = varint(p[at:]) // the row's number
	if n == 0 {
		return nil, errRPM
	}
	at += n
	local := int(size)
	if most := s.usable - 35; local > most {
		least := (s.usable-12)*32/255 - 23
		local = least + (int(size)-least)%(s.usable-4)
		if local > most {
			local = least
		}
	}
	if local < 0 || at+local > len(p) {
		return nil, errRPM
	}
	if local == int(size) {
		return p[at : at+local], nil
	}
	payload := append(make([]byte, 0, min(int(size), len(s.db))), p[at:at+local]...)
	if at+local+4 > len(p) {
		return nil, errRPM
	}
	next := binary.BigEndian.Uint32(p[at+local:])
	for len(payload) < int(size) {
		over, err := s.get(next)
		if err != nil {
			return nil, err
		}
		next = binary.BigEndian.Uint32(over)
		payload = append(payload, over[4:4+min(s.usable-4, int(size)-len(payload))]...)
	}
	return payload, nil
}

// record reads the columns of a row.
func record(b []byte) ([]column, error) {
	size, n := varint(b)
	if n == 0 || size < uint64(n) || size > uint64(len(b)) {
		return nil, errRPM
	}
	types, body := b[n:size], b[size:]
	var columns []column
	for len(types) > 0 {
		kind, n := varint(types)
		if n == 0 {
			return nil, errRPM
		}
		types = types[n:]
		var c column
		length := uint64(0)
		switch {
		case kind <= 4:
			length = kind
		case kind == 5:
			length = 6
		case kind == 6, kind == 7:
			length = 8
		case kind == 9:
			c.integer = 1
		case kind >= 12:
			length = (kind - 12) / 2
		}
		if length > uint64(len(body)) {
			return nil, errRPM
		}
		if kind < 12 {
			for i, v := range body[:length] {
				if i == 0 {
					c.integer = int64(int8(v))
				} else {
					c.integer = c.integer<<8 | int64(v)
				}
			}
		} else {
			c.bytes = body[:length]
		}
		body = body[length:]
		columns = append(columns, c)
	}
	return columns, nil
}

// varint is SQLite's: big-endian, seven bits a byte, the ninth byte whole. n is
// 0 where it is cut off.
func varint(b []byte) (v uint64, n int) {
	for i := range min(len(b), sqlitePayload64) {
		if i == sqlitePayload64-1 {
			return v<<8 | uint64(b[i]), i + 1
		}
		v = v<<7 | uint64(b[i]&0x7f)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}

// rpmHeader reads name, version and architecture of a package's header: rpm's
// docs/manual/format_header.md, without its magic.
func rpmHeader(b []byte) (string, error) {
	if len(b) < rpmIntroSize {
		return "", errRPM
	}
	entries, size := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if entries > rpmMaxEntries || uint64(rpmIntroSize)+uint64(entries)*rpmIndexEntry+uint64(size) > uint64(len(b)) {
		return "", errRPM
	}
	store := b[rpmIntroSize+entries*rpmIndexEntry:]
	found := make(map[uint32]string)
	for i := range entries {
		entry := b[rpmIntroSize+i*rpmIndexEntry:]
		tag, kind, offset := binary.BigEndian.Uint32(entry), binary.BigEndian.Uint32(entry[4:]), binary.BigEndian.Uint32(entry[8:])
		if kind != rpmTypeString && kind != rpmTypeI18N || uint64(offset) >= uint64(len(store)) {
			continue
		}
		switch tag {
		case rpmTagName, rpmTagVersion, rpmTagRelease, rpmTagArch:
			text, _, _ := strings.Cut(string(store[offset:min(uint64(len(store)), uint64(offset)+512)]), "\x00")
			found[tag] = text
		}
	}
	name := found[rpmTagName]
	if name == "" || strings.ContainsAny(name+found[rpmTagVersion]+found[rpmTagRelease]+found[rpmTagArch], " \n") {
		return "", fmt.Errorf("a header without a name: %w", errRPM)
	}
	return fmt.Sprintf("%s %s-%s %s\n", name, found[rpmTagVersion], found[rpmTagRelease], found[rpmTagArch]), nil
}
