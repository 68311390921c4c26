package writelog

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// record is what the log is written from; QEMU's own logs are read by the
// tests of installations.
type record struct {
	sector, sectors, flags uint64
	fill                   byte
}

func write(t *testing.T, records []record) string {
	t.Helper()
	var b bytes.Buffer
	sector := func(values ...any) {
		start := b.Len()
		for _, v := range values {
			if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
				t.Fatal(err)
			}
		}
		b.Write(make([]byte, 512-(b.Len()-start)))
	}
	sector(uint64(magic), uint64(version), uint64(len(records)), uint32(512))
	for _, r := range records {
		sector(r.sector, r.sectors, r.flags, uint64(0))
		if r.flags&flagDiscard == 0 {
			b.Write(bytes.Repeat([]byte{r.fill}, int(r.sectors)*512))
		}
	}
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReplay(t *testing.T) {
	l, err := Open(write(t, []record{
		{0, 1, 0, 'a'}, {flags: flagFlush}, {flags: flagFlush}, {1, 2, flagFUA, 'b'}, {0, 1, 0, 'c'},
		{flags: flagFlush}, {1, 1, flagDiscard, 0}, {3, 1, 0, 'd'},
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got, want := l.Boundaries(), []int{0, 2, 6, 8}; !slices.Equal(got, want) {
		t.Errorf("boundaries %v, want %v", got, want)
	}
	if l.Changes() != 5 {
		t.Errorf("%d changes, want 5", l.Changes())
	}
	for _, c := range []struct {
		to   int
		keep func(int) bool
		want string
	}{
		{0, nil, "...."}, {2, nil, "a..."}, {6, nil, "cbb."}, {8, nil, "cbbd"},
		{8, func(n int) bool { return n != 4 }, "abbd"},
	} {
		disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer disk.Close()
		if err := disk.Truncate(4 * 512); err != nil {
			t.Fatal(err)
		}
		if err := l.Replay(disk, 0, c.to, c.keep); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(disk.Name())
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		for n := range 4 {
			got = append(got, max(content[n*512], '.'))
		}
		if string(got) != c.want {
			t.Errorf("after %d entries the disk is %s, want %s", c.to, got, c.want)
		}
	}
}

func TestNoLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, make([]byte, 4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil {
		t.Error("zeros were read as a log")
	}
}
