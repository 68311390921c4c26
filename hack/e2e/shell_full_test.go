//go:build full

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"github.com/firstlight/firstlight/installer/progress"
)

// TestInstallerShell: an operator holds a machine before its disk is touched,
// looks around, lets it go on, and restarts it.
func TestInstallerShell(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	server := serve(t, site, copyStore(t))
	config, err := site.NewConfig(lab.InGuest(server.Port))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tftp := filepath.Join(dir, "tftp")
	if err := site.WriteTFTP(tftp, config); err != nil {
		t.Fatal(err)
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
	c := qemu.Config{
		Accel: accel, Kernel: site.Kernel(), Initrd: site.Initramfs(), CommandLine: lab.CommandLine + " installer.skipNetwork",
		Net:   qemu.Net{TFTP: tftp, Forwards: map[int]int{port: 6978}},
		Disks: []qemu.Disk{{Path: disk}},
		Lines: lines.add, Log: filepath.Join(dir, "console.log"), NoReboot: true, MemoryMiB: 2048,
	}
	if c.Dir, err = os.MkdirTemp("", "e2e-"); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(c.Dir)
	m, err := qemu.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()

	operator := func(args ...string) (stdout, stderr string, code int) {
		t.Helper()
		return installerShell(ctx, t, port, args...)
	}
	fingerprint, err := shownFingerprint(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	pinned := []string{"--fingerprint", fingerprint, "127.0.0.1"}
	if _, _, code := operator(append(pinned, "hold", "commit")...); code != 0 {
		t.Fatalf("hold: exit %d", code)
	}
	if _, err := m.WaitFor(ctx, regexp.MustCompile(`commit: held by admin`)); err != nil {
		t.Fatal(err)
	}
	_, stderr, code := operator("127.0.0.1", "plan")
	if code != 8 || !strings.Contains(stderr, "firstlight installer-shell --fingerprint "+fingerprint+" 127.0.0.1") {
		t.Errorf("an unknown certificate: exit %d", code)
	}
	if out, _, code := operator(append(pinned, "--", "sh", "-c", "cat /proc/1/comm; ls /run/installer/log; exit 3")...); code != 3 || out != "init\nlog\n" {
		t.Errorf("a command: exit %d, %q", code, out)
	}
	// A terminal, by someone else's program.
	typed := exec.CommandContext(ctx, "script", "-qefc", strings.Join(append([]string{filepath.Join(checkout, "bin", "firstlight"), "--site", site.Dir,
		"installer-shell", "--port", fmt.Sprint(port), "--record", filepath.Join(dir, "cast")}, pinned...), " "), "/dev/null")
	typed.Env = append(os.Environ(), "TERM=xterm")
	typed.Stdin = strings.NewReader("echo in-$((6*7))-; tty\nexit 5\n")
	out, err := typed.CombinedOutput()
	if exit := new(exec.ExitError); !errors.As(err, &exit) || exit.ExitCode() != 5 || !bytes.Contains(out, []byte("in-42-")) || !bytes.Contains(out, []byte("/dev/pts/")) {
		t.Errorf("a terminal: %v\n%s", err, out)
	}
	if cast, err := os.ReadFile(filepath.Join(dir, "cast")); err != nil || !bytes.HasPrefix(cast, []byte(`{"version":2,`)) || !bytes.Contains(cast, []byte("in-42-")) {
		t.Errorf("the recording: %v\n%s", err, cast)
	}
	writes, err := m.Writes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range writes {
		if !w.None() {
			t.Errorf("the disk was written to while held: %+v", w)
		}
	}
	if n := lines.index("point of no return"); n >= 0 {
		t.Error("the point of no return was passed while held")
	}
	if _, _, code := operator(append(pinned, "resume")...); code != 0 {
		t.Fatalf("resume: exit %d", code)
	}
	if _, err := m.WaitFor(ctx, regexp.MustCompile(`commit: point of no return`)); err != nil {
		t.Fatal(err)
	}
	if _, _, code := operator(append(pinned, "hold", "commit")...); code != 6 {
		t.Errorf("holding what has begun: exit %d, want 6", code)
	}
	if _, _, code := operator(append(pinned, "reboot")...); code != 0 {
		t.Errorf("reboot: exit %d", code)
	}
	ended, stop := context.WithTimeout(ctx, 90*time.Second)
	defer stop()
	if err := m.Wait(ended); err != nil { // where it would restart
		t.Errorf("the machine did not restart: %v", err)
	}
}

// installerShell is the operator's command, which waits until the installer is up.
func installerShell(ctx context.Context, t *testing.T, port int, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	base := []string{"--site", site.Dir, "installer-shell", "--port", fmt.Sprint(port)}
	cmd := exec.CommandContext(ctx, filepath.Join(checkout, "bin", "firstlight"), append(base, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Error(err)
		return "", "", -1
	}
	t.Logf("installer-shell %q: exit %d; %s%s", args, cmd.ProcessState.ExitCode(), &out, &errs)
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// shownFingerprint is the one that the page shows, once there is a page.
func shownFingerprint(ctx context.Context, port int) (string, error) {
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/api/v1/status", port), nil)
		if err != nil {
			return "", err
		}
		answer, err := http.DefaultClient.Do(request)
		if err == nil {
			var s progress.Snapshot
			err = json.NewDecoder(answer.Body).Decode(&s)
			if err = errors.Join(err, answer.Body.Close()); err == nil && s.Facts.Fingerprint != "" {
				return s.Facts.Fingerprint, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
