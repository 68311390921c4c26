package main

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const inNamespace = "FIRSTLIGHT_TEST_NETNS"

// chronyd starts the time server of that name in the calling process's network
// namespace; it leaves the machine's clock alone. tell is chronyc.
func chronyd(t *testing.T) (tell func(command ...string) string) {
	t.Helper()
	program, err := exec.LookPath("chronyd")
	if err != nil {
		if program, err = filepath.Abs("../build/chrony/usr/sbin/chronyd"); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "control", "socket")
	if err := os.Mkdir(filepath.Dir(socket), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "conf")
	writeFile(t, conf, []byte("local stratum 1\nallow all\nmanual\ncmdport 0\nbindcmdaddress "+socket+"\npidfile "+filepath.Join(dir, "pid")+"\n"))
	cmd := exec.Command(program, "-x", "-d", "-u", "root", "-f", conf)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (hack/setup unpacks it)", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()         // killed: its status says nothing
		if t.Failed() {
			t.Logf("chronyd: %s", said.String())
		}
	})
	return func(command ...string) string {
		out, err := exec.Command(strings.Replace(program, "sbin/chronyd", "bin/chronyc", 1), append([]string{"-h", socket}, command...)...).CombinedOutput()
		if err != nil {
			t.Logf("chronyc %v: %v", command, err) // says what it thinks in words
		}
		return string(out)
	}
}

// A real time server sets the clock, whatever else the lease names; one that
// says a time before the boot image's does not.
func TestTimeServer(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		t.Parallel()
		cmd := exec.Command("unshare", "--net", os.Args[0], "-test.run=^TestTimeServer$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		if err != nil || !strings.Contains(string(out), "--- PASS: TestTimeServer") {
			t.Errorf("in a network namespace, which needs root: %v", err)
		}
		return
	}
	server, silent := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.78.0.9")
	for _, command := range []string{"link set lo up", "address add 10.77.0.1/24 dev lo"} {
		if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", command, err, out)
		}
	}
	tell := chronyd(t)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		offset, err := clockOffset(server)
		if err == nil {
			if offset.Abs() > time.Second {
				t.Fatalf("its clock is this machine's, and %s off", offset)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	const ahead = 100 * time.Hour
	if said := tell("settime", time.Now().Add(ahead).UTC().Format("Jan 2, 2006 15:04:05")); !strings.Contains(said, "200 OK") {
		t.Fatal(said)
	}
	i, log := testInstallation(t)
	i.env.inMemory = true
	i.env.now = time.Now
	var set time.Time
	i.env.setClock = func(to time.Time) error { set = to; return nil }
	i.askTime(t.Context(), []netip.Addr{silent, server})
	if off := time.Until(set) - ahead; off.Abs() > 5*time.Second || !i.timeKnown {
		t.Errorf("the clock was set %s from the server's, known: %t\n%s", off, i.timeKnown, log)
	}
	if !strings.Contains(log.String(), "the clock was 99h59m") && !strings.Contains(log.String(), "the clock was 100h0m") {
		t.Errorf("the log says\n%s", log)
	}
	// Nobody there: it is said, and the clock stays.
	set, i.timeKnown = time.Time{}, false
	i.askTime(t.Context(), []netip.Addr{silent})
	if !set.IsZero() || i.timeKnown || !strings.Contains(log.String(), "no time server answers") {
		t.Errorf("set to %s\n%s", set, log)
	}
}
