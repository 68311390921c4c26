package sanitize

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// The kernel knows these structures by their size.
func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(passthru{}); n != nvmeIoctlAdminCmd>>16&0x3fff {
		t.Errorf("struct nvme_passthru_cmd has %d bytes", n)
	}
	if n := unsafe.Sizeof(sgHeader{}); n != 88 {
		t.Errorf("struct sg_io_hdr has %d bytes", n)
	}
}

func TestChooseNVMe(t *testing.T) {
	for _, x := range []struct {
		name                 string
		oacs, fna, sanitizes byte
		alone                bool
		want, reason         string
	}{
		{"nothing", 0, 0, 0, true, "", "no cryptographic erase"},
		{"QEMU: formats, erases nothing", 2, 0, 0, true, "", "no cryptographic erase"},
		{"format", 2, 4, 0, true, NVMeFormat, ""},
		{"format of one namespace of two", 2, 4, 0, false, NVMeFormat, ""},
		{"format that erases all of two", 2, 6, 0, false, "", "other namespaces"},
		{"format that erases all of one", 2, 6, 0, true, NVMeFormat, ""},
		{"both", 2, 4, 1, true, NVMeFormat, ""},
		{"sanitize", 0, 0, 1, true, NVMeSanitize, ""},
		{"sanitize of two", 0, 0, 1, false, "", "other namespaces"},
		{"sanitize by blocks only", 0, 0, 2, true, "", "no cryptographic erase"},
		{"crypto erase without format", 0, 4, 0, true, "", "no cryptographic erase"},
	} {
		c := make([]byte, 4096)
		c[256], c[524], c[328] = x.oacs, x.fna, x.sanitizes
		means, reason := chooseNVMe(c, x.alone)
		if means != x.want || !strings.Contains(reason, x.reason) || (means == "") == (reason == "") {
			t.Errorf("%s: %q, %q", x.name, means, reason)
		}
	}
}

// The format keeps what it is but for the key: figure 189 of the specification.
func TestFormatWord(t *testing.T) {
	for _, x := range []struct {
		flbas, dps byte
		want       uint32
	}{
		{0, 0, 2 << 9}, {1, 0, 2<<9 | 1}, {0x10, 0, 2<<9 | 1<<4}, {0x13, 0x0a, 2<<9 | 3 | 1<<4 | 2<<5 | 1<<8}, {0x65, 0, 2<<9 | 5 | 3<<12},
	} {
		n := make([]byte, 4096)
		n[26], n[29] = x.flbas, x.dps
		if got := formatWord(n); got != x.want {
			t.Errorf("FLBAS %#x, DPS %#x: %#x, want %#x", x.flbas, x.dps, got, x.want)
		}
	}
}

func TestChooseATA(t *testing.T) {
	for _, x := range []struct {
		name         string
		word82       byte
		word128      byte
		want, reason string
	}{
		{"none", 0, 0, "", "no ATA security"},
		{"plain", 2, 0x01, ATASecurity, ""},
		{"enhanced", 2, 0x21, ATAEnhanced, ""},
		{"frozen", 2, 0x29, "", "frozen"},
		{"locked", 2, 0x27, "", "locked"},
		{"a password", 2, 0x23, "", "has a password"},
	} {
		d := make([]byte, 512)
		d[2*82], d[2*128] = x.word82, x.word128
		means, reason := chooseATA(d)
		if means != x.want || !strings.Contains(reason, x.reason) {
			t.Errorf("%s: %q, %q", x.name, means, reason)
		}
	}
	if s := passwordSector(true); len(s) != 512 || s[0] != 2 || string(s[2:12]) != "firstlight" || s[12] != 0 {
		t.Errorf("% x", s[:40])
	}
	if cdb := passThrough(ataIdentify, pioIn); cdb[0] != 0x85 || cdb[1] != 8 || cdb[2] != 0x0e || cdb[6] != 1 || cdb[14] != 0xec {
		t.Errorf("% x", cdb)
	}
	if cdb := passThrough(ataErasePrepare, nonData); cdb[1] != 6 || cdb[2] != 0 || cdb[6] != 0 {
		t.Errorf("% x", cdb)
	}
}

// A disk that does not erase is left without our password.
func TestEraseATA(t *testing.T) {
	for _, x := range []struct {
		name  string
		fails []byte
		want  []byte
		says  string
	}{
		{"erases", nil, []byte{ataSetPassword, ataErasePrepare, ataEraseUnit}, ""},
		{"takes no password", []byte{ataSetPassword}, []byte{ataSetPassword}, "command f1"},
		{"is not prepared", []byte{ataErasePrepare}, []byte{ataSetPassword, ataErasePrepare, ataDisable}, "command f3"},
		{"refuses", []byte{ataEraseUnit}, []byte{ataSetPassword, ataErasePrepare, ataEraseUnit, ataDisable}, "command f4"},
		{"is gone", []byte{ataEraseUnit, ataDisable}, []byte{ataSetPassword, ataErasePrepare, ataEraseUnit, ataDisable}, `keeps the password "firstlight"`},
	} {
		var sent []byte
		err := eraseATA(func(command, _ byte, data []byte, _ time.Duration) error {
			sent = append(sent, command)
			if command != ataErasePrepare && string(data[2:12]) != ataPassword {
				t.Errorf("%s: command %x without the password", x.name, command)
			}
			if bytes.IndexByte(x.fails, command) >= 0 {
				return fmt.Errorf("command %x", command)
			}
			return nil
		}, true)
		if !bytes.Equal(sent, x.want) {
			t.Errorf("%s: sent % x, want % x", x.name, sent, x.want)
		}
		if (err == nil) != (x.says == "") || err != nil && !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
}

// What is no such disk says so, and is never erased.
func TestNoDisk(t *testing.T) {
	for name, reason := range map[string]string{"vda": "no command", "nvme0n1": "could not be asked", "sda": "no ATA disk"} {
		node := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(node, []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		if means, why := Ask(node); means != "" || !strings.Contains(why, reason) {
			t.Errorf("%s: %q, %q", name, means, why)
		}
		for _, means := range []string{NVMeFormat, NVMeSanitize, ATAEnhanced, ATASecurity, ""} {
			if err := Run(t.Context(), node, means); err == nil {
				t.Errorf("%s was erased by %q", name, means)
			}
		}
		if b, err := os.ReadFile(node); err != nil || string(b) != "content" {
			t.Errorf("%q, %v", b, err)
		}
	}
}
