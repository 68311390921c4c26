//go:build full

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// doing is a configuration on board that asks for something else than an
// installation: it names no image, and no server has to be there.
func doing(what map[string]any) initramfs {
	c := (&faces{}).config("", "")
	delete(c, "imagename")
	delete(c, "tools-imagename")
	var machine map[string]any
	if err := json.Unmarshal(c["config.json"], &machine); err != nil {
		panic(err) // we have just written it
	}
	what["WaitAfterFailureSeconds"] = 3600
	machine["Install"] = what
	data, err := json.Marshal(machine)
	if err != nil {
		panic(err) // what was JSON
	}
	c["config.json"] = data
	return onBoard(c)
}

// disksToWipe are two of the machine, with something on them, and a stick.
func disksToWipe(t *testing.T) (disks []qemu.Disk, before [][sha256.Size]byte) {
	t.Helper()
	dir := t.TempDir()
	const mib = 1 << 20
	disks = []qemu.Disk{
		{Path: diskWith(t, dir, "virtio", 256*mib, "mkfs.ext4", "-q", "-F", "-L", "accounts"), Serial: "virtio-0"},
		{Path: diskWith(t, dir, "ahci", 384*mib, "sgdisk", "-n", "1:2048:+64M"), Serial: "ahci-0", Bus: qemu.AHCI},
		{Path: diskWith(t, dir, "stick", 64*mib, "mkfs.vfat", "-n", "STICK"), Serial: "stick", Bus: qemu.USB},
	}
	for _, d := range disks {
		sum, err := contentOf(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		before = append(before, sum)
	}
	return disks, before
}

// TestStorageWipe: every disk of the machine is erased to the last sector, the
// stick stays as it is, nothing is installed, and the machine is off.
func TestStorageWipe(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	disks, before := disksToWipe(t)
	m := (&faces{port: 1}).machine(t, doing(map[string]any{"Wipe": "overwrite"}), "", func(c *qemu.Config) { c.Disks = disks })
	if err := m.Wait(ctx); err != nil {
		t.Fatalf("the machine did not switch itself off: %v", err)
	}
	for _, text := range []string{
		"WILL BE ERASED: /dev/vda", "WILL BE ERASED: /dev/sd", `ext4 "accounts"`, "it is connected by USB",
		"commit: point of no return", "finish: wiped by overwrite: 2 disks; switching off",
	} {
		if !strings.Contains(m.Text(), text) {
			t.Errorf("the console lacks %q", text)
		}
	}
	blank := sha256.Sum256(nil)
	for n, d := range disks {
		after, err := contentOf(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		want := blank
		if n == 2 {
			want = before[n]
		}
		if after != want {
			t.Errorf("%s is not as it should be after the wipe", d.Serial)
		}
	}
}

// TestStorageRescue: a machine that waits for operators shows what it is, and no
// write reaches any of its disks.
func TestStorageRescue(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	disks, before := disksToWipe(t)
	page, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	m := (&faces{port: 1}).machine(t, doing(map[string]any{"Rescue": true}), "", func(c *qemu.Config) {
		c.Disks, c.Net = disks, qemu.Net{Forwards: map[int]int{page: 6978}}
	})
	if _, err := m.WaitFor(ctx, regexp.MustCompile(`commit: rescue: nothing will be touched`)); err != nil {
		t.Fatal(err)
	}
	if inventory := get(ctx, t, fmt.Sprintf("http://127.0.0.1:%d/api/v1/inventory", page)); !strings.Contains(string(inventory), `"accounts"`) {
		t.Errorf("the inventory does not show what is on the disks: %s", inventory)
	}
	time.Sleep(5 * time.Second) // it would have done something by now
	writes, err := m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	for n, d := range disks {
		after, err := contentOf(d.Path)
		if err != nil {
			t.Fatal(err)
		}
		if !writes[n].None() || after != before[n] {
			t.Errorf("%s was written to: %+v, changed: %t", d.Serial, writes[n], after != before[n])
		}
	}
}
