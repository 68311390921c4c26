package config

import (
	"slices"
	"strings"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/recovery"
)

// transports that a selector can name; see storage.Disk.
var transports = []string{"ata", "fc", "iscsi", "mmc", "nvme", "sas", "sata", "scsi", "virtio", "xen"}

// extensions reads the fields of storage-layout.json that the model does not
// have.
func (r *reader) extensions(spec *storage.Spec, raw rawLayoutFile) {
	if raw.BootDisk != nil {
		s := r.selector(*raw.BootDisk)
		spec.BootDisk = &s
	}
	if raw.DataDisks != nil {
		spec.DataDisks = []storage.Selector{}
	}
	for _, d := range raw.DataDisks {
		spec.DataDisks = append(spec.DataDisks, r.selector(d))
	}
	spec.Overwrite = storage.Overwrite(r.oneOf(raw.Overwrite,
		string(storage.OverwriteAny), string(storage.OverwriteOwn), string(storage.OverwriteNeverForeign)))
	spec.Preserve = r.distinct(raw.Preserve)
	spec.Erase = storage.Erase(r.oneOf(raw.Erase,
		string(storage.EraseMetadata), string(storage.EraseDiscard), string(storage.EraseCrypto), string(storage.EraseOverwrite)))
	spec.Mirror = raw.Mirror.value
	spec.VolumeGroup = raw.VolumeGroup.value
	spec.DataRAID = storage.RAID(r.oneOf(raw.DataRAID, string(storage.RAID0), string(storage.RAID1), string(storage.RAID10)))
	spec.Firmware = storage.Firmware(r.oneOf(raw.Firmware, string(storage.Both)))
	spec.Encryption = r.encryption(raw.Encryption, spec.Encrypt)
}

func (r *reader) selector(raw rawSelector) storage.Selector {
	s := storage.Selector{
		Serial:       strings.TrimSpace(raw.Serial.value),
		WWN:          strings.TrimSpace(raw.WWN.value),
		Model:        strings.TrimSpace(raw.Model.value),
		Transport:    r.transport(raw.Transport),
		MinimumBytes: raw.MinimumBytes.value,
		MaximumBytes: raw.MaximumBytes.value,
		Path:         strings.TrimSpace(raw.Path.value),
	}
	// A text that is there and empty would fit every disk: it was meant to say
	// something.
	for _, t := range []text{raw.Serial, raw.WWN, raw.Model, raw.Transport, raw.Path} {
		if t.set && strings.TrimSpace(t.value) == "" {
			r.mistake(CodeValue, t.file, t.line, "%s is empty", t.path)
		}
	}
	if t := raw.Path; s.Path != "" && (!strings.HasPrefix(s.Path, "/dev/") || s.Path == "/dev/") {
		r.mistake(CodeValue, t.file, t.line, "%s: %q does not begin with /dev/", t.path, t.value)
	}
	if n := raw.MaximumBytes; n.set && n.value < s.MinimumBytes || n.set && n.value == 0 {
		r.mistake(CodeValue, n.file, n.line, "%s: no disk has at most %d and at least %d bytes", n.path, n.value, s.MinimumBytes)
	}
	for _, pick := range []struct {
		boolean
		as storage.Pick
	}{{raw.Smallest, storage.Smallest}, {raw.Largest, storage.Largest}, {raw.First, storage.First}} {
		switch {
		case !pick.value:
		case s.Pick != "":
			r.mistake(CodeValue, pick.file, pick.line, "%s: one of Smallest, Largest and First is possible", pick.path)
		default:
			s.Pick = pick.as
		}
	}
	// What was wrong with its fields is said already.
	said := slices.ContainsFunc(r.mistakes, func(m *Mistake) bool { return strings.Contains(m.Text, raw.path+".") })
	if s == (storage.Selector{}) && !said {
		r.mistake(CodeValue, raw.file, raw.line, "%s chooses nothing: it has none of Serial, WWN, Model, Transport, MinimumBytes, MaximumBytes, Path, Smallest, Largest, First", raw.path)
	}
	return s
}

func (r *reader) transport(t text) string {
	if strings.EqualFold(t.value, "usb") {
		r.mistake(CodeValue, t.file, t.line, "%s: disks that are connected by USB are never used", t.path)
		return ""
	}
	return r.oneOf(t, transports...)
}

func (r *reader) encryption(raw rawEncryption, encrypt bool) storage.Encryption {
	e := storage.Encryption{
		Root:                   raw.Root.value,
		RecoveryRecipients:     r.distinct(raw.RecoveryRecipients),
		RecoveryRequired:       raw.RecoveryRequired.value,
		AllowWithoutSecureBoot: raw.AllowWithoutSecureBoot.value,
	}
	for _, t := range raw.Unlock {
		way := storage.Unlock(r.oneOf(t, string(storage.UnlockKeyFile), string(storage.UnlockTPM2), string(storage.UnlockPassphrase)))
		if way != "" {
			e.Unlock = append(e.Unlock, way)
		}
	}
	r.distinct(raw.Unlock)
	seen := make(map[uint64]bool)
	for _, n := range raw.PCRs {
		switch {
		case n.value > 23:
			r.mistake(CodeValue, n.file, n.line, "%s: a TPM has the PCRs 0 to 23, not %d", n.path, n.value)
		case seen[n.value]:
			r.mistake(CodeDuplicate, n.file, n.line, "%s: %d stands in the list already", n.path, n.value)
		default:
			e.PCRs = append(e.PCRs, uint(n.value))
		}
		seen[n.value] = true
	}
	for _, t := range raw.RecoveryRecipients {
		if err := recovery.CheckRecipient(t.value); t.value != "" && err != nil {
			r.mistake(CodeValue, t.file, t.line, "%s: %v", t.path, err)
		}
	}
	wrong := func(format string, args ...any) {
		r.mistake(CodeValue, raw.file, raw.line, "%s"+format, append([]any{raw.path}, args...)...)
	}
	if raw.file == "" {
		return e
	}
	if !encrypt {
		wrong(` needs "Encrypt": true`)
	}
	if raw.Unlock != nil && len(raw.Unlock) == 0 {
		wrong(".Unlock is empty: nothing could open the volumes")
	}
	if raw.PCRs != nil && len(raw.PCRs) == 0 {
		wrong(".PCRs is empty: the TPM would open the volumes for anyone")
	}
	if tpm := slices.Contains(e.Unlock, storage.UnlockTPM2); !tpm && (raw.PCRs != nil || e.AllowWithoutSecureBoot) {
		wrong(`: PCRs and AllowWithoutSecureBoot need "tpm2" in Unlock`)
	}
	if e.Root && !slices.Contains(e.Unlock, storage.UnlockTPM2) && !slices.Contains(e.Unlock, storage.UnlockPassphrase) {
		wrong(`.Root needs "tpm2" or "passphrase" in Unlock: a key file for the root file system has no place that is encrypted itself`)
	}
	if slices.Contains(e.Unlock, storage.UnlockPassphrase) && len(raw.RecoveryRecipients) == 0 {
		wrong(": the passphrase is the machine's recovery key, and without RecoveryRecipients nobody would know it")
	}
	if e.RecoveryRequired && len(e.RecoveryRecipients) == 0 {
		wrong(": RecoveryRequired needs RecoveryRecipients")
	}
	return e
}

// oneOf is a text that has only a few values, empty for a mistake and where it
// is not there.
func (r *reader) oneOf(t text, known ...string) string {
	if !t.set || slices.Contains(known, t.value) {
		return t.value
	}
	r.mistake(CodeValue, t.file, t.line, "%s: %q is not possible: have %s%s", t.path, t.value, quotedList(known), meant(t.value, known))
	return ""
}

// distinct are the values of a list in which each must say something, and
// something else than those before it.
func (r *reader) distinct(list []text) []string {
	var values []string
	for _, t := range list {
		switch {
		case strings.TrimSpace(t.value) == "":
			r.mistake(CodeValue, t.file, t.line, "%s is empty", t.path)
		case slices.Contains(values, t.value):
			r.mistake(CodeDuplicate, t.file, t.line, "%s: %q stands in the list already", t.path, t.value)
		default:
			values = append(values, t.value)
		}
	}
	return values
}
