//go:build full

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/installer/receipt"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/audit"
)

// TestTrustApproval: a machine whose plan needs approval does everything but
// write, waits, refuses every other plan's hash, and is installed with the site's
// own steps once its own is approved. What lies on its disk then is the image and
// what the plan says, and nothing of the installation besides.
func TestTrustApproval(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	server := serve(t, site, copyStore(t))
	config, err := site.NewConfig(lab.InGuest(server.Port))
	if err != nil {
		t.Fatal(err)
	}
	var machine map[string]any
	if err := json.Unmarshal(config["config.json"], &machine); err != nil {
		t.Fatal(err)
	}
	machine["Install"] = map[string]any{"RequireApproval": true, "Steps": []map[string]any{
		{"Programme": "look.sh", "Before": "commit"},
		{"Programme": "nocloud.sh", "After": "identity", "In": "system"},
	}}
	if config["config.json"], err = json.Marshal(machine); err != nil {
		t.Fatal(err)
	}
	config["storage-layout.json"] = []byte(`{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 1073741824}]}`)
	const secretSeed = "a seed that nobody else knows, of some length"
	config["random-seed"] = []byte(secretSeed)
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := site.WriteTFTP(tftp, config); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(tftp, "steps"), 0o755); err != nil {
		t.Fatal(err)
	}
	const looker = "#!/bin/sh\ncat >/run/seen\necho step-before-commit-$((6*7))\n"
	for name, text := range map[string][]byte{"look.sh": []byte(looker), "nocloud.sh": readFile(t, filepath.Join(checkout, "docs/examples/steps/nocloud.sh"))} {
		if err := os.WriteFile(filepath.Join(tftp, "steps", name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	port, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(dir, "disk.raw")
	if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(ctx)
	lines := keepLines(t)
	m := powerOn(t, qemu.Config{
		Accel: accel, Kernel: site.Kernel(), Initrd: site.Initramfs(), CommandLine: lab.CommandLine,
		Net:   qemu.Net{TFTP: tftp, Forwards: map[int]int{port: 6978}},
		Disks: []qemu.Disk{{Path: disk, Serial: "approve-0"}}, NoReboot: true, MemoryMiB: 2048,
	}, lines)
	found := await(t, m, 4*time.Minute, regexp.MustCompile(`commit: waiting for approval: .* (sha256:[0-9a-f]{64})|`+failedLine.String()))
	hash := found[1]
	if hash == "" {
		t.Fatalf("it ended with %q", found[0])
	}
	if lines.index("commit: look.sh: step-before-commit-42") < 0 {
		t.Error("the step before commit was not seen")
	}
	fingerprint, err := shownFingerprint(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	operator := func(want int, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(checkout, "bin", "firstlight"), append([]string{"--site", site.Dir, "installer-shell", "--port", fmt.Sprint(port), "--fingerprint", fingerprint, "127.0.0.1"}, args...)...)
		out, err := cmd.CombinedOutput()
		if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("installer-shell %q: exit %d, want %d\n%s", args, code, want, out)
		}
		return string(out)
	}
	if page := readPage(t, port); !strings.Contains(page, "waiting for approval") || !strings.Contains(page, "approve "+hash) || !strings.Contains(page, "WILL BE ERASED") {
		t.Errorf("the page does not ask for approval:\n%.3000s", page)
	}
	operator(6, "approve", "sha256:"+strings.Repeat("0", 64))
	if text := operator(0, "plan"); !strings.Contains(text, hash) && !strings.Contains(text, "nocloud.sh") {
		t.Errorf("the plan is\n%s", text)
	}
	writes, err := m.Writes(ctx)
	if err != nil || !writes[0].None() {
		t.Errorf("before approval the disk was written to: %+v, %v", writes, err)
	}
	operator(0, "approve", hash)
	if ended := await(t, m, 8*time.Minute, regexp.MustCompile(`finish: handing over to \S+ by reboot|`+failedLine.String())); strings.Contains(ended[0], "FAILED") {
		t.Fatalf("it ended with %q", ended[0])
	}
	stopping, stop := context.WithTimeout(ctx, 90*time.Second)
	defer stop()
	if err := m.Wait(stopping); err != nil {
		t.Errorf("the machine did not restart: %v", err)
	}
	root := mountRoot(t, disk)

	// The receipt, and what the disk has besides it.
	document := readFile(t, filepath.Join(root, receipt.File))
	r, by, err := receipt.Open(document)
	if err != nil {
		t.Fatal(err)
	}
	if receipt.Fingerprint(by) != fingerprint || r.Plan != hash || r.Approved != "admin" || len(r.Disks) != 1 || r.Disks[0].Serial != "approve-0" || r.Image.Name != site.Image || len(r.Steps) != 2 {
		t.Errorf("the receipt says %+v", r)
	}
	verify := func(want int, args ...string) []audit.Difference {
		t.Helper()
		cmd := exec.CommandContext(ctx, filepath.Join(checkout, "bin", "firstlight"), append([]string{"--site", site.Dir, "--imageserver", server.Address(), "--output", "json",
			"machine", "verify", lab.Hostname, "--root", root, "--fingerprint", fingerprint}, args...)...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, _ := cmd.Output()
		if code := cmd.ProcessState.ExitCode(); code != want {
			t.Errorf("machine verify %q: exit %d, want %d\n%s%s", args, code, want, out, &errs)
		}
		var result struct {
			Differences []audit.Difference `json:"differences"`
		}
		if err := json.Unmarshal(out, &result); err != nil {
			t.Errorf("machine verify: %v\n%s%s", err, out, &errs)
		}
		return result.Differences
	}
	// Every file that is neither from the image nor from the plan, by name.
	var left []string
	for _, d := range verify(10, "--everything") {
		left = append(left, d.Path+" "+string(d.Kind))
	}
	known := regexp.MustCompile(`^(/lost\+found|/boot/grub|/boot/grub/.*|/var/log/installer|/var/lib/cloud|/var/lib/cloud/.*) (extra|changed)$`)
	if strange := slices.DeleteFunc(slices.Clone(left), known.MatchString); len(strange) > 0 {
		t.Errorf("the new system has what is neither from the image nor from the plan: %q", strange)
	}
	t.Logf("besides image and plan there are %q", left)
	for _, file := range []string{"run/seen", "run/firstlight-step", "run/installer", "etc/ssl/installer", "etc/installer"} {
		if _, err := os.Lstat(filepath.Join(root, file)); err == nil {
			t.Errorf("/%s was left behind", file)
		}
	}
	noSecrets(t, root, secretSeed)
	// Something that changes afterwards is noticed; nothing else was.
	if differs := verify(0); len(differs) > 0 {
		t.Errorf("as installed: %+v", differs)
	}
}

// readPage is the status page of a machine.
func readPage(t *testing.T, port int) string {
	t.Helper()
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// noSecrets looks for what must not be in /var/log/installer.
func noSecrets(t *testing.T, root string, secrets ...string) {
	t.Helper()
	for _, key := range []string{"ca-key.pem", "admin-key.pem", "imageserver-key.pem"} {
		text := string(readFile(t, site.Secret(key)))
		secrets = append(secrets, strings.Split(text, "\n")[1])
	}
	directory := filepath.Join(root, "var/log/installer")
	err := filepath.WalkDir(directory, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data := readFile(t, name)
		for _, secret := range secrets {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s holds a secret", strings.TrimPrefix(name, root))
			}
		}
		if bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds a private key", strings.TrimPrefix(name, root))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// mountRoot mounts the root file-system of a disk, without a write to it.
func mountRoot(t *testing.T, disk string) string {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := exec.Command("sfdisk", "--json", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		PartitionTable struct {
			Partitions []struct{ Start, Size uint64 }
		}
	}
	if err := json.Unmarshal(out, &table); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range table.PartitionTable.Partitions {
		options := fmt.Sprintf("ro,noload,loop,offset=%d,sizelimit=%d", p.Start*512, p.Size*512)
		if exec.Command("mount", "-t", "ext4", "-o", options, disk, root).Run() != nil {
			continue // another file-system
		}
		t.Cleanup(func() { command(t, "umount", root) })
		if _, err := os.Stat(filepath.Join(root, "etc/fstab")); err == nil {
			return root
		}
		t.Fatal("the first ext4 is no root")
	}
	t.Fatalf("%s has no ext4: %s", storage.Bytes(lab.DiskBytes), out)
	return ""
}
