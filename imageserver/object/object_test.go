package object_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/firstlight/firstlight/imageserver/object"
)

func TestDigestText(t *testing.T) {
	// The digest of "abc" in FIPS 180-2, appendix B.1.
	const want = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	d := object.Of([]byte("abc"))
	if d.String() != want || d.Hex() != want[7:] {
		t.Fatalf("got %s", d)
	}
	encoded, err := json.Marshal(map[object.Digest]object.Digest{d: d})
	if err != nil || string(encoded) != `{"`+want+`":"`+want+`"}` {
		t.Fatalf("%s, %v", encoded, err)
	}
	var back map[object.Digest]object.Digest
	if err := json.Unmarshal(encoded, &back); err != nil || back[d] != d {
		t.Fatalf("%v, %v", back, err)
	}
	for _, bad := range []string{"", want[7:], want + "0", want[:len(want)-1], "sha512:" + want[7:],
		strings.ToUpper(want), "sha256:" + strings.ToUpper(want[7:]), want[:len(want)-1] + "g"} {
		if _, err := object.ParseDigest(bad); !errors.Is(err, object.ErrDigest) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDigestOrder(t *testing.T) {
	a, b := object.Digest{1}, object.Digest{2}
	if a.Compare(b) != -1 || b.Compare(a) != 1 || a.Compare(a) != 0 || a.IsZero() || !(object.Digest{}).IsZero() {
		t.Error("digests are out of order")
	}
}

func TestVerifyReader(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 1000)
	d := object.Of(content)
	flipped := bytes.Clone(content)
	flipped[5000] ^= 1
	broken := errors.New("cable pulled")
	for name, test := range map[string]struct {
		r    io.Reader
		want error
	}{
		"right":              {bytes.NewReader(content), nil},
		"byte by byte":       {iotest.OneByteReader(bytes.NewReader(content)), nil},
		"data with eof":      {iotest.DataErrReader(bytes.NewReader(content)), nil},
		"flipped bit":        {bytes.NewReader(flipped), object.ErrDamaged},
		"flipped, one":       {iotest.DataErrReader(iotest.OneByteReader(bytes.NewReader(flipped))), object.ErrDamaged},
		"cut off":            {bytes.NewReader(content[:9999]), object.ErrDamaged},
		"cut off, data":      {iotest.DataErrReader(bytes.NewReader(content[:9999])), object.ErrDamaged},
		"empty":              {bytes.NewReader(nil), object.ErrDamaged},
		"too long":           {io.MultiReader(bytes.NewReader(content), strings.NewReader("x")), object.ErrDamaged},
		"unexpected eof":     {io.MultiReader(bytes.NewReader(content), iotest.ErrReader(io.ErrUnexpectedEOF)), object.ErrDamaged},
		"failing":            {io.MultiReader(bytes.NewReader(content[:100]), iotest.ErrReader(broken)), broken},
		"failing at the end": {io.MultiReader(bytes.NewReader(content), iotest.ErrReader(broken)), broken},
	} {
		r := object.VerifyReader(test.r, d, uint64(len(content)))
		got, err := io.ReadAll(r)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if test.want == nil && !bytes.Equal(got, content) || len(got) > len(content) {
			t.Errorf("%s: %d bytes", name, len(got))
		}
		if test.want != nil {
			if _, again := r.Read(make([]byte, 1)); !errors.Is(again, test.want) {
				t.Errorf("%s: the error does not stay: %v", name, again)
			}
		}
	}
}

func TestCodes(t *testing.T) {
	var coded interface{ Code() string }
	if _, err := object.ParseDigest("x"); !errors.As(err, &coded) || coded.Code() != "IMG-004" {
		t.Errorf("%v", err)
	}
}
