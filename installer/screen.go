package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/panel"
	"github.com/firstlight/firstlight/installer/progress"
)

// screenDevice is the virtual terminal that is shown (console(4)).
const screenDevice = "/dev/tty0"

const (
	kdGetMode  = 0x4b3b // KDGETMODE of ioctl_console(2)
	kdModeText = 0      // KD_TEXT
)

// openScreen is the machine's own screen; nil where it has none: a serial line
// keeps its plain lines, which scripts read.
func openScreen() (*os.File, error) {
	f, err := os.OpenFile(screenDevice, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if mode, err := unix.IoctlGetInt(int(f.Fd()), kdGetMode); err != nil || mode != kdModeText {
		return nil, fmt.Errorf("%s is no text screen: %w", screenDevice, f.Close())
	}
	return f, nil
}

// showPanel keeps a panel above the log on the machine's screen until ctx ends.
func (i *installation) showPanel(ctx context.Context) {
	if i.opt.dryRun || !i.env.inMemory {
		return
	}
	f, err := openScreen()
	if err != nil {
		return // most servers have none, and nobody looks at it
	}
	defer f.Close()
	s := screen{out: f, size: func() (columns, rows int) {
		size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
		if err != nil {
			return 0, 0
		}
		return int(size.Col), int(size.Row)
	}}
	defer s.leave()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s.show(i.model.Snapshot())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// screen is a terminal whose upper lines are the panel's: below them the others'
// lines scroll (the scrolling region, console_codes(4)).
type screen struct {
	out   io.Writer
	size  func() (columns, rows int)
	shown []string
	rows  int // of the screen, when shown was drawn
}

// show draws the panel where it is not there already. Nothing can be done about a
// screen that takes nothing.
func (s *screen) show(now progress.Snapshot) {
	columns, rows := s.size()
	lines := panel.Draw(now, columns, rows)
	if lines == nil || rows == s.rows && slices.Equal(lines, s.shown) {
		return
	}
	var b strings.Builder
	if len(lines) != len(s.shown) || rows != s.rows {
		// The lines that are there move out of the way, and the cursor to the end.
		b.WriteString(fmt.Sprintf("\x1b[r\x1b[%d;1H%s\x1b[%d;%dr\x1b[%d;1H", rows, strings.Repeat("\n", max(0, len(lines)-len(s.shown))), len(lines)+1, rows, rows))
		s.shown = nil
	}
	b.WriteString("\x1b7")
	for n, line := range lines {
		if n >= len(s.shown) || line != s.shown[n] {
			b.WriteString(fmt.Sprintf("\x1b[%d;1H%s\x1b[K", n+1, line))
		}
	}
	b.WriteString("\x1b8")
	// In one piece: other programs write to the same terminal.
	_, _ = io.WriteString(s.out, b.String())
	s.shown, s.rows = lines, rows
}

// leave gives the whole screen back.
func (s *screen) leave() {
	if s.shown != nil {
		_, _ = io.WriteString(s.out, fmt.Sprintf("\x1b[r\x1b[%d;1H", s.rows))
	}
}
