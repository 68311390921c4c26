package bulk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/proto/imageserver/bulk"
)

// digests are so many different ones.
func digests(n int) []object.Digest {
	all := make([]object.Digest, n)
	for i := range all {
		all[i] = object.Of([]byte{byte(i), byte(i >> 8)})
	}
	return all
}

// answer is a complete one: a raw object, a frame in two pieces, an empty one.
func answer(asked []object.Digest) ([]byte, []object.Piece) {
	pieces := []object.Piece{
		{Info: object.Info{Digest: asked[1], Size: 5, StoredSize: 5}, Data: []byte("bytes")},
		{Info: object.Info{Digest: asked[0], Encoding: object.Zstd, Size: 1 << 40, StoredSize: 7}, Data: []byte("abc")},
		{Info: object.Info{Digest: asked[0], Encoding: object.Zstd, Size: 1 << 40, StoredSize: 7}, Offset: 3, Data: []byte("defg")},
		{Info: object.Info{Digest: asked[2]}, Data: []byte{}},
	}
	index := map[object.Digest]int{asked[0]: 0, asked[1]: 1, asked[2]: 2}
	out := bytes.NewBuffer(bulk.Still())
	f := new(bulk.Frame)
	for i, p := range pieces {
		copy(f.Room(), p.Data)
		f.Add(index[p.Digest], p.Info, p.Offset, len(p.Data))
		if i == 1 {
			out.Write(f.Bytes())
			f.Reset()
		}
	}
	out.Write(f.Bytes())
	out.Write(bulk.End())
	return out.Bytes(), pieces
}

// read takes all of an answer.
func read(raw []byte, asked []object.Digest) (pieces []object.Piece, err error) {
	r := bulk.NewReader(bytes.NewReader(raw), asked)
	for {
		more, err := r.Next()
		if err != nil {
			if _, again := r.Next(); again != err {
				err = errors.Join(errors.New("the second error is another one"), again)
			}
			return pieces, err
		}
		for _, p := range more {
			p.Data = bytes.Clone(p.Data)
			pieces = append(pieces, p)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	asked := digests(3)
	raw, want := answer(asked)
	got, err := read(raw, asked)
	if err != io.EOF {
		t.Error(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A frame holds as many pieces, and as many bytes, as it says that it has room
// for, and a reader takes them.
func TestFullFrame(t *testing.T) {
	asked := digests(bulk.MaxDigests)
	f := new(bulk.Frame)
	n := 0
	for len(f.Room()) > 0 {
		// The largest record that there is.
		f.Add(bulk.MaxDigests-1, object.Info{Digest: asked[bulk.MaxDigests-1], Encoding: object.Zstd, Size: 1<<64 - 1, StoredSize: 1<<64 - 1}, 1<<63, 1)
		n++
	}
	got, err := read(append(bytes.Clone(f.Bytes()), bulk.End()...), asked)
	if err != io.EOF || len(got) != n || n < 100 {
		t.Errorf("%d pieces of %d, %v", len(got), n, err)
	}
	f.Reset()
	f.Add(0, object.Info{Digest: asked[0], Size: bulk.MaxPiece, StoredSize: bulk.MaxPiece}, 0, len(f.Room()))
	if len(f.Room()) != 0 {
		t.Errorf("room for %d bytes more", len(f.Room()))
	}
	if got, err := read(append(bytes.Clone(f.Bytes()), bulk.End()...), asked); err != io.EOF || len(got) != 1 || len(got[0].Data) != bulk.MaxPiece {
		t.Errorf("%d pieces, %v", len(got), err)
	}
}

// Wherever an answer is cut off, that is seen.
func TestCut(t *testing.T) {
	asked := digests(3)
	raw, _ := answer(asked)
	for n := range raw {
		if _, err := read(raw[:n], asked); err != io.ErrUnexpectedEOF {
			t.Errorf("cut at %d of %d: %v", n, len(raw), err)
		}
	}
}

func TestFailed(t *testing.T) {
	_, err := read(bulk.Failed(15, "object damaged"), digests(1))
	var failure *bulk.Failure
	if !errors.As(err, &failure) || failure.Code != 15 || failure.Text != "object damaged" {
		t.Errorf("got %v", err)
	}
	if _, err := read(bulk.Failed(0, "well"), digests(1)); !errors.Is(err, bulk.ErrMalformed) {
		t.Errorf("a failure that says OK: %v", err)
	}
	if _, err := read(bulk.Failed(13, string(make([]byte, 1<<20))), digests(1)); !errors.As(err, &failure) {
		t.Errorf("a long text: %v", err)
	}
}

// frame is one as a lying server would send it.
func frame(kind, records, data uint32, rest ...byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, records)
	b = binary.LittleEndian.AppendUint32(b, data)
	return append(b, rest...)
}

func TestLies(t *testing.T) {
	asked := digests(2)
	for name, raw := range map[string][]byte{
		"unknown kind":                  frame(4, 0, 0),
		"kind in the zero bytes":        frame(1<<8|1, 0, 0),
		"too many records":              frame(1, 64<<10+1, 0),
		"too much data":                 frame(1, 0, 1<<20+1),
		"2 GiB":                         frame(1, 1<<31, 1<<31),
		"an end with data":              frame(2, 0, 1, 0),
		"still with records":            frame(0, 1, 0, 0),
		"a failure with data":           frame(3, 1, 1, 5, 0),
		"a failure without a code":      frame(3, 0, 0),
		"an object nobody asked for":    frame(1, 3, 1, 2, 0x10, 1, 'x'),
		"an index beyond any":           frame(1, 10, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01),
		"a number that does not end":    frame(1, 2, 0, 0x80, 0x80),
		"no flags":                      frame(1, 1, 0, 0),
		"no size":                       frame(1, 2, 0, 0, 0x10),
		"unknown flags":                 frame(1, 3, 1, 0, 0x30, 1, 'x'),
		"an unknown encoding":           frame(1, 4, 1, 0, 0x12, 1, 1, 'x'),
		"more than is there":            frame(1, 3, 1, 0, 0x10, 2, 'x'),
		"data of no object":             frame(1, 3, 2, 0, 0x10, 1, 'x', 'y'),
		"data without a record":         frame(1, 0, 1, 'x'),
		"beyond the end of its object":  frame(1, 5, 1, 0, 0, 1, 1, 1, 'x'),
		"an offset that flows over":     frame(1, 14, 1, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1, 'x'),
		"longer than it says it stores": frame(1, 5, 2, 0, 0, 1, 0, 2, 'x', 'y'),
	} {
		if pieces, err := read(append(raw, bulk.End()...), asked); !errors.Is(err, bulk.ErrMalformed) || len(pieces) > 0 {
			t.Errorf("%s: %d pieces, %v", name, len(pieces), err)
		}
	}
}

// FuzzReader: whatever comes, it is taken or refused; what is taken keeps to
// the request and to what it says of itself.
func FuzzReader(f *testing.F) {
	asked := digests(3)
	raw, _ := answer(asked)
	f.Add(raw)
	f.Add(bulk.Failed(5, "gone"))
	f.Add(frame(1, 3, 1, 0, 0x10, 1, 'x'))
	f.Fuzz(func(t *testing.T, raw []byte) {
		pieces, err := read(raw, asked)
		if err == nil {
			t.Fatal("no end")
		}
		for _, p := range pieces {
			if p.Validate() != nil || p.Offset+uint64(len(p.Data)) > p.StoredSize || p.Offset+uint64(len(p.Data)) < p.Offset {
				t.Errorf("%+v", p)
			}
		}
	})
}
