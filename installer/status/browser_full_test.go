//go:build full

package status_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/status"
	"github.com/firstlight/firstlight/netconfig"
)

// browser is Debian's chromium without a screen.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.ExecPath("chromium"),
		chromedp.Flag("force-device-scale-factor", "1"), chromedp.Flag("hide-scrollbars", true))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx, chromedp.Navigate("about:blank")); err != nil {
		t.Fatalf("chromium (hack/setup installs it for make test-full): %v", err)
	}
	return ctx
}

// TestBrowserScreenshots takes a picture of each state, as in docs/screenshots.
// With SCREENSHOTS=DIR it leaves them there.
func TestBrowserScreenshots(t *testing.T) {
	directory := os.Getenv("SCREENSHOTS")
	if directory == "" {
		directory = t.TempDir()
	}
	ctx := browser(t)
	for _, shot := range []struct {
		name          string
		scene         *scene
		width, height int64
		dark          bool
	}{
		{"running", running(t), 1000, 900, false},
		{"running-dark", running(t), 1000, 900, true},
		{"running-phone", running(t), 390, 844, false},
		{"failed", failed(t), 1000, 900, false},
		{"failed-phone-dark", failed(t), 390, 844, true},
		{"approval", waiting(t), 1000, 900, false},
	} {
		url, _ := start(t, status.Handler(shot.scene.options))
		scheme := "light"
		if shot.dark {
			scheme = "dark"
		}
		err := chromedp.Do(ctx,
			chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
				_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
					Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
				return err
			}),
			chromedp.EmulateViewport(shot.width, shot.height, chromedp.EmulateScale(1)),
			chromedp.Navigate(url+"/"),
			chromedp.WaitVisible("#log"))
		if err != nil {
			t.Fatalf("%s: %v", shot.name, err)
		}
		wider, err := chromedp.Run(ctx, chromedp.Evaluate[bool](`document.documentElement.scrollWidth > innerWidth`))
		if err != nil {
			t.Fatal(err)
		}
		picture, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
		if err != nil {
			t.Fatal(err)
		}
		if wider {
			t.Errorf("%s: the page is wider than its window", shot.name)
		}
		size, err := png.DecodeConfig(bytes.NewReader(picture))
		if err != nil || int64(size.Width) != shot.width || int64(size.Height) < shot.height {
			t.Errorf("%s: a picture of %d by %d, %v", shot.name, size.Width, size.Height, err)
		}
		if err := os.WriteFile(filepath.Join(directory, "page-"+shot.name+".png"), picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// injections are texts that would do something where they are not shown as text.
func injections() []string {
	const act = "window.injected=1"
	list := []string{
		`<script>` + act + `</script>`, `<SCRIPT SRC=data:text/javascript,` + act + `></SCRIPT>`, `</pre><script>` + act + `</script>`, `</script><script>` + act + `</script>`,
		`</style><script>` + act + `</script>`, `</title><script>` + act + `</script>`, `--><script>` + act + `</script>`, `<!--<script>` + act + `//-->`, `]]><script>` + act + `</script>`,
		`<img src=x onerror=` + act + `>`, `<img/src/onerror=` + act + `>`, `"><img src=x onerror="` + act + `">`, `'><img src=x onerror='` + act + `'>`, "`><img src=x onerror=" + act + ">",
		`" onfocus="` + act + `" autofocus="`, `' onmouseover='` + act + `'`, `" style="background:url(javascript:` + act + `)"`, `x" onload=` + act + ` y="`,
		`<svg onload=` + act + `>`, `<svg><script>` + act + `</script></svg>`, `<svg><animate onbegin=` + act + ` attributeName=x dur=1s>`, `<math><mi xlink:href="javascript:` + act + `">x</mi></math>`,
		`<iframe srcdoc="<script>parent.injected=1</script>">`, `<iframe src="javascript:` + act + `">`, `<object data="javascript:` + act + `">`, `<embed src="javascript:` + act + `">`,
		`<a href="javascript:` + act + `">x</a>`, `<form action="javascript:` + act + `"><button>`, `<base href="http://192.0.2.1/">`, `<meta http-equiv="refresh" content="0;url=javascript:` + act + `">`,
		`<link rel=stylesheet href="data:text/css,*{display:none}">`, `<style>*{display:none}</style>`, `<body onload=` + act + `>`, `<details open ontoggle=` + act + `>`, `<video><source onerror=` + act + `>`,
		`<audio src=x onerror=` + act + `>`, `<input autofocus onfocus=` + act + `>`, `<select autofocus onfocus=` + act + `>`, `<textarea autofocus onfocus=` + act + `>`, `<marquee onstart=` + act + `>`,
		`{{` + act + `}}`, `${` + act + `}`, `javascript:` + act, `&lt;script&gt;` + act + `&lt;/script&gt;`, `&#60;script&#62;` + act + `&#60;/script&#62;`, `\u003cscript\u003e` + act + `\u003c/script\u003e`,
		`%3Cscript%3E` + act + `%3C/script%3E`, "<scr\x00ipt>" + act + "</scr\x00ipt>", "\xc0\xbcscript\xc0\xbe" + act, "\u2028<script>" + act + "</script>\u2029", "+ADw-script+AD4-" + act + "+ADw-/script+AD4-",
		"`<code>` `<img src=x onerror=" + act + ">`",
	}
	return list
}

// TestBrowserInjections shows the texts everywhere where a text of others is
// shown, in a real browser: none does anything, and each can be read.
func TestBrowserInjections(t *testing.T) {
	texts := injections()
	if len(texts) < 50 {
		t.Fatalf("%d texts", len(texts))
	}
	ctx := browser(t)
	dialog := false
	err := chromedp.Listen(ctx, func(event any) {
		if strings.Contains(fmt.Sprintf("%T", event), "DialogOpening") {
			dialog = true
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	type findings struct {
		Injected bool
		Strange  []string
		Readable bool
	}
	// One server for all: a browser keeps connections in store, which would be
	// waited for at each end.
	var shown atomic.Pointer[http.Handler]
	url, _ := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*shown.Load()).ServeHTTP(w, r) }))
	for n, text := range texts {
		s := running(t)
		m := s.model
		m.Describe(func(f *progress.Facts) {
			f.Machine, f.Image, f.Hardware, f.Signed, f.Version, f.Plan, f.Fingerprint = text, text, text, text, text, text, text
			f.Page = "http://" + text + "/"
		})
		m.Log(progress.Stage, "begin "+text+" end")
		m.Warn(progress.Stage, text)
		m.Wait(progress.Unpack, text)
		m.DiskStep(text, text, text, progress.Running)
		m.Skip(progress.Prove, text)
		m.Sessions([]progress.Session{{Number: 1, Who: text, Programme: text, State: progress.SessionState(text)}})
		m.Holds([]progress.Hold{{Before: text, By: text}})
		m.Approval(&progress.Approval{Plan: text, By: text})
		m.Next(text, time.Time{})
		if n%2 == 0 {
			m.Fail(progress.Storage, coded{text})
		}
		s.options.PlanText = func() string { return text }
		s.options.Leases = func() map[string]string { return map[string]string{"eth0": text} }
		s.options.NICs = func() []netconfig.NIC {
			return []netconfig.NIC{{Name: "eth0", Driver: text, Neighbour: &netconfig.Neighbour{System: text, Port: text, Chassis: text, Description: text}}}
		}
		handler := status.Handler(s.options)
		shown.Store(&handler)
		const look = `(function () {
			var allowed = {BODY:1,MAIN:1,DIV:1,HEADER:1,H1:1,H2:1,H3:1,P:1,PROGRESS:1,SECTION:1,DL:1,DT:1,DD:1,PRE:1,TABLE:1,THEAD:1,TBODY:1,TR:1,TH:1,TD:1,UL:1,LI:1,B:1,SMALL:1,BR:1,SPAN:1,
				STRONG:1,A:1,CODE:1,DETAILS:1,SUMMARY:1,FIGURE:1,FIGCAPTION:1,svg:1,polyline:1,FORM:1,LABEL:1,INPUT:1,BUTTON:1,NAV:1,SCRIPT:1}, strange = [];
			document.body.querySelectorAll("*").forEach(function (e) {
				if (!allowed[e.tagName]) { strange.push(e.tagName); }
				for (var a of e.attributes) { if (/^on/i.test(a.name) || /javascript:/i.test(a.value) && e.tagName !== "INPUT") { strange.push(e.tagName + " " + a.name + "=" + a.value); } }
			});
			if (document.scripts.length !== 1) { strange.push(document.scripts.length + " scripts"); }
			if (document.querySelectorAll("style, base, link").length !== 2 || document.querySelectorAll("iframe, object").length) { strange.push("head"); }
			return {Injected: window.injected !== undefined, Strange: strange, Readable: /begin .* end/.test(document.getElementById("log").textContent)};
		})()`
		check := func(when string) {
			t.Helper()
			found, err := evaluate[findings](ctx, look)
			if err != nil {
				t.Fatalf("%q: %v", text, err)
			}
			if found.Injected || dialog || len(found.Strange) > 0 || !found.Readable {
				t.Errorf("%q %s: it acts: %v; dialog: %v; strange: %q; to be read: %v", text, when, found.Injected, dialog, found.Strange, found.Readable)
			}
			dialog = false
		}
		if err := visit(ctx, url+"/"); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		check("as it comes")
		// What the script puts in its place when something happens.
		m.Describe(func(f *progress.Facts) { f.DryRun = true })
		m.Done(progress.Unpack)
		if err := await(ctx, `document.querySelector("header").textContent.includes("this is a dry run")`); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		check("after a change")
		for _, path := range []string{"/log", "/api/v1/status", "/?q=" + strings.NewReplacer("%", "%25", "&", "%26", "#", "%23", "+", "%2B", "\x00", "%00", " ", "%20", "\xc0", "%C0", "\xbc", "%BC", "\xbe", "%BE").Replace(text)} {
			if err := visit(ctx, url+path); err != nil {
				t.Fatalf("%q at %s: %v", text, path, err)
			}
			acts, err := evaluate[bool](ctx, `window.injected !== undefined`)
			if err != nil {
				t.Fatalf("%q at %s: %v", text, path, err)
			}
			if acts || dialog {
				t.Errorf("%q acts at %s", text, path)
			}
		}
		if err := visit(ctx, "about:blank"); err != nil {
			t.Fatal(err)
		}
	}
}

// coded is a failure whose text is a stranger's.
type coded struct{ text string }

func (c coded) Error() string { return c.text }
func (coded) Code() string    { return "STO-002" }

// The page is live: what happens is seen without a reload, and the filter keeps
// what was typed.
func TestBrowserIsLive(t *testing.T) {
	ctx := browser(t)
	s := running(t)
	url, _ := start(t, status.Handler(s.options))
	if err := chromedp.Do(ctx, chromedp.Navigate(url+"/"), chromedp.WaitVisible("#q"), chromedp.SendKeys("#q", "late")); err != nil {
		t.Fatal(err)
	}
	s.model.Log(progress.Storage, "a late line")
	s.model.Fail(progress.Storage, small{})
	for _, expression := range []string{
		`document.querySelector(".state").textContent.includes("failed in storage: STO-002")`,
		`document.getElementById("log").textContent.trim().endsWith("a late line")`,
	} {
		if err := await(ctx, expression); err != nil {
			t.Errorf("%s: %v", expression, err)
		}
	}
	if value, err := chromedp.Run(ctx, chromedp.Value("#q")); err != nil || value != "late" {
		t.Errorf("%v; the filter has %q", err, value)
	}
}

// visit goes to an address, and evaluate is an expression's value there. A
// document that has just come may take the place of another while it is asked;
// then it is asked again.
func visit(ctx context.Context, url string) error {
	return whileChanging(func() error { return chromedp.Do(ctx, chromedp.Navigate(url)) })
}

func evaluate[T any](ctx context.Context, expression string) (value T, err error) {
	err = whileChanging(func() (err error) {
		value, err = chromedp.Run(ctx, chromedp.Evaluate[T](expression))
		return err
	})
	return value, err
}

func whileChanging(do func() error) (err error) {
	for range 20 {
		if err = do(); err == nil || !strings.Contains(err.Error(), "Cannot find context") {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

// await waits until a page's expression is true.
func await(ctx context.Context, expression string) error {
	for until := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if is, err := evaluate[bool](ctx, expression); err != nil || is {
			return err
		}
		if time.Now().After(until) {
			return errors.New("it has not become so")
		}
	}
}

// A text browser shows all of it.
func TestBrowserLynx(t *testing.T) {
	for name, c := range map[string]struct {
		scene *scene
		want  []string
	}{
		"running": {running(t), []string{"web1.example.com", "storage and unpack", "left", "Phases", "nvme0n1p4 encrypt running", "image server", "Received from the network", "leaf7", "Filter"}},
		"failed":  {failed(t), []string{"failed in commit: STO-002", "What to do", "No disk was touched", "firstlight installer-shell 10.0.2.15"}},
		"waiting": {waiting(t), []string{"waiting for approval", "approve sha256:3f6c", "WILL BE ERASED"}},
	} {
		url, _ := start(t, status.Handler(c.scene.options))
		out, err := exec.CommandContext(t.Context(), "lynx", "-dump", "-width=100", "-nolist", url+"/").Output()
		if err != nil {
			t.Fatalf("lynx (hack/setup installs it for make test-full): %v", err)
		}
		text := strings.Join(strings.Fields(string(out)), " ")
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: lynx does not show %q:\n%s", name, want, out)
			}
		}
	}
	// The same by hand, for those who have no lynx either.
	url, _ := start(t, status.Handler(running(t).options))
	answer, err := http.Get(url + "/api/v1/status")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if data, err := io.ReadAll(answer.Body); err != nil || !bytes.Contains(data, []byte(`"remainingSeconds"`)) {
		t.Errorf("%v\n%s", err, fmt.Sprintf("%.400s", data))
	}
}
