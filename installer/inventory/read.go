package inventory

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// Read makes the part of the document that stands in /sys; sys is
// os.DirFS("/sys") or a recorded tree. What cannot be read becomes a warning; an
// error means that sys is no sysfs.
//
// Not in /sys, and left to package probe: Seed, Arch, memory, CPUs, contents of
// disks, permanent MAC addresses, the TPM's manufacturer.
func Read(sys fs.FS) (Document, error) {
	if _, err := fs.Stat(sys, "class"); err != nil {
		return Document{}, fmt.Errorf("reading sysfs: %w", err)
	}
	r := &reader{sys: sys}
	d := Document{Format: Format, Firmware: storage.BIOS}
	if r.exists("firmware/efi") {
		d.Firmware = storage.UEFI
		d.SecureBoot = r.secureBoot()
	}
	d.DMI = r.dmi()
	d.TPM = r.tpm()
	d.Watchdog = r.watchdog()
	d.Consoles = strings.Fields(r.text("class/tty/console/active"))
	d.Disks = r.disks()
	d.NICs = r.nics()
	d.Modules = r.modules()
	d.Warnings = r.warnings
	return d, nil
}

// modules are those that can be loaded and are: what is built into the kernel has
// no initstate (Documentation/ABI/stable/sysfs-module).
func (r *reader) modules() []string {
	found, err := fs.Glob(r.sys, "module/*/initstate")
	if err != nil {
		return nil // only a malformed pattern fails
	}
	var names []string
	for _, name := range found {
		names = append(names, path.Base(path.Dir(name)))
	}
	return names
}

type reader struct {
	sys      fs.FS
	warnings []string
}

func (r *reader) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

func (r *reader) exists(name string) bool {
	_, err := fs.Stat(r.sys, name)
	return err == nil
}

// bytes is the content of an attribute, nil when there is none.
func (r *reader) bytes(name string) []byte {
	data, err := fs.ReadFile(r.sys, name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.warn("%v", err)
	}
	return data
}

func (r *reader) text(name string) string {
	return strings.TrimSpace(strings.ToValidUTF8(strings.TrimRight(string(r.bytes(name)), "\x00"), ""))
}

// number is 0 for an attribute that is not there.
func (r *reader) number(name string) uint64 {
	text := r.text(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		r.warn("%s holds %q, not a number", name, text)
	}
	return n
}

// quietNumber is for attributes that the kernel refuses to show at times: a
// link that is down has neither carrier nor speed (EINVAL).
func (r *reader) quietNumber(name string) int {
	data, err := fs.ReadFile(r.sys, name)
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// entries are the names in a class directory, sorted; none when the kernel has
// no such class.
func (r *reader) entries(dir string) []string {
	entries, err := fs.ReadDir(r.sys, dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			r.warn("%v", err)
		}
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

// device is the path below devices/ to which the link name leads, empty for what
// is no link.
func (r *reader) device(name string) string {
	target, err := fs.ReadLink(r.sys, name)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(path.Join(path.Dir(name), target), "devices/")
}

// watchdog is the driver's module of the first hardware watchdog. By default the
// kernel stops it before it goes to another one (watchdog_core.c,
// stop_on_reboot); then it is of no use.
func (r *reader) watchdog() string {
	if r.text("module/watchdog/parameters/stop_on_reboot") != "0" {
		return ""
	}
	if module, err := fs.ReadLink(r.sys, "class/watchdog/watchdog0/device/driver/module"); err == nil {
		return path.Base(module)
	}
	// Some drivers do not say whose device theirs is; then it is the only one.
	if holders := r.entries("module/watchdog/holders"); len(holders) == 1 && r.exists("class/watchdog/watchdog0") {
		return holders[0]
	}
	return ""
}

// secureBoot reads the variable of UEFI 2.10, section 3.3: four bytes of
// attributes (efivarfs), then 1 for on.
func (r *reader) secureBoot() bool {
	const name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	if data := r.bytes("firmware/efi/efivars/" + name); len(data) == 5 {
		return data[4] == 1
	}
	if data := r.bytes("firmware/efi/vars/" + name + "/data"); len(data) == 1 {
		return data[0] == 1
	}
	if len(r.entries("firmware/efi/efivars")) == 0 {
		r.warn("the EFI variables cannot be read (is efivarfs mounted?): Secure Boot is taken to be off")
	}
	return false
}

func (r *reader) dmi() DMI {
	get := func(name string) string {
		value := r.text("class/dmi/id/" + name)
		if junk(value) {
			return ""
		}
		return value
	}
	d := DMI{
		Vendor:      get("sys_vendor"),
		Product:     get("product_name"),
		Version:     get("product_version"),
		Family:      get("product_family"),
		SKU:         get("product_sku"),
		Serial:      get("product_serial"),
		UUID:        strings.ToLower(get("product_uuid")),
		BoardVendor: get("board_vendor"),
		BoardName:   get("board_name"),
		BoardSerial: get("board_serial"),
		ChassisType: get("chassis_type"),
		ChassisTag:  get("chassis_asset_tag"),
		BIOSVendor:  get("bios_vendor"),
		BIOSVersion: get("bios_version"),
		BIOSDate:    get("bios_date"),
	}
	// Machines without SMBIOS tell their name by device tree.
	if d.Product == "" {
		d.Product = r.text("firmware/devicetree/base/model")
	}
	if d.Serial == "" {
		if serial := r.text("firmware/devicetree/base/serial-number"); !junk(serial) {
			d.Serial = serial
		}
	}
	return d
}

// junkValues are what vendors leave in SMBIOS when they fill in nothing, folded
// to lower-case letters and digits.
var junkValues = map[string]bool{
	"default": true, "defaultstring": true, "empty": true, "fillbyoem": true, "invalid": true,
	"na": true, "none": true, "notapplicable": true, "notavailable": true, "notspecified": true,
	"notsettable": true, "null": true, "oem": true, "oemserial": true, "outofspec": true,
	"serialnumber": true, "systemserialnumber": true, "systemmanufacturer": true,
	"systemproductname": true, "systemversion": true, "chassisserialnumber": true,
	"baseboardserialnumber": true, "assettag": true, "assettagnumber": true,
	"noassettag": true, "noassetinformation": true, "sku": true, "tbd": true,
	"tobefilledbyoem": true, "undefined": true, "unknown": true, "unspecified": true,
	"0123456789": true, "123456789": true, "1234567890": true, "123456": true, "12345678": true,
	"03000200040005000006000700080009": true, // a UUID that thousands of boards share
}

// Identifies says whether a serial number or UUID can tell machines apart: it is
// none of those that vendors leave in all of theirs.
func Identifies(value string) bool { return !junk(value) }

// junk says that a value identifies nothing.
func junk(value string) bool {
	folded := strings.Map(func(c rune) rune {
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z':
			return c
		case 'A' <= c && c <= 'Z':
			return c + 'a' - 'A'
		}
		return -1
	}, value)
	if folded == "" || junkValues[folded] || strings.HasPrefix(folded, "tobefilled") {
		return true
	}
	// One character over and over: 0000…, ffff…, xxxxxx. A single digit may be
	// a chassis type.
	return len(folded) > 3 && strings.Count(folded, folded[:1]) == len(folded)
}

func (r *reader) tpm() *TPM {
	if !r.exists("class/tpm/tpm0") {
		return nil
	}
	switch r.text("class/tpm/tpm0/tpm_version_major") {
	case "2":
		return &TPM{Version: 2}
	case "1":
		return &TPM{Version: 1}
	}
	r.warn("the kernel does not say which version of TPM it has found")
	return nil
}

var pciAddress = regexp.MustCompile(`^[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)

// nics are the Ethernet interfaces that are hardware: they have a device.
func (r *reader) nics() []netconfig.NIC {
	var nics []netconfig.NIC
	for _, name := range r.entries("class/net") {
		dir := "class/net/" + name
		const etherType = "1" // ARPHRD_ETHER, linux/if_arp.h
		if !r.exists(dir+"/device") || r.text(dir+"/type") != etherType || r.exists(dir+"/phy80211") {
			continue
		}
		mac, err := netconfig.ParseMAC(r.text(dir + "/address"))
		if err != nil || mac.IsZero() {
			r.warn("%s has no MAC address and is left out", name)
			continue
		}
		nic := netconfig.NIC{
			Name:      name,
			MAC:       mac,
			Driver:    r.driver(dir),
			Carrier:   r.quietNumber(dir+"/carrier") == 1,
			SpeedMbps: r.quietNumber(dir + "/speed"),
			MTU:       r.quietNumber(dir + "/mtu"),
		}
		for element := range strings.SplitSeq(r.device(dir), "/") {
			if pciAddress.MatchString(element) {
				nic.PCI = element // the last is the device, those before are bridges
			}
		}
		nics = append(nics, nic)
	}
	return nics
}

func (r *reader) driver(dir string) string {
	target, err := fs.ReadLink(r.sys, dir+"/device/driver")
	if err != nil {
		return ""
	}
	return path.Base(target)
}
