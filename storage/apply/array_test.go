package apply

import (
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/firstlight/firstlight/storage"
)

// TestThrownOut: a member that the kernel has thrown out of an array is noticed,
// before the boot loader is written (Sync) and at the end (Close).
func TestThrownOut(t *testing.T) {
	mirror := storage.Array{Name: "root", Node: "/dev/md2", Level: 1, Members: []string{"/dev/vda3", "/dev/vdb3"}}
	stripe := storage.Array{Name: "data-1", Node: "/dev/md3", Members: []string{"/dev/vdc1", "/dev/vdd1"}}
	for missing, want := range map[string]string{
		"0\n": "",
		"1\n": "the array root has lost 1 of its 2 members (/dev/vda3, /dev/vdb3)",
		"":    "whether the array root is whole cannot be read",
	} {
		sys := fstest.MapFS{}
		if missing != "" {
			sys["block/md2/md/degraded"] = &fstest.MapFile{Data: []byte(missing)}
		}
		s, _ := seams(t)
		s.Sys = sys
		a := &Applied{seams: s, keys: made(t, storage.Layout{})}
		a.assembled(mirror)
		a.assembled(stripe)
		for what, err := range map[string]error{"Sync": a.Sync(), "Close": a.Close()} {
			var coded *storage.Error
			if want == "" {
				if err != nil {
					t.Errorf("%s of whole arrays: %v", what, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &coded) || coded.Code() != storage.CodeLost {
				t.Errorf("%s with %q missing: %v", what, missing, err)
			}
		}
	}
}
