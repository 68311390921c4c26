package site

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Settings are site.yaml.
type Settings struct {
	Format int `yaml:"format"`
	// Name is the site's, for people.
	Name string `yaml:"name"`
	// Names are host names by which the servers are reached besides the
	// machine's own; their certificate is valid for them.
	Names []string `yaml:"names"`
	// Trust are names of signers (secrets/signers/NAME.pub). With any, boot
	// media believe signed bundles only.
	Trust []string `yaml:"trust"`
	// KernelOptions are added to the installer's kernel command line.
	KernelOptions string `yaml:"kernel-options"`
	// Subnets are those that addresses are handed out of, with --dhcp full or
	// relay.
	Subnets []Subnet `yaml:"subnets"`
}

// Subnet is a network of machines and what its DHCP server says there.
type Subnet struct {
	Network netip.Prefix
	First   netip.Addr // of the pool; not valid where there is none
	Last    netip.Addr
	Router  netip.Addr
	DNS     []netip.Addr
	Domain  string
	Lease   time.Duration
}

// rawSubnet is how a Subnet is written.
type rawSubnet struct {
	Network string   `yaml:"network"`
	Pool    string   `yaml:"pool"` // first-last
	Router  string   `yaml:"router"`
	DNS     []string `yaml:"dns"`
	Domain  string   `yaml:"domain"`
	Lease   string   `yaml:"lease"`
}

// UnmarshalYAML reads a subnet and checks it.
func (s *Subnet) UnmarshalYAML(node *yaml.Node) error {
	var raw rawSubnet
	if err := strictly(node, &raw); err != nil {
		return err
	}
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("line %d: subnet %s: %s", node.Line, raw.Network, fmt.Sprintf(format, args...))
	}
	var err error
	if s.Network, err = netip.ParsePrefix(raw.Network); err != nil || !s.Network.Addr().Is4() {
		return wrong("network is an IPv4 network such as 192.0.2.0/24")
	}
	s.Network, s.Domain, s.Lease = s.Network.Masked(), raw.Domain, time.Hour
	inside := func(text string) (netip.Addr, error) {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil || !s.Network.Contains(a) {
			return a, wrong("%q is no address in it", text)
		}
		return a, nil
	}
	if raw.Pool != "" {
		first, last, ok := strings.Cut(raw.Pool, "-")
		if !ok {
			return wrong("pool is first-last")
		}
		var errLast error
		s.First, err = inside(first)
		s.Last, errLast = inside(last)
		if err := errors.Join(err, errLast); err != nil {
			return err
		}
		if s.Last.Less(s.First) {
			return wrong("the pool ends before it begins")
		}
	}
	if raw.Router != "" {
		if s.Router, err = inside(raw.Router); err != nil {
			return err
		}
	}
	for _, text := range raw.DNS {
		a, err := netip.ParseAddr(text)
		if err != nil || !a.Is4() {
			return wrong("%q is no IPv4 address of a name server", text)
		}
		s.DNS = append(s.DNS, a)
	}
	if raw.Lease != "" {
		if s.Lease, err = time.ParseDuration(raw.Lease); err != nil || s.Lease < time.Minute {
			return wrong("lease is a time of at least 1m, such as 12h")
		}
	}
	return nil
}

// strictly decodes a node and refuses fields that nobody knows.
func strictly(node *yaml.Node, into any) error {
	text, err := yaml.Marshal(node)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	return d.Decode(into)
}

// Settings reads site.yaml, as it is now.
func (s *Site) Settings() (Settings, error) {
	data, err := readSmall(s.path(settingsFile), 1<<20)
	if err != nil {
		return Settings{}, &Error{CodeDirectory, "reading the site's settings", err}
	}
	return parseSettings(data)
}

func parseSettings(data []byte) (Settings, error) {
	// The format first: a newer version may have fields that this one lacks.
	var head struct {
		Format int `yaml:"format"`
	}
	if err := yaml.Unmarshal(data, &head); err != nil {
		return Settings{}, &Error{CodeSettings, settingsFile, err}
	}
	if head.Format > Format {
		return Settings{}, fail(CodeNewer, "%s has format %d; this version knows %d", settingsFile, head.Format, Format)
	}
	settings := Settings{}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&settings); err != nil && !errors.Is(err, io.EOF) {
		return Settings{}, &Error{CodeSettings, settingsFile, err}
	}
	if strings.ContainsAny(settings.KernelOptions, "\n\r") {
		return Settings{}, fail(CodeSettings, "%s: kernel-options is one line", settingsFile)
	}
	return settings, nil
}
