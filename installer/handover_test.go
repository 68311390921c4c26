package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/kexec"
	"github.com/firstlight/firstlight/installer/plan"
)

// The kernel is tried before the commit; what becomes of a refusal is the
// layout's to say.
func TestTryKexec(t *testing.T) {
	refusal := &kexec.Error{}
	missing := fmt.Errorf("reading the kernel: %w", object.ErrNotFound)
	for name, test := range map[string]struct {
		err      error
		required bool
		wantBy   string
		wantErr  error
		says     string
	}{
		"accepted":              {wantBy: plan.Kexec},
		"refused":               {err: refusal, wantBy: plan.Reboot, says: "the machine will reboot through its firmware"},
		"refused, and required": {err: refusal, required: true, wantBy: plan.Kexec, wantErr: refusal},
		"not staged":            {err: missing, wantBy: plan.Kexec, says: "not tried"},
		"unreadable":            {err: io.ErrUnexpectedEOF, wantBy: plan.Kexec, wantErr: io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			i, log := testInstallation(t)
			i.by, i.plan.KexecRequired = plan.Kexec, test.required
			i.plan.Boot = boot.Choice{Kernel: "/k", Initrd: "/i", CommandLine: "ro"}
			i.env.tryNext = func(_ context.Context, _, _ kexec.Content, commandLine string) error {
				if commandLine != "ro" {
					t.Errorf("command line %q", commandLine)
				}
				return test.err
			}
			err := i.tryKexec(t.Context())
			if !errors.Is(err, test.wantErr) || i.by != test.wantBy {
				t.Errorf("by %s, error %v", i.by, err)
			}
			if test.says != "" && !strings.Contains(log.String(), test.says) {
				t.Errorf("the log does not say %q:\n%s", test.says, log)
			}
		})
	}
}

// The watchdog is armed just before the jump, and stopped when that failed.
func TestWatchdogAcrossKexec(t *testing.T) {
	i, log := testInstallation(t)
	var done []string
	i.env.armWatchdog = func() (int, func() error, error) {
		done = append(done, "armed")
		return 60, func() error { done = append(done, "disarmed"); return nil }, nil
	}
	i.env.startNext = func() error { done = append(done, "kexec"); return errors.New("no kernel is loaded") }
	i.startByKexec()
	if got := strings.Join(done, " "); got != "kexec" {
		t.Errorf("without a watchdog in the plan: %s", got)
	}
	i.plan.Watchdog, done = "i6300esb", nil
	i.startByKexec()
	if got := strings.Join(done, " "); got != "armed kexec disarmed" {
		t.Errorf("%s", got)
	}
	if !strings.Contains(log.String(), "i6300esb") || !strings.Contains(log.String(), "60 s") {
		t.Errorf("the log does not speak of the watchdog:\n%s", log)
	}
	i.env.armWatchdog = func() (int, func() error, error) { return 0, nil, errors.New("there is none") }
	done = nil
	if i.startByKexec(); strings.Join(done, " ") != "kexec" {
		t.Errorf("a watchdog that fails stopped the hand-over: %v", done)
	}
}
