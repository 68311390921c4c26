// Bench measures what the README promises and prints it as one table of
// Markdown, with each bound and whether it is met. What is compared is run side
// by side, in turn, several times: the ratios are medians. `make bench` runs it
// from the top of the checkout, `make bench BENCH=name` one part. It reports; it
// fails only when something cannot be measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// part is some rows of the table.
type part struct {
	name   string
	ground bool // needs the ground
	run    func(ctx context.Context, g *ground) ([]row, error)
}

// parts are in the order of the table.
func parts() []part {
	return []part{
		{"sizes", false, sizesPart},
		{"packages", false, packagesPart},
		{"install", true, installPart},
		{"link", true, linkPart},
		{"write", true, writePart},
		{"serve", true, servePart},
		{"reuse", true, reusePart},
		{"scan", true, scanPart},
		{"whole", true, wholePart},
		{"demo", false, demoPart},
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) > 0 && args[0] == taskArgument {
		return perform(ctx, args[1:], stdout)
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	only := flags.String("run", "", "the parts to run, separated by commas; all where it is empty")
	runs := flags.Int("runs", 5, "how often each of two ways is gone that are compared")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	if os.Getenv(namespaceSet) == "" {
		return again(ctx, args, stdout)
	}
	begun := time.Now()
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "==> %4.0f s  %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
	var g *ground
	if slices.ContainsFunc(chosen, func(p part) bool { return p.ground }) {
		if g, err = prepare(ctx, ".", *runs, say); err != nil {
			return err
		}
		defer g.close()
	}
	var rows []row
	var failed error
	for _, p := range chosen {
		say("%s", p.name)
		more, err := p.run(ctx, g)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, err))
		}
		rows = append(rows, more...)
	}
	fmt.Fprintf(stdout, "%s\n\n", machine())
	return errors.Join(writeTable(stdout, rows), failed)
}

func choose(only string) ([]part, error) {
	all := parts()
	if only == "" {
		return all, nil
	}
	var chosen []part
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(all, func(p part) bool { return p.name == name })
		if i < 0 {
			var names []string
			for _, p := range all {
				names = append(names, p.name)
			}
			return nil, fmt.Errorf("there is no part %q; there are %s", name, strings.Join(names, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// again starts this program in a mount namespace of its own, so that nothing
// stays mounted however it ends.
func again(ctx context.Context, args []string, stdout io.Writer) error {
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), namespaceSet+"=yes")
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting in a mount namespace (it needs root): %w", err)
	}
	stopped := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(os.Interrupt) }) // it may have ended by itself
	defer stopped()
	return cmd.Wait()
}

// machine names what was measured on.
func machine() string {
	model, memory := "unknown processor", ""
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
			}
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		var kibibytes int
		if _, err := fmt.Sscanf(string(text), "MemTotal: %d kB", &kibibytes); err == nil {
			memory = fmt.Sprintf(", %d GiB", kibibytes>>20)
		}
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // a machine without it has no name
	return fmt.Sprintf("%d processors (%s)%s, Linux %s, %s", runtime.NumCPU(), model, memory, strings.TrimSpace(string(kernel)), time.Now().UTC().Format("January 2006"))
}
