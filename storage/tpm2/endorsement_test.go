package tpm2_test

import (
	"testing"

	"github.com/firstlight/firstlight/storage/tpm2/tpm2test"
)

// TestEndorsementKey: a TPM is the same one after a restart, whatever was
// started, and no two are the same.
func TestEndorsementKey(t *testing.T) {
	dir := tpm2test.Dir(t)
	c := tpm2test.Start(t, dir)
	first, err := c.EndorsementKey(t.Context())
	if err != nil || len(first) != 64 {
		t.Fatalf("%q, %v", first, err)
	}
	c.Extend(t, 7, "another start")
	for range 5 { // nothing stays behind in the TPM, which has room for three objects
		if again, err := c.EndorsementKey(t.Context()); err != nil || again != first {
			t.Fatalf("then %q, %v", again, err)
		}
	}
	other := tpm2test.Measured(t)
	if key, err := other.EndorsementKey(t.Context()); err != nil || key == first {
		t.Errorf("another TPM: %q, %v", key, err)
	}
}
