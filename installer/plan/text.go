package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// columns of a console on which a person reads the plan.
const columns = 80

// Text is the plan for a tired person at a console: which disk is erased, what
// is lost with it, what comes instead, what stays. Its lines have at most 80
// columns and no control characters.
func (p Plan) Text() string {
	t := new(text)
	m := p.Machine
	hardware := strings.TrimSpace(m.Vendor + " " + m.Product)
	t.field("Machine", cmp.Or(m.Hostname, "(no hostname)"), hardware, prefixed("serial ", m.Serial), prefixed("in ", m.Location))
	t.field("", m.Arch+" with "+firmwareText(m), strings.Join(m.MACs, ", "))
	if p.Wipe != "" {
		t.field("Wipe", "the disks are erased, and nothing is installed")
	} else {
		t.field("Image", p.Image.Name, p.Image.OS)
		t.field("", p.Image.Digest.String())
		t.field("", fmt.Sprintf("%s files, %s unpacked", thousands(p.Image.Objects), storage.Bytes(p.Image.Bytes)))
	}
	if p.Tools != nil {
		t.field("Tools", p.Tools.Name, "unpacked to memory, to run programs from")
	}
	t.line("", "")

	if len(p.Layout.Disks) == 0 {
		t.field("Disks", "no disk is touched")
	}
	for i, d := range p.Layout.Disks {
		p.disk(t, d, p.Wipe == "" && i < len(p.Layout.BootDisks()))
	}
	p.stack(t)
	p.Encryption.write(t)
	if len(p.Kept) > 0 {
		t.line("", "These stay as they are:")
		for _, kept := range p.Kept {
			t.line("  ", kept)
		}
		t.line("", "")
	}

	if p.Wipe == "" {
		p.Network.write(t)
	}
	if p.Boot.Kernel != "" {
		t.field("Boot", "by "+strings.Join(p.Boot.Loaders, ", ")+": "+p.Boot.Kernel)
		t.field("", p.Boot.CommandLine)
	}
	title := "Steps"
	for _, s := range p.Steps {
		t.field(title, s.When+": "+s.Programme, "in the "+s.In, s.Digest)
		title = ""
	}
	if len(p.Secrets) > 0 {
		t.field("Secrets", "from the site server, for this TPM alone: "+strings.Join(p.Secrets, " "))
	}
	if p.RequireApproval {
		t.field("Approval", "no disk is changed before an operator has approved this plan")
	}
	switch {
	case len(p.Layout.Disks) == 0:
	case p.HandOver == PowerOff:
		t.field("Then", "the machine is switched off")
	case p.HandOver == Kexec:
		t.field("Then", "the new OS is started by kexec, without the firmware")
	default:
		t.field("Then", "the machine reboots through its firmware")
	}
	if p.Wipe == "" {
		t.field("Download", fmt.Sprintf("at most %s in %s objects", storage.Bytes(p.FetchBytes), thousands(p.FetchObjects)))
	}
	t.field("Memory", fmt.Sprintf("at most %s of %s", storage.Bytes(p.MemoryNeed), storage.Bytes(p.MemoryHave)))
	if p.LowMemory {
		t.field("", fmt.Sprintf("up to %s of old files are kept in it; the rest of the image is fetched after the disks have been erased", storage.Bytes(p.StageBytes)))
	}
	for _, warning := range p.Warnings {
		t.field("Warning", warning)
	}
	return t.b.String()
}

func (p Plan) disk(t *text, d storage.DiskLayout, first bool) {
	what := storage.Bytes(d.Size)
	if model := strings.Join(strings.Fields(d.Model), " "); model != "" {
		what = model + ", " + what
	}
	if d.Serial != "" {
		what += ", serial " + d.Serial
	}
	title := "WILL BE ERASED: "
	if slices.ContainsFunc(d.Partitions, func(v storage.Partition) bool { return v.Kept }) {
		title = "WILL BE ERASED, BUT FOR WHAT IS KEPT: "
	}
	t.line("", title+d.Path+" ("+what+")")
	t.line("  ", "chosen by: "+d.ChosenBy)
	t.line("  ", "erased by: "+erasing(d))
	if len(d.Contents) == 0 {
		t.line("  ", "lost: nothing was recognised on it")
	}
	for _, c := range d.Contents {
		found := "lost: "
		if d.Keeps(c) {
			found = "KEPT: "
		}
		found += c.Where + "  " + c.Kind
		if c.Label != "" {
			found += " " + strconv.Quote(c.Label)
		}
		if c.Size > 0 {
			found += ", " + storage.Bytes(c.Size)
		}
		t.line("  ", found)
	}
	if len(d.Partitions) > 0 {
		t.line("  ", fmt.Sprintf("      %-9s %21s %9s", "", "sectors", "size"))
	}
	lies := members(p.Layout)
	for _, v := range d.Partitions {
		t.made(storage.PartitionName(d.Name, v.Number), v.Bytes, v, lies[d.Node(v)])
	}
	if first {
		t.line("  ", "The machine will start from this disk.")
	}
	t.line("", "")
}

// erasing says what the erasure of a disk does and what it does not.
func erasing(d storage.DiskLayout) string {
	switch d.Erase {
	case storage.EraseDiscard:
		return "discard: the disk is told that nothing on it is needed"
	case storage.EraseCrypto:
		return "crypto: the disk forgets its contents by " + d.CryptoErase
	case storage.EraseOverwrite:
		return "overwrite: zeroes in every sector, read back"
	}
	return "metadata: tables, signatures, key slots; not what is in files"
}

// Text is the network for a person to read, as it stands in the plan's Text.
func (n Network) Text() string {
	t := new(text)
	n.write(t)
	return t.b.String()
}

func (n Network) write(t *text) {
	if len(n.Interfaces) == 0 {
		t.field("Network", "is not configured by this plan")
		return
	}
	title := "Network"
	for _, i := range n.Interfaces {
		var words []string
		switch i.Kind {
		case netconfig.Ethernet:
			words = append(words, "NIC "+i.NIC, i.MAC.String())
		case netconfig.VLAN:
			words = append(words, fmt.Sprintf("VLAN %d on %s", i.VLANID, i.Parent))
		default:
			words = append(words, string(i.Kind)+" of "+cmp.Or(strings.Join(i.Ports, " "), "nothing"))
		}
		if i.Master != "" {
			words = append(words, "part of "+i.Master)
		}
		for _, a := range i.Addresses {
			words = append(words, a.String())
		}
		if i.DHCP4 {
			words = append(words, "address by DHCP")
		}
		if i.AcceptRA {
			words = append(words, "IPv6 by router advertisements")
		}
		for _, gateway := range i.Gateways() {
			words = append(words, "gateway "+gateway.String())
		}
		t.field(title, i.Name+": "+words[0], words[1:]...)
		title = ""
	}
	var names []string
	for _, a := range n.DNS {
		names = append(names, a.String())
	}
	if n.Renderer != "" {
		t.field("", "written for "+n.Renderer)
	}
	if len(names) > 0 {
		t.field("", "DNS "+strings.Join(names, " "), prefixed("search ", strings.Join(n.Search, " ")))
	}
	title = "Proof"
	for _, s := range n.Prove {
		var gateways []string
		for _, gateway := range s.Gateways {
			gateways = append(gateways, gateway.String())
		}
		t.field(title, "before any change: "+s.Where(), prefixed("gateway ", strings.Join(gateways, " ")))
		title = ""
	}
}

// text is lines of limited width.
type text struct{ b strings.Builder }

// field writes parts, joined by commas, behind a title of one column.
func (t *text) field(title, first string, more ...string) {
	parts := []string{first}
	for _, part := range more {
		if part != "" {
			parts = append(parts, part)
		}
	}
	t.wrap(fmt.Sprintf("%-8s ", title), strings.Repeat(" ", 9), strings.Join(parts, ", "))
}

// line writes content with an indentation that further lines have too, deeper.
func (t *text) line(indent, content string) { t.wrap(indent, indent+"      ", content) }

func (t *text) wrap(head, indent, content string) {
	line, empty := head, true
	flush := func() {
		t.b.WriteString(strings.TrimRight(line, " "))
		t.b.WriteByte('\n')
		line, empty = indent, true
	}
	// Spaces are kept: tables are made of them.
	for i, word := range strings.Split(printable(content), " ") {
		if i > 0 && !empty {
			line += " "
		}
		if !empty && utf8.RuneCountInString(line)+utf8.RuneCountInString(word) > columns {
			flush()
		}
		for utf8.RuneCountInString(line)+utf8.RuneCountInString(word) > columns {
			runes := []rune(word)
			cut := columns - utf8.RuneCountInString(line)
			line += string(runes[:cut])
			word = string(runes[cut:])
			flush()
		}
		line += word
		empty = false
	}
	flush()
}

// printable replaces what a terminal might obey: labels and names come from
// strange disks.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func firmwareText(m Machine) string {
	switch {
	case m.Firmware == storage.UEFI && m.SecureBoot:
		return "UEFI firmware, Secure Boot on"
	case m.Firmware == storage.UEFI:
		return "UEFI firmware"
	}
	return "BIOS firmware"
}

func prefixed(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// thousands writes 12049 as 12,049.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
