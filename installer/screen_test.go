package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/installer/progress"
)

// The panel is drawn once, changed where it changes, and leaves the lines below
// it to the log.
func TestScreenKeepsThePanelAboveTheLog(t *testing.T) {
	i, _ := testInstallation(t)
	var out bytes.Buffer
	s := &screen{out: &out, size: func() (int, int) { return 80, 25 }}
	s.show(i.model.Snapshot())
	first := out.String()
	if !strings.Contains(first, "\x1b[r") || !strings.Contains(first, ";25r") || !strings.Contains(first, "This machine") || !strings.HasSuffix(first, "\x1b8") {
		t.Errorf("at first %q", first)
	}
	out.Reset()
	i.model.Describe(func(f *progress.Facts) { f.Machine = "web1" })
	s.show(i.model.Snapshot())
	if text := out.String(); !strings.Contains(text, "\x1b[1;1Hweb1\x1b[K") || strings.Contains(text, "This machine") || strings.Contains(text, "between") {
		t.Errorf("then %q", text)
	}
	out.Reset()
	s.leave()
	if out.String() != "\x1b[r\x1b[25;1H" {
		t.Errorf("at the end %q", out.String())
	}
	small := &screen{out: &out, size: func() (int, int) { return 0, 0 }}
	out.Reset()
	small.show(i.model.Snapshot())
	small.leave()
	if out.Len() != 0 {
		t.Errorf("on no screen %q", out.String())
	}
}
