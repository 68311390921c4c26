package rules

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/installer/inventory"
)

// Machine is a machine that nobody has named yet.
type Machine struct {
	// ID is its MAC address with dashes.
	ID string
	// Inventory is what it said of itself; nil where it has said nothing.
	Inventory *inventory.Document
}

// Image is what must be known of an image that a rule assigns.
type Image struct {
	Name   string `json:"name"` // without streams and aliases
	Digest string `json:"digest"`
	Arch   string `json:"arch"`
}

// World is what a preview is made from besides the rules and the machines.
type World struct {
	// Images are those that the rules name, by the name there.
	Images map[string]Image
	// Layouts are the files that the rules name, by the name there.
	Layouts map[string][]byte
	// Taken says whether a machine has that name already.
	Taken func(name string) bool
	// CheckName says what is wrong with a name.
	CheckName func(name string) error
}

// Preview is what the rules would do, completely decided.
type Preview struct {
	Format int `json:"format"`
	// Rules is the SHA-256 of rules.yaml.
	Rules    string     `json:"rules"`
	Machines []Decision `json:"machines"` // by ID
}

// Decision is what becomes of one machine.
type Decision struct {
	Machine string `json:"machine"`
	// Hardware is a SHA-256 of what the machine is: when a disk or a card of it
	// is exchanged it is another.
	Hardware string `json:"hardware,omitempty"`
	// Rule is the one by which it is decided; empty where none matches, or
	// several do and none goes first.
	Rule string `json:"rule,omitempty"`
	// Name, Image, Layout and Labels are what the machine becomes.
	Name         string            `json:"name,omitempty"`
	Image        string            `json:"image,omitempty"` // as the rule names it
	Resolved     *Image            `json:"resolved,omitempty"`
	Layout       string            `json:"layout,omitempty"`
	LayoutDigest string            `json:"layoutDigest,omitempty"` // SHA-256 of the file
	Labels       map[string]string `json:"labels,omitempty"`
	// Also are other rules that match, which go behind.
	Also []string `json:"also,omitempty"`
	// Misses are the rules that do not match, with the first condition of each
	// that fails.
	Misses []Miss `json:"misses,omitempty"`
	// Problem is why nothing can become of the machine although a rule matches.
	Problem string `json:"problem,omitempty"`
	// Silent says that the machine has not sent its inventory yet.
	Silent bool `json:"silent,omitempty"`
}

// Miss is why a rule does not match a machine.
type Miss struct {
	Rule      string `json:"rule"`
	Condition string `json:"condition"`
	Wants     string `json:"wants"`
	Has       string `json:"has"`
}

// Matches says that the machine becomes something.
func (d Decision) Matches() bool { return d.Rule != "" && d.Problem == "" }

// digest is the hexadecimal SHA-256 of data.
func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// NewPreview says what the rules, read from data, make of machines. It changes
// nothing, and the same machines, rules and world give the same preview.
func NewPreview(rules Rules, data []byte, machines []Machine, world World) (Preview, error) {
	p := Preview{Format: 1, Rules: digest(data), Machines: []Decision{}}
	machines = slices.SortedFunc(slices.Values(machines), func(a, b Machine) int { return cmp.Compare(a.ID, b.ID) })
	names := make(map[string]string) // in this preview: name → machine
	for _, m := range machines {
		d := Decision{Machine: m.ID}
		if m.Inventory == nil {
			d.Silent = true
			p.Machines = append(p.Machines, d)
			continue
		}
		hardware, err := hardwareOf(*m.Inventory)
		if err != nil {
			return Preview{}, err
		}
		d.Hardware = hardware
		if rule := rules.choose(&d, *m.Inventory); rule != nil {
			d.assign(*rule, *m.Inventory, world, names)
		}
		p.Machines = append(p.Machines, d)
	}
	return p, nil
}

// choose finds the rule for a machine; nil for none. Two rules that match are a
// problem, unless their priorities say which goes first.
func (rules Rules) choose(d *Decision, machine inventory.Document) *Rule {
	var matching []*Rule
	for i := range rules {
		rule := &rules[i]
		if miss := rule.miss(machine); miss != nil {
			d.Misses = append(d.Misses, *miss)
		} else {
			matching = append(matching, rule)
		}
	}
	if len(matching) == 0 {
		return nil
	}
	first := matching[0]
	for _, rule := range matching[1:] {
		if rule.Priority != nil && (first.Priority == nil || *rule.Priority > *first.Priority) {
			first = rule
		}
	}
	var same []string
	for _, rule := range matching {
		switch {
		case rule == first:
		case first.Priority == nil, rule.Priority == nil, *rule.Priority == *first.Priority:
			same = append(same, rule.Name)
		default:
			d.Also = append(d.Also, rule.Name)
		}
	}
	if len(same) > 0 {
		d.Problem = fmt.Sprintf("the rules %s and %s both match it, and no priorities say which goes first", first.Name, strings.Join(same, ", "))
		return nil
	}
	d.Rule = first.Name
	return first
}

// miss is the first condition that does not hold.
func (r Rule) miss(machine inventory.Document) *Miss {
	for _, c := range r.Conditions {
		if holds, has := c.Holds(machine); !holds {
			return &Miss{Rule: r.Name, Condition: c.Name, Wants: c.Text, Has: has}
		}
	}
	return nil
}

// assign decides what the machine becomes by its rule. What cannot be is its
// problem.
func (d *Decision) assign(rule Rule, machine inventory.Document, world World, names map[string]string) {
	d.Image, d.Layout, d.Labels = rule.Set.Image, rule.Set.Layout, rule.Set.Labels
	image, known := world.Images[rule.Set.Image]
	switch {
	case !known:
		d.Problem = fmt.Sprintf("there is no image %s", rule.Set.Image)
	case image.Arch == "":
		d.Problem = fmt.Sprintf("the image %s does not say for which architecture it is", image.Name)
	case image.Arch != machine.Arch:
		d.Problem = fmt.Sprintf("the image %s is for %s, and the machine is %s", image.Name, image.Arch, machine.Arch)
	}
	if known {
		d.Resolved = &image
	}
	if d.Layout != "" {
		layout, there := world.Layouts[d.Layout]
		if !there {
			d.Problem = cmp.Or(d.Problem, fmt.Sprintf("there is no file %s in the site", d.Layout))
		}
		d.LayoutDigest = digest(layout)
	}
	if d.Problem != "" {
		return
	}
	name, err := rule.Set.Name.free(machine, rule.Set.Labels, func(name string) bool { return names[name] != "" || world.Taken(name) })
	if err == nil {
		err = world.CheckName(name)
	}
	d.Name = name
	switch {
	case err != nil:
		d.Problem = err.Error()
	case names[name] != "":
		d.Problem = fmt.Sprintf("it would be called %s, as %s would", name, names[name])
	case world.Taken(name):
		d.Problem = fmt.Sprintf("it would be called %s, and there is a machine of that name", name)
	default:
		names[name] = d.Machine
	}
}

// mostNumbers bounds how far {n} counts.
const mostNumbers = 100_000

// free is the first name that is not taken; without {n} there is but one.
func (p Pattern) free(machine inventory.Document, labels map[string]string, taken func(string) bool) (string, error) {
	for n := 1; n <= mostNumbers; n++ {
		name, err := p.name(machine, labels, n)
		if err != nil || !p.numbered() || !taken(name) {
			return name, err
		}
	}
	return "", fmt.Errorf("all numbers of %s are taken", p)
}

// hardwareOf is the SHA-256 of what does not change while a machine waits.
func hardwareOf(d inventory.Document) (string, error) {
	type disk struct {
		Path, Model, Serial, WWN string
		Size                     uint64
	}
	var hardware = struct {
		Arch, Vendor, Product, Serial, UUID string
		CPUs                                int
		Memory                              uint64
		Disks                               []disk
		MACs                                []string
	}{d.Arch, d.DMI.Vendor, d.DMI.Product, d.DMI.Serial, d.DMI.UUID, d.CPUs, plugged(d.MemoryBytes), nil, nil}
	for _, one := range d.Disks {
		hardware.Disks = append(hardware.Disks, disk{one.Path, one.Model, one.Serial, one.WWN, one.Size})
	}
	for _, nic := range d.NICs {
		hardware.MACs = append(hardware.MACs, addresses(nic)...)
	}
	slices.Sort(hardware.MACs)
	data, err := json.Marshal(hardware)
	if err != nil {
		return "", fmt.Errorf("describing the hardware: %w", err)
	}
	return digest(data), nil
}

// JSON is the preview as it is kept: the same preview gives the same bytes.
func (p Preview) JSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(p); err != nil {
		return nil, fmt.Errorf("encoding the preview: %w", err)
	}
	return b.Bytes(), nil
}

// Hash is "sha256:" and the hexadecimal SHA-256 of what JSON returns.
func (p Preview) Hash() (string, error) {
	data, err := p.JSON()
	if err != nil {
		return "", err
	}
	return "sha256:" + digest(data), nil
}

// ParsePreview reads what JSON wrote.
func ParsePreview(data []byte) (Preview, error) {
	var p Preview
	if err := json.Unmarshal(data, &p); err != nil {
		return Preview{}, fmt.Errorf("reading a preview: %w", err)
	}
	if p.Format != 1 {
		return Preview{}, fmt.Errorf("the preview has format %d; this version reads 1", p.Format)
	}
	return p, nil
}

// Decided is the preview without the machines that no rule has matched: applying
// it does nothing to them, whatever becomes of them meanwhile.
func (p Preview) Decided() Preview {
	decided := p
	decided.Machines = nil
	for _, d := range p.Machines {
		if d.Rule != "" || d.Problem != "" {
			decided.Machines = append(decided.Machines, d)
		}
	}
	return decided
}

// Problems are the machines of which nothing can become although rules match.
func (p Preview) Problems() (all []Decision) {
	for _, d := range p.Machines {
		if d.Problem != "" {
			all = append(all, d)
		}
	}
	return all
}

// Changes says what differs between a preview and the same machines now, a line
// for each.
func (p Preview) Changes(now Preview) (changes []string) {
	if p.Rules != now.Rules {
		changes = append(changes, "rules.yaml is another one")
	}
	current := make(map[string]Decision)
	for _, d := range now.Machines {
		current[d.Machine] = d
	}
	for _, was := range p.Machines {
		is, there := current[was.Machine]
		what := was.change(is)
		switch {
		case !there:
			what = "it is gone, or has a name now"
		case what == "":
			continue
		}
		changes = append(changes, was.Machine+": "+what)
	}
	return changes
}

// change says in which way a machine is decided differently now.
func (d Decision) change(now Decision) string {
	resolved := func(d Decision) Image {
		if d.Resolved == nil {
			return Image{}
		}
		return *d.Resolved
	}
	switch {
	case d.Silent != now.Silent:
		return "it has sent its inventory"
	case d.Hardware != now.Hardware:
		return "its hardware is not the same"
	case d.Problem != now.Problem:
		return "it had the problem " + quoted(d.Problem) + ", now it has " + quoted(now.Problem)
	case d.Rule != now.Rule:
		return "it matched " + quoted(d.Rule) + ", now it matches " + quoted(now.Rule)
	case d.Name != now.Name:
		return "it was to be called " + quoted(d.Name) + ", now " + quoted(now.Name)
	case resolved(d) != resolved(now):
		return fmt.Sprintf("its image %s was %s, now it is %s", d.Image, resolved(d).Digest, resolved(now).Digest)
	case d.LayoutDigest != now.LayoutDigest:
		return "the file " + d.Layout + " is another one"
	}
	before, err := json.Marshal(d)
	after, err2 := json.Marshal(now)
	if err != nil || err2 != nil || !bytes.Equal(before, after) {
		return "it is decided differently"
	}
	return ""
}

func quoted(text string) string {
	if text == "" {
		return "none"
	}
	return fmt.Sprintf("%q", text)
}
