package gpt

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/storage"
)

func ids(name string) (id [16]byte) {
	sum := sha256.Sum256([]byte(name))
	copy(id[:], sum[:])
	return id
}

func layout(t *testing.T, size uint64, sector uint32, firmware storage.Firmware) storage.DiskLayout {
	t.Helper()
	spec := storage.Spec{
		Volumes: []storage.VolumeSpec{
			{MountPoint: "/", MinimumFreeBytes: 1 * storage.GiB},
			{MountPoint: "/home", MinimumFreeBytes: 100 * storage.MiB},
		},
		ExtraMountPointsBasename: "/data/",
		Encrypt:                  true,
	}
	disk := storage.Disk{Name: "vda", Path: "/dev/vda", Size: size, SectorSize: sector, PhysicalSectorSize: 4096}
	l, err := storage.Resolve(spec, []storage.Disk{disk}, nil, storage.Need{RootBytes: 100 * storage.MiB}, firmware, ids)
	if err != nil {
		t.Fatal(err)
	}
	return l.Disks[0]
}

func write(t *testing.T, d storage.DiskLayout) string {
	t.Helper()
	regions, err := Table(d)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(d.Size)); err != nil {
		t.Fatal(err)
	}
	for _, r := range regions {
		if _, err := f.WriteAt(r.Data, int64(r.Offset)); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/"+name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestSgdiskAgrees(t *testing.T) {
	cases := []struct {
		size     uint64
		sector   uint32
		firmware storage.Firmware
	}{
		{8 * storage.GiB, 512, storage.BIOS},
		{8 * storage.GiB, 512, storage.UEFI},
		{8*storage.GiB + 512, 512, storage.Both},
		{1000204886016, 512, storage.Both},
		{3 << 40, 512, storage.UEFI}, // more sectors than 32 bits can name
		{8 * storage.GiB, 4096, storage.UEFI},
	}
	for _, c := range cases {
		t.Run(fmt.Sprintf("%d-%d-%s", c.size, c.sector, c.firmware), func(t *testing.T) {
			d := layout(t, c.size, c.sector, c.firmware)
			device := write(t, d)
			if c.sector != 512 {
				file := device
				device = strings.TrimSpace(run(t, "losetup", "--find", "--show", "--read-only", "--sector-size", fmt.Sprint(c.sector), file))
				defer run(t, "losetup", "--detach", device)
			}
			out := run(t, "sgdisk", "--verify", device)
			if !strings.Contains(out, "No problems found.") || strings.Contains(out, "Warning") || strings.Contains(out, "Caution") {
				t.Errorf("sgdisk -v:\n%s", out)
			}
			for _, p := range d.Partitions {
				out := run(t, "sgdisk", "--info", fmt.Sprint(p.Number), device)
				for _, want := range []string{
					"GUID code: " + p.TypeGUID,
					"unique GUID: " + strings.ToUpper(p.UUID),
					fmt.Sprintf("First sector: %d ", p.FirstSector),
					fmt.Sprintf("Last sector: %d ", p.LastSector),
					fmt.Sprintf("Partition name: '%s'", p.Name),
				} {
					if !strings.Contains(out, want) {
						t.Errorf("partition %d: no %q in\n%s", p.Number, want, out)
					}
				}
			}
			if out := run(t, "sgdisk", "--print", device); !strings.Contains(out, strings.ToUpper(d.UUID)) {
				t.Errorf("no disk GUID %s in\n%s", d.UUID, out)
			}
		})
	}
}

func TestRefusesNonsense(t *testing.T) {
	d := layout(t, 8*storage.GiB, 512, storage.BIOS)
	d.Partitions[1].Number = d.Partitions[0].Number
	if _, err := Table(d); err == nil {
		t.Error("two partitions with one number were accepted")
	}
}
