package panel

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/firstlight/firstlight/installer/progress"
)

func model() *progress.Model {
	now := time.Date(2026, 11, 20, 3, 0, 0, 0, time.UTC)
	m := progress.New(func() time.Time { return now })
	m.Describe(func(f *progress.Facts) {
		f.Machine, f.Hardware, f.Image, f.Page = "web1", "Example R640, serial 7QX2K3", "debian/12/2026-11-20", "http://10.0.2.15:6978/"
	})
	for _, p := range progress.Phases()[:6] {
		m.Start(p)
		m.Done(p)
	}
	m.Start(progress.Stage)
	now = now.Add(30 * time.Second)
	m.Update(progress.Stage, 200, 400)
	m.Wait(progress.Stage, "the image server to come back")
	now = now.Add(4 * time.Second)
	return m
}

func TestDraw(t *testing.T) {
	m := model()
	lines := Draw(m.Snapshot(), 80, 25)
	text := strings.Join(lines, "\n")
	for _, want := range []string{"web1  (Example R640, serial 7QX2K3)", "31 %, STAGE", "[####", "no disk has been", "debian/12/2026-11-20",
		"<stage> tools", "stage waits for the image server to come", "http://10.0.2.15:6978/", "██ ▄▄▄▄▄ █"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("the panel lacks %q:\n%s", want, text)
		}
	}
	for _, size := range [][2]int{{60, 20}, {79, 24}, {80, 25}, {100, 37}, {240, 67}} {
		for _, fail := range []bool{false, true} {
			m := model()
			if fail {
				m.Fail(progress.Stage, errors.New("evil \x1b[2J\u202e "+strings.Repeat("very long ", 500)))
				m.Next("reboot", time.Date(2026, 11, 20, 3, 5, 0, 0, time.UTC))
			}
			lines := Draw(m.Snapshot(), size[0], size[1])
			if len(lines) == 0 || len(lines) > size[1]*2/3 {
				t.Errorf("%v: %d lines", size, len(lines))
			}
			for _, line := range lines {
				if utf8.RuneCountInString(line) > size[0] || strings.ContainsAny(line, "\x1b\u202e\n") {
					t.Errorf("%v: %q", size, line)
				}
			}
		}
	}
	if lines := Draw(m.Snapshot(), 40, 25); lines != nil {
		t.Errorf("on a small screen there are %d lines", len(lines))
	}
}

func TestCodeIsSmallAndQuiet(t *testing.T) {
	lines := Code("http://192.168.100.200:6978/")
	if len(lines) == 0 || len(lines) > 15 {
		t.Fatalf("%d lines", len(lines))
	}
	width := utf8.RuneCountInString(lines[0])
	for n, line := range lines {
		if utf8.RuneCountInString(line) != width || !strings.HasPrefix(line, "██") && n < len(lines)-1 {
			t.Errorf("line %d is %q", n, line)
		}
	}
	if Code("") != nil || Code(strings.Repeat("x", 10000)) != nil {
		t.Error("there is a code for what has none")
	}
}
