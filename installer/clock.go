package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/beevik/ntp"
	"github.com/u-root/u-root/pkg/rtc"
	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/installer/progress"
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

// ntpPatience is how long a time server is waited for.
const ntpPatience = 2 * time.Second

// askTime sets the clock by the first of the time servers that answers; all are
// asked at once. A time before the boot image's cannot be right, whoever says
// it (RFC 5905 answers are not signed).
func (i *installation) askTime(ctx context.Context, servers []netip.Addr) {
	if len(servers) == 0 || !i.env.inMemory {
		return
	}
	floor, err := clockFloor(buildTimestamp)
	if err != nil {
		return // the clock phase has reported it
	}
	offsets := make(chan time.Duration, len(servers)) // room for all: nobody blocks
	for _, server := range servers {
		go func() {
			if offset, err := clockOffset(server); err == nil {
				offsets <- offset
			}
		}()
	}
	select {
	case <-ctx.Done():
	case <-time.After(ntpPatience + time.Second):
		i.model.Warn(progress.Config, fmt.Sprintf("no time server answers: %v", servers))
	case offset := <-offsets:
		i.setTime(offset, floor)
	}
}

// clockOffset is how far this clock is behind a server's (SNTP, RFC 4330).
func clockOffset(server netip.Addr) (time.Duration, error) {
	response, err := ntp.QueryWithOptions(server.String(), ntp.QueryOptions{Timeout: ntpPatience})
	if err != nil {
		return 0, err
	}
	return response.ClockOffset, response.Validate()
}

// setTime moves the clock, unless to before floor or by next to nothing.
func (i *installation) setTime(offset time.Duration, floor time.Time) {
	const small = 100 * time.Millisecond
	now := i.env.now()
	wanted := now.Add(offset)
	switch {
	case wanted.Before(floor):
		i.model.Warn(progress.Config, fmt.Sprintf("a time server says %s, which is before this boot image was made: the clock stays", wanted.UTC().Format(time.RFC3339)))
		return
	case offset.Abs() >= small:
		if err := i.env.setClock(wanted); err != nil {
			i.model.Warn(progress.Config, fmt.Sprintf("setting the clock: %v", err))
			return
		}
		i.model.Logf(progress.Config, "the clock was %s off and is now %s", offset.Abs().Round(time.Millisecond), wanted.UTC().Format(time.RFC3339))
	}
	i.timeKnown = true
}

// rememberTime returns what undoes the doing of time servers that are heard from
// now on: one that a useless lease named must not keep the machine from
// believing certificates and bundles afterwards.
func (i *installation) rememberTime() (takeBack func() error) {
	clock, begun, known := i.env.now(), time.Now(), i.timeKnown
	return func() error {
		if known || !i.timeKnown {
			return nil // nobody has been heard since
		}
		i.timeKnown = false
		return i.env.setClock(clock.Add(time.Since(begun))) // by the monotonic clock, which nobody sets
	}
}
