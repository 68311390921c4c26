package stage_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/stage"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/readonly"
	"github.com/firstlight/firstlight/storage/signature"
	"github.com/firstlight/firstlight/storage/tool"
)

// Thousands of bits of an old disk flip, in files, directories, inodes, super
// block: no wrong object is ever taken from it, and what is whole still is.
//
// mkfs.ext4 gives the metadata checksums, so that the kernel of whoever runs
// this meets no metadata that it would trust and should not.
func TestFlippedBitsOnAnOldDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("loop devices and mounts need root")
	}
	const rounds, flips = 25, 120
	dir := t.TempDir()
	contents := map[object.Digest][]byte{}
	var need []image.Object
	for n := range 250 {
		data := content(uint64(n), 100+n*n*3)
		name := filepath.Join(dir, "root", fmt.Sprint("d", n%7), fmt.Sprint("sub", n%3), fmt.Sprint("file", n))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
		contents[object.Of(data)] = data
		need = append(need, image.Object{Digest: object.Of(data), Size: uint64(len(data))})
	}
	disk := filepath.Join(dir, "disk")
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-O", "metadata_csum", "-d", filepath.Join(dir, "root"), disk, "32M").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	whole, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(7, 11))
	found, lost, unreadable := 0, 0, 0
	for round := range rounds {
		flipped := bytes.Clone(whole)
		for n := range flips * min(round, 1) { // the first time none
			within := len(flipped)
			if n%4 == 0 {
				within = 2 << 20 // super block, inodes and directories
			}
			flipped[random.IntN(within)] ^= 1 << random.IntN(8)
		}
		if err := os.WriteFile(disk, flipped, 0o600); err != nil {
			t.Fatal(err)
		}
		held, missing := takeFrom(t, disk, need)
		if len(held)+len(missing) != len(need) {
			t.Fatalf("round %d: %d objects found and %d missing of %d", round, len(held), len(missing), len(need))
		}
		for d, data := range held {
			if !bytes.Equal(data, contents[d]) {
				t.Fatalf("round %d: object %s is wrong", round, d)
			}
		}
		switch {
		case round == 0 && len(missing) > 0:
			t.Fatalf("%d objects of the undamaged disk were not found", len(missing))
		case len(held) == 0:
			unreadable++
		}
		found, lost = found+len(held), lost+len(missing)
	}
	t.Logf("%d bits flipped: %d objects taken, each right; %d not found; %d disks unreadable", (rounds-1)*flips, found, lost, unreadable)
	if lost == 0 || found < lost {
		t.Errorf("the flips hit nothing, or nothing was left: %d taken, %d not found", found, lost)
	}
}

// takeFrom is what the installer takes from a disk, as bytes.
func takeFrom(t *testing.T, path string, need []image.Object) (held map[object.Digest][]byte, missing []image.Object) {
	t.Helper()
	d, err := block.OpenReadOnly(path)
	if err != nil {
		t.Fatal(err)
	}
	found, err := signature.Probe("vda", d, d.Size(), d.SectorSize())
	size := d.Size()
	d.Close()
	if err != nil {
		t.Fatal(err)
	}
	attached := readonly.Attach(t.Context(), tool.Exec{}, []storage.Disk{{Name: "vda", Path: path, Size: size, SectorSize: 512, Contents: found}},
		readonly.Options{Dir: t.TempDir()})
	defer func() {
		if err := attached.Close(); err != nil {
			t.Error(err)
		}
	}()
	var trees []stage.Tree
	for _, tree := range attached.Trees() {
		trees = append(trees, stage.Tree{Name: tree.Name, Source: stage.FromOldOS, FS: tree.FS})
	}
	pack, missing, err := stage.Partly(t.Context(), nil, packFile(t), nil, need, stage.Options{Trees: trees})
	if err != nil {
		t.Fatal(err)
	}
	held = map[object.Digest][]byte{}
	for _, o := range need {
		if !pack.Has(o.Digest) {
			continue
		}
		r, err := pack.Open(t.Context(), o.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if held[o.Digest], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	return held, missing
}
