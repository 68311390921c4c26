package site

import (
	"fmt"
	"testing"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

// BenchmarkFind finds one machine among a thousand.
func BenchmarkFind(b *testing.B) {
	s, err := Open(b.TempDir(), time.Now)
	if err != nil {
		b.Fatal(err)
	}
	for n := range 1000 {
		name := fmt.Sprintf("web%d", n)
		if err := s.PutFiles(name, "ann", map[string][]byte{
			"config.json": []byte(configOf(name, fmt.Sprintf("52:54:00:00:%02x:%02x", n/256, n%256))), "storage-layout.json": []byte(layout), "imagename": []byte("debian/12\n"),
		}); err != nil {
			b.Fatal(err)
		}
	}
	me := Identity{MACs: []netconfig.MAC{{0x52, 0x54, 0, 0, 3, 0xe7}}}
	for b.Loop() {
		if m, err := s.Find(me); err != nil || m == nil {
			b.Fatal(m, err)
		}
	}
}
