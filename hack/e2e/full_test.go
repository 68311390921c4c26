//go:build full

package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
)

// These belong to the long series, `make test-full`.

// TestInstallAgain: what an earlier installation left on the disk, LUKS
// headers included, stands in the way of nothing.
func TestInstallAgain(t *testing.T) {
	lines := keepLines(t)
	i := &lab.Installation{Site: site, Probe: probe, Dir: t.TempDir(), Step: t.Logf, Line: lines.add, Reboot: true}
	if _, err := i.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	i.OldDisk, i.Reboot = true, false
	if _, err := i.Run(t.Context()); err != nil {
		t.Fatalf("onto the disk of the first: %v", err)
	}
}

// TestInterruptedDemo: Ctrl-C in the middle leaves nothing running.
func TestInterruptedDemo(t *testing.T) {
	demo := filepath.Join(t.TempDir(), "demo")
	build := exec.Command("go", "build", "-o", demo, "./hack/demo")
	build.Dir = checkout
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	temp := t.TempDir()
	cmd := exec.Command(demo)
	cmd.Dir = checkout
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(10*time.Minute, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	reached := false
	for s := bufio.NewScanner(out); s.Scan(); {
		if !reached && strings.Contains(s.Text(), "] stage: ") {
			reached = true
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	_ = cmd.Wait() // the exit status is looked at below
	if !reached || cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("reached stage: %t, exit status %d, wanted 130:\n%s", reached, cmd.ProcessState.ExitCode(), &stderr)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := filepath.Abs(filepath.Join(checkout, "build", "demo"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		// A process that ended meanwhile is what is wanted.
		line, _ := os.ReadFile(file)
		if bytes.Contains(line, []byte(ours)) && (bytes.Contains(line, []byte("qemu")) || bytes.Contains(line, []byte("imageserver"))) {
			t.Errorf("still running: %s", bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
		}
	}
}
