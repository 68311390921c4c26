//go:build full

package server

import (
	"bytes"
	"context"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
)

// browser is Debian's chromium without a screen.
func browser(t *testing.T, flags ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.ExecPath("chromium"),
		chromedp.Flag("force-device-scale-factor", "1"), chromedp.Flag("hide-scrollbars", true))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(options, flags...)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("chromium (hack/setup installs it for make test-full): %v", err)
	}
	return ctx
}

// text is what an element shows, empty where it is not there.
func text(ctx context.Context, t *testing.T, selector string) string {
	t.Helper()
	shown, err := chromedp.Run(ctx, chromedp.Evaluate[string](`(document.querySelector('`+selector+`') || {innerText: ''}).innerText`))
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

// mark leaves a mark on the page, which is gone when it is loaded again.
func mark(ctx context.Context) error {
	_, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`window.stayed = true`))
	return err
}

// TestBrowserFleet: the page follows the machines without being loaded again, says
// so when the server is gone, shows what machines say as text, and fits a phone.
func TestBrowserFleet(t *testing.T) {
	l := newLab(t)
	l.machine()
	ctx := browser(t)
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1100, 800), chromedp.Navigate(l.url+"/")); err != nil {
		t.Fatal(err)
	}
	if err := mark(ctx); err != nil {
		t.Fatal(err)
	}
	shows := func(selector, want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(text(ctx, t, selector), want); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s shows %q, not %q", selector, text(ctx, t, selector), want)
			}
		}
	}
	shows("#m-web1", "firstlight machine approve web1")
	if err := l.site.Approve("web1", "ann", false); err != nil {
		t.Fatal(err)
	}
	shows("#m-web1", "approved by ann")
	l.ask("boot-1", report.Go)
	l.post(report.State, progress.Snapshot{Format: 1, Seconds: 60, Ratio: 0.5, Phases: []progress.PhaseStatus{{Phase: progress.Stage, State: progress.Running}}})
	shows("#m-web1", "50 %")
	const evil = `<img src=x onerror="window.injected=1"><script>window.injected=1</script>`
	l.post(report.State, progress.Snapshot{Format: 1, Warnings: []string{evil}, Failure: &progress.Failure{Code: "STO-002", Text: evil + " is too small", Do: "Take a larger disk."}})
	shows("#m-web1", "What to do: Take a larger disk.")
	shows("#m-web1", "<script>window.injected=1</script> is too small")
	stayed, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`window.stayed === true`))
	if err != nil || !stayed {
		t.Errorf("the page was loaded again (%v)", err)
	}
	for _, path := range []string{"/", "/machines/web1"} {
		injected, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`window.injected === 1`))
		if err != nil || injected {
			t.Errorf("%s: what a machine says was run (%v)", path, err)
		}
		if err := chromedp.Do(ctx, chromedp.EmulateViewport(390, 844), chromedp.Navigate(l.url+path)); err != nil {
			t.Fatal(err)
		}
		shows("h1", map[string]string{"/": "The fleet", "/machines/web1": "web1"}[path])
		wider, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > innerWidth`))
		if err != nil || wider {
			t.Errorf("%s is wider than a phone (%v)", path, err)
		}
		picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := png.DecodeConfig(bytes.NewReader(picture)); err != nil {
			t.Error(err)
		}
		if directory := os.Getenv("SCREENSHOTS"); directory != "" {
			if err := os.WriteFile(filepath.Join(directory, "fleet"+strings.ReplaceAll(path, "/", "-")+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Who looks when the server is gone is told.
	if err := chromedp.Do(ctx, chromedp.Navigate(l.url+"/")); err != nil {
		t.Fatal(err)
	}
	l.stop()
	shows("body", "The server does not answer")
}
