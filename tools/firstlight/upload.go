package main

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// moved counts what an upload did.
type moved struct {
	sharedObjects, sharedBytes atomic.Uint64
	newObjects, newBytes       atomic.Uint64
	packedBytes                atomic.Uint64
}

// The size of a batch of small objects that the server is asked about at once.
const (
	batchObjects = 512
	batchBytes   = 8 << 20
)

// uploader is an ingest.Sink that sends what the server lacks. Small objects
// are gathered until a batch can be asked about; what is missing is packed on
// all cores and sent while the next ones are hashed.
type uploader struct {
	connection *client.Client
	moved      *moved
	bar        *progress
	batches    chan []small
	offers     chan client.Offer
	large      ingest.Sink

	mutex sync.Mutex
	batch []small
	bytes int
}

// small is an object in memory.
type small struct {
	digest object.Digest
	data   []byte
}

// ingestAndUpload runs read with a sink that uploads, until everything is
// durable on the server.
func ingestAndUpload(ctx context.Context, connection *client.Client, bar *progress,
	read func(context.Context, ingest.Sink) (*image.Manifest, error)) (*image.Manifest, *moved, error) {
	u := &uploader{
		connection: connection, moved: new(moved), bar: bar,
		batches: make(chan []small, 1), offers: make(chan client.Offer, 64),
	}
	u.large = ingest.Packing(u.offerLarge)
	group, ctx := errgroup.WithContext(ctx)
	var manifest *image.Manifest
	var packing sync.WaitGroup // whoever may still send an offer
	packing.Add(1)
	group.Go(func() (err error) {
		defer packing.Done()
		defer close(u.batches)
		if manifest, err = read(ctx, u); err != nil {
			return err
		}
		return u.flush(ctx)
	})
	for range runtime.GOMAXPROCS(0) {
		packing.Add(1)
		group.Go(func() error {
			defer packing.Done()
			return u.pack(ctx)
		})
	}
	group.Go(func() error {
		packing.Wait()
		close(u.offers)
		return nil
	})
	group.Go(func() error { return connection.Upload(ctx, u.next) })
	if err := group.Wait(); err != nil {
		return nil, u.moved, err
	}
	return manifest, u.moved, nil
}

// Add takes one object from ingest.
func (u *uploader) Add(ctx context.Context, digest object.Digest, size uint64, open func() (io.ReadCloser, error)) error {
	if size > zstd.Whole {
		return u.addLarge(ctx, digest, size, open)
	}
	r, err := open()
	if err != nil {
		return err
	}
	data := make([]byte, size)
	_, err = io.ReadFull(r, data)
	if closeErr := r.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	u.mutex.Lock()
	u.batch = append(u.batch, small{digest, data})
	u.bytes += len(data)
	var full []small
	if len(u.batch) >= batchObjects || u.bytes >= batchBytes {
		full, u.batch, u.bytes = u.batch, nil, 0
	}
	u.mutex.Unlock()
	return u.queue(ctx, full)
}

// flush queues the last batch.
func (u *uploader) flush(ctx context.Context) error {
	u.mutex.Lock()
	last := u.batch
	u.batch = nil
	u.mutex.Unlock()
	return u.queue(ctx, last)
}

func (u *uploader) queue(ctx context.Context, batch []small) error {
	if len(batch) == 0 {
		return nil
	}
	select {
	case u.batches <- batch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pack asks about batches and packs what is missing.
func (u *uploader) pack(ctx context.Context) error {
	for batch := range u.batches {
		digests := make([]object.Digest, len(batch))
		for i, one := range batch {
			digests[i] = one.digest
		}
		have, err := u.connection.Have(ctx, digests)
		if err != nil {
			return err
		}
		for i, one := range batch {
			if have[i] {
				u.shared(uint64(len(one.data)))
				continue
			}
			info := object.Info{Digest: one.digest, Size: uint64(len(one.data))}
			encoding, encoded := zstd.Encode(nil, one.data)
			info.Encoding, info.StoredSize = encoding, uint64(len(encoded))
			if err := u.offer(ctx, client.Offer{Info: info, Bytes: io.NopCloser(bytes.NewReader(encoded))}); err != nil {
				return err
			}
		}
	}
	return nil
}

// addLarge handles an object that does not fit into memory while ingest holds
// it ready.
func (u *uploader) addLarge(ctx context.Context, digest object.Digest, size uint64, open func() (io.ReadCloser, error)) error {
	have, err := u.connection.Have(ctx, []object.Digest{digest})
	if err != nil {
		return err
	}
	if have[0] {
		u.shared(size)
		return nil
	}
	return u.large.Add(ctx, digest, size, open)
}

// offerLarge waits until the bytes have been read: they are the caller's.
func (u *uploader) offerLarge(ctx context.Context, info object.Info, encoded io.Reader) error {
	read := make(chan struct{})
	if err := u.offer(ctx, client.Offer{Info: info, Bytes: &signalling{encoded, read}}); err != nil {
		return err
	}
	select {
	case <-read:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// signalling closes a channel when it is closed.
type signalling struct {
	io.Reader
	closed chan struct{}
}

func (s *signalling) Close() error {
	close(s.closed)
	return nil
}

func (u *uploader) offer(ctx context.Context, offer client.Offer) error {
	select {
	case u.offers <- offer:
		u.moved.newObjects.Add(1)
		u.moved.newBytes.Add(offer.Size)
		u.moved.packedBytes.Add(offer.StoredSize)
		u.bar.objects(1, offer.StoredSize)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (u *uploader) shared(bytes uint64) {
	u.moved.sharedObjects.Add(1)
	u.moved.sharedBytes.Add(bytes)
	u.bar.objects(1, 0)
}

// next gives Upload what is to be sent.
func (u *uploader) next(ctx context.Context) (client.Offer, error) {
	select {
	case offer, ok := <-u.offers:
		if !ok {
			return client.Offer{}, io.EOF
		}
		return offer, nil
	case <-ctx.Done():
		return client.Offer{}, ctx.Err()
	}
}
