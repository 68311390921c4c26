//go:build full

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestTrustLastWords: the end of the log is there at the next start, after a panic
// of the kernel (kept by the firmware, ACPI ERST) and after a power cut in the
// middle of an installation (kept on the disk).
func TestTrustLastWords(t *testing.T) {
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
	machine["Install"] = map[string]any{"RequireApproval": true}
	if config["config.json"], err = json.Marshal(machine); err != nil {
		t.Fatal(err)
	}
	config["storage-layout.json"] = []byte(`{"BootDriveLayout": [{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 1073741824}]}`)
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := site.WriteTFTP(tftp, config); err != nil {
		t.Fatal(err)
	}
	port, err := lab.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	disk, store := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "erst")
	if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(store, make([]byte, 256<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	accel, _ := probe.Accel(ctx)
	lines := keepLines(t)
	start := func() *qemu.Machine {
		return powerOn(t, qemu.Config{
			Accel: accel, Kernel: site.Kernel(), Initrd: site.Initramfs(), CommandLine: lab.CommandLine + " panic=-1",
			Net:   qemu.Net{TFTP: tftp, Forwards: map[int]int{port: 6978}},
			Disks: []qemu.Disk{{Path: disk}}, NoReboot: true, MemoryMiB: 2048,
			Args: []string{"-object", "memory-backend-file,id=erst,mem-path=" + store + ",size=256K,share=on", "-device", "acpi-erst,memdev=erst"},
		}, lines)
	}
	waiting := regexp.MustCompile(`commit: waiting for approval: .* (sha256:[0-9a-f]{64})|` + failedLine.String())
	operator := func(args ...string) {
		t.Helper()
		fingerprint, err := shownFingerprint(ctx, port)
		if err != nil {
			t.Fatal(err)
		}
		limited, stop := context.WithTimeout(ctx, 30*time.Second)
		defer stop()
		out, err := exec.CommandContext(limited, filepath.Join(checkout, "bin", "firstlight"), append([]string{"--site", site.Dir, "installer-shell", "--port", fmt.Sprint(port),
			"--fingerprint", fingerprint, "127.0.0.1"}, args...)...).CombinedOutput()
		t.Logf("installer-shell %q: %v\n%s", args, err, out)
	}
	earlier := func() string {
		t.Helper()
		answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/log/earlier", port))
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

	m := start()
	if found := await(t, m, 4*time.Minute, waiting); found[1] == "" {
		t.Fatalf("it ended with %q", found[0])
	}
	operator("--", "sh", "-c", "echo c >/proc/sysrq-trigger") // the kernel goes down
	stopping, stop := context.WithTimeout(ctx, 2*time.Minute)
	defer stop()
	if err := m.Wait(stopping); err != nil {
		t.Fatalf("the machine did not go down: %v", err)
	}

	m = start()
	found := await(t, m, 4*time.Minute, waiting)
	if found[1] == "" {
		t.Fatalf("it ended with %q", found[0])
	}
	text := earlier()
	for _, want := range []string{"kept by the firmware", "firstlight: [", "commit: waiting for approval", "sysrq triggered crash"} {
		if !strings.Contains(text, want) {
			t.Errorf("after a panic %q is missing in\n%s", want, text)
		}
	}
	if !strings.Contains(m.Text(), "an earlier start was cut short (kept by the firmware") {
		t.Error("the console does not say so")
	}
	operator("approve", found[1])
	await(t, m, 4*time.Minute, regexp.MustCompile(`storage: vda2: mount`))
	time.Sleep(8 * time.Second) // the image is being written
	m.Kill()                    // the power goes
	if strings.Contains(m.Text(), "finish: ") {
		t.Fatal("the installation had ended by then")
	}

	m = start()
	if found := await(t, m, 4*time.Minute, waiting); found[1] == "" {
		t.Fatalf("it ended with %q", found[0])
	}
	text = earlier()
	for _, want := range []string{"on /dev/vda", "commit: point of no return", "storage: "} {
		if !strings.Contains(text, want) {
			t.Errorf("after a power cut %q is missing in\n%s", want, text)
		}
	}
	if strings.Contains(text, "sysrq triggered crash") {
		t.Error("what the firmware kept was not taken away")
	}
}
