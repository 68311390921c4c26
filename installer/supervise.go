package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

// errRestart ends an installation because SIGHUP asked for a fresh one.
var errRestart = errors.New("a fresh start was asked for")

// superviseInstallation runs one installation with everything that stands
// around it: the log, the status page, the signals, and what follows a
// failure. It returns when the installation is over and nothing hands over:
// after a dry run, or with the error of a failed one where the machine is not
// ours to reboot.
func superviseInstallation(ctx context.Context, opt options, stdout io.Writer) error {
	runDir, remove, err := makeRunDirectory(opt.dryRun)
	if err != nil {
		return err
	}
	defer remove()
	journal, err := openJournal(runDir)
	if err != nil {
		return err
	}
	defer journal.close()
	model := progress.New(time.Now, progress.LineWriter(stdout), progress.LineWriter(journal.log), progress.EventWriter(journal.events))
	model.Describe(func(f *progress.Facts) { f.Version, f.DryRun = version(), opt.dryRun })

	model.Logf(progress.Clock, "Firstlight installer %s", version())

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	i := newInstallation(opt, model, runDir)
	i.journal = journal
	i.rememberLog()
	i.readEarlier()
	if err := i.forwardLog(); err != nil {
		return err
	}
	defer func() { i.forwarded() }()
	defer watchSignals(i.steering, cancel)()
	if i.closePage, err = i.openPage(ctx, cancel); err != nil {
		model.Warn(progress.Clock, fmt.Sprintf("no status page: %v", err))
	}
	defer i.closePage()

	err = i.run(ctx)
	if err != nil && !opt.dryRun && ctx.Err() == nil {
		err = i.rebootAfterFailure(ctx, err)
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errRestart):
		model.Log(progress.Finish, "starting afresh")
		i.closePage()
		i.leave(ctx) // what a shell still held when the installation failed
		return restart()
	case errors.Is(cause, errReboot):
		model.Log(progress.Finish, "rebooting")
		i.closePage()
		return errors.Join(err, i.env.reboot())
	}
	return err
}

// rebootAfterFailure leaves page and console up for a while, then restarts
// the machine: whatever was wrong may be over by then. A machine that runs from
// a disk is somebody else's, and is never restarted.
func (i *installation) rebootAfterFailure(ctx context.Context, failure error) error {
	if !i.env.inMemory {
		return failure
	}
	wait := i.waitAfterFailure()
	at := time.Now().Add(wait)
	i.model.Next("reboot", at)
	i.model.Logf(progress.Finish, "rebooting in %s; the page stays up until then", wait)
	select {
	case <-ctx.Done():
		return failure
	case <-time.After(wait):
	}
	limit := at.Add(shellsAfterFailure - wait)
	if err := i.waitForShells(ctx, limit, func(text string) {
		if text == "" {
			i.model.Next("reboot", time.Now())
			return
		}
		i.model.Next("reboot, after "+text, limit)
		i.model.Log(progress.Finish, "the reboot waits for "+text)
	}); err != nil {
		return failure
	}
	if err := i.steering.handOver.pass(ctx, func() {
		i.model.Next("reboot, once it is no longer held (installer-shell HOST resume, or SIGCONT)", time.Time{})
		i.model.Log(progress.Finish, "the reboot is held (SIGCONT lets it go)")
	}); err != nil {
		return failure
	}
	i.closePage()
	i.model.Log(progress.Finish, "rebooting")
	return errors.Join(failure, i.env.reboot())
}

// watchSignals lets SIGTSTP and SIGCONT hold and release the hand-over, and
// SIGHUP cancel with errRestart, until the function that it returns is called.
func watchSignals(steering *steering, cancel context.CancelCauseFunc) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTSTP, syscall.SIGCONT, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				switch s {
				case syscall.SIGTSTP:
					// The hand-over can be held at any time.
					_ = steering.hold(beforeHandOver, "SIGTSTP")
				case syscall.SIGCONT:
					steering.releaseHandOver()
				case syscall.SIGHUP:
					cancel(errRestart)
				}
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// restart replaces this process by a new one of the same program with the
// same arguments; it returns only if that cannot be done (execve(2)).
func restart() error {
	if err := syscall.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		return fmt.Errorf("starting the installer afresh: %w", err)
	}
	return nil
}

// journal is the log and the events of this installation, in files that are
// copied into the new system at the end.
type journal struct {
	log, events *os.File
}

// openJournal makes a fresh journal in directory; one of an earlier start is
// overwritten.
func openJournal(directory string) (*journal, error) {
	log, err := os.Create(filepath.Join(directory, "log"))
	if err != nil {
		return nil, err
	}
	events, err := os.Create(filepath.Join(directory, "events.jsonl"))
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &journal{log: log, events: events}, nil
}

// read returns what was written so far.
func (j *journal) read() (log, events []byte, err error) {
	if log, err = os.ReadFile(j.log.Name()); err != nil {
		return nil, nil, err
	}
	events, err = os.ReadFile(j.events.Name())
	return log, events, err
}

func (j *journal) close() {
	// What was written has reached its readers; the files lie in memory.
	_ = j.log.Close()
	_ = j.events.Close()
}

// runDirectory holds what an installation keeps while it runs; /run is in
// memory.
const runDirectory = "/run/installer"

// makeRunDirectory makes the run directory. A dry run gets one of its own,
// which remove removes: it changes nothing, the log of an installation that
// runs meanwhile included.
func makeRunDirectory(dryRun bool) (directory string, remove func(), err error) {
	if !dryRun {
		return runDirectory, func() {}, os.MkdirAll(runDirectory, 0o700)
	}
	directory, err = os.MkdirTemp("", "installer-")
	return directory, func() {
		// What stays behind is small, and below /tmp.
		_ = os.RemoveAll(directory)
	}, err
}

// version is that of the source that this program was built from. In the
// initramfs, where many programs are built as one, os-release(5) has it.
func version() string {
	if data, err := os.ReadFile("/etc/os-release"); err == nil && strings.Contains(string(data), "ID=firstlight\n") {
		for line := range strings.Lines(string(data)) {
			if id, found := strings.CutPrefix(strings.TrimSpace(line), "VERSION_ID="); found {
				return id
			}
		}
	}
	if build, ok := debug.ReadBuildInfo(); ok && build.Main.Version != "" {
		return build.Main.Version
	}
	return "unknown"
}
