package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// checkout is the top of the checkout, seen from this package.
const checkout = "../.."

// What all tests share: a site, and the answer to whether there is KVM.
var (
	site  *lab.Site
	probe *qemu.Probe
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run prepares the site and runs the tests. Whatever is missing is a failure
// with its reason: a test that does not run proves nothing.
func run(m *testing.M) int {
	cleanup, err := ownTemp()
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		return 1
	}
	defer cleanup()
	products, err := lab.FindProducts(checkout)
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: run these through make test-vm; missing:\n%v\n", err)
		return 1
	}
	probe = qemu.NewProbe(products.Kernel)
	// Kept in build for the next run: adding the image takes a while.
	site, err = lab.OpenSite(context.Background(), products, filepath.Join(checkout, "build", "e2e"), func(format string, args ...any) {
		fmt.Printf("e2e: "+format+"\n", args...)
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: preparing the site: %v\n", err)
		return 1
	}
	return m.Run()
}

// ownTemp gives everything that the tests make for a while one place, which is
// gone also when they are interrupted: disks are large. The machines and
// servers end with this process in any case.
func ownTemp() (cleanup func(), err error) {
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		return nil, err
	}
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return nil, err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		// What cannot be removed lies in the system's place for such things.
		_ = os.RemoveAll(dir)
		os.Exit(130)
	}()
	return func() { _ = os.RemoveAll(dir) }, nil
}

// TestInstall is the way of make demo: PXE, installation, kexec, login, power
// cycle, login from the disk.
func TestInstall(t *testing.T) {
	t.Parallel() // beside the troubles, which mostly wait
	lines := keepLines(t)
	directory := t.TempDir()
	i := &lab.Installation{Site: site, Probe: probe, Dir: directory, Step: t.Logf, Line: lines.add}
	result, err := i.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var phases []string
	for _, p := range result.Phases {
		phases = append(phases, string(p.Phase))
	}
	if got, want := strings.Join(phases, " "), "clock links config inventory manifest plan stage tools prove commit storage unpack identity network boot finish"; got != want {
		t.Errorf("phases %q, want %q", got, want)
	}
	if result.Status.Facts.Image != site.Image {
		t.Errorf("the status page named image %q, want %q", result.Status.Facts.Image, site.Image)
	}
	if result.PeakMemory == 0 {
		t.Error("the page's metrics named no peak memory")
	}
	// Nothing came before the point of no return that belongs after it.
	at := func(text string) int {
		n := lines.index(text)
		if n < 0 {
			t.Errorf("the console lacks %q", text)
		}
		return n
	}
	plan, commit, storage, over := at("] plan: "), at("] commit: point of no return"), at("] storage: "), at("] finish: handing over to "+site.Image+" by kexec")
	if !(plan < commit && commit < storage && storage < over) {
		t.Errorf("wrong order on the console: plan %d, commit %d, storage %d, hand-over %d", plan, commit, storage, over)
	}
	t.Logf("installed in %s: %v; peak memory %d MB", result.Install, result.Took, result.PeakMemory>>20)
	t.Run("reuse", func(t *testing.T) {
		// The volumes beside / are encrypted; their keys lie in it.
		reuseFrom(t, filepath.Join(directory, "disk.raw")).check(t, "/dev/vda2 (ext4)", "/dev/vda3, decrypted (ext4)")
	})
}

// keptLines are the lines of a console, shown only when the test fails.
type keptLines struct {
	mu    sync.Mutex
	lines []string
}

func keepLines(t *testing.T) *keptLines {
	k := &keptLines{}
	t.Cleanup(func() {
		if t.Failed() {
			k.mu.Lock()
			defer k.mu.Unlock()
			t.Logf("the installer's lines and the last of the console:\n%s", strings.Join(interesting(k.lines), "\n"))
		}
	})
	return k
}

func interesting(lines []string) []string {
	var some []string
	for n, l := range lines {
		if _, _, _, ok := lab.PhaseLine(l); ok || strings.Contains(l, "DEMO-REPORT") || n > len(lines)-40 {
			some = append(some, l)
		}
	}
	return some
}

func (k *keptLines) add(line string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lines = append(k.lines, line)
}

// index is the number of the first line that contains text, -1 if none does.
func (k *keptLines) index(text string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	for n, l := range k.lines {
		if strings.Contains(l, text) {
			return n
		}
	}
	return -1
}
