package config

import (
	"bytes"
	"fmt"
	"iter"
	"net/netip"
	"net/url"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/renderer"
	"github.com/firstlight/firstlight/storage"
)

// DefaultPort is the image server's port where none is named.
const DefaultPort = 6971

// Parse reads the files, given by name. A file that is missing in files is one
// that the site answered it does not have; one that could not be fetched must
// never be passed as missing. config.json and imagename must be there.
//
// The error is a [Mistakes] with everything that is wrong in all of the files;
// when config.json itself says Error, it holds only that. imageServerPort is
// the image server's port where the file imageserver names none: DefaultPort,
// or what the operator asked for.
func Parse(files map[string][]byte, imageServerPort uint16) (Config, error) {
	r := new(reader)
	var c Config
	r.machineFile(&c, files)
	if len(r.mistakes) == 1 && r.mistakes[0].ID == CodeRefused {
		return Config{}, r.err()
	}
	r.layoutFile(&c, files)
	c.Image = r.imageName(files, ImageFile, c.Installs())
	c.ToolsImage = r.imageName(files, ToolsImageFile, false)
	c.ImageServers = r.imageServers(files, imageServerPort)
	if server, line, ok := r.oneLine(files, SiteServerFile, false); ok {
		var err error
		if c.SiteServer, err = parseURL(server); err != nil {
			r.mistake(CodeServer, SiteServerFile, line, "%v", err)
		}
	}
	if seed := files[RandomSeedFile]; len(seed) > 0 {
		c.RandomSeed = bytes.Clone(seed)
	}
	if err := r.err(); err != nil {
		return Config{}, err
	}
	c.Warnings = r.warnings
	return c, nil
}

// machineFile reads config.json.
func (r *reader) machineFile(c *Config, files map[string][]byte) {
	data, there := files[MachineFile]
	if !there {
		r.mistake(CodeMissing, MachineFile, 0, "there is no such file for this machine")
		return
	}
	tree, ok := r.parseTree(MachineFile, data)
	if !ok {
		return
	}
	if text, line, refused := refusal(tree); refused {
		r.mistake(CodeRefused, MachineFile, line, "the site refuses to install this machine: %s", text)
		return
	}
	var raw rawMachineFile
	r.decode(position{file: MachineFile}, tree, reflect.ValueOf(&raw).Elem(), false)

	m := raw.Machine
	c.Machine = Machine{
		Location:     first(m.Location.value, raw.Location.value),
		Architecture: m.ArchitectureType.value,
		MemoryMiB:    m.MemoryInMiB.value,
		CPUs:         m.NumCPUs.value,
		VolumeBytes:  m.TotalVolumeBytes.value,
	}
	for key, value := range m.Tags {
		if c.Machine.Tags == nil {
			c.Machine.Tags = make(map[string]string)
		}
		c.Machine.Tags[key] = value.value
	}
	c.Network = r.network(raw)
	c.Install = r.install(raw.Install)
	c.Install.Steps = r.steps(files, raw.Install.Steps)
}

// refusal finds a non-empty Error field before anything else of the file is
// looked at: the rest of such a file is often empty.
func refusal(tree *node) (text string, line int, ok bool) {
	for _, m := range tree.members {
		if strings.EqualFold(m.name, "Error") && m.value.kind == kindString && strings.TrimSpace(m.value.text) != "" {
			return strings.TrimSpace(m.value.text), m.value.line, true
		}
	}
	return "", 0, false
}

func (r *reader) network(raw rawMachineFile) netconfig.Spec {
	m := raw.Machine
	spec := netconfig.Spec{Hostname: r.hostname(m.Hostname), GatewaySubnetID: m.GatewaySubnetId.value}
	own := rawEntry{m.position, m.Hostname, m.HostIpAddress, m.HostMacAddress, m.SubnetId, m.VlanTrunk}

	var ids []string
	seen := make(map[string]int)
	for _, s := range raw.Subnets {
		spec.Subnets = append(spec.Subnets, r.subnet(s))
		id := s.Id.value
		if id == "" {
			r.mistake(CodeValue, s.file, s.line, "%s has no Id", s.path)
			continue
		}
		if line, twice := seen[id]; twice {
			r.mistake(CodeDuplicate, s.Id.file, s.Id.line, "%s: the subnet %q is in line %d already", s.Id.path, id, line)
			continue
		}
		seen[id] = s.Id.line
		ids = append(ids, id)
	}

	addresses := make(map[netip.Addr]string)
	macs := make(map[netconfig.MAC]string)
	for i, e := range slices.Insert(slices.Clone(m.SecondaryNetworkEntries), 0, own) {
		entry := netconfig.Entry{
			Hostname:  e.Hostname.value,
			IP:        r.address(e.HostIpAddress),
			MAC:       r.mac(e.HostMacAddress),
			SubnetID:  e.SubnetId.value,
			VlanTrunk: e.VlanTrunk.value,
		}
		if i > 0 {
			r.hostname(e.Hostname)
		}
		if entry.IP.IsValid() {
			if other, twice := addresses[entry.IP]; twice {
				r.mistake(CodeDuplicate, e.HostIpAddress.file, e.HostIpAddress.line, "%s: %s has the address %s already", e.HostIpAddress.path, other, entry.IP)
			}
			addresses[entry.IP] = e.HostIpAddress.path
		}
		if !entry.MAC.IsZero() {
			if other, twice := macs[entry.MAC]; twice {
				r.mistake(CodeDuplicate, e.HostMacAddress.file, e.HostMacAddress.line, "%s: %s has the MAC address %s already", e.HostMacAddress.path, other, entry.MAC)
			}
			macs[entry.MAC] = e.HostMacAddress.path
		}
		if entry.IP.IsValid() && !slices.Contains(ids, entry.SubnetID) {
			// The address alone decides; fleets name subnets that they do not send.
			if t := e.SubnetId; t.value != "" {
				r.warnings = append(r.warnings, fmt.Sprintf("%s:%d: %s: there is no subnet %q; the one that contains %s is taken", t.file, t.line, t.path, t.value, entry.IP))
			}
		} else {
			r.subnetReference(e.SubnetId, ids)
		}
		spec.Entries = append(spec.Entries, entry)
	}
	r.subnetReference(m.GatewaySubnetId, ids)
	return spec
}

func (r *reader) subnetReference(t text, ids []string) {
	if t.value == "" || slices.Contains(ids, t.value) {
		return
	}
	hint := meant(t.value, ids)
	if hint == "" {
		hint = ": Subnets has " + quotedList(ids)
	}
	r.mistake(CodeValue, t.file, t.line, "%s: there is no subnet %q%s", t.path, t.value, hint)
}

func (r *reader) subnet(s rawSubnet) netconfig.Subnet {
	subnet := netconfig.Subnet{
		ID:      s.Id.value,
		Gateway: r.address(s.IpGateway),
		Domain:  r.domain(s.DomainName),
		Manage:  s.Manage.value,
	}
	mask := r.mask(s.IpMask)
	switch {
	case s.IpGateway.value == "" || s.IpMask.value == "":
		r.mistake(CodeValue, s.file, s.line, "%s needs IpGateway and IpMask: together they say which addresses the subnet has", s.path)
	case mask < 0 || !subnet.Gateway.IsValid():
	case subnet.Gateway.Is4() != strings.Contains(s.IpMask.value, "."):
		r.mistake(CodeValue, s.IpMask.file, s.IpMask.line, "%s: the mask %q does not fit the address %s", s.IpMask.path, s.IpMask.value, subnet.Gateway)
	default:
		subnet.Prefix = netip.PrefixFrom(subnet.Gateway, mask).Masked()
	}
	for _, d := range s.DomainNameServers {
		if a := r.address(d); a.IsValid() {
			subnet.DNS = append(subnet.DNS, a)
		}
	}
	if s.VlanId.value > 4094 {
		r.mistake(CodeValue, s.VlanId.file, s.VlanId.line, "%s: VLANs have the numbers 1 to 4094, not %d", s.VlanId.path, s.VlanId.value)
	} else {
		subnet.VlanID = uint16(s.VlanId.value)
	}
	return subnet
}

// address is the zero Addr for an empty text and for a mistake.
func (r *reader) address(t text) netip.Addr {
	if t.value == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(t.value)
	switch {
	case err != nil:
		r.mistake(CodeValue, t.file, t.line, "%s: %q is not an IP address", t.path, t.value)
	case a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
		r.mistake(CodeValue, t.file, t.line, "%s: %s cannot be the address of a machine in a subnet", t.path, t.value)
	default:
		return a.Unmap()
	}
	return netip.Addr{}
}

// mask is the length of the prefix, negative for none.
func (r *reader) mask(t text) int {
	if t.value == "" {
		return -1
	}
	a, err := netip.ParseAddr(t.value)
	if err != nil || a.Zone() != "" {
		r.mistake(CodeValue, t.file, t.line, "%s: %q is not a mask such as 255.255.255.0", t.path, t.value)
		return -1
	}
	bits, ended := 0, false
	for _, b := range a.AsSlice() {
		for i := 7; i >= 0; i-- {
			one := b>>i&1 == 1
			if one && ended {
				r.mistake(CodeValue, t.file, t.line, "%s: the mask %s has a hole: its ones must come first", t.path, t.value)
				return -1
			}
			if one {
				bits++
			} else {
				ended = true
			}
		}
	}
	if bits == 0 {
		r.mistake(CodeValue, t.file, t.line, "%s: the mask %s holds every address there is", t.path, t.value)
		return -1
	}
	return bits
}

func (r *reader) mac(t text) netconfig.MAC {
	m, err := netconfig.ParseMAC(t.value)
	if err != nil {
		r.mistake(CodeValue, t.file, t.line, "%s: %v", t.path, err)
		return netconfig.MAC{}
	}
	if m[0]&1 == 1 {
		r.mistake(CodeValue, t.file, t.line, "%s: %s is a group address: no interface has it", t.path, m)
		return netconfig.MAC{}
	}
	return m
}

// hostname checks RFC 1123, section 2.1, and Linux's limit of 64 bytes.
func (r *reader) hostname(t text) string {
	if t.value == "" {
		return ""
	}
	if fault := nameFault(t.value); fault != "" {
		r.mistake(CodeValue, t.file, t.line, "%s: %q is not a host name: %s", t.path, t.value, fault)
	} else if len(t.value) > 64 {
		r.mistake(CodeValue, t.file, t.line, "%s: %q has %d characters: the kernel takes 64", t.path, t.value, len(t.value))
	}
	return t.value
}

func (r *reader) domain(t text) string {
	name := strings.TrimSuffix(t.value, ".")
	if name == "" {
		return ""
	}
	if fault := nameFault(name); fault != "" {
		r.mistake(CodeValue, t.file, t.line, "%s: %q is not a domain name: %s", t.path, t.value, fault)
	}
	return name
}

// nameFault says what is wrong with a DNS name of letters, digits and hyphens.
// An underscore is let through: real domains have it.
func nameFault(name string) string {
	if len(name) > 253 {
		return "it is longer than 253 characters"
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return "there is an empty part between its dots"
		case len(label) > 63:
			return "a part of it is longer than 63 characters"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "a part of it begins or ends with a hyphen"
		}
		for _, c := range label {
			if !letterOrDigit(c) && c != '-' && c != '_' {
				return fmt.Sprintf("%q cannot stand in it", c)
			}
		}
	}
	return ""
}

func letterOrDigit(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func (r *reader) install(raw rawInstall) Install {
	in := Install{NetworkRenderer: raw.NetworkRenderer.value, LowMemory: raw.LowMemory.value, RequireApproval: raw.RequireApproval.value}
	in.Secrets = r.distinct(raw.Secrets)
	for _, t := range raw.Secrets {
		if t.value != "" && (path.Clean(t.value) != t.value || !strings.HasPrefix(t.value, "/") || t.value == "/") {
			r.mistake(CodeValue, t.file, t.line, "%s: %q is no absolute path of a file", t.path, t.value)
		}
	}
	options, err := boot.CheckOptions(raw.KernelOptions.value)
	if err != nil {
		at := raw.KernelOptions
		r.mistake(CodeValue, at.file, at.line, "%s: %v", at.path, err)
	}
	in.KernelOptions = options
	if wait := raw.WaitAfterFailureSeconds; wait.set {
		const week = 7 * 24 * 3600
		if wait.value > week {
			r.mistake(CodeValue, wait.file, wait.line, "%s: at most %d (a week), not %d", wait.path, week, wait.value)
		}
		in.WaitAfterFailureSeconds = &wait.value
	}
	if wipe := raw.Wipe; wipe.value != "" {
		in.Wipe = storage.Erase(r.oneOf(wipe,
			string(storage.EraseMetadata), string(storage.EraseDiscard), string(storage.EraseCrypto), string(storage.EraseOverwrite)))
		if raw.Rescue.value {
			r.mistake(CodeValue, wipe.file, wipe.line, "%s and Rescue: a machine is wiped, or it is left alone", wipe.path)
		}
	}
	in.Rescue = raw.Rescue.value
	if prove := raw.ProveNetwork; prove.set {
		in.ProveNetwork = &prove.value
	}
	if t := raw.NetworkRenderer; t.value != "" && !slices.Contains(renderer.Names(), t.value) {
		hint := meant(t.value, renderer.Names())
		if hint == "" {
			hint = ": have " + quotedList(renderer.Names())
		}
		r.mistake(CodeValue, t.file, t.line, "%s: there is no network renderer %q%s", t.path, t.value, hint)
	}
	return in
}

// imageName reads a file that holds the name of an image.
func (r *reader) imageName(files map[string][]byte, file string, needed bool) string {
	name, line, ok := r.oneLine(files, file, needed)
	if !ok {
		return ""
	}
	if err := CheckImageName(name); err != nil {
		r.mistake(CodeImageName, file, line, "%v", err)
	}
	return name
}

// imageServers reads a file of servers, several on a line or one on each.
func (r *reader) imageServers(files map[string][]byte, defaultPort uint16) []string {
	data, there := files[ImageServerFile]
	if !there {
		return nil
	}
	var servers []string
	mistakes := len(r.mistakes)
	for line, text := range lines(data) {
		for word := range strings.FieldsSeq(text) {
			server, err := ParseServer(word, defaultPort)
			switch {
			case err != nil:
				r.mistake(CodeServer, ImageServerFile, line, "%v", err)
			case slices.Contains(servers, server):
				r.mistake(CodeServer, ImageServerFile, line, "%s stands twice", server)
			default:
				servers = append(servers, server)
			}
		}
	}
	if len(servers) == 0 && len(r.mistakes) == mistakes {
		r.mistake(CodeSyntax, ImageServerFile, 0, "the file is empty")
	}
	return servers
}

// lines are the lines of a file that say something, with their numbers.
func lines(data []byte) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
		for i, text := range strings.Split(string(data), "\n") {
			text = strings.TrimSpace(text)
			if text != "" && !isComment([]byte(text)) && !yield(i+1, text) {
				return
			}
		}
	}
}

// oneLine reads a file of one line; comments and empty lines are skipped.
func (r *reader) oneLine(files map[string][]byte, file string, needed bool) (value string, line int, ok bool) {
	data, there := files[file]
	if !there {
		if needed {
			r.mistake(CodeMissing, file, 0, "there is no such file for this machine")
		}
		return "", 0, false
	}
	for number, text := range lines(data) {
		if ok {
			r.mistake(CodeSyntax, file, number, "a second line follows line %d: the file has one", line)
			return "", 0, false
		}
		value, line, ok = text, number, true
	}
	if !ok {
		r.mistake(CodeSyntax, file, 0, "the file is empty")
	}
	return value, line, ok
}

// CheckImageName tells whether name can be the name of an image, of a stream or
// an alias, with an optional @sha256:… that pins the manifest. The error is a
// [Mistake] with code CFG-009.
func CheckImageName(name string) error {
	wrong := func(format string, args ...any) error {
		return &Mistake{ID: CodeImageName, Text: fmt.Sprintf("%.80q is not an image name: ", name) + fmt.Sprintf(format, args...)}
	}
	rest, pin, pinned := strings.Cut(name, "@")
	if pinned {
		digits, ok := strings.CutPrefix(pin, "sha256:")
		if !ok || len(digits) != 64 || strings.Trim(digits, "0123456789abcdef") != "" {
			return wrong("after @ it wants sha256: and 64 lower-case hexadecimal digits")
		}
	}
	if len(rest) > 255 {
		return wrong("it is longer than 255 characters")
	}
	for part := range strings.SplitSeq(rest, "/") {
		if part == "" || part == "." || part == ".." {
			return wrong("it is a path such as debian/12/2026-11-20, without empty parts, . and ..")
		}
		for _, c := range part {
			if !letterOrDigit(c) && !strings.ContainsRune("._:+-", c) {
				return wrong("%q cannot stand in it", c)
			}
		}
	}
	return nil
}

// ParseServer returns the address of an image server as host:port. An IPv6
// address with a port stands in brackets. The error is a [Mistake] with code
// CFG-010.
func ParseServer(text string, defaultPort uint16) (string, error) {
	wrong := func(why string) (string, error) {
		return "", &Mistake{ID: CodeServer, Text: fmt.Sprintf("%.80q is not host or host:port: %s", text, why)}
	}
	port := strconv.Itoa(int(defaultPort))
	var host string
	if inner, ok := strings.CutPrefix(text, "["); ok {
		var after string
		if host, after, ok = strings.Cut(inner, "]"); !ok {
			return wrong("a bracket is not closed")
		}
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() || a.Zone() != "" {
			return wrong("an IPv6 address belongs in the brackets")
		}
		if after != "" {
			if port, ok = strings.CutPrefix(after, ":"); !ok {
				return wrong("a colon and the port belong after the bracket")
			}
		}
	} else if a, err := netip.ParseAddr(text); err == nil && a.Is6() && a.Zone() == "" {
		host = text // a bare IPv6 address has no port
	} else {
		var given string
		var has bool
		if host, given, has = strings.Cut(text, ":"); has {
			port = given
		}
		if strings.Contains(port, ":") {
			return wrong("an IPv6 address with a port stands in brackets")
		}
		if strings.Contains(host, "/") {
			return wrong("it is no URL and no path")
		}
		if fault := nameFault(strings.TrimSuffix(host, ".")); fault != "" {
			return wrong(fault)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return wrong("a port is a number from 1 to 65535")
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + port, nil
}

// parseURL checks the address of the site API.
func parseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", fmt.Errorf("%.80q is not a URL such as http://site:8080", text)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "" {
		return "", fmt.Errorf("%.80q is not a URL that begins with http:// or https:// and a host", text)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%.80q has more than scheme, host, port and path: nothing else is possible", u.Redacted())
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

func quotedList(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = strconv.Quote(name)
	}
	return strings.Join(quoted, ", ")
}
