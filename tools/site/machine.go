package site

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/trust"
	"github.com/firstlight/firstlight/netconfig"
)

// Card is machine.yaml: what is known of a machine besides its configuration.
type Card struct {
	MACs   []netconfig.MAC   `yaml:"macs,omitempty" json:"macs,omitempty"`
	Serial string            `yaml:"serial,omitempty" json:"serial,omitempty"`
	UUID   string            `yaml:"uuid,omitempty" json:"uuid,omitempty"`
	Labels map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"`
	// EndorsementKey is the SHA-256 of the public area of its TPM's endorsement key,
	// as its inventory shows it: secrets are handed out to that TPM alone.
	EndorsementKey string `yaml:"endorsement-key,omitempty" json:"endorsementKey,omitempty"`
	// BMC is how the machine is switched on from afar.
	BMC *BMC `yaml:"bmc,omitempty" json:"bmc,omitempty"`
	// AnswersOn is the TCP port by which it is known that the new system is
	// there; 0 means 22.
	AnswersOn uint16 `yaml:"answers-on,omitempty" json:"answersOn,omitempty"`
}

// BMC is a machine's management controller.
type BMC struct {
	URL  string `yaml:"url" json:"url"` // of Redfish: https://bmc.example.com
	User string `yaml:"user" json:"user"`
	// PasswordFile lies in the site's secrets directory.
	PasswordFile string `yaml:"password-file" json:"passwordFile"`
	// CA is a PEM file, in the site's directory, with the certificate that the
	// BMC's is checked by. Without it the system's authorities count.
	CA string `yaml:"ca,omitempty" json:"ca,omitempty"`
	// Fingerprint is that of the BMC's certificate, "SHA256:" and hexadecimal
	// digits; with it nothing else about the certificate counts.
	Fingerprint string `yaml:"fingerprint,omitempty" json:"fingerprint,omitempty"`
}

// The names of files in a machine's directory that are not the installer's.
const (
	// CardFile holds the machine's Card.
	CardFile      = "machine.yaml"
	inventoryFile = "inventory.json"
)

// Machine is a machine as its files are now.
type Machine struct {
	Name     string         `json:"name"`    // its directory; its MAC address with dashes while pending
	Pending  bool           `json:"pending"` // nobody has said what it shall be
	Identity Identity       `json:"-"`
	Card     Card           `json:"card"`
	Hostname string         `json:"hostname,omitempty"`
	Address  netip.Addr     `json:"address,omitzero"` // that it shall have
	Image    string         `json:"image,omitempty"`
	Arch     string         `json:"arch,omitempty"`    // that config.json wants, in Go's words
	Mistake  string         `json:"mistake,omitempty"` // what is wrong with its configuration
	Status   Status         `json:"status"`
	Config   *config.Config `json:"-"` // nil while pending or with a Mistake
}

// Files are the installer's files of a machine: those of its directory that the
// installer asks for by name.
func (s *Site) Files(name string) (fetch.Files, error) {
	files := fetch.Files{}
	for _, file := range append(fetch.Names(), trust.BundleFile, trust.SignatureFile) {
		data, err := readSmall(s.path(machinesDir, name, file), fetch.MaxFileBytes)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, &Error{CodeMachine, "reading the files of " + name, err}
		}
		files[file] = data
	}
	for _, step := range config.StepFiles(files) {
		data, err := readSmall(s.path(machinesDir, name, step), fetch.MaxFileBytes)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a missing one is told with all other mistakes
			return nil, &Error{CodeMachine, "reading the files of " + name, err}
		}
		if err == nil {
			files[step] = data
		}
	}
	return files, nil
}

// index keeps machines between looks, each for as long as its files do not
// change.
type index struct {
	mu     sync.Mutex
	cached map[string]cachedMachine

	marks       []marked // of all machines
	directories string   // when they changed last
	listed      time.Time
}

type cachedMachine struct {
	stamp   string
	machine Machine // without Status
}

// Machines are all machines, by name; those that are pending come last. What is
// wrong with one does not keep the others from being there.
func (s *Site) Machines() ([]*Machine, error) {
	var all []*Machine
	for _, kind := range []string{machinesDir, pendingDir} {
		entries, err := os.ReadDir(s.path(kind))
		if err != nil {
			return nil, &Error{CodeDirectory, "listing the machines", err}
		}
		for _, e := range entries {
			if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			all = append(all, s.present(kind, e.Name()))
		}
	}
	return all, nil
}

// present is a machine as it is now, and where it stands.
func (s *Site) present(kind, name string) *Machine {
	m := s.machine(kind, name)
	var err error
	if m.Status, err = s.status(m.Name); err != nil {
		m.Mistake = err.Error()
	}
	return &m
}

// machine reads one, unless its files are as they were.
func (s *Site) machine(kind, name string) Machine {
	dir := s.path(kind, name)
	stamp := stampOf(dir)
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	if cached, ok := s.known.cached[dir]; ok && cached.stamp == stamp {
		return cached.machine
	}
	m := s.readMachine(kind, name)
	if s.known.cached == nil {
		s.known.cached = make(map[string]cachedMachine)
	}
	s.known.cached[dir] = cachedMachine{stamp, m}
	return m
}

// stampOf changes whenever a file of the directory does.
func stampOf(dir string) string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range entries {
		if info, err := os.Stat(filepath.Join(dir, e.Name())); err == nil { // a link stands for its file
			fmt.Fprintf(&b, "%s %d %d\n", e.Name(), info.Size(), info.ModTime().UnixNano())
		}
	}
	return b.String()
}

func (s *Site) readMachine(kind, name string) Machine {
	m := Machine{Name: name, Pending: kind == pendingDir}
	if m.Pending {
		if mac, ok := ParseID(name); ok {
			m.Identity.MACs = append(m.Identity.MACs, mac)
		}
		if found, err := s.Inventory(name); err == nil {
			also := IdentityOf(found)
			also.MACs = append(m.Identity.MACs, also.MACs...)
			m.Identity, m.Arch = also.Clean(), found.Arch
		}
		return m
	}
	if err := checkName(name); err != nil {
		m.Mistake = err.Error()
	}
	var err error
	if m.Card, err = s.card(name); err != nil {
		m.Mistake = err.Error()
	}
	m.Identity = Identity{MACs: slices.Clone(m.Card.MACs), Serial: m.Card.Serial, UUID: m.Card.UUID}
	files, err := s.Files(name)
	if err != nil {
		m.Mistake = err.Error()
		return m
	}
	if _, signed := files[trust.BundleFile]; signed && files[config.MachineFile] == nil {
		if files, err = bundled(files); err != nil {
			m.Mistake = err.Error()
			return m
		}
	}
	c, err := config.Parse(files, config.DefaultPort)
	if err != nil {
		m.Mistake = err.Error()
		m.Identity.MACs = append(m.Identity.MACs, addressesIn(files[config.MachineFile])...)
		m.Identity = m.Identity.Clean()
		return m
	}
	m.Config, m.Hostname, m.Image, m.Arch = &c, c.Network.Hostname, c.Image, goArch(c.Machine.Architecture)
	for _, entry := range c.Network.Entries {
		m.Identity.MACs = append(m.Identity.MACs, entry.MAC)
		if !m.Address.IsValid() {
			m.Address = entry.IP
		}
	}
	m.Identity = m.Identity.Clean()
	if len(m.Identity.MACs) == 0 && m.Identity.Serial == "" && m.Identity.UUID == "" {
		m.Mistake = "nothing says which machine this is: HostMacAddress in config.json, or macs, serial or uuid in machine.yaml"
	}
	return m
}

var macField = regexp.MustCompile(`(?i)"HostMacAddress"\s*:\s*"([^"]*)"`)

// addressesIn are the MAC addresses in a config.json with a mistake, or beside
// another file with one: the machine is still that machine, and not a new one.
func addressesIn(data []byte) (macs []netconfig.MAC) {
	for _, found := range macField.FindAllSubmatch(data, -1) {
		if mac, err := netconfig.ParseMAC(string(found[1])); err == nil {
			macs = append(macs, mac)
		}
	}
	return macs
}

// bundled are the files in a machine's bundle. Whether it is signed by whom it
// should be is the installer's question.
func bundled(files fetch.Files) (fetch.Files, error) {
	bundle, err := trust.Parse(files[trust.BundleFile])
	if err != nil {
		return nil, err
	}
	inside := fetch.Files{config.ImageFile: []byte(bundle.Image.String())}
	for name, data := range bundle.Files {
		inside[name] = data
	}
	return inside, nil
}

// goArch is the architecture in Go's words, whatever the fleet's records call it.
func goArch(name string) string {
	switch strings.ToLower(name) {
	case "x86_64", "x86-64", "amd64":
		return "amd64"
	case "aarch64", "arm64":
		return "arm64"
	}
	return strings.ToLower(name)
}

func (s *Site) card(name string) (Card, error) {
	var card Card
	data, err := readSmall(s.path(machinesDir, name, CardFile), 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return card, nil
	}
	if err == nil {
		d := yaml.NewDecoder(bytes.NewReader(data))
		d.KnownFields(true)
		if err = d.Decode(&card); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		return card, &Error{CodeMachine, name + "/" + CardFile, err}
	}
	return card, nil
}

// Machine finds a machine by its name, or by its MAC address with dashes or
// colons while it is pending. The error is an *Error of code CodeUnknown where
// there is none.
func (s *Site) Machine(name string) (*Machine, error) {
	if name != "" && name == filepath.Base(name) && name[0] != '.' {
		for _, kind := range []string{machinesDir, pendingDir} {
			if info, err := os.Stat(s.path(kind, name)); err == nil && info.IsDir() {
				return s.present(kind, name), nil
			}
		}
	}
	all, err := s.Machines()
	if err != nil {
		return nil, err
	}
	if mac, err := netconfig.ParseMAC(strings.ReplaceAll(name, "-", ":")); err == nil && !mac.IsZero() {
		m, err := match(all, Identity{MACs: []netconfig.MAC{mac}})
		if m != nil || err != nil {
			return m, err
		}
	}
	return nil, fail(CodeUnknown, "no machine is called %q (firstlight machine list shows them)", name)
}

// Find finds the machine with these marks, nil where it is not known. Two that
// match are an *Error of code CodeTwice. A machine that somebody has named counts
// before one that is pending.
//
// Which machines to look at is known for a moment, so that a fleet which reports
// at once does not read the whole directory each time; what is said of those is
// read now.
func (s *Site) Find(who Identity) (*Machine, error) {
	candidates, err := s.candidates(who)
	if err != nil {
		return nil, err
	}
	var all []*Machine
	for _, c := range candidates {
		all = append(all, s.present(c.kind, c.name))
	}
	named, pending := split(all)
	m, err := match(named, who)
	if m != nil || err != nil {
		return m, err
	}
	for _, p := range pending {
		if who.in(p.Identity) != "" {
			return p, nil
		}
	}
	return nil, nil
}

// marked is a machine and its marks, as they were a moment ago.
type marked struct {
	kind, name string
	marks      Identity
}

// marksAge is how long marks are believed. New machines are seen at once: the
// directory that they lie in changes.
const marksAge = 500 * time.Millisecond

// forgetMarks has them read again.
func (s *Site) forgetMarks() {
	s.known.mu.Lock()
	defer s.known.mu.Unlock()
	s.known.listed = time.Time{}
}

// candidates are the machines that may be the one with these marks.
func (s *Site) candidates(who Identity) ([]marked, error) {
	directories := ""
	for _, kind := range []string{machinesDir, pendingDir} {
		info, err := os.Stat(s.path(kind))
		if err != nil {
			return nil, &Error{CodeDirectory, "listing the machines", err}
		}
		directories += fmt.Sprintf("%d ", info.ModTime().UnixNano())
	}
	s.known.mu.Lock()
	all, fresh := s.known.marks, s.known.directories == directories && time.Since(s.known.listed) < marksAge
	s.known.mu.Unlock()
	if !fresh {
		machines, err := s.Machines()
		if err != nil {
			return nil, err
		}
		all = nil
		for _, m := range machines {
			kind := machinesDir
			if m.Pending {
				kind = pendingDir
			}
			all = append(all, marked{kind, m.Name, m.Identity})
		}
		s.known.mu.Lock()
		s.known.marks, s.known.directories, s.known.listed = all, directories, time.Now()
		s.known.mu.Unlock()
	}
	var found []marked
	for _, m := range all {
		if who.in(m.marks) != "" {
			found = append(found, m)
		}
	}
	return found, nil
}

func split(all []*Machine) (named, pending []*Machine) {
	for _, m := range all {
		if m.Pending {
			pending = append(pending, m)
		} else {
			named = append(named, m)
		}
	}
	return named, pending
}

// Inventory reads what a machine said of itself, as it last did. The error is
// fs.ErrNotExist where it has said nothing.
func (s *Site) Inventory(name string) (inventory.Document, error) {
	data, err := readSmall(s.inventoryPath(name), maxInventory)
	if err != nil {
		return inventory.Document{}, err
	}
	return inventory.Parse(data)
}

// maxInventory is the largest inventory that is kept, in bytes.
const maxInventory = 4 << 20

func (s *Site) inventoryPath(name string) string {
	if _, pending := ParseID(name); pending {
		return s.path(pendingDir, name, inventoryFile)
	}
	return s.State("machines", name, inventoryFile)
}

// KeepInventory keeps what a machine says of itself.
func (s *Site) KeepInventory(name string, data []byte) error {
	if _, err := inventory.Parse(data); err != nil {
		return &Error{CodeMachine, "the inventory of " + name, err}
	}
	if err := replace(s.inventoryPath(name), data, 0o644); err != nil {
		return &Error{CodeDirectory, "keeping an inventory", err}
	}
	s.forgetMarks() // a pending machine is known by more now
	return nil
}
