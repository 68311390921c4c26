package main

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

// failing is an installation in memory that counts its reboots.
func failing(t *testing.T, inMemory bool) (i *installation, log *strings.Builder, reboots *int) {
	t.Helper()
	i, log = testInstallation(t)
	reboots = new(int)
	i.env.inMemory = inMemory
	i.env.reboot = func() error { *reboots++; return nil }
	return i, log, reboots
}

func TestFailureWaitsAndThenReboots(t *testing.T) {
	minute := uint64(60)
	for name, test := range map[string]struct {
		seconds *uint64
		want    time.Duration
	}{
		"default":                 {nil, 5 * time.Minute},
		"WaitAfterFailureSeconds": {&minute, time.Minute},
		"at once":                 {new(uint64), 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i, _, reboots := failing(t, true)
				i.config.Install.WaitAfterFailureSeconds = test.seconds
				start, failure := time.Now(), errors.New("no disk")
				if err := i.rebootAfterFailure(t.Context(), failure); !errors.Is(err, failure) {
					t.Errorf("got %v, want the failure", err)
				}
				if took := time.Since(start); took != test.want || *reboots != 1 {
					t.Errorf("%d reboots after %s, want one after %s", *reboots, took, test.want)
				}
				if next := i.model.Snapshot().Next; next == nil || next.Text != "reboot" {
					t.Errorf("the page says that %+v is next", next)
				}
			})
		})
	}
}

func TestFailureNeverRebootsASystemOnADisk(t *testing.T) {
	i, log, reboots := failing(t, false)
	failure := errors.New("no disk")
	if err := i.rebootAfterFailure(t.Context(), failure); !errors.Is(err, failure) || *reboots != 0 {
		t.Errorf("got %v and %d reboots:\n%s", err, *reboots, log)
	}
}

func TestHeldFailureDoesNotReboot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, log, reboots := failing(t, true)
		if err := i.steering.hold(beforeHandOver, "anna"); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- i.rebootAfterFailure(t.Context(), errors.New("no disk")) }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if *reboots != 0 || !strings.Contains(log.String(), "SIGCONT") {
			t.Errorf("%d reboots while held; log:\n%s", *reboots, log)
		}
		i.steering.releaseHandOver()
		<-done
		if *reboots != 1 {
			t.Errorf("%d reboots after the release, want 1", *reboots)
		}
	})
}

func TestFreshStartEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, _, reboots := failing(t, true)
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(errRestart) })
		start := time.Now()
		if err := i.rebootAfterFailure(ctx, errors.New("no disk")); err == nil || time.Since(start) != time.Second || *reboots != 0 {
			t.Errorf("got %v and %d reboots after %s", err, *reboots, time.Since(start))
		}
	})
}

func TestSignals(t *testing.T) {
	steering := newSteering(progress.New(time.Now))
	g := steering.handOver
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := watchSignals(steering, cancel)
	defer stop()
	held := func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.held()
	}
	until := func(what string, reached func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !reached(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 10 s: %s", what)
			}
		}
	}
	for _, step := range []struct {
		signal  syscall.Signal
		what    string
		reached func() bool
	}{
		{syscall.SIGTSTP, "SIGTSTP holds", held},
		{syscall.SIGCONT, "SIGCONT lets go", func() bool { return !held() }},
		{syscall.SIGHUP, "SIGHUP starts afresh", func() bool { return errors.Is(context.Cause(ctx), errRestart) }},
	} {
		if err := syscall.Kill(syscall.Getpid(), step.signal); err != nil {
			t.Fatal(err)
		}
		until(step.what, step.reached)
	}
}

func TestDryRunHasFilesOfItsOwn(t *testing.T) {
	directory, remove, err := makeRunDirectory(true)
	if err != nil || strings.HasPrefix(directory, runDirectory) {
		t.Fatalf("got %s, %v", directory, err)
	}
	if _, err := openJournal(directory); err != nil {
		t.Fatal(err)
	}
	remove()
	if _, err := openJournal(directory); err == nil {
		t.Error("the directory is still there")
	}
}

func TestDebugLinesAreShownWhereTheyAreAskedFor(t *testing.T) {
	for _, test := range []struct {
		flag string
		want bool
	}{{"-logDebugLevel=-1", false}, {"-logDebugLevel=0", true}, {"-logDebugLevel=3", true}} {
		i, log := testInstallation(t, test.flag)
		i.debugf(progress.Config, "imagename: %d bytes", 9)
		if got := strings.Contains(log.String(), "config: debug: imagename: 9 bytes"); got != test.want {
			t.Errorf("%s: shown %v, want %v", test.flag, got, test.want)
		}
	}
}
