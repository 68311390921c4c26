//go:build full

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// lowMiB is the memory of a machine that cannot hold the large image, and noise
// what that has more than the site's own, in files that cannot be compressed.
const (
	lowMiB     = 512
	noiseFiles = 25
	noiseBytes = 10 << 20 // each
)

// largeSite is a site whose image is larger than a machine's memory.
func largeSite(t *testing.T) *lab.Site {
	t.Helper()
	dir := t.TempDir()
	products := site.Products
	products.Root = filepath.Join(dir, "large.tar")
	command(t, "cp", site.Products.Root, products.Root)
	noise := filepath.Join(dir, "noise/srv/noise")
	if err := os.MkdirAll(noise, 0o755); err != nil {
		t.Fatal(err)
	}
	source := rand.NewChaCha8([32]byte{1})
	for n := range noiseFiles {
		f, err := os.Create(filepath.Join(noise, fmt.Sprint(n)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(f, source, noiseBytes); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "tar", "-rf", products.Root, "-C", filepath.Join(dir, "noise"), "./srv/noise")
	command(t, "rm", "-r", filepath.Join(dir, "noise"))
	large, err := lab.OpenSite(t.Context(), products, filepath.Join(dir, "site"), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return large
}

// TestImagesLowMemory: a machine whose memory is smaller than the image refuses
// it, disks untouched, and names the remedy. With the remedy it installs, boots
// by kexec and from its disk. Where the image server goes away for good after
// the disks were erased, it says so, and nothing on the disk can be started.
func TestImagesLowMemory(t *testing.T) {
	large := largeSite(t)
	t.Run("refused", func(t *testing.T) {
		server := serve(t, large, storeOf(t, large))
		m, lines := startInstaller(t, large, func(c lab.Config) { c["imageserver"] = []byte(lab.InGuest(server.Port) + "\n") },
			func(c *qemu.Config) { c.MemoryMiB = lowMiB })
		found := wait(t, m, `FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)
		if found[1] != "IMG-061" || !strings.HasSuffix(found[2], "; disks untouched") {
			t.Errorf("it failed with %s: %s", found[1], found[2])
		}
		if !strings.Contains(found[2], `"LowMemory": true`) {
			t.Errorf("the remedy is not named: %s", found[2])
		}
		if lines.index("point of no return") >= 0 {
			t.Error("the point of no return was passed")
		}
	})
	t.Run("installs", func(t *testing.T) {
		lines := keepLines(t)
		i := &lab.Installation{Site: large, Probe: probe, Dir: t.TempDir(), Step: t.Logf, Line: lines.add, MemoryMiB: lowMiB, Edit: lowMemory}
		result, err := i.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if lines.index("will be fetched after the disks have been erased") < 0 {
			t.Error("nothing was fetched after the disks had been erased")
		}
		for _, o := range result.Status.Objects {
			t.Logf("from %s: %d objects, %d MB", o.Source, o.Objects, o.Bytes>>20)
			if o.Source == "server" && o.Bytes < noiseFiles*noiseBytes {
				t.Errorf("only %d bytes are said to have come from the server", o.Bytes)
			}
		}
		t.Logf("%d MiB of memory, peak %d MB; the image has %d MB; installed in %s", lowMiB, result.PeakMemory>>20, (noiseFiles*noiseBytes+327<<20)>>20, result.Install)
	})
	t.Run("server gone", func(t *testing.T) {
		server := serve(t, large, storeOf(t, large))
		relay, err := lab.NewRelay(server.Port, 150<<20, server.Kill)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { relay.Close() })
		var disk string
		m, lines := startInstaller(t, large, func(c lab.Config) {
			lowMemory(c)
			c["imageserver"] = []byte(lab.InGuest(relay.Port) + "\n")
		}, func(c *qemu.Config) {
			c.MemoryMiB, c.CommandLine, disk = lowMiB, c.CommandLine+" installer.imageServerPatience=20s", c.Disks[0].Path
		})
		found := wait(t, m, `FAILED ([A-Z]{3}-[0-9]{3}): (.*)\n`)
		if found[1] != "IMG-082" || !strings.HasSuffix(found[2], "; disks changed") {
			t.Errorf("it failed with %s: %s", found[1], found[2])
		}
		if lines.index("point of no return") < 0 {
			t.Error("the point of no return was not passed")
		}
		if err := m.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		f, err := os.Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		boot := make([]byte, 440) // where a BIOS finds the boot loader's beginning
		if _, err := io.ReadFull(f, boot); err != nil || !bytes.Equal(boot, make([]byte, 440)) {
			t.Errorf("the disk has a boot loader, or cannot be read: %v", err)
		}
	})
}
