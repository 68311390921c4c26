// Package inventory is the description of one machine as it was found: its
// disks and what lies on them, its network interfaces, firmware, memory, TPM and
// identity. [Read] makes the part of it that stands in /sys; package probe adds
// what must be asked of the kernel or of the devices themselves.
//
// It never changes anything and decides nothing.
package inventory

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// Format is the version of the document that this package writes. Readers take
// it and, once there is one, the version before it.
const Format = 1

// Document is one machine. Its JSON is what `firstlight plan --inventory` takes
// and what port 6978 serves as /api/v1/inventory.
type Document struct {
	Format int `json:"format"`
	// Seed is made once per boot and names the UUIDs of the plan: with the same
	// seed the same plan comes out. It is no secret.
	Seed Seed `json:"seed"`
	// Arch is the machine's architecture in Go's words: amd64, arm64.
	Arch string `json:"arch"`
	// Firmware that started the machine: storage.BIOS or storage.UEFI.
	Firmware   storage.Firmware `json:"firmware"`
	SecureBoot bool             `json:"secureBoot"`
	// MemoryBytes is what the kernel can use (MemTotal), not what is plugged in.
	MemoryBytes uint64 `json:"memoryBytes"`
	// MemoryAvailableBytes is what programs could still get (MemAvailable) when
	// the inventory was taken.
	MemoryAvailableBytes uint64 `json:"memoryAvailableBytes"`
	CPUs                 int    `json:"cpus"`
	DMI                  DMI    `json:"dmi"`
	// TPM is nil when the kernel has none.
	TPM *TPM `json:"tpm"`
	// Watchdog is the kernel module of the hardware watchdog, empty when there is
	// none or the kernel would stop it at a reboot.
	Watchdog string `json:"watchdog,omitempty"`
	// Consoles are the kernel's active consoles, in the order in which they were
	// given; the last is /dev/console.
	Consoles []string       `json:"consoles"`
	Disks    []storage.Disk `json:"disks"` // sorted by name
	// Selected are the paths of the disks that -driveSelector chose. It is nil
	// (null) when there was no selector, which is not the same as none chosen.
	Selected []string        `json:"selected"`
	NICs     []netconfig.NIC `json:"nics"` // sorted by name
	// UnusableNICs are network devices without an interface.
	UnusableNICs []netconfig.UnusableNIC `json:"unusableNICs,omitempty"`
	// Modules are the kernel modules that were loaded, by name: those that the
	// machine's devices asked for among them. A boot medium for this machine
	// needs no others.
	Modules []string `json:"modules,omitempty"`
	// Warnings are what could not be found out.
	Warnings []string `json:"warnings,omitempty"`
}

// DMI is what the firmware says of the machine. Placeholders that vendors leave
// there ("To Be Filled By O.E.M.") are empty.
type DMI struct {
	Vendor      string `json:"vendor,omitempty"`
	Product     string `json:"product,omitempty"`
	Version     string `json:"version,omitempty"`
	Family      string `json:"family,omitempty"`
	SKU         string `json:"sku,omitempty"`
	Serial      string `json:"serial,omitempty"`
	UUID        string `json:"uuid,omitempty"` // lower case
	BoardVendor string `json:"boardVendor,omitempty"`
	BoardName   string `json:"boardName,omitempty"`
	BoardSerial string `json:"boardSerial,omitempty"`
	ChassisType string `json:"chassisType,omitempty"` // SMBIOS number
	ChassisTag  string `json:"chassisTag,omitempty"`
	BIOSVendor  string `json:"biosVendor,omitempty"`
	BIOSVersion string `json:"biosVersion,omitempty"`
	BIOSDate    string `json:"biosDate,omitempty"`
}

// TPM is the machine's trusted platform module.
type TPM struct {
	// Version is 1 or 2.
	Version int `json:"version"`
	// Manufacturer is the four letters of TPM_PT_MANUFACTURER ("INTC", "IBM").
	Manufacturer string `json:"manufacturer,omitempty"`
	// PCRs are the values of the SHA-256 bank, by number, in lower-case
	// hexadecimal; there are none where the TPM has no such bank. They say how
	// the machine was started, and are no secret.
	PCRs []string `json:"pcrs,omitempty"`
	// EndorsementKey is the SHA-256 of the public area of its endorsement key,
	// in lower-case hexadecimal: which TPM this is. Signed bundles can be bound
	// to it.
	EndorsementKey string `json:"endorsementKey,omitempty"`
}

// Seed is 32 random bytes; in JSON they are lower-case hexadecimal.
type Seed [32]byte

// String is lower-case hexadecimal.
func (s Seed) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes the seed as hexadecimal.
func (s Seed) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText takes 64 hexadecimal digits.
func (s *Seed) UnmarshalText(text []byte) error {
	if len(text) != 2*len(s) {
		return fmt.Errorf("seed has %d characters: want %d hexadecimal digits", len(text), 2*len(s))
	}
	if _, err := hex.Decode(s[:], text); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	return nil
}

// JSON is the document as it is served and kept, indented, with a final newline.
func (d Document) JSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return nil, fmt.Errorf("encoding the inventory: %w", err)
	}
	return b.Bytes(), nil
}

// Parse reads what [Document.JSON] wrote. It refuses newer formats, unknown
// fields and anything after the document.
func Parse(data []byte) (Document, error) {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return Document{}, fmt.Errorf("reading an inventory: %w", err)
	}
	if head.Format != Format {
		return Document{}, fmt.Errorf("inventory has format %d: this version reads format %d", head.Format, Format)
	}
	var d Document
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil {
		return Document{}, fmt.Errorf("reading an inventory: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Document{}, errors.New("reading an inventory: something follows the document")
	}
	return d, nil
}

// Usable are the paths of the disks that an installation may erase, in the order
// of the document. It is what -driveSelector is given.
func (d Document) Usable() []string {
	var paths []string
	for _, disk := range d.Disks {
		if ok, _ := disk.Usable(); ok {
			paths = append(paths, disk.Path)
		}
	}
	return paths
}
