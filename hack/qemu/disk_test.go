package qemu

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDisksOfEveryKind starts a machine that never runs an instruction, with
// disks of every kind: QEMU takes each and counts its writes, of which there
// are none.
func TestDisksOfEveryKind(t *testing.T) {
	files := t.TempDir()
	var disks []Disk
	for n, d := range []Disk{
		{Serial: "plain"},
		{SectorSize: 4096, BytesPerSecond: 1 << 20},
		{Bus: NVMe, Serial: "n1"},
		{Bus: NVMe, Serial: "n2", SectorSize: 4096},
		{Bus: SCSI, Properties: []string{"wwn=0x5000c50015ea71aa"}},
		{Bus: AHCI},
		{Bus: USB},
		{WriteLog: filepath.Join(files, "log"), Faults: []Fault{{Sector: 2048, Errno: 5}, {Sector: 4096, Errno: 28}}},
	} {
		d.Path = filepath.Join(files, diskName(n))
		if err := CreateDisk(d.Path, 16<<20); err != nil {
			t.Fatal(err)
		}
		if d.WriteLog != "" {
			if err := os.WriteFile(d.WriteLog, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		disks = append(disks, d)
	}
	dir, err := os.MkdirTemp("", "qemu-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	m, err := Start(t.Context(), Config{Dir: dir, MemoryMiB: 64, Disks: disks, Args: []string{"-S"}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	writes, err := m.Writes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n, w := range writes {
		if !w.None() {
			t.Errorf("disk %d: %+v", n, w)
		}
	}
}

func TestDiskThatCannotBe(t *testing.T) {
	for _, d := range []Disk{{Bus: "floppy"}, {Serial: "a serial number of many bytes"}} {
		if _, err := (Config{Disks: []Disk{d}}).arguments(); err == nil {
			t.Errorf("%+v was taken", d)
		}
	}
}
