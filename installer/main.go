// Installer brings one bare machine to its new operating system, or runs one
// of the commands that a custom workflow or a person with a broken machine
// needs. It is started by uinit in the initramfs; see docs/architecture.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// In a busybox, and after a restart, the kernel knows this process by
	// another name than the one that `kill` and `pidof` are used with
	// (proc(5)); without it only they suffer.
	_ = os.WriteFile("/proc/self/comm", []byte("installer"), 0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	os.Exit(exitCode(err))
}

// exitCode is the process's exit status for err: 0, 1 for a failure, 2 for a
// wrong use of the command line, 130 for an interrupt.
func exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled):
		return 130
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "installer:", err)
		return 2
	default:
		fmt.Fprintln(os.Stderr, "installer:", err)
		return 1
	}
}

// run is the program: it reads the flags of args and of the kernel's command
// line, and installs or runs the command that args name.
func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	opt, err := parseOptions(args, kernelCommandLine(), stdout)
	if err != nil {
		return err
	}
	if opt.help {
		return nil
	}
	if len(opt.command) == 0 {
		return superviseInstallation(ctx, opt, stdout)
	}
	return runCommand(ctx, opt, stdin, stdout)
}
