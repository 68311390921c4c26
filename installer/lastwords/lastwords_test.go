package lastwords

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

func TestTheEndOfTheLogIsOnTheDisk(t *testing.T) {
	var kernel bytes.Buffer
	r := New(&kernel)
	for n := range 5000 {
		r.Line(progress.Line{Seconds: float64(n), Phase: progress.Unpack, Text: fmt.Sprint("line ", n)})
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Keep(ctx, root, OnESP) }()
	read := func() string {
		return string(FromDisk(os.DirFS(dir)))
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.HasSuffix(read(), "unpack: line 4999\n"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the file ends with %q", read()[max(0, len(read())-80):])
		}
	}
	if text := read(); len(text) > MostBytes || len(text) < MostBytes-200 || !strings.HasPrefix(text, "[") {
		t.Errorf("%d bytes, beginning with %.40q", len(text), text)
	}
	r.Line(progress.Line{Phase: progress.Boot, Text: "the very last"})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(read(), "boot: the very last\n") {
		t.Error("the last line is missing")
	}
	if !strings.Contains(kernel.String(), "<15>firstlight: [4999.000] unpack: line 4999\n") {
		t.Errorf("the kernel got %.200q", kernel.String())
	}
}

func TestWhatFirmwareKept(t *testing.T) {
	at := time.Unix(1000, 0)
	store := fstest.MapFS{
		"dmesg-erst-3":       {Data: []byte("Panic#1 Part1\n<4>c\n<0>Kernel panic - not syncing\n"), ModTime: at},
		"dmesg-erst-2":       {Data: []byte("Panic#1 Part2\n<15>firstlight: [  1.000] unpack: b\n"), ModTime: at},
		"dmesg-erst-1":       {Data: []byte("Panic#1 Part3\n<6>a\n"), ModTime: at},
		"console-ramoops-0":  {Data: []byte("other")},
		"dmesg-efi-not-text": {Data: []byte{0xff, 0xfe}, ModTime: at.Add(-time.Hour)},
	}
	text, files, err := FromFirmware(store)
	if err != nil || len(files) != 4 {
		t.Fatalf("%v, %q", err, files)
	}
	if got := Printable(text); got != "<6>a\n<15>firstlight: [  1.000] unpack: b\n<4>c\n<0>Kernel panic - not syncing\n" {
		t.Errorf("got %q", got)
	}
	if text, files, err := FromFirmware(fstest.MapFS{}); err != nil || text != nil || files != nil {
		t.Errorf("of nothing: %q, %q, %v", text, files, err)
	}
	if got := Printable([]byte("a\x1b[2Jb\x00\n")); got != "a[2Jb\n" {
		t.Errorf("got %q", got)
	}
}
