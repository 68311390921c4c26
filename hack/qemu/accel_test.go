package qemu

import (
	"testing"
	"time"
)

func TestProbeAnswersOnceAndInTime(t *testing.T) {
	p := NewProbe(t.TempDir() + "/no-kernel")
	start := time.Now()
	accel, reason := p.Accel(t.Context())
	if accel != AccelTCG || reason == "" {
		t.Errorf("without a kernel to try: %q, %q", accel, reason)
	}
	if again, why := p.Accel(t.Context()); again != accel || why != reason {
		t.Errorf("second answer %q, %q", again, why)
	}
	if took := time.Since(start); took > probeDeadline+2*time.Second {
		t.Errorf("took %s", took)
	}
}
