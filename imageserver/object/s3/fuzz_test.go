package s3

import (
	"bytes"
	"testing"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
)

// memory is a file.
type memory struct{ data []byte }

func (m *memory) ReadAt(p []byte, at int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, at)
}

func (m *memory) WriteAt(p []byte, at int64) (int, error) {
	if missing := int(at) + len(p) - len(m.data); missing > 0 {
		m.data = append(m.data, make([]byte, missing)...)
	}
	return copy(m.data[at:], p), nil
}

// exampleIndex is the index of a pack of two objects.
func exampleIndex(t testing.TB) ([]byte, *memory) {
	t.Helper()
	file := new(memory)
	w, err := pack.NewWriter(file, pack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "two"} {
		if _, err := w.AppendUnpacked(object.Of([]byte(content)), []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	size, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	data, err := encodeIndex(file, size)
	if err != nil {
		t.Fatal(err)
	}
	return data, file
}

// TestIndexFlips: every bit of an index and of a list of the dead matters.
func TestIndexFlips(t *testing.T) {
	data, file := exampleIndex(t)
	size, locations, err := decodeIndex(data)
	if err != nil || size != uint64(len(file.data)) || len(locations) != 2 {
		t.Fatal(size, locations, err)
	}
	for bit := range 8 * len(data) {
		data[bit/8] ^= 1 << (bit % 8)
		// The two words behind the format are not looked at, as in a pack.
		if _, _, err := decodeIndex(data); err == nil && (bit/8 < indexHead-4 || bit/8 >= indexHead) {
			t.Errorf("bit %d is not missed", bit)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
	dead := encodeDead(map[object.Digest]bool{object.Of(nil): true, object.Of([]byte("x")): true})
	if set, err := decodeDead(dead); err != nil || len(set) != 2 {
		t.Fatal(set, err)
	}
	for bit := range 8 * len(dead) {
		dead[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeDead(dead); err == nil {
			t.Errorf("bit %d is not missed", bit)
		}
		dead[bit/8] ^= 1 << (bit % 8)
	}
}

func FuzzIndex(f *testing.F) {
	data, _ := exampleIndex(f)
	f.Add(data)
	f.Add(encodeDead(map[object.Digest]bool{object.Of(nil): true}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if size, locations, err := decodeIndex(data); err == nil {
			for _, l := range locations {
				if l.Offset+l.Info.StoredSize > size {
					t.Error("an object lies outside its pack")
				}
			}
		}
		if set, err := decodeDead(data); err == nil && len(set)*32 > len(data) {
			t.Error("more dead than bytes")
		}
	})
}
