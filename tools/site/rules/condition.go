package rules

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// Condition is one condition of a rule.
type Condition struct {
	Name string // as in rules.yaml: cores, memory, …
	Text string // what it asks for
	Line int    // of rules.yaml
	test func(inventory.Document) (holds bool, has string)
}

// Holds says whether the condition holds for a machine, and what the machine has
// there.
func (c Condition) Holds(machine inventory.Document) (holds bool, has string) { return c.test(machine) }

// names of the conditions, as rules.yaml has them.
func names() []string {
	return []string{"arch", "cores", "memory", "disks", "firmware", "tpm", "vendor", "model", "serial", "mac", "switch", "fact"}
}

// condition reads one condition; fact gives one for each of its paths.
func (m *mistakes) condition(rule string, key, value *yaml.Node) []Condition {
	where := fmt.Sprintf("rule %s: condition %s", rule, key.Value)
	one := Condition{Name: key.Value, Line: key.Line, Text: shown(value)}
	wrong := func(line int, err error) []Condition {
		m.add(line, "%s: %v", where, err)
		return nil
	}
	var err error
	switch key.Value {
	case "cores":
		one.test, err = number(value, false, func(d inventory.Document) float64 { return float64(d.CPUs) })
	case "memory":
		one.test, err = number(value, true, func(d inventory.Document) float64 { return float64(plugged(d.MemoryBytes)) })
	case "tpm":
		one.test, err = number(value, false, func(d inventory.Document) float64 {
			if d.TPM == nil {
				return 0
			}
			return float64(d.TPM.Version)
		})
	case "arch":
		one.test, err = word(value, func(d inventory.Document) []string { return []string{d.Arch} })
	case "firmware":
		one.test, err = word(value, func(d inventory.Document) []string { return []string{string(d.Firmware)} })
	case "vendor":
		one.test, err = word(value, func(d inventory.Document) []string { return []string{d.DMI.Vendor} })
	case "model":
		one.test, err = word(value, func(d inventory.Document) []string { return []string{d.DMI.Product} })
	case "serial":
		one.test, err = word(value, func(d inventory.Document) []string { return []string{d.DMI.Serial} })
	case "mac":
		one.test, err = macPrefix(value)
	case "disks":
		one.test, err = m.disks(where, value)
	case "switch":
		one.test, err = m.neighbour(where, value)
	case "fact":
		if value.Kind != yaml.MappingNode {
			return wrong(value.Line, fmt.Errorf("it has paths into the inventory with their conditions: {dmi.biosVersion: \"2.*\"}"))
		}
		var all []Condition
		for i := 0; i+1 < len(value.Content); i += 2 {
			path, wanted := value.Content[i], value.Content[i+1]
			test, err := fact(path.Value, wanted)
			if err != nil {
				m.add(path.Line, "%s: %s: %v", where, path.Value, err)
				continue
			}
			all = append(all, Condition{Name: "fact " + path.Value, Line: path.Line, Text: shown(wanted), test: test})
		}
		return all
	default:
		m.add(key.Line, "rule %s: there is no condition %q%s", rule, key.Value, meant(key.Value, names()))
		return nil
	}
	if err != nil {
		return wrong(value.Line, err)
	}
	return []Condition{one}
}

// shown is what a condition asks for, on one line.
func shown(node *yaml.Node) string {
	switch node.Kind {
	case yaml.ScalarNode:
		return node.Value
	case yaml.SequenceNode:
		var all []string
		for _, one := range node.Content {
			all = append(all, shown(one))
		}
		return strings.Join(all, " or ")
	}
	var all []string
	for i := 0; i+1 < len(node.Content); i += 2 {
		all = append(all, node.Content[i].Value+" "+shown(node.Content[i+1]))
	}
	return strings.Join(all, ", ")
}

type test = func(inventory.Document) (bool, string)

// number compares a number; sized says that it is one of bytes.
func number(node *yaml.Node, sized bool, of func(inventory.Document) float64) (test, error) {
	wanted, err := comparisons(node)
	if err != nil {
		return nil, err
	}
	for _, c := range wanted {
		if c.sized != sized && c.value != 0 {
			if sized {
				return nil, fmt.Errorf("%q is no size: it needs a unit, such as 64GiB", c.text)
			}
			return nil, fmt.Errorf("%q is a size, and a number is compared", c.text)
		}
	}
	return func(d inventory.Document) (bool, string) {
		n := of(d)
		has := strconv.FormatFloat(n, 'f', -1, 64)
		if sized {
			has = storage.Bytes(uint64(n))
		}
		return allHold(wanted, n), has
	}, nil
}

func comparisons(node *yaml.Node) ([]comparison, error) {
	if node.Kind != yaml.ScalarNode {
		return nil, fmt.Errorf("it is a comparison such as \">= 40\", or two with a comma between")
	}
	return parseComparisons(node.Value)
}

// plugged is the memory that is plugged in, where the kernel says what it can
// use: some per cent less. Modules have sizes of which the next larger multiple
// of an eighth to a sixteenth is the right one.
func plugged(usable uint64) uint64 {
	if usable < 1<<20 {
		return usable
	}
	step := uint64(1) << max(bits.Len64(usable)-4, 0)
	return (usable + step - 1) / step * step
}

// word compares a text with a pattern, or with several of which one is enough.
// Of several values one is enough too.
func word(node *yaml.Node, of func(inventory.Document) []string) (test, error) {
	wanted, err := globs(node)
	if err != nil {
		return nil, err
	}
	return func(d inventory.Document) (bool, string) {
		values := of(d)
		for _, value := range values {
			for _, g := range wanted {
				if g.holds(value) {
					return true, value
				}
			}
		}
		return false, said(values)
	}, nil
}

// said are values for a person.
func said(values []string) string {
	var all []string
	for _, v := range values {
		if v != "" {
			all = append(all, v)
		}
	}
	if len(all) == 0 {
		return "nothing"
	}
	return strings.Join(all, ", ")
}

func globs(node *yaml.Node) (all []glob, err error) {
	nodes := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		nodes = node.Content
	}
	for _, one := range nodes {
		if one.Kind != yaml.ScalarNode || strings.TrimSpace(one.Value) == "" {
			return nil, fmt.Errorf("it is a text with * for anything, or a list of such texts")
		}
		g, err := parseGlob(strings.TrimSpace(one.Value))
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the list is empty: nothing would match")
	}
	return all, nil
}

// macPrefix compares the beginning of the addresses of all NICs.
func macPrefix(node *yaml.Node) (test, error) {
	nodes := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		nodes = node.Content
	}
	var wanted []string
	for _, one := range nodes {
		prefix := strings.ToLower(strings.NewReplacer("-", ":", ".", ":").Replace(strings.TrimSpace(one.Value)))
		digits := strings.ReplaceAll(prefix, ":", "")
		if one.Kind != yaml.ScalarNode || digits == "" || len(prefix) > 17 || strings.Trim(digits, "0123456789abcdef") != "" {
			return nil, fmt.Errorf("%q is no beginning of a MAC address such as 52:54:00", one.Value)
		}
		for n, octet := range strings.Split(prefix, ":") {
			last := n == strings.Count(prefix, ":")
			if len(octet) != 2 && (!last || len(octet) > 1) {
				return nil, fmt.Errorf("%q is no beginning of a MAC address such as 52:54:00", one.Value)
			}
		}
		wanted = append(wanted, prefix)
	}
	if len(wanted) == 0 {
		return nil, fmt.Errorf("the list is empty: nothing would match")
	}
	return func(d inventory.Document) (bool, string) {
		var all []string
		for _, nic := range d.NICs {
			for _, mac := range addresses(nic) {
				for _, prefix := range wanted {
					if strings.HasPrefix(mac, prefix) {
						return true, mac
					}
				}
				all = append(all, mac)
			}
		}
		return false, said(all)
	}, nil
}

// addresses of a NIC: the burnt-in one first.
func addresses(nic netconfig.NIC) (all []string) {
	if !nic.PermanentMAC.IsZero() {
		all = append(all, nic.PermanentMAC.String())
	}
	if nic.MAC != nic.PermanentMAC {
		all = append(all, nic.MAC.String())
	}
	return all
}

// disks counts the disks that an installation may use: all, with a number
// alone; those of a size, with a size; or those that a mapping describes.
func (m *mistakes) disks(where string, node *yaml.Node) (test, error) {
	count := []comparison{{op: ">=", value: 1}}
	var size []comparison
	var transport, model []glob
	var rotating *bool
	var err error
	if node.Kind == yaml.MappingNode {
		fields := m.fields(node, where, "count", "size", "transport", "model", "rotational")
		for _, name := range []string{"count", "size", "transport", "model", "rotational"} {
			value := fields[name]
			if value == nil {
				continue
			}
			switch name {
			case "count":
				count, err = comparisons(value)
			case "size":
				size, err = comparisons(value)
			case "transport":
				transport, err = globs(value)
			case "model":
				model, err = globs(value)
			case "rotational":
				rotating = new(bool)
				err = value.Decode(rotating)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %v", name, err)
			}
		}
	} else {
		wanted, err := comparisons(node)
		if err != nil {
			return nil, err
		}
		if wanted[0].sized {
			size = wanted
		} else {
			count = wanted
		}
	}
	for _, c := range count {
		if c.sized {
			return nil, fmt.Errorf("%q is a size, and disks are counted", c.text)
		}
	}
	for _, c := range size {
		if !c.sized {
			return nil, fmt.Errorf("%q is no size: it needs a unit, such as 500GB", c.text)
		}
	}
	fits := func(d storage.Disk) bool {
		usable, _ := d.Usable()
		return usable && allHold(size, float64(d.Size)) &&
			(transport == nil || any1(transport, d.Transport)) && (model == nil || any1(model, d.Model)) &&
			(rotating == nil || *rotating == d.Rotational)
	}
	return func(d inventory.Document) (bool, string) {
		n := 0
		var all []string
		for _, disk := range d.Disks {
			if usable, _ := disk.Usable(); usable {
				all = append(all, strings.TrimSpace(disk.Transport+" "+storage.Bytes(disk.Size)))
			}
			if fits(disk) {
				n++
			}
		}
		return allHold(count, float64(n)), fmt.Sprintf("%d of %d (%s)", n, len(all), said(all))
	}, nil
}

func any1(wanted []glob, text string) bool {
	for _, g := range wanted {
		if g.holds(text) {
			return true
		}
	}
	return false
}

// neighbour compares what the switch at any NIC says of itself (LLDP): its name
// or chassis, and the port where that is asked for.
func (m *mistakes) neighbour(where string, node *yaml.Node) (test, error) {
	name, port := node, (*yaml.Node)(nil)
	if node.Kind == yaml.MappingNode {
		fields := m.fields(node, where, "name", "port")
		name, port = fields["name"], fields["port"]
	}
	var names, ports []glob
	var err error
	if name != nil {
		if names, err = globs(name); err != nil {
			return nil, err
		}
	}
	if port != nil {
		if ports, err = globs(port); err != nil {
			return nil, fmt.Errorf("port: %v", err)
		}
	}
	if names == nil && ports == nil {
		return nil, fmt.Errorf("it needs a name or a port")
	}
	return func(d inventory.Document) (bool, string) {
		var all []string
		for _, nic := range d.NICs {
			n := nic.Neighbour
			if n == nil {
				continue
			}
			seen := said([]string{n.System, n.Chassis}) + " port " + n.Port
			if (names == nil || any1(names, n.System) || any1(names, n.Chassis)) && (ports == nil || any1(ports, n.Port) || any1(ports, n.Description)) {
				return true, seen
			}
			all = append(all, seen)
		}
		return false, said(all)
	}, nil
}
