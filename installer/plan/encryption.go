package plan

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/recovery"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// Encryption is how the new OS's encrypted volumes are opened, for people: what
// is made stands in the layout.
type Encryption struct {
	// Opened has a line for each way, with the volumes that it opens at boot.
	Opened []string `json:"opened"`
	// RecoveryRecipients can open the machine's recovery key, which lies
	// encrypted in RecoveryFile of the new OS.
	RecoveryRecipients []string `json:"recoveryRecipients,omitempty"`
	RecoveryFile       string   `json:"recoveryFile,omitempty"`
	// RecoveryRequired says that the site server must have the key before any
	// disk is touched.
	RecoveryRequired bool `json:"recoveryRequired,omitempty"`
	// Notes say what will be with these volumes later.
	Notes []string `json:"notes,omitempty"`
}

// stablePCRs are those that hold the same values in the installer, after kexec,
// and after a start from the disk. In the others the boot loader, the kernel, its
// command line or the choice of the boot device is measured (UAPI group, Linux
// TPM PCR Registry): a key that is sealed to them in the installer would never be
// released again.
var stablePCRs = []uint{0, 2, 3, 7}

// decideEncryption finds what would keep the new OS from opening its volumes, and
// says how it will.
func (d *decision) decideEncryption(layout storage.Layout) {
	encrypted := layout.Encrypted()
	if len(encrypted) == 0 {
		if d.config.Storage.Encrypt {
			d.warn("Encrypt is true, and nothing will be encrypted: the layout has no volume but /, /boot and the EFI system partition, which stay plain unless Encryption.Root is true")
		}
		return
	}
	wanted := d.config.Storage.Encryption
	e := &Encryption{RecoveryRequired: wanted.RecoveryRequired}
	d.plan.Encryption = e
	ways := make(map[storage.Unlock][]string)
	for _, v := range encrypted {
		l := v.Partition.LUKS
		ways[l.Unlock] = append(ways[l.Unlock], cmp.Or(v.MountPoint(), v.Partition.FileSystem)) // swap is mounted nowhere
		if v.MountPoint() == "/" {
			d.checkRootUnlock(*l)
		}
	}
	if volumes := ways[storage.UnlockTPM2]; volumes != nil {
		e.Opened = append(e.Opened, fmt.Sprintf("%s by the TPM (PCR %s)", strings.Join(volumes, ", "), numbers(encrypted)))
	}
	if volumes := ways[storage.UnlockKeyFile]; volumes != nil {
		e.Opened = append(e.Opened, fmt.Sprintf("%s by key files in %s", strings.Join(volumes, ", "), storage.KeyDirectory))
	}
	if volumes := ways[storage.UnlockPassphrase]; volumes != nil {
		e.Opened = append(e.Opened, fmt.Sprintf("%s by the recovery key, typed at every start", strings.Join(volumes, ", ")))
	}
	if layout.Uses(storage.SlotTPM2) {
		d.checkTPM(encrypted, wanted)
		d.checkSystemUnlock(ways[storage.UnlockTPM2])
	}
	d.decideRecovery(layout, wanted)
}

// checkTPM refuses a TPM that would not protect the keys, or lose them.
func (d *decision) checkTPM(encrypted []storage.Volume, wanted storage.Encryption) {
	e := d.plan.Encryption
	tpm := d.machine.TPM
	if tpm == nil || tpm.Version != 2 {
		d.refuse(CodeNoTPM, "the layout wants keys sealed to a TPM 2.0, and the machine has none that the kernel knows: switch it on in the firmware's settings, or take \"tpm2\" out of Encryption.Unlock")
		return
	}
	for _, n := range pcrsOf(encrypted) {
		if !slices.Contains(stablePCRs, n) {
			d.refuse(CodeUnstablePCR, "Encryption.PCRs has %d, which is another in the installed system than in the installer: the TPM would never release a key; take some of 0, 2, 3, 7", n)
			continue
		}
		if why := unmeasured(tpm.PCRs, n); why != "" {
			d.refusals.add(storage.Errorf(storage.CodePCR, "PCR %d cannot protect a key: %s", n, why))
		}
	}
	switch {
	case d.machine.SecureBoot:
		e.Notes = append(e.Notes, "The keys are released to what starts under the same Secure Boot settings and is vouched for by the same certificates as this installer. If the installed system's boot loader is signed otherwise, its first start from the disk asks for the recovery key; then enrol the TPM anew.")
	case !wanted.AllowWithoutSecureBoot:
		d.refuse(CodeSecureBoot, "Secure Boot is off: the TPM would release the keys to any program that somebody starts on the machine. Switch it on, or say \"AllowWithoutSecureBoot\": true in Encryption")
	default:
		e.Notes = append(e.Notes, "Secure Boot is off: whoever can start a program of his own on this machine can open its disks. They are closed to whoever takes them out of it.")
	}
	e.Notes = append(e.Notes, firmwareNote(encrypted))
	// The root file system has no key file, whatever Unlock says, and has those of
	// the others.
	if slices.ContainsFunc(encrypted, func(v storage.Volume) bool {
		return slices.Equal(v.Partition.LUKS.Slots, []storage.Slot{storage.SlotTPM2})
	}) {
		d.warn("nothing but the TPM opens the volumes: with no RecoveryRecipients a change of the firmware's settings, or a broken board, loses what is on them")
	}
}

// firmwareNote says what happens on a firmware update.
func firmwareNote(encrypted []storage.Volume) string {
	const again = "the volumes then ask for the recovery key, until the TPM is enrolled anew (systemd-cryptenroll --wipe-slot=tpm2 --tpm2-device=auto)"
	if slices.Equal(pcrsOf(encrypted), []uint{7}) {
		return "A firmware update leaves PCR 7 as it is, unless it changes Secure Boot or its keys (PK, KEK, db, dbx): " + again + "."
	}
	return "A firmware update changes PCR " + numbers(encrypted) + ": " + again + "."
}

func unmeasured(pcrs []string, n uint) string {
	if int(n) >= len(pcrs) {
		return "the TPM shows no values of its SHA-256 bank; switch that on in the firmware's settings"
	}
	value, err := hex.DecodeString(pcrs[n])
	if err != nil || len(value) != 32 {
		return fmt.Sprintf("the inventory has %q as its value", pcrs[n])
	}
	return tpm2.Unmeasured([32]byte(value))
}

// checkRootUnlock refuses an encrypted root that the image's initramfs would not
// open.
func (d *decision) checkRootUnlock(l storage.LUKS) {
	attributes := d.image.Manifest.Attributes
	program := attributes[image.AttrInitramfs]
	if slices.Contains(strings.Split(attributes[image.AttrUnlock], ","), string(l.Unlock)) {
		return
	}
	if program == "" {
		program = "no program that makes one"
	}
	advice := "install cryptsetup-initramfs (for initramfs-tools) or dracut with cryptsetup in it"
	if l.Unlock == storage.UnlockTPM2 {
		advice = "install dracut, tpm2-tools, libtss2-esys and libtss2-tcti-device in it; initramfs-tools passes over tpm2-device= without a word"
	}
	d.refuse(CodeRootUnlock, "the layout wants the root file system opened by %s, and the initramfs of image %s (%s) cannot do that: %s, or choose another way in Encryption.Unlock", l.Unlock, d.image.Name, program, advice)
}

// needsInitrd says that the image's own initrd would not find the root file system
// of the layout. One of systemd's that opens encrypted volumes by the kernel's
// words needs nothing of the machine in it.
func needsInitrd(layout storage.Layout, attributes map[string]string) bool {
	if !layout.NeedsInitrd() {
		return false
	}
	for _, v := range layout.Mounts() {
		p := v.Partition
		if v.MountPoint() != "/" && v.MountPoint() != "/usr" || p.Number != 0 && p.LUKS == nil {
			continue
		}
		known := strings.Split(attributes[image.AttrInitrdUnlock], ",")
		if v.MountPoint() == "/usr" || p.Number == 0 || !slices.Contains(known, string(p.LUKS.Unlock)) {
			return true
		}
	}
	return false
}

// libraries that systemd-cryptsetup loads to speak to a TPM (dlopen(3)).
var tpmLibraries = []string{"libtss2-esys.so.0", "libtss2-tcti-device.so.0"}

// checkSystemUnlock refuses volumes beside the root that the new OS is to open by
// TPM and cannot.
func (d *decision) checkSystemUnlock(volumes []string) {
	volumes = slices.DeleteFunc(slices.Clone(volumes), func(v string) bool { return v == "/" })
	if len(volumes) == 0 {
		return
	}
	missing := slices.Clone(tpmLibraries)
	opener := false
	for i := range d.image.Manifest.Entries {
		name := d.image.Manifest.Entries[i].Path
		switch base := path.Base(name); {
		case base == "systemd-cryptsetup":
			opener = true
		case strings.HasPrefix(name, "usr/lib") || strings.HasPrefix(name, "lib"):
			missing = slices.DeleteFunc(missing, func(library string) bool { return library == base })
		}
	}
	if !opener {
		missing = append([]string{"systemd-cryptsetup"}, missing...)
	}
	if len(missing) > 0 {
		d.refuse(CodeUnlock, "the layout wants %s opened by TPM when the system starts, and image %s lacks %s: install the packages in it, or put \"keyfile\" before \"tpm2\" in Encryption.Unlock",
			strings.Join(volumes, ", "), d.image.Name, strings.Join(missing, ", "))
	}
}

// decideRecovery says who gets the recovery key, and refuses where nobody would.
func (d *decision) decideRecovery(layout storage.Layout, wanted storage.Encryption) {
	e := d.plan.Encryption
	d.sayUnrecovered(layout, wanted)
	if !layout.Uses(storage.SlotRecovery) {
		return
	}
	e.RecoveryRecipients = wanted.RecoveryRecipients
	e.RecoveryFile = recoveryFile(layout)
	for _, recipient := range wanted.RecoveryRecipients {
		if err := recovery.CheckRecipient(recipient); err != nil {
			d.refusals.add(err)
		}
	}
	switch {
	case d.config.SiteServer != "":
	case wanted.RecoveryRequired:
		d.refuse(CodeNoEscrow, "the site server must keep the recovery key (RecoveryRequired), and none is named: add the file siteserver to the configuration")
	default:
		e.Notes = append(e.Notes, "There is no site server to keep the recovery key: it lies on the machine's own disk only, encrypted to its recipients. Copy it.")
	}
}

// sayUnrecovered names the volumes that the layout's recovery key will not open:
// those that are kept, with the keys that they have.
func (d *decision) sayUnrecovered(layout storage.Layout, wanted storage.Encryption) {
	if len(wanted.RecoveryRecipients) == 0 {
		return
	}
	var kept []string
	for _, v := range layout.Encrypted() {
		if v.Partition.Kept {
			kept = append(kept, v.MountPoint())
		}
	}
	if len(kept) == 0 {
		return
	}
	text := fmt.Sprintf("%s stay as they are, with the keys that they have: no recovery key of this installation opens them. One that was made with them still does.", strings.Join(kept, ", "))
	if layout.Uses(storage.SlotRecovery) {
		d.plan.Encryption.Notes = append(d.plan.Encryption.Notes, text)
		return
	}
	// Nothing is left that RecoveryRequired could be about.
	d.plan.Encryption.RecoveryRequired = false
	d.warn("no recovery key is made and the site server is sent none, although the layout has RecoveryRecipients: every encrypted volume is kept. %s", text)
}

// recoveryFile lies where it can be read without opening anything.
func recoveryFile(layout storage.Layout) string {
	directory := "/boot"
	if slices.ContainsFunc(layout.Mounts(), func(v storage.Volume) bool { return v.MountPoint() == storage.ESPMountPoint }) {
		directory = storage.ESPMountPoint
	}
	return path.Join(directory, "firstlight", "recovery.age")
}

// pcrsOf are the PCRs that the volumes' keys are bound to; all have the same.
func pcrsOf(encrypted []storage.Volume) []uint {
	for _, v := range encrypted {
		if pcrs := v.Partition.LUKS.PCRs; len(pcrs) > 0 {
			return pcrs
		}
	}
	return nil
}

func numbers(encrypted []storage.Volume) string {
	var words []string
	for _, n := range pcrsOf(encrypted) {
		words = append(words, strconv.FormatUint(uint64(n), 10))
	}
	return strings.Join(words, "+")
}

// write says it to a person; nothing is said where nothing is encrypted.
func (e *Encryption) write(t *text) {
	if e == nil {
		return
	}
	title := "Opened"
	for _, line := range e.Opened {
		t.field(title, line)
		title = ""
	}
	if e.RecoveryFile != "" {
		whom := fmt.Sprintf("a recovery key for %s", strings.Join(e.RecoveryRecipients, ", "))
		if e.RecoveryRequired {
			whom += "; the site server must have it first"
		}
		t.field("", whom, "in "+e.RecoveryFile)
	}
	for _, note := range e.Notes {
		t.field("", note)
	}
	t.line("", "")
}
