// Demo is the main job, from an empty disk to a login prompt, on one machine
// and without a person: keys, an image server, a machine in QEMU that boots
// from the network, is installed, starts its new system by kexec, and then
// once more from its own disk. `make demo` builds what it needs and runs it
// from the top of the checkout.
//
// Everything it makes lies in build/demo and is used again the next time.
// Nothing keeps running when it ends, unless DEMO_KEEP=1 asks for the machine.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// limit is how long everything together may take.
const limit = 20 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keep := os.Getenv("DEMO_KEEP") == "1"
	display := isTerminal(os.Stdout) && os.Getenv("DISPLAY") != ""
	if err := run(ctx, os.Stdout, keep, display); err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(os.Stderr, "\ndemo: interrupted; nothing is left running")
			os.Exit(130)
		}
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// isTerminal is true for a person's terminal, false for a pipe or a file
// (termios(3)).
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// run is the demo.
func run(ctx context.Context, stdout io.Writer, keep, display bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo took longer than %s", limit))
	defer cancel()
	out := &teller{w: stdout, start: time.Now()}
	products, err := lab.FindProducts(".")
	if err != nil {
		return err
	}
	out.step("site: keys, an image server with %s, a boot medium", filepath.Base(products.Root))
	directory := filepath.Join("build", "demo")
	site, err := lab.OpenSite(ctx, products, filepath.Join(directory, "site"), out.step)
	if err != nil {
		return err
	}
	installation := &lab.Installation{
		Site: site, Probe: qemu.NewProbe(products.Kernel), Dir: directory,
		Step: out.step, Line: out.line, Display: display, Keep: keep,
	}
	result, err := installation.Run(ctx)
	if err != nil {
		return fmt.Errorf("%w\n(the whole console: %s, %s)", err,
			filepath.Join(directory, "console-install.log"), filepath.Join(directory, "console-disk.log"))
	}
	closing(stdout, site, result, time.Since(out.start))
	if result.Machine != nil {
		pid := result.Machine.PID()
		result.Machine.Release()
		fmt.Fprintf(stdout, "\nThe machine is still running (DEMO_KEEP=1).\n"+
			"  its console:  socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:%s\n"+
			"                (root, password firstlight; Ctrl-] leaves)\n"+
			"  to stop it:   kill %d && rm -r %s\n", result.Socket, pid, filepath.Dir(result.Socket))
	}
	return nil
}

// teller prints what happens, as it happens.
type teller struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

// step prints what the demo does.
func (t *teller) step(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.w, "==> %4.0f s  %s\n", time.Since(t.start).Seconds(), fmt.Sprintf(format, args...))
}

// line prints what the installer and the new system say, of all that is on
// the console.
func (t *teller) line(line string) {
	_, _, _, ofInstaller := lab.PhaseLine(line)
	_, report, ofSystem := strings.Cut(line, "DEMO-REPORT ")
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case ofInstaller || strings.HasPrefix(line, "FAILED "):
		fmt.Fprintf(t.w, "  %s\n", line)
	case ofSystem:
		fmt.Fprintf(t.w, "  new system: %s\n", strings.TrimSpace(report))
	}
}

// closing prints the table at the end.
func closing(w io.Writer, site *lab.Site, r *lab.Result, total time.Duration) {
	fmt.Fprintf(w, "\nInstalled %s in %.1f s, all checks hold.\n\n", site.Image, r.Install.Seconds())
	fmt.Fprintf(w, "  %-28s %9s\n", "phase", "seconds")
	for _, p := range r.Phases {
		if p.Skipped {
			fmt.Fprintf(w, "  %-28s %9s\n", p.Phase, "skipped")
			continue
		}
		fmt.Fprintf(w, "  %-28s %9.1f\n", p.Phase, p.Seconds)
	}
	fmt.Fprintf(w, "  (storage and unpack run side by side)\n\n  %-28s %9s\n", "the whole way", "seconds")
	for _, t := range r.Took {
		fmt.Fprintf(w, "  %-28s %9.1f\n", t.What, t.Time.Seconds())
	}
	fmt.Fprintf(w, "  %-28s %9.1f\n", "all of the demo", total.Seconds())
	fmt.Fprintf(w, "\n  %-28s %9s %11s\n", "objects from", "number", "MB unpacked")
	for _, s := range r.Status.Objects {
		fmt.Fprintf(w, "  %-28s %9d %11.1f\n", s.Source, s.Objects, float64(s.Bytes)/1e6)
	}
	if r.PeakMemory > 0 {
		fmt.Fprintf(w, "\n  peak memory of the installer's machine: %.0f MB\n", float64(r.PeakMemory)/1e6)
	}
	fmt.Fprintf(w, `
What to try next:
  make demo DEMO_KEEP=1            leave the installed machine running
  less build/demo/console-install.log
                                   everything that was on its console
  bin/imageserver --listen 127.0.0.1:6971 --data build/demo/site/store \
      --tls-cert %[1]s/imageserver.pem --tls-key %[1]s/imageserver-key.pem --client-ca %[1]s/CA.pem &
  bin/firstlight image list --site build/demo/site
                                   the image server by hand
  make test                        the same way, and every kind of trouble, as tests
`, "build/demo/site/secrets")
}
