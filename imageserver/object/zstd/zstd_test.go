package zstd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"testing"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// sizes around every border of the frame header and of our own.
var sizes = []int{96, 255, 256, 257, 1023, 1024, 1025, 65535 + 256, 65536 + 256, zstd.Whole - 1, zstd.Whole, zstd.Whole + 1, 3 * zstd.Whole}

func TestEncode(t *testing.T) {
	for _, size := range sizes {
		content := objecttest.Text(uint64(size), size)
		encoding, packed := zstd.Encode([]byte("before"), content)
		if encoding != object.Zstd {
			if size > 300 {
				t.Errorf("%d: text was not packed", size)
			}
			continue
		}
		packed, found := bytes.CutPrefix(packed, []byte("before"))
		if !found {
			t.Fatalf("%d: not appended", size)
		}
		if stated, err := zstd.ContentSize(packed[:min(zstd.HeadSize, len(packed))]); err != nil || stated != uint64(size) {
			t.Errorf("%d: header states %d, %v", size, stated, err)
		}
		info := object.Info{Digest: object.Of(content), Encoding: encoding, Size: uint64(size), StoredSize: uint64(len(packed))}
		out, err := zstd.Decode([]byte("kept"), info, packed)
		if err != nil || string(out) != "kept"+string(content) {
			t.Errorf("%d: %d bytes, %v", size, len(out), err)
		}
		if err := zstd.Verify(info, packed); err != nil {
			t.Errorf("%d: %v", size, err)
		}
	}
	noise := objecttest.Noise(1, 100_000)
	if encoding, b := zstd.Encode(nil, noise); encoding != object.Raw || &b[0] != &noise[0] {
		t.Errorf("noise: %s, %d bytes", encoding, len(b))
	}
}

// A person can read what is packed with the program everybody has.
func TestZstdProgramReadsIt(t *testing.T) {
	content := objecttest.Text(1, 3*zstd.Whole+5)
	var streamed bytes.Buffer
	w := zstd.NewWriter(&streamed, uint64(len(content)))
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if size, err := zstd.ContentSize(streamed.Bytes()[:zstd.HeadSize]); err != nil || size != uint64(len(content)) {
		t.Errorf("streamed header: %d, %v", size, err)
	}
	_, whole := zstd.Encode(nil, content)
	for name, packed := range map[string][]byte{"streamed": streamed.Bytes(), "whole": whole} {
		cmd := exec.Command("zstd", "-dc")
		cmd.Stdin = bytes.NewReader(packed)
		out, err := cmd.Output()
		if err != nil || !bytes.Equal(out, content) {
			t.Errorf("%s: zstd -dc: %d bytes, %v", name, len(out), err)
		}
	}
}

// What the program packs is taken, if its header states the size.
func TestZstdProgramWritesIt(t *testing.T) {
	content := objecttest.Text(2, 200_000)
	cmd := exec.Command("zstd", "-19", "-c", fmt.Sprintf("--stream-size=%d", len(content)))
	cmd.Stdin = bytes.NewReader(content)
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	info := object.Info{Digest: object.Of(content), Encoding: object.Zstd, Size: uint64(len(content)), StoredSize: uint64(len(packed))}
	if err := zstd.Verify(info, packed); err != nil {
		t.Error(err)
	}
	cmd = exec.Command("zstd", "-c")
	cmd.Stdin = bytes.NewReader(content)
	if packed, err = cmd.Output(); err != nil {
		t.Fatal(err)
	}
	info.StoredSize = uint64(len(packed))
	if err := zstd.Verify(info, packed); !errors.Is(err, object.ErrDamaged) {
		t.Errorf("a frame without its size: %v", err)
	}
}

func TestVerifier(t *testing.T) {
	for _, content := range [][]byte{nil, objecttest.Text(1, 5000), objecttest.Noise(2, 5000), objecttest.Text(3, 2*zstd.Whole+9), objecttest.Noise(4, zstd.Whole+9)} {
		info, encoded := objecttest.Encode(content)
		for _, step := range []int{1 + len(encoded)/7, len(encoded)/2 + 1, len(encoded) + 1} {
			pieces := func(b []byte) (string, error) {
				v := zstd.NewVerifier(info)
				for offset := 0; offset < len(b); offset += step {
					p := object.Piece{Info: info, Offset: uint64(offset), Data: b[offset:min(offset+step, len(b))]}
					if err := v.Add(p); err != nil {
						if closeErr := v.Close(); closeErr == nil {
							t.Error("an early error was forgotten")
						}
						return "early", err
					}
				}
				return "late", v.Close()
			}
			if when, err := pieces(encoded); err != nil {
				t.Errorf("%d bytes in steps of %d: %s: %v", len(content), step, when, err)
			}
			if len(encoded) == 0 {
				continue
			}
			flipped := bytes.Clone(encoded)
			flipped[len(flipped)-1] ^= 1
			for name, bad := range map[string][]byte{
				"cut off": encoded[:len(encoded)-1], "too long": append(bytes.Clone(encoded), 0), "flipped": flipped, "nothing": nil,
			} {
				if _, err := pieces(bad); !errors.Is(err, object.ErrDamaged) {
					t.Errorf("%d bytes in steps of %d, %s: %v", len(content), step, name, err)
				}
			}
		}
		v := zstd.NewVerifier(info)
		if err := v.Add(object.Piece{Info: info, Offset: 1, Data: []byte("x")}); !errors.Is(err, object.ErrDamaged) {
			t.Errorf("a piece out of order: %v", err)
		}
		if len(encoded) > 0 && v.Close() == nil {
			t.Error("closed without its bytes")
		}
	}
}

// A failing source is not taken for a damaged object.
func TestSourceError(t *testing.T) {
	info, encoded := objecttest.Encode(objecttest.Text(1, 2*zstd.Whole))
	broken := errors.New("I/O error")
	r, err := zstd.Open(info, io.MultiReader(bytes.NewReader(encoded[:len(encoded)/2]), failing{broken}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, broken) || errors.Is(err, object.ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A frame that states little and holds much is found out within what it
// states; one that states much is refused before anything is made.
func TestBombs(t *testing.T) {
	_, bomb := zstd.Encode(nil, make([]byte, 256<<20))
	// Frame_Content_Size is a field of four bytes behind magic, descriptor
	// and window descriptor (RFC 8878, 3.1.1.1).
	lying := bytes.Clone(bomb)
	binary.LittleEndian.PutUint32(lying[6:], 1000)
	info := object.Info{Digest: object.Digest{1}, Encoding: object.Zstd, Size: 1000, StoredSize: uint64(len(bomb))}
	var two bytes.Buffer
	_, first := zstd.Encode(nil, objecttest.Text(1, 1000))
	two.Write(first)
	two.Write(bomb)
	for name, b := range map[string][]byte{"honest": bomb, "lying": lying, "second frame": two.Bytes()} {
		info.StoredSize = uint64(len(b))
		allocated := testing.Benchmark(func(b2 *testing.B) {
			for range b2.N {
				if _, err := zstd.Decode(nil, info, b); !errors.Is(err, object.ErrDamaged) {
					t.Errorf("%s: %v", name, err)
				}
				if b2.N > 1 {
					return
				}
			}
		})
		if allocated.AllocedBytesPerOp() > 1<<24 {
			t.Errorf("%s: %d bytes allocated", name, allocated.AllocedBytesPerOp())
		}
	}
}

// Whatever is offered as an object's bytes: it is refused, or it is right, the same by
// whichever way it is verified.
func FuzzVerify(f *testing.F) {
	content := objecttest.Text(1, 3000)
	info, encoded := objecttest.Encode(content)
	f.Add(encoded, info.Size, uint8(info.Encoding), content)
	f.Add([]byte("raw"), uint64(3), uint8(0), []byte("raw"))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0}, uint64(1)<<60, uint8(1), []byte{})
	f.Fuzz(func(t *testing.T, encoded []byte, size uint64, encoding uint8, content []byte) {
		info := object.Info{Digest: object.Of(content), Encoding: object.Encoding(encoding), Size: size, StoredSize: uint64(len(encoded))}
		if info.Validate() != nil {
			return
		}
		whole := zstd.Verify(info, encoded)
		if out, err := zstd.Decode(nil, info, encoded); (err == nil) != (whole == nil) || err == nil && !bytes.Equal(out, content) {
			t.Errorf("%v, %v", whole, err)
		}
		v := zstd.NewVerifier(info)
		var err error
		for i := 0; i < len(encoded) && err == nil; i += 7 {
			_, err = v.Write(encoded[i:min(i+7, len(encoded))])
		}
		if err = errors.Join(err, v.Close()); (err == nil) != (whole == nil) {
			t.Errorf("%v, piecewise %v", whole, err)
		}
	})
}
