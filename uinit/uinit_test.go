package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHasFailed(t *testing.T) {
	for line, want := range map[string]bool{
		"FAILED NET-001: no lease; disks untouched\n":                      true,
		"[   2.421] config: FAILED CFG-103: fetching …; disks untouched\n": true,
		"[   2.421] config: the last attempt FAILED and is tried again\n":  false,
		"[   2.421] stage: 12 objects\n":                                   false,
		"a program says: FAILED nothing of ours\n":                         false,
		"":  false,
		"[": false,
	} {
		if got := hasFailed(line); got != want {
			t.Errorf("hasFailed(%q) = %v", line, got)
		}
	}
}

// The kernel's consoles come first, each once, and those that do not work are
// left out.
func TestConsoleNames(t *testing.T) {
	all := func(string) bool { return true }
	for _, test := range []struct {
		name, active string
		works        func(string) bool
		want         []string
	}{
		{"both", "tty0 ttyS0\n", all, []string{"tty0", "ttyS0"}},
		{"another serial line", "ttyS1\n", all, []string{"ttyS1", "tty0", "ttyS0"}},
		{"no serial hardware", "tty0\n", func(name string) bool { return name != "ttyS0" }, []string{"tty0"}},
		{"nothing works", "tty0\n", func(string) bool { return false }, nil},
	} {
		sys := fstest.MapFS{"class/tty/console/active": {Data: []byte(test.active)}}
		if diff := cmp.Diff(test.want, consoleNames(sys, test.works)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	if diff := cmp.Diff([]string{"tty0", "ttyS0"}, consoleNames(fstest.MapFS{}, all)); diff != "" {
		t.Errorf("without /sys (-want +got):\n%s", diff)
	}
}

func TestShellIsThatOfTheKernelCommandLine(t *testing.T) {
	for line, want := range map[string]string{
		"console=ttyS0 quiet\n":                                                      "/bin/sh",
		"installer.shellCommand=\n":                                                  "/bin/sh",
		"quiet installer.shellCommand=/bin/bash console=ttyS0\n":                     "/bin/bash",
		`installer.shellCommand="/bin/bash" "installer.shellCommand=/bin/zsh" quiet`: "/bin/zsh",
	} {
		if got := shellProgram(fstest.MapFS{"cmdline": {Data: []byte(line)}}); got != want {
			t.Errorf("%q: got %s, want %s", line, got, want)
		}
	}
	if got := shellProgram(fstest.MapFS{}); got != "/bin/sh" {
		t.Errorf("without /proc: got %s", got)
	}
}

// A terminal that was hung up since the last line loses nothing.
func TestConsoleIsOpenedAnewAfterAFailure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "terminal")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := newConsole("../" + file)
	f := c.write(nil, "first\n")
	if f == nil {
		t.Fatal("it was not opened")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f = c.write(f, "second\n"); f == nil {
		t.Fatal("it was not opened anew")
	}
	defer f.Close()
	if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), "second\n") {
		t.Errorf("the terminal shows %q, %v", data, err)
	}
}

func TestIsTTY(t *testing.T) {
	if isTTY("null") || isTTY("no-such-device") {
		t.Error("took something for a terminal that is none")
	}
	if !isTTY("ptmx") {
		t.Error("did not take a pseudo-terminal for a terminal")
	}
}

// screen collects what is shown, and how often a shell was offered.
type screen struct {
	mu     sync.Mutex
	text   strings.Builder
	offers int
}

func (s *screen) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.WriteString(text)
}

func (s *screen) offer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offers++
}

func (s *screen) seen() (string, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String(), s.offers
}

// supervise runs script as the installer and returns what was seen, and how
// often it was started.
func supervise(t *testing.T, ctx context.Context, script string, open func() bool) (text string, offers, starts int) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "installer")
	count := filepath.Join(dir, "count")
	script = "#!/bin/sh\necho x >>" + count + "\n" + script
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s := &screen{}
	v := supervisor{
		program: program, args: []string{"-dryRun=true"}, environment: environment(), restarts: 2, restartDelay: 10 * time.Millisecond,
		show: s.show, offer: s.offer, shellOpen: open,
	}
	v.run(ctx)
	started, err := os.ReadFile(count)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	text, offers = s.seen()
	return text, offers, strings.Count(string(started), "x")
}

func closed() bool { return false }

func TestSuperviseGoodEnd(t *testing.T) {
	text, offers, starts := supervise(t, t.Context(), `echo "out $1"; echo err >&2; exit 0`, closed)
	for _, want := range []string{"out -dryRun=true\n", "err\n", "the installer has ended\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing from:\n%s", want, text)
		}
	}
	if offers != 0 || starts != 1 {
		t.Errorf("%d offers, %d starts", offers, starts)
	}
}

// A failing installer is started again as often as promised, and no more.
func TestSuperviseFailure(t *testing.T) {
	text, offers, starts := supervise(t, t.Context(), `printf "no newline at the end"; exit 3`, closed)
	if starts != 3 || offers != 3 {
		t.Errorf("%d starts, %d offers", starts, offers)
	}
	for _, want := range []string{"no newline at the end\n", "exit status 3", "started again in 10ms", "not started again"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing from:\n%s", want, text)
		}
	}
}

// The offer is made while the installer still runs, for it waits after it has
// failed.
func TestSuperviseOffersAtOnce(t *testing.T) {
	_, offers, _ := supervise(t, t.Context(), `echo "[   1.000] links: FAILED NET-001: no lease; disks untouched"; exit 0`, closed)
	if offers != 1 {
		t.Errorf("%d offers", offers)
	}
}

// Nobody's shell is disturbed by another start.
func TestSuperviseWaitsForShell(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, _, starts := supervise(t, ctx, `exit 1`, func() bool { return true })
	if starts != 1 {
		t.Errorf("%d starts with a shell open", starts)
	}
}

// A program that the installer left behind with its output does not hold up
// the supervision.
func TestSuperviseLeftBehind(t *testing.T) {
	began := time.Now()
	text, _, _ := supervise(t, t.Context(), `sleep 30 & echo done; exit 0`, closed)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("waited %s for a program that was left behind", took)
	}
	if !strings.Contains(text, "done\n") || !strings.Contains(text, "the installer has ended\n") {
		t.Errorf("seen:\n%s", text)
	}
}

func TestSuperviseMissing(t *testing.T) {
	s := &screen{}
	v := supervisor{program: "/no/such/installer", show: s.show, offer: s.offer, shellOpen: closed}
	v.run(t.Context())
	if text, offers := s.seen(); offers != 1 || !strings.Contains(text, "/no/such/installer") {
		t.Errorf("%d offers:\n%s", offers, text)
	}
}

// A terminal that takes nothing holds up nobody.
func TestConsoleNeverBlocks(t *testing.T) {
	c := newConsole("no-such-terminal")
	done := make(chan struct{})
	go func() {
		for range 3 * maxBehind {
			c.show("line\n")
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("show waits for the terminal")
	}
}

// What is mounted already is left alone, and what a machine does not have is
// no failure.
func TestMountOptional(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "efivars")
	if err := mountOne(mountSpec{kind: "efivarfs", place: missing, optional: true}); err != nil {
		t.Errorf("a place that the machine does not have: %v", err)
	}
	if err := mountOne(mountSpec{kind: "proc", place: "/proc"}); err != nil {
		t.Errorf("/proc again: %v", err)
	}
	if there, err := isMountPoint("/proc"); err != nil || !there {
		t.Errorf("isMountPoint(/proc) = %v, %v", there, err)
	}
	if there, err := isMountPoint(t.TempDir()); err != nil || there {
		t.Errorf("isMountPoint of a plain directory = %v, %v", there, err)
	}
}

func TestModuleParameters(t *testing.T) {
	if got := moduleParameters("bonding"); got != "max_bonds=0" {
		t.Errorf("bonding gets %q", got)
	}
	if got := moduleParameters("watchdog"); got != "stop_on_reboot=0" {
		t.Errorf("watchdog gets %q", got)
	}
	if got := moduleParameters("ext4"); got != "" {
		t.Errorf("ext4 gets %q", got)
	}
}

// The installer finds programs of the initramfs, and none of u-root's own
// paths.
func TestEnvironment(t *testing.T) {
	if !slices.Contains(environment(), "PATH="+searchPath) || strings.Contains(searchPath, "ubin") {
		t.Errorf("%v", environment())
	}
}

func TestLeaveMemory(t *testing.T) {
	setting := filepath.Join(t.TempDir(), "enabled")
	if err := leaveMemory(setting); err != nil {
		t.Errorf("a kernel without huge pages: %v", err)
	}
	if err := os.WriteFile(setting, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := leaveMemory(setting); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(setting); err != nil || string(got) != "never" {
		t.Errorf("%q, %v", got, err)
	}
}
