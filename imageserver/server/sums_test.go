package server

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/proto/imageserver/bulk"
)

// meddling is a store that does something when an object has been read.
type meddling struct {
	object.Store
	then func()
}

func (m meddling) OpenStored(ctx context.Context, digest object.Digest) (*object.Stored, error) {
	stored, err := m.Store.OpenStored(ctx, digest)
	if err == nil {
		stored.ReadCloser = &meddlingReader{stored.ReadCloser, m.then}
	}
	return stored, err
}

type meddlingReader struct {
	io.ReadCloser
	then func()
}

func (m *meddlingReader) Read(p []byte) (int, error) {
	m.then()
	return m.ReadCloser.Read(p)
}

// An object whose sum makes room for another's, or is replaced, while it is sent
// is not damaged.
func TestASumThatIsForgottenMeanwhile(t *testing.T) {
	t.Parallel()
	store := objecttest.NewMemory()
	info, encoded := objecttest.Encode(objecttest.Noise(1, 3*bulk.MaxPiece))
	if err := store.Put(t.Context(), info, bytes.NewReader(encoded)); err != nil {
		t.Fatal(err)
	}
	var known sums
	send := func(store object.Store) error {
		frames := make(chan *bulk.Frame, 16)
		f := &filler{store: store, sums: &known, frames: frames}
		defer f.drop()
		return f.object(t.Context(), 0, info.Digest)
	}
	if err := send(store); err != nil { // from now on its sum is known
		t.Fatal(err)
	}
	if _, ok := known.known(info); !ok {
		t.Fatal("nothing was learnt")
	}
	if err := send(meddling{store, func() { known.forget(info.Digest) }}); err != nil {
		t.Errorf("forgotten meanwhile: %v", err)
	}
	if err := send(store); err != nil { // and known again
		t.Fatal(err)
	}
	other := info
	other.StoredSize++
	if err := send(meddling{store, func() { known.learn(other, 1) }}); err != nil {
		t.Errorf("replaced meanwhile: %v", err)
	}
}
