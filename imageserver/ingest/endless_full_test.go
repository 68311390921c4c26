//go:build full

package ingest_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/imageserver/ingest"
)

// endless is a tar of as many empty files as somebody reads.
type endless struct {
	block []byte
	n     int
	left  []byte
}

func (e *endless) Read(p []byte) (int, error) {
	if len(e.left) == 0 {
		e.n++
		copy(e.block, fmt.Sprintf("f%08d", e.n))
		seal(e.block)
		e.left = e.block
	}
	n := copy(p, e.left)
	e.left = e.left[n:]
	return n, nil
}

// Ten million entries and more: it ends at a bound, with the entry named.
func TestEndlessEntries(t *testing.T) {
	e := &endless{block: header("f", []byte("00000000000\x00"))}
	_, err := ingest.Tar(t.Context(), e, newSink(), ingest.Options{TempDir: t.TempDir()})
	if !errors.Is(err, ingest.ErrEntry) || !strings.Contains(err.Error(), `"f02000001"`) {
		t.Error(err)
	}
	if e.n > 2_001_000 {
		t.Errorf("%d entries were read", e.n)
	}
}
