package lvm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/storage"
)

func group(device string) storage.Group {
	return storage.Group{
		Name: "vg0", UUID: "0123456789abcdefghijABCDEFGHIJKL", Device: device, DeviceUUID: "abcdefghijABCDEFGHIJ0123456789xy",
		Bytes: 200 << 20, SectorSize: 512, Extents: 49,
		Volumes: []storage.LogicalVolume{
			{Name: "root", UUID: "rootefghijABCDEFGHIJ0123456789xy", Extents: 20},
			{Name: "var_log", UUID: "varlghijabABCDEFGHIJ0123456789xy", FirstExtent: 20, Extents: 29},
		},
	}
}

// LVM's own programs read the group as it was meant.
func TestDescribe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("LVM looks at block devices only: run this test as root")
	}
	file := filepath.Join(t.TempDir(), "pv")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(200 << 20); err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(command(t, "losetup", "--find", "--show", file))
	t.Cleanup(func() { command(t, "losetup", "-d", device) })
	for _, r := range Describe(group(device)) {
		if _, err := f.WriteAt(r.Data, int64(r.Offset)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	config := "devices{filter=[\"a|^" + device + "$|\",\"r|.*|\"] use_devicesfile=0} backup{backup=0 archive=0}"
	for _, c := range []struct {
		args string
		want []string
	}{
		{"pvs -o pv_name,vg_name,pv_size,pv_free,pv_uuid,pv_mda_count --units m --nosuffix --noheadings", []string{device, "vg0", "196.00", "0", "abcdef-ghij-ABCD-EFGH-IJ01-2345-6789xy", "1"}},
		{"vgs -o vg_name,vg_uuid,lv_count,vg_extent_count,vg_attr --noheadings", []string{"vg0", "012345-6789-abcd-efgh-ijAB-CDEF-GHIJKL", "2", "49", "wz--n-"}},
		{"lvs -o lv_name,lv_size,lv_uuid,seg_pe_ranges --units m --nosuffix --noheadings vg0/root", []string{"root", "80.00", "rootef-ghij-ABCD-EFGH-IJ01-2345-6789xy", device + ":0-19"}},
		{"lvs -o lv_name,lv_size,seg_pe_ranges --units m --nosuffix --noheadings vg0/var_log", []string{"var_log", "116.00", device + ":20-48"}},
		{"vgck vg0", nil},
		{"pvck " + device, nil},
	} {
		words := strings.Fields(c.args)
		out := command(t, words[0], append([]string{"--config", config, "--nolocking"}, words[1:]...)...)
		if got := strings.Fields(out); c.want != nil && strings.Join(got, " ") != strings.Join(c.want, " ") {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
		if strings.Contains(strings.ToLower(out), "warning") {
			t.Errorf("%s: %s", c.args, out)
		}
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr, cmd.Env = &stderr, append(os.Environ(), "LVM_SUPPRESS_FD_WARNINGS=1")
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Errorf("%s %q: %v\n%s%s", name, args, err, out, &stderr)
	}
	return string(out)
}

func TestActivate(t *testing.T) {
	g := group("/dev/md1")
	want := "dmsetup create vg0-var_log --uuid LVM-0123456789abcdefghijABCDEFGHIJKLvarlghijabABCDEFGHIJ0123456789xy --table 0 237568 linear /dev/md1 165888"
	if got := Activate(g, g.Volumes[1]).String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
