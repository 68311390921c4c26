package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/trust"
)

// TestTrust: a machine whose boot medium has a trust key makes its plan from what
// that key has signed, and refuses everything else that the network has for it,
// by name and with its disk untouched.
func TestTrust(t *testing.T) {
	server := serve(t, site, copyStore(t))
	files, err := site.NewConfig(lab.InGuest(server.Port))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	machine, medium := filepath.Join(dir, "machine"), filepath.Join(dir, "initramfs")
	if err := os.Mkdir(machine, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(machine, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := site.MakeMedium(t.Context(), medium, "--trust", site.Secret("signers/signer.pub")); err != nil {
		t.Fatal(err)
	}
	if err := site.Sign(t.Context(), server, machine); err != nil {
		t.Fatal(err)
	}
	signed := lab.Config{}
	for _, name := range []string{trust.BundleFile, trust.SignatureFile} {
		signed[name] = readFile(t, filepath.Join(machine, name))
	}
	for _, c := range []struct {
		name   string
		offers lab.Config
		says   string
	}{
		{"signed", signed, `(?s)config: the bundle of machine, sequence 1, is signed by .*plan: dry run: stopping here`},
		{"unsigned", files, `FAILED TRU-030: .*disks untouched`},
		{"changed", lab.Config{
			trust.BundleFile:    bytes.Replace(signed[trust.BundleFile], []byte("sha256:"), []byte("sha256:0"), 1),
			trust.SignatureFile: signed[trust.SignatureFile],
		}, `FAILED TRU-031: .*disks untouched`},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk, tftp := filepath.Join(t.TempDir(), "disk"), t.TempDir()
			if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
				t.Fatal(err)
			}
			for name, data := range c.offers {
				if err := os.WriteFile(filepath.Join(tftp, name), data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			accel, _ := probe.Accel(t.Context())
			lines := keepLines(t)
			m := powerOn(t, qemu.Config{
				Accel: accel, Kernel: site.Kernel(), Initrd: medium, CommandLine: lab.CommandLine + " installer.dryRun",
				Disks: []qemu.Disk{{Path: disk}}, Net: qemu.Net{TFTP: tftp},
			}, lines)
			found := await(t, m, 3*time.Minute, regexp.MustCompile(`plan: dry run: stopping here|`+failedLine.String()))
			if !regexp.MustCompile(c.says).MatchString(m.Text()) {
				t.Errorf("it ended with %q; the console lacks %s", strings.TrimSpace(found[0]), c.says)
			}
			writes, err := m.Writes(t.Context())
			if err != nil || !writes[0].None() {
				t.Errorf("the disk was written to: %+v, %v", writes, err)
			}
		})
	}
}
