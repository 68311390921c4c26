package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/u-root/u-root/pkg/rtc"
	"golang.org/x/sys/unix"
)

// clockFloor is the time before which the clock cannot be right: the
// modification time of the file at path, set when the boot image was made.
// It is zero where there is no such file.
func clockFloor(path string) (time.Time, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the build time: %w", err)
	}
	return info.ModTime(), nil
}

// advanceClock sets the clock to floor when now is before it, and says by how
// much it moved. The clock is never set back: a machine whose clock is right
// knows better than the boot image.
func advanceClock(now, floor time.Time, set func(time.Time) error) (time.Duration, error) {
	if !now.Before(floor) {
		return 0, nil
	}
	if err := set(floor); err != nil {
		return 0, fmt.Errorf("setting the clock to %s: %w", floor.UTC().Format(time.RFC3339), err)
	}
	return floor.Sub(now), nil
}

// setSystemClock is settimeofday(2).
func setSystemClock(t time.Time) error {
	tv := unix.NsecToTimeval(t.UnixNano())
	return unix.Settimeofday(&tv)
}

// writeRTC stores t, as UTC, in the machine's real-time clock (rtc(4)).
func writeRTC(t time.Time) error {
	clock, err := rtc.OpenRTC()
	if err != nil {
		return fmt.Errorf("opening the real-time clock: %w", err)
	}
	defer clock.Close()
	if err := clock.Set(t.UTC()); err != nil {
		return fmt.Errorf("setting the real-time clock: %w", err)
	}
	return nil
}
