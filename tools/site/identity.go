package site

import (
	"slices"
	"strings"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/netconfig"
)

// Identity are the marks by which a machine is known. Values that vendors leave
// in thousands of machines are no marks: Clean takes them out.
type Identity struct {
	MACs   []netconfig.MAC `json:"macs,omitempty"`
	Serial string          `json:"serial,omitempty"`
	UUID   string          `json:"uuid,omitempty"` // lower case
}

// ID is the name of a machine that nobody has named: its first MAC address with
// dashes.
func (i Identity) ID() string {
	if len(i.MACs) == 0 {
		return ""
	}
	return dashed(i.MACs[0])
}

func dashed(mac netconfig.MAC) string { return strings.ReplaceAll(mac.String(), ":", "-") }

// ParseID reads a MAC address with dashes, as ID writes it.
func ParseID(id string) (netconfig.MAC, bool) {
	if strings.Count(id, "-") != 5 {
		return netconfig.MAC{}, false
	}
	mac, err := netconfig.ParseMAC(strings.ReplaceAll(id, "-", ":"))
	return mac, err == nil && !mac.IsZero()
}

// Clean is i without what identifies nothing: serial numbers and UUIDs as
// inventories leave them out, addresses that are no station's own.
func (i Identity) Clean() Identity {
	var c Identity
	if inventory.Identifies(i.Serial) {
		c.Serial = i.Serial
	}
	if inventory.Identifies(i.UUID) {
		c.UUID = strings.ToLower(i.UUID)
	}
	for _, mac := range i.MACs {
		group := mac[0]&1 != 0
		if !mac.IsZero() && !group && !slices.Contains(c.MACs, mac) {
			c.MACs = append(c.MACs, mac)
		}
	}
	return c
}

// IdentityOf are the marks in an inventory.
func IdentityOf(d inventory.Document) Identity {
	i := Identity{Serial: d.DMI.Serial, UUID: d.DMI.UUID}
	for _, nic := range d.NICs {
		// The permanent address is the card's own, whatever a driver set.
		i.MACs = append(i.MACs, nic.PermanentMAC, nic.MAC)
	}
	return i.Clean()
}

// in says by which mark i is the machine with the marks of m; empty where it is
// not.
func (i Identity) in(m Identity) string {
	for _, mac := range i.MACs {
		if slices.Contains(m.MACs, mac) {
			return "MAC address " + mac.String()
		}
	}
	switch {
	case i.Serial != "" && strings.EqualFold(i.Serial, m.Serial):
		return "serial number " + i.Serial
	case i.UUID != "" && i.UUID == m.UUID:
		return "system UUID " + i.UUID
	}
	return ""
}

// String is for people.
func (i Identity) String() string {
	var parts []string
	for _, mac := range i.MACs {
		parts = append(parts, mac.String())
	}
	if i.Serial != "" {
		parts = append(parts, "serial "+i.Serial)
	}
	if i.UUID != "" {
		parts = append(parts, "UUID "+i.UUID)
	}
	return strings.Join(parts, ", ")
}

// match finds the one machine with any of the marks. None is a nil *Machine; two
// are an *Error of code CodeTwice, and then neither is it.
func match(machines []*Machine, who Identity) (*Machine, error) {
	var found *Machine
	var by string
	for _, m := range machines {
		how := who.in(m.Identity)
		if how == "" {
			continue
		}
		if found != nil {
			return nil, fail(CodeTwice, "%s and %s are both this machine (%s by its %s, %s by its %s): nothing is done until one of them is changed",
				found.Name, m.Name, found.Name, by, m.Name, how)
		}
		found, by = m, how
	}
	return found, nil
}

// CheckName says what is wrong with a name that somebody wants to give a machine:
// an *Error of code CodeMachine.
func CheckName(name string) error { return checkName(name) }

// checkName says what is wrong with a machine's name, which is a directory's and
// stands in URLs.
func checkName(name string) error {
	valid := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_'
	}
	if name == "" || len(name) > 128 || name[0] == '.' || name[0] == '-' || strings.ContainsFunc(name, func(r rune) bool { return !valid(r) }) {
		return fail(CodeMachine, "%q is no name for a machine: letters, digits, '-', '.' and '_', at most 128", name)
	}
	if _, isMAC := ParseID(name); isMAC {
		return fail(CodeMachine, "%q is the name of a machine without one; give it a name of its own", name)
	}
	return nil
}
