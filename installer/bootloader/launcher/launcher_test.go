package launcher

import (
	"bytes"
	"debug/pe"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The bytes in the source are those that its assembler text becomes.
func TestCode(t *testing.T) {
	dir := t.TempDir()
	object, flat := filepath.Join(dir, "o"), filepath.Join(dir, "bin")
	for _, c := range [][]string{{"as", "--64", "amd64.asm", "-o", object}, {"objcopy", "-O", "binary", "-j", ".text", object, flat}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", c, err, out)
		}
	}
	assembled, err := os.ReadFile(flat)
	if err != nil {
		t.Fatal(err)
	}
	if len(assembled) != page+atOptions {
		t.Errorf("the data end at %#x, want %#x", len(assembled)-page, atOptions)
	}
	if got := hex.EncodeToString(bytes.TrimRight(assembled[:page], "\x00")); got != code {
		t.Errorf("amd64.asm is\n%s", got)
	}
}

func TestNew(t *testing.T) {
	options := "initrd=\\x root=UUID=y " + strings.Repeat("long ", 900)
	program, err := New("amd64", "/EFI/a/vmlinuz.efi", options)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	h := f.OptionalHeader.(*pe.OptionalHeader64)
	if h.Subsystem != pe.IMAGE_SUBSYSTEM_EFI_APPLICATION || h.AddressOfEntryPoint != page || h.SizeOfImage != 0x6000 || int(h.SizeOfHeaders) != headersSize {
		t.Errorf("%+v", h)
	}
	data, err := f.Section(".data").Data()
	if err != nil {
		t.Fatal(err)
	}
	if got := data[atOptions : atOptions+len(ucs2(options))]; !bytes.Equal(got, ucs2(options)) {
		t.Errorf("options %q", got)
	}
	if !bytes.Contains(data[atFile:atOptions], ucs2(`\EFI\a\vmlinuz.efi`)) {
		t.Error("the kernel's name is not there")
	}
	for _, s := range f.Sections {
		if s.VirtualAddress%page != 0 || s.Offset%fileAlignment != 0 {
			t.Errorf("section %+v", s.SectionHeader)
		}
	}
	if _, err := New("arm64", "/x", ""); err == nil {
		t.Error("an arm64 program of amd64 code")
	}
	if _, err := New("amd64", "/"+strings.Repeat("x", 300), ""); err == nil {
		t.Error("a path that is too long")
	}
}
