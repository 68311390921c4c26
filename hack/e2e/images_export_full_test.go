//go:build full

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestImagesExportBoots: an image that is exported as a disk, by our own installer in
// a virtual machine, boots without any network and reaches its login prompt: a raw one
// by BIOS, a qcow2 by UEFI.
func TestImagesExportBoots(t *testing.T) {
	t.Run("raw", func(t *testing.T) { exportBoots(t, site, "raw", "bios") })
	t.Run("qcow2", func(t *testing.T) {
		products := site.Products
		products.Root = storageRoot
		uefi, err := lab.OpenSite(t.Context(), products, t.TempDir(), t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		exportBoots(t, uefi, "qcow2", "uefi")
	})
}

func exportBoots(t *testing.T, site *lab.Site, format, firmware string) {
	store := filepath.Join(t.TempDir(), "store")
	if err := site.CopyStore(store); err != nil {
		t.Fatal(err)
	}
	server, err := site.Serve(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	config := t.TempDir()
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"Machine": {"Hostname": "`+lab.Hostname+`"}, "Install": {"KernelOptions": "console=ttyS0"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "disk")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	accel, _ := probe.Accel(ctx)
	cmd := exec.CommandContext(ctx, site.Products.Firstlight, "image", "export", site.Image, "--format", format, "--firmware", firmware, "--file", disk,
		"--imageserver", server.Address(), "--site", site.Dir, "--config", config, "--size", "4GiB", "--accel", string(accel),
		"--base", site.Products.Initramfs, "--kernel", site.Products.KernelDir)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(disk))
	if err != nil || len(left) != 1 {
		t.Errorf("beside the disk lie %v, %v", left, err)
	}

	lines := keepLines(t)
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	machine := qemu.Config{Dir: dir, Accel: accel, Disks: []qemu.Disk{{Path: disk, Format: format, Serial: "elsewhere"}}, Net: qemu.Net{Absent: true}, Lines: lines.add}
	if firmware == "uefi" {
		machine.Vars = filepath.Join(t.TempDir(), "vars")
		if err := qemu.CreateVars(machine.Vars, false); err != nil {
			t.Fatal(err)
		}
	}
	m, err := qemu.Start(ctx, machine)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	for _, want := range []string{`DEMO-REPORT hostname=` + lab.Hostname, `DEMO-REPORT done`} {
		if _, err := m.WaitFor(ctx, regexp.MustCompile(want)); err != nil {
			t.Fatalf("%s: %v; the console's last lines:\n%s", want, err, m.Tail(40))
		}
	}
	// Whichever of the two came first.
	if lines.index(lab.Hostname+" login: ") >= 0 {
		return
	}
	if _, err := m.WaitFor(ctx, regexp.MustCompile(`(?m)^`+lab.Hostname+` login: `)); err != nil {
		t.Fatalf("no login prompt: %v; the console's last lines:\n%s", err, m.Tail(40))
	}
}
