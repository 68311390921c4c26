package client_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// BenchmarkFetch fetches a tree of 10,000 objects over loopback from a real
// server with a directory store; the server decodes and hashes every object
// before it is sent, and so does the receiver. MB/s are unpacked bytes.
func BenchmarkFetch(b *testing.B) {
	for _, secure := range []bool{true, false} {
		name := "plaintext"
		if secure {
			name = "tls"
		}
		b.Run(name, func(b *testing.B) {
			s := newSite(b, secure)
			c := s.dial(b)
			digests, unpacked := fill(b, s)
			b.SetBytes(unpacked)
			b.ResetTimer()
			for b.Loop() {
				if n := fetchVerified(b, c, digests); n != len(digests) {
					b.Fatalf("%d of %d objects came", n, len(digests))
				}
			}
			b.ReportMetric(float64(unpacked)*float64(b.N)/1e6/b.Elapsed().Seconds(), "unpacked-MB/s")
		})
	}
}

// BenchmarkUpload uploads the same tree, packed beforehand, to an empty server.
func BenchmarkUpload(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s := newSite(b, true)
		c := s.dial(b)
		all, unpacked := tree(b, 10_000)
		b.SetBytes(unpacked)
		b.StartTimer()
		if err := c.Upload(b.Context(), offers(all...)); err != nil {
			b.Fatal(err)
		}
	}
}

// fill puts the tree into the server's store.
func fill(t testing.TB, s *site) ([]object.Digest, int64) {
	t.Helper()
	all, unpacked := tree(t, 10_000)
	batch := s.objects.Begin()
	digests := make([]object.Digest, 0, len(all))
	for _, o := range all {
		if err := batch.Put(t.Context(), o.Info, o.Bytes); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, o.Digest)
	}
	if err := batch.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return digests, unpacked
}

// fetchVerified fetches as the installer does: whole small objects are verified
// on several goroutines, large ones as their pieces come. It returns how many
// were right.
func fetchVerified(t testing.TB, c *client.Client, digests []object.Digest) int {
	t.Helper()
	type whole struct {
		info object.Info
		data []byte
	}
	work := make(chan []whole, 4)
	errs := make(chan error, runtime.GOMAXPROCS(0))
	var verifiers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		verifiers.Go(func() {
			var failed error
			for batch := range work {
				for _, w := range batch {
					failed = errors.Join(failed, zstd.Verify(w.info, w.data))
				}
			}
			errs <- failed
		})
	}
	large := map[object.Digest]*zstd.Verifier{}
	right, queued := 0, 0
	var batch []whole
	err := c.Fetch(context.WithoutCancel(t.Context()), digests, func(p object.Piece) error {
		if p.Offset == 0 && p.Last() {
			right++
			batch = append(batch, whole{p.Info, append([]byte(nil), p.Data...)})
			if queued += len(p.Data); queued > 256<<10 {
				work <- batch
				batch, queued = nil, 0
			}
			return nil
		}
		v := large[p.Digest]
		if v == nil {
			v = zstd.NewVerifier(p.Info)
			large[p.Digest] = v
		}
		if err := v.Add(p); err != nil {
			return err
		}
		if p.Last() {
			right++
			delete(large, p.Digest)
			return v.Close()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	work <- batch
	close(work)
	verifiers.Wait()
	for range runtime.GOMAXPROCS(0) {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	return right
}
