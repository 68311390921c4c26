package ingest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
)

// The extended attributes and the binary form of POSIX ACLs:
// include/uapi/linux/posix_acl.h and posix_acl_xattr.h of the kernel.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion  = 2
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
	aclNoID     = 0xffffffff
)

// textACL is an ACL as tar --acls writes it, for example
// "user::rwx,user:backup:r--,group::r-x,mask::r-x,other::---".
type textACL struct {
	path, xattr, text string
}

// addACLs notes the ACLs of an entry that are there as text only.
func (t *tree) addACLs(header *tar.Header, e *image.Entry) error {
	for key, xattr := range map[string]string{paxACLAccess: aclAccess, paxACLDef: aclDefault} {
		text := header.PAXRecords[key]
		if text == "" || slices.ContainsFunc(e.Xattrs, func(x image.Xattr) bool { return x.Name == xattr }) {
			continue
		}
		if e.Type != image.Dir && xattr == aclDefault {
			return refuse(header.Name, "a default ACL, but no directory")
		}
		if _, again := t.entries[e.Path]; again {
			return refuse(header.Name, "it is there twice, with an ACL")
		}
		t.acls[e.Path] = append(t.acls[e.Path], textACL{e.Path, xattr, text})
	}
	return nil
}

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// attach turns the text into the kernel's bytes.
func (a textACL) attach(e *image.Entry, content func(path string) []byte) error {
	var entries []aclEntry
	for item := range strings.FieldsFuncSeq(a.text, func(r rune) bool { return r == ',' || r == '\n' }) {
		fields := strings.Split(strings.TrimSpace(item), ":")
		if len(fields) < 2 {
			return refuse(a.path, "ACL %q", item)
		}
		if len(fields) == 2 { // "other:r--", "mask:r--"
			fields = []string{fields[0], "", fields[1]}
		}
		entry := aclEntry{id: aclNoID}
		for i, letter := range "rwx" {
			if strings.ContainsRune(fields[2], letter) {
				entry.perm |= 4 >> i
			}
		}
		names := "etc/passwd"
		switch fields[0] {
		case "user", "u":
			entry.tag = aclUserObj
		case "group", "g":
			entry.tag = aclGroupObj
			names = "etc/group"
		case "mask", "m":
			entry.tag = aclMask
		case "other", "o":
			entry.tag = aclOther
		default:
			return refuse(a.path, "ACL %q", item)
		}
		if fields[1] != "" {
			entry.tag <<= 1 // of the owner, of the group → of a named one
			text := fields[1]
			if len(fields) > 3 { // star adds the number behind
				text = fields[3]
			}
			id, found := lookUpID(content(names), text)
			if !found || entry.tag != aclUser && entry.tag != aclGroup {
				return refuse(a.path, "ACL %q: who that is stands neither there nor in the image's %s; make the tar with --numeric-owner", item, names)
			}
			entry.id = id
		}
		entries = append(entries, entry)
	}
	// The kernel wants them by tag, then by number.
	slices.SortStableFunc(entries, func(x, y aclEntry) int {
		return cmp.Or(cmp.Compare(x.tag, y.tag), cmp.Compare(x.id, y.id))
	})
	value := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, entry := range entries {
		value = binary.LittleEndian.AppendUint16(value, entry.tag)
		value = binary.LittleEndian.AppendUint16(value, entry.perm)
		value = binary.LittleEndian.AppendUint32(value, entry.id)
	}
	// An ACL that says no more than the mode is none.
	if a.xattr == aclAccess && len(entries) <= 3 {
		return nil
	}
	e.Xattrs = append(e.Xattrs, image.Xattr{Name: a.xattr, Value: value})
	sortXattrs(e.Xattrs)
	return nil
}

// lookUpID reads a number, or finds a name in passwd(5) or group(5).
func lookUpID(database []byte, text string) (uint32, bool) {
	if id, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(id), id != aclNoID
	}
	for line := range bytes.Lines(database) {
		fields := strings.Split(strings.TrimSpace(string(line)), ":")
		if len(fields) > 2 && fields[0] == text {
			id, err := strconv.ParseUint(fields[2], 10, 32)
			return uint32(id), err == nil
		}
	}
	return 0, false
}
