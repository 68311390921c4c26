package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestClockIsOnlyMovedForward(t *testing.T) {
	built := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name  string
		now   time.Time
		moved time.Duration
	}{
		{"years behind", built.Add(-5 * 365 * 24 * time.Hour), 5 * 365 * 24 * time.Hour},
		{"the same instant", built, 0},
		{"ahead", built.Add(time.Hour), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			var set time.Time
			moved, err := advanceClock(test.now, built, func(to time.Time) error { set = to; return nil })
			if err != nil {
				t.Fatal(err)
			}
			if moved != test.moved {
				t.Errorf("moved by %s, want %s", moved, test.moved)
			}
			if test.moved > 0 && !set.Equal(built) {
				t.Errorf("clock set to %s, want the build time %s", set, built)
			}
			if test.moved == 0 && !set.IsZero() {
				t.Errorf("clock set to %s, want it left alone", set)
			}
		})
	}
}

func TestClockThatCannotBeSetIsAnError(t *testing.T) {
	refused := errors.New("operation not permitted")
	_, err := advanceClock(time.Unix(0, 0), time.Unix(1, 0), func(time.Time) error { return refused })
	if !errors.Is(err, refused) {
		t.Errorf("got %v, want %v", err, refused)
	}
}

func TestClockFloorIsTheModificationTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "build-timestamp")
	floor, err := clockFloor(path)
	if err != nil || !floor.IsZero() {
		t.Fatalf("without a file: got %s, %v", floor, err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	want := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	if err := os.Chtimes(path, want, want); err != nil {
		t.Fatal(err)
	}
	if floor, err = clockFloor(path); err != nil || !floor.Equal(want) {
		t.Errorf("got %s, %v; want %s", floor, err, want)
	}
}
