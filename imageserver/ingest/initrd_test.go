package ingest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// packInitrd makes an initrd with cpio(1) and, where one is named, a packer.
func packInitrd(t *testing.T, packer []string, names ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pipe := "find . -mindepth 1 | sort | cpio --quiet -o -H newc"
	if packer != nil {
		pipe += " | " + strings.Join(packer, " ")
	}
	cmd := exec.Command("sh", "-c", pipe)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestInitrdUnlock(t *testing.T) {
	all := []string{
		"usr/lib/systemd/systemd-cryptsetup", "usr/lib/modules/6.1.0/kernel/drivers/md/dm-crypt.ko.xz",
		"usr/lib/x86_64-linux-gnu/libtss2-esys.so.0.0.0", "usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0",
	}
	microcode := packInitrd(t, nil, "kernel/x86/microcode/GenuineIntel.bin")
	for name, packer := range map[string][]string{"plain": nil, "gzip": {"gzip"}, "zstd": {"zstd", "-q"}, "xz": {"xz", "--check=crc32"}} {
		data := append(slices.Clone(microcode), packInitrd(t, packer, all...)...)
		if got := strings.Join(initrdUnlock(data, false), ","); got != "passphrase,tpm2" {
			t.Errorf("%s: %q", name, got)
		}
		if got := initrdUnlock(data[:len(data)-len(data)/4], false); got != nil {
			t.Errorf("%s, cut off: %q", name, got)
		}
	}
	for want, names := range map[string][]string{
		"passphrase": all[:2],
		"":           all[1:],
	} {
		if got := strings.Join(initrdUnlock(packInitrd(t, nil, names...), false), ","); got != want {
			t.Errorf("%q: %q", names, got)
		}
	}
	if got := initrdUnlock(packInitrd(t, nil, all[0]), false); got != nil {
		t.Errorf("without the driver: %q", got)
	}
	if got := strings.Join(initrdUnlock(packInitrd(t, nil, all[0]), true), ","); got != "passphrase" {
		t.Errorf("with the driver in the kernel: %q", got)
	}
	if got := initrdUnlock([]byte("i"), false); got != nil {
		t.Errorf("no initrd: %q", got)
	}
}

// FuzzInitrd: whatever a file in boot holds, reading it ends.
func FuzzInitrd(f *testing.F) {
	f.Add([]byte("070701" + strings.Repeat("0", 88) + "0000000b" + "00000000" + "TRAILER!!!\x00"))
	f.Add(bytes.Repeat([]byte("070701ffffffff"), 10))
	f.Fuzz(func(t *testing.T, data []byte) { initrdUnlock(data, false) })
}
