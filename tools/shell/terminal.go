package shell

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// IsTerminal says whether a file is a terminal.
func IsTerminal(file *os.File) bool {
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// Raw lets a terminal hand over every key as it is (termios(3), cfmakeraw),
// until restore is called, which may be done twice.
func Raw(file *os.File) (restore func(), err error) {
	fd := int(file.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("reading the terminal's settings: %w", err)
	}
	raw := *before
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("setting the terminal: %w", err)
	}
	return func() {
		// A terminal that is gone needs no settings.
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, before)
	}, nil
}

// SizeOf is the size of a terminal; 24 by 80 where it does not know.
func SizeOf(file *os.File) Size {
	size, err := unix.IoctlGetWinsize(int(file.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Row == 0 || size.Col == 0 {
		return Size{Rows: 24, Cols: 80}
	}
	return Size{Rows: uint32(size.Row), Cols: uint32(size.Col)}
}

// Sizes brings the terminal's size whenever it changes (SIGWINCH), until ctx
// ends.
func Sizes(ctx context.Context, file *os.File) <-chan Size {
	changes, sizes := make(chan os.Signal, 1), make(chan Size)
	signal.Notify(changes, syscall.SIGWINCH)
	go func() {
		defer signal.Stop(changes)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changes:
			}
			select {
			case sizes <- SizeOf(file):
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes
}
