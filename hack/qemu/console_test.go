package qemu

import (
	"context"
	"errors"
	"io"
	"regexp"
	"slices"
	"testing"
	"time"
)

func TestConsoleWaitsAcrossReads(t *testing.T) {
	r, w := io.Pipe()
	var lines []string
	c := newConsole(io.Discard, func(l string) { lines = append(lines, l) })
	done := make(chan struct{})
	go func() { defer close(done); c.read(r) }()
	go func() {
		for _, s := range []string{"\x1b[2Jfir", "st\r\nde", "mo0 lo\x1b[0", "mgin: "} {
			io.WriteString(w, s)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m, err := c.WaitFor(ctx, regexp.MustCompile(`(\w+) login: $`))
	if err != nil || m[1] != "demo0" {
		t.Fatalf("WaitFor = %q, %v", m, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.WaitFor(short, regexp.MustCompile(`first`)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("text before the last match was matched again: %v", err)
	}
	c.Rewind()
	if _, err := c.WaitFor(ctx, regexp.MustCompile(`(?m)^first$`)); err != nil {
		t.Error(err)
	}
	w.Close()
	if _, err := c.WaitFor(ctx, regexp.MustCompile(`never`)); !errors.Is(err, ErrEnded) {
		t.Errorf("at the end: %v", err)
	}
	<-done
	if want := []string{"first"}; !slices.Equal(lines, want) {
		t.Errorf("lines %q, want %q", lines, want)
	}
}

func TestEscapesAreRemoved(t *testing.T) {
	var e escapes
	got := string(e.append(nil, []byte("\x1bc\x1b[?7l\x1b[2J[ \x1b[0;32m OK \x1b[0m] x\x1b]0;title\x07y\x1b(Bz\r\n")))
	if want := "[  OK ] xyz\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestMachine needs no kernel: SeaBIOS on an empty machine says on the screen
// only, so this looks at what the host sees of a machine.
func TestMachine(t *testing.T) {
	dir := t.TempDir()
	disk := dir + "/disk,0"
	if err := CreateDisk(disk, 16<<20); err != nil {
		t.Fatal(err)
	}
	m, err := Start(t.Context(), Config{Dir: dir, MemoryMiB: 64, Disks: []Disk{{Path: disk, Serial: "one"}}, Net: Net{Silent: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	writes, err := m.Writes(t.Context())
	if err != nil || len(writes) != 1 || !writes[0].None() {
		t.Errorf("writes %+v, %v", writes, err)
	}
	if err := errors.Join(m.Pause(t.Context()), m.Continue(t.Context()), m.Reset(t.Context())); err != nil {
		t.Error(err)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	select {
	case <-m.Done():
	default:
		t.Error("the machine is still there after Stop")
	}
	if _, err := m.WaitFor(t.Context(), regexp.MustCompile(`x`)); !errors.Is(err, ErrEnded) {
		t.Errorf("the console did not end: %v", err)
	}
}

func TestStartSaysWhatQEMUSaid(t *testing.T) {
	_, err := Start(t.Context(), Config{Dir: t.TempDir(), Args: []string{"-no-such-option"}})
	if err == nil || !regexp.MustCompile(`invalid option`).MatchString(err.Error()) {
		t.Errorf("error %v", err)
	}
}
