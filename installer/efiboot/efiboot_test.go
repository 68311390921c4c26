package efiboot

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func ours(n uint32, what string) Entry {
	return Entry{
		Description: Prefix + what, File: "/EFI/debian/shimx64.efi",
		Partition: Partition{Number: n, FirstSector: 2048, Sectors: 1048576, UUID: "0b0a4b5e-7f11-4d1c-8a3c-3d2b5c6f7a01"},
	}
}

// memory is the firmware's, in a directory: description or data by variable.
type memory struct{ dir string }

func newMemory(t *testing.T, order string, entries map[string]string) memory {
	m := memory{t.TempDir()}
	for name, description := range entries {
		// What another's entry holds after its description is nobody's business.
		m.put(t, name, append(append([]byte{1, 0, 0, 0, 4, 0}, ucs2(description)...), 0x7f, 0xff, 4, 0))
	}
	if order != "" {
		b, err := hex.DecodeString(order)
		if err != nil {
			t.Fatal(err)
		}
		m.put(t, "BootOrder", b)
	}
	m.put(t, "Timeout", []byte{3, 0})
	return m
}

func (m memory) put(t *testing.T, name string, value []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name+global), append([]byte{7, 0, 0, 0}, value...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// state is the boot menu as a person sees it.
func (m memory) state(t *testing.T) map[string]string {
	t.Helper()
	state := make(map[string]string)
	files, err := filepath.Glob(m.dir + "/Boot*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(f), global)
		if name == order {
			state[name] = hex.EncodeToString(data[4:])
			continue
		}
		if state[name], err = description(data[4:]); err != nil {
			t.Fatal(err)
		}
	}
	return state
}

func TestPut(t *testing.T) {
	for name, test := range map[string]struct {
		order   string
		before  map[string]string
		entries []Entry
		want    map[string]string
	}{
		"blank memory": {
			"", nil, []Entry{ours(1, "a")},
			map[string]string{"Boot0000": Prefix + "a", "BootOrder": "0000"},
		},
		"others stay, in their order": {
			"030000000100", map[string]string{"Boot0000": "UiApp", "Boot0001": "Windows Boot Manager", "Boot0003": "PXE"},
			[]Entry{ours(1, "a"), ours(2, "b")},
			map[string]string{
				"Boot0000": "UiApp", "Boot0001": "Windows Boot Manager", "Boot0003": "PXE",
				"Boot0002": Prefix + "a", "Boot0004": Prefix + "b", "BootOrder": "02000400030000000100",
			},
		},
		"stale ones of ours go, their numbers are used again": {
			"000001000200", map[string]string{"Boot0000": Prefix + "old", "Boot0001": "Firstlightish", "Boot0002": Prefix + "older", "Boot000A": Prefix + "in no order"},
			[]Entry{ours(1, "new")},
			map[string]string{"Boot0000": Prefix + "new", "Boot0001": "Firstlightish", "BootOrder": "00000100"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, test.order, test.before)
			if err := Put(m.dir, test.entries); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, m.state(t)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// The same entries a second time write nothing: the directory may be
// read-only.
func TestPutAgainWritesNothing(t *testing.T) {
	m := newMemory(t, "0500", map[string]string{"Boot0005": "other"})
	entries := []Entry{ours(1, "a"), ours(2, "b")}
	if err := Put(m.dir, entries); err != nil {
		t.Fatal(err)
	}
	stamp := func() string {
		out, err := exec.Command("stat", "-c", "%n %Y %Z %i", m.dir, m.dir+"/BootOrder"+global, m.dir+"/Boot0000"+global).CombinedOutput()
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return string(out)
	}
	before := stamp()
	if err := Put(m.dir, entries); err != nil {
		t.Fatal(err)
	}
	if after := stamp(); after != before {
		t.Errorf("written again:\n%s%s", before, after)
	}
}

func TestPutErrors(t *testing.T) {
	if err := Put(filepath.Join(t.TempDir(), "none"), []Entry{ours(1, "a")}); err == nil {
		t.Error("a directory that is not there was written to")
	}
	m := newMemory(t, "", nil)
	e := ours(1, "a")
	e.Description = "nobody's"
	if err := Put(m.dir, []Entry{e}); err == nil {
		t.Error("an entry that nobody would know as ours was written")
	}
	e = ours(1, "a")
	e.Partition.UUID = "x"
	if err := Put(m.dir, []Entry{e}); err == nil {
		t.Error("a partition without a UUID was accepted")
	}
	// A directory where the variable should be stands for a firmware that
	// takes nothing.
	m = newMemory(t, "", nil)
	if err := os.Mkdir(filepath.Join(m.dir, order+global), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Put(m.dir, []Entry{ours(1, "a")}); err == nil || !strings.Contains(err.Error(), order) {
		t.Errorf("error %v", err)
	}
}

// efibootmgr reads what we wrote as we meant it.
func TestEfibootmgr(t *testing.T) {
	m := newMemory(t, "0100", map[string]string{"Boot0001": "UiApp"})
	e := ours(3, "Debian")
	e.File, e.Options = "/EFI/firstlight/vmlinuz.efi", `initrd=\EFI\firstlight\initrd.img ro`
	if err := Put(m.dir, []Entry{e}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("efibootmgr", "-v")
	cmd.Env = append(os.Environ(), "EFIVARFS_PATH="+m.dir+"/")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"BootOrder: 0000,0001", "Boot0000* Firstlight Debian",
		`HD(3,GPT,0b0a4b5e-7f11-4d1c-8a3c-3d2b5c6f7a01,0x800,0x100000)/File(\EFI\firstlight\vmlinuz.efi)`,
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("efibootmgr does not say %q:\n%s", want, out)
		}
	}
}
