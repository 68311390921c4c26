package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A disk that comes late is waited for; one that comes and goes for ever is not.
func TestSettled(t *testing.T) {
	dir := t.TempDir()
	disk := func(name string) {
		if err := os.MkdirAll(filepath.Join(dir, "block", name), 0o755); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "block", name, "size"), nil, 0o644); err != nil {
			t.Error(err)
		}
	}
	disk("vda")
	came := make(chan struct{})
	go func() {
		time.Sleep(200 * time.Millisecond)
		disk("sda")
		close(came)
	}()
	waited := 0
	if err := settled(t.Context(), os.DirFS(dir), time.Second, time.Minute, func() { waited++ }); err != nil {
		t.Fatal(err)
	}
	select {
	case <-came:
	default:
		t.Error("the late disk was not waited for")
	}
	if waited != 1 {
		t.Errorf("%d changes were seen, want 1", waited)
	}

	begin := time.Now()
	if err := settled(t.Context(), restless{}, time.Second, 500*time.Millisecond, func() {}); err != nil || time.Since(begin) < 500*time.Millisecond {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := settled(ctx, os.DirFS(dir), time.Hour, time.Hour, func() {}); err == nil {
		t.Error("an ended context did not end it")
	}
}

// restless is a sysfs that is never looked at for long enough.
type restless struct{}

func (restless) Open(string) (fs.File, error) { return nil, fs.ErrNotExist }
