package storage

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func encryptedSpec(e Encryption) Spec {
	return Spec{
		Volumes:                  []VolumeSpec{{MountPoint: "/", MinimumFreeBytes: GiB}, {MountPoint: "/home", MinimumFreeBytes: 128 * MiB}},
		ExtraMountPointsBasename: "/data/",
		Encrypt:                  true,
		Encryption:               e,
	}
}

func resolveEncrypted(s Spec) (Layout, error) {
	disk := Disk{Name: "vda", Path: "/dev/vda", Size: 16 * GiB, SectorSize: 512, Transport: "virtio"}
	return Resolve(s, []Disk{disk}, nil, Need{}, UEFI, func(name string) (id [16]byte) {
		copy(id[:], name)
		return id
	})
}

// TestUnlock: which key slots the volumes have, and how crypttab and the kernel
// are told.
func TestUnlock(t *testing.T) {
	recipients := []string{"age1…"}
	for name, x := range map[string]struct {
		encryption Encryption
		root, home []Slot
		crypttab   []string // without mapping and UUID
		options    string
	}{
		"model": {Encryption{}, nil, []Slot{SlotKeyFile}, []string{"/etc/keys/data-0.key luks", "/etc/keys/home.key luks"}, ""},
		"TPM": {
			Encryption{Root: true, Unlock: []Unlock{UnlockTPM2}, RecoveryRecipients: recipients},
			[]Slot{SlotTPM2, SlotRecovery}, []Slot{SlotTPM2, SlotRecovery},
			[]string{"none luks,tpm2-device=auto,x-initrd.attach", "none luks,tpm2-device=auto", "none luks,tpm2-device=auto"},
			"rd.luks.name=U=root rd.luks.options=U=tpm2-device=auto",
		},
		"key files on an encrypted root": {
			Encryption{Root: true, Unlock: []Unlock{UnlockKeyFile, UnlockTPM2}},
			[]Slot{SlotTPM2}, []Slot{SlotKeyFile, SlotTPM2},
			[]string{"none luks,tpm2-device=auto,x-initrd.attach", "/etc/keys/data-0.key luks", "/etc/keys/home.key luks"},
			"rd.luks.name=U=root rd.luks.options=U=tpm2-device=auto",
		},
		"passphrase": {
			Encryption{Root: true, Unlock: []Unlock{UnlockPassphrase}, RecoveryRecipients: recipients},
			[]Slot{SlotRecovery}, []Slot{SlotRecovery},
			[]string{"none luks,x-initrd.attach", "none luks", "none luks"}, "rd.luks.name=U=root",
		},
		"data by TPM": {
			Encryption{Unlock: []Unlock{UnlockTPM2, UnlockKeyFile}, PCRs: []uint{7, 0}},
			nil, []Slot{SlotTPM2, SlotKeyFile}, []string{"none luks,tpm2-device=auto", "none luks,tpm2-device=auto"}, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := resolveEncrypted(encryptedSpec(x.encryption))
			if err != nil {
				t.Fatal(err)
			}
			options := strings.Join(l.RootOptions(), " ")
			for _, v := range l.Mounts() {
				luks := v.Partition.LUKS
				var slots []Slot
				if luks != nil {
					slots = luks.Slots
				}
				switch v.MountPoint() {
				case "/":
					if !slices.Equal(slots, x.root) {
						t.Errorf("/: %v", slots)
					}
					if luks != nil {
						options = strings.ReplaceAll(options, luks.UUID, "U")
					}
				case "/home", "/data/0":
					if !slices.Equal(slots, x.home) {
						t.Errorf("%s: %v", v.MountPoint(), slots)
					}
					if tpm := slices.Contains(slots, SlotTPM2); tpm != (len(luks.PCRs) > 0) || tpm && (luks.PCRs[len(luks.PCRs)-1] != 7 || !slices.IsSorted(luks.PCRs)) {
						t.Errorf("%s: PCRs %v", v.MountPoint(), luks.PCRs)
					}
				default:
					if luks != nil {
						t.Errorf("%s is encrypted: nothing could start from it", v.MountPoint())
					}
				}
			}
			if boot := slices.ContainsFunc(l.Mounts(), func(v Volume) bool { return v.MountPoint() == "/boot" }); boot != x.encryption.Root {
				t.Errorf("there is a /boot: %v", boot)
			}
			var lines []string
			for line := range strings.Lines(string(l.Crypttab())) {
				if fields := strings.SplitN(strings.TrimSpace(line), " ", 3); !strings.HasPrefix(line, "#") {
					lines = append(lines, fields[2])
				}
			}
			if !slices.Equal(lines, x.crypttab) {
				t.Errorf("crypttab %q, want %q", lines, x.crypttab)
			}
			if options != x.options {
				t.Errorf("kernel options %q, want %q", options, x.options)
			}
		})
	}
}

func TestEncryptionContradicts(t *testing.T) {
	for name, x := range map[string]struct {
		change func(s *Spec)
		says   string
	}{
		"root by key file":   {func(s *Spec) { s.Encryption.Root = true }, "has no place that is encrypted itself"},
		"nobody's":           {func(s *Spec) { s.Encryption.Unlock = []Unlock{UnlockPassphrase} }, "nobody would know it"},
		"recovery by nobody": {func(s *Spec) { s.Encryption.RecoveryRequired = true }, "needs RecoveryRecipients"},
		"not at all": {func(s *Spec) {
			s.Encrypt, s.Encryption.Unlock = false, []Unlock{UnlockTPM2}
		}, "Encrypt is false"},
	} {
		s := encryptedSpec(Encryption{})
		x.change(&s)
		_, err := resolveEncrypted(s)
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != CodeLayout || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
