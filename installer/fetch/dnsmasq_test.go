package fetch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// dnsmasq is what many sites boot from: its block size negotiation and its
// "file not found", in files that are not there and in directories that are
// not there. It runs in a network namespace of its own, on that one's loopback
// interface only.
func TestTFTPFromDnsmasq(t *testing.T) {
	const marker = "FIRSTLIGHT_TEST_NETNS"
	if os.Getenv(marker) == "" {
		if os.Getuid() != 0 {
			t.Fatal("network namespaces need root")
		}
		name := fmt.Sprintf("fl-fetch-%d", os.Getpid())
		ip(t, "netns", "add", name)
		t.Cleanup(func() { ip(t, "netns", "del", name) })
		ip(t, "-n", name, "link", "set", "lo", "up")
		cmd := exec.Command("ip", "netns", "exec", name, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), marker+"=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("in the namespace: %v", err)
		}
		return
	}
	root := t.TempDir()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	dnsmasq := exec.Command("dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null", "--user=root", "--log-facility=-",
		"--enable-tftp", "--tftp-root="+root, "--interface=lo", "--pid-file="+filepath.Join(t.TempDir(), "pid"))
	var log bytes.Buffer
	dnsmasq.Stdout, dnsmasq.Stderr = &log, &log
	if err := dnsmasq.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = dnsmasq.Process.Kill() // it may have ended already
		_ = dnsmasq.Wait()         // killed: its status says nothing
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	source := TFTP("127.0.0.1", testMAC, testSerial)
	source.patience.deadline, source.answer = 20*time.Second, 200*time.Millisecond
	if err := os.Mkdir(filepath.Join(root, "SN 42"), 0o755); err != nil {
		t.Fatal(err)
	}
	conformance(t, source, func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(root, "SN 42", name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := source.Get(t.Context(), ImageServer); !errors.Is(err, ErrAbsent) {
		t.Errorf("got %v", err)
	}
}

func ip(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
