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
	for _, c := range []struct{ missing, state, want string }{
		{"0\n", "in_sync\n", ""},
		{"1\n", "in_sync\n", "the array root of /dev/vda3, /dev/vdb3: it has lost 1 of its 2 members"},
		{"0\n", "in_sync,write_error,want_replacement\n", "vdb3 did not take what was written to it (write_error)"},
		{"", "in_sync\n", "whether it is whole cannot be read"},
	} {
		sys := fstest.MapFS{
			"block/md2/md/dev-vda3/state": &fstest.MapFile{Data: []byte("in_sync\n")},
			"block/md2/md/dev-vdb3/state": &fstest.MapFile{Data: []byte(c.state)},
		}
		if c.missing != "" {
			sys["block/md2/md/degraded"] = &fstest.MapFile{Data: []byte(c.missing)}
		}
		s, _ := seams(t)
		s.Sys = sys
		a := &Applied{seams: s, keys: made(t, storage.Layout{})}
		a.assembled(mirror)
		a.assembled(stripe)
		for what, err := range map[string]error{"Sync": a.Sync(), "Close": a.Close()} {
			var coded *storage.Error
			if c.want == "" {
				if err != nil {
					t.Errorf("%s of whole arrays: %v", what, err)
				}
				continue
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.As(err, &coded) || coded.Code() != storage.CodeLost {
				t.Errorf("%s with %+v: %v", what, c, err)
			}
		}
	}
}
