package dhcp

import (
	"testing"
	"testing/synctest"
	"time"
)

// A lease for no time at all is no reason to flood the server with requests.
func TestRenewalsHaveAPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		_, err := renew(t.Context(), Lease{Interface: "eth0", Obtained: begun}, Options{}.withDefaults())
		if err == nil || time.Since(begun) < leastWait {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}
