package trust

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
)

// bundleFormat is the version of bundle.json.
const bundleFormat = 1

// Bundle is everything that a machine is told, as its operators signed it.
type Bundle struct {
	Format int `json:"format"`
	// Name is the machine's, for people.
	Name string `json:"name"`
	// Binding says which machine this is for.
	Binding Binding `json:"binding"`
	// Sequence grows with each bundle of a machine: an older one is refused
	// by a medium that knows a newer.
	Sequence uint64 `json:"sequence"`
	// Signed and Expires are the times between which the bundle holds.
	Signed  time.Time `json:"signed"`
	Expires time.Time `json:"expires"`
	// Image is what is installed, Tools what it is installed with where the
	// image itself does not do.
	Image Pinned  `json:"image"`
	Tools *Pinned `json:"tools,omitempty"`
	// ImageServers are host[:port], tried in this order.
	ImageServers []string `json:"imageServers,omitempty"`
	// SiteServer is the URL that is reported to.
	SiteServer string `json:"siteServer,omitempty"`
	// Files are config.json, storage-layout.json and random-seed, as they
	// would lie on a boot server, and the programmes of config.json's Steps as
	// steps/NAME.
	Files map[string][]byte `json:"files"`
}

// Binding are the marks of a machine. At least one is given, and all that are
// given must fit.
type Binding struct {
	// MACs are hardware addresses, one of which the machine must have.
	MACs []string `json:"macs,omitempty"`
	// Serial and UUID are those of its firmware (SMBIOS type 1).
	Serial string `json:"serial,omitempty"`
	UUID   string `json:"uuid,omitempty"`
	// EndorsementKey is the SHA-256 of its TPM's endorsement public key (the
	// bytes of TPM2B_PUBLIC's area), in hexadecimal digits. Only this mark
	// cannot be had by another machine that wants it.
	EndorsementKey string `json:"endorsementKey,omitempty"`
}

// Pinned is an image by its name and the digest of its manifest.
type Pinned struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // sha256:…
}

// String is the image as the installer asks for it: name@digest.
func (p Pinned) String() string { return p.Name + "@" + p.Digest }

// carried are the files that a bundle may carry.
var carried = []string{"config.json", "storage-layout.json", "random-seed"}

// Encode is the bundle as bundle.json: the bytes that are signed.
func (b Bundle) Encode() ([]byte, error) {
	b.Format = bundleFormat
	if err := b.check(); err != nil {
		return nil, err
	}
	out, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(out, '\n'), nil
}

// Parse reads a bundle whose signatures have been verified. It does not say
// whether the bundle holds for this machine and now: see Admit.
func Parse(raw []byte) (Bundle, error) {
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(raw, &version); err != nil {
		return Bundle{}, refuse(CodeBundle, "%s was signed and cannot be read: %w", BundleFile, err)
	}
	if version.Format != bundleFormat {
		return Bundle{}, refuse(CodeBundle, "%s has format %d, and %d is known here: use a boot medium of the same version as the tool that signed it", BundleFile, version.Format, bundleFormat)
	}
	var b Bundle
	if err := decodeStrict(raw, &b); err != nil {
		return Bundle{}, refuse(CodeBundle, "%s was signed and cannot be read: %w", BundleFile, err)
	}
	return b, b.check()
}

func (b Bundle) check() error {
	var wrong []string
	if b.Binding.empty() {
		wrong = append(wrong, "it is bound to no machine")
	}
	if b.Signed.IsZero() || !b.Expires.After(b.Signed) {
		wrong = append(wrong, "it holds at no time")
	}
	for what, p := range b.images() {
		if p.Name == "" || !strings.HasPrefix(p.Digest, "sha256:") || len(p.Digest) != len("sha256:")+64 {
			wrong = append(wrong, fmt.Sprintf("its %s has no name or no digest", what))
		}
	}
	if len(b.Files["config.json"]) == 0 {
		wrong = append(wrong, "config.json is missing")
	}
	for name := range b.Files {
		if !slices.Contains(carried, name) && !isStep(name) {
			wrong = append(wrong, fmt.Sprintf("it carries %q, which is none of %s, steps/…", name, strings.Join(carried, ", ")))
		}
	}
	if wrong == nil {
		return nil
	}
	slices.Sort(wrong)
	return refuse(CodeBundle, "%s is no bundle: %s", BundleFile, strings.Join(wrong, "; "))
}

// isStep says whether a name is that of a programme in steps/, and cannot be
// anywhere else.
func isStep(name string) bool {
	file, below := strings.CutPrefix(name, "steps/")
	return below && file != "" && file[0] != '.' && !strings.ContainsFunc(file, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("._-", c))
	})
}

func (b Bundle) images() map[string]Pinned {
	images := map[string]Pinned{"image": b.Image}
	if b.Tools != nil {
		images["tools image"] = *b.Tools
	}
	return images
}

// Machine is what is known of the machine that a bundle is to hold for.
type Machine struct {
	MACs           []string
	Serial, UUID   string
	EndorsementKey string // "" where there is no TPM
}

// Admit says whether a bundle that was verified holds for this machine, now,
// under this policy. Where the clock is behind, pass the latest time that is
// certain: Signed never makes a bundle too new, as a machine's clock may be
// behind, and a bundle signed in the future is no danger.
func (p Policy) Admit(b Bundle, m Machine, now time.Time) error {
	if why := b.Binding.mismatch(m); why != "" {
		return refuse(CodeMachine, "the bundle is for the machine %s: %s", b.Name, why)
	}
	if !now.Before(b.Expires) {
		return refuse(CodeExpired, "the bundle of %s expired at %s, and it is %s now", b.Name, b.Expires.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if b.Sequence < p.Sequence {
		return refuse(CodeSequence, "the bundle of %s has sequence %d, and this medium wants %d at least", b.Name, b.Sequence, p.Sequence)
	}
	return nil
}

// Says reports whether two bundles tell a machine the same, whenever they were
// made.
func (b Bundle) Says(other Bundle) bool {
	other.Format, other.Sequence, other.Signed, other.Expires = b.Format, b.Sequence, b.Signed, b.Expires
	return reflect.DeepEqual(b, other)
}

// String names the marks for a person.
func (b Binding) String() string {
	var marks []string
	for _, mark := range []struct{ name, value string }{
		{"addresses", strings.Join(b.MACs, " ")}, {"serial", b.Serial}, {"UUID", b.UUID}, {"TPM", b.EndorsementKey},
	} {
		if mark.value != "" {
			marks = append(marks, mark.name+" "+mark.value)
		}
	}
	return strings.Join(marks, ", ")
}

func (b Binding) empty() bool {
	return len(b.MACs) == 0 && b.Serial == "" && b.UUID == "" && b.EndorsementKey == ""
}

func (b Binding) mismatch(m Machine) string {
	fold := func(s string) string { return strings.ToLower(strings.TrimSpace(s)) }
	same := func(a, b string) bool { return fold(a) == fold(b) && fold(a) != "" }
	switch {
	case len(b.MACs) > 0 && !slices.ContainsFunc(b.MACs, func(mac string) bool {
		return slices.ContainsFunc(m.MACs, func(have string) bool { return same(mac, have) })
	}):
		return fmt.Sprintf("this one has none of the addresses %s", strings.Join(b.MACs, ", "))
	case b.Serial != "" && !same(b.Serial, m.Serial):
		return fmt.Sprintf("this one's serial number is %q, not %q", m.Serial, b.Serial)
	case b.UUID != "" && !same(b.UUID, m.UUID):
		return fmt.Sprintf("this one's UUID is %q, not %q", m.UUID, b.UUID)
	case b.EndorsementKey != "" && m.EndorsementKey == "":
		return "it is bound to a TPM, and this machine shows none"
	case b.EndorsementKey != "" && !same(b.EndorsementKey, m.EndorsementKey):
		return "this one's TPM has another endorsement key"
	}
	return ""
}
