package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// supervisor runs the installer and says on the consoles how it fares.
type supervisor struct {
	program      string
	args         []string
	environment  []string
	restarts     int           // how often a failed installer is started again
	restartDelay time.Duration // and how long after its end

	show      func(text string) // to every console
	offer     func()            // offers a shell on every console; may be called again
	shellOpen func() bool       // somebody is at work: do not restart under their hands
}

// run starts the installer until it has ended well or failed too often, and
// then returns. A good end means that the machine is about to be handed over.
func (s *supervisor) run(ctx context.Context) {
	for attempt := 0; ; attempt++ {
		err := s.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.show("uinit: the installer has ended\n")
			return
		}
		s.show(fmt.Sprintf("uinit: the installer has ended: %v\n", err))
		s.offer()
		if attempt == s.restarts {
			s.show("uinit: the installer is not started again; /bbin/installer starts it by hand\n")
			return
		}
		s.show(fmt.Sprintf("uinit: the installer is started again in %s, unless a shell is open\n", s.restartDelay))
		pause(ctx, s.restartDelay)
		for s.shellOpen() && ctx.Err() == nil {
			pause(ctx, time.Second)
		}
	}
}

// once runs the installer to its end.
func (s *supervisor) once(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, s.program, s.args...)
	cmd.Env = s.environment
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // Ctrl-C on the console is not for it
	read, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	// A process that the installer left behind may keep the output open.
	cmd.WaitDelay = 2 * time.Second

	var copying sync.WaitGroup
	copying.Go(func() { s.copy(read) })
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	closed := write.Close()
	copying.Wait()
	return errors.Join(err, closed)
}

// copy shows the installer's lines and offers a shell when one of them says
// that it has failed (it keeps its status page up for a while after that).
func (s *supervisor) copy(r io.Reader) {
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			s.show(strings.TrimSuffix(line, "\n") + "\n")
		}
		if hasFailed(line) {
			s.offer()
		}
		if err != nil {
			return // the pipe ends with the installer, and has no other error
		}
	}
}

// hasFailed says whether a line of the installer's output is the one with
// which it gives up: `FAILED <CODE>: …`, after time and phase.
func hasFailed(line string) bool {
	if strings.HasPrefix(line, "[") {
		_, line, _ = strings.Cut(line, ": ")
	}
	return strings.HasPrefix(line, "FAILED ")
}
