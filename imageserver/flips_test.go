package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
)

// flipSome flips bits in the files of a store, each anywhere in any of them.
func flipSome(t *testing.T, random *rand.Rand, data string, flips int) {
	t.Helper()
	var names []string
	var total int64
	err := filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && size(t, path) > 0 {
			names = append(names, path)
			total += size(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for range flips {
		// Mostly by size, some by file: small ones have their turn too.
		name := names[random.IntN(len(names))]
		if random.IntN(50) > 0 {
			at := random.Int64N(total)
			for _, one := range names {
				if name = one; at < size(t, one) {
					break
				}
				at -= size(t, one)
			}
		}
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		content[random.IntN(len(content))] ^= 1 << random.IntN(8)
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlips flips thousands of bits anywhere in a store: packs, their indexes, files,
// manifests, the catalog, what lists the deleted. A cache gives everything out whole
// all the same, or does not start and says why; a server without upstream gives out
// nothing that is not whole.
func TestFlips(t *testing.T) {
	t.Parallel()
	const rounds, flips = 24, 100
	above := start(t, "--data", inMemory(t), "--insecure", "--scrub-rate", "0")
	var sizes []int
	for i := range 150 {
		sizes = append(sizes, 200+i*20)
	}
	sizes = append(sizes, 300_000, 600_000)
	digests := addImage(t, insecure(t, above.address), "a/1", 0, sizes...)
	random := rand.New(rand.NewPCG(7, 11))
	data := inMemory(t)
	refused, healed, lost, whole := 0, 0.0, 0, 0
	for round := range rounds {
		args := []string{"--data", data, "--insecure", "--scrub-rate", "1000", "--scrub-interval", "1h"}
		alone := round%3 == 2
		if !alone {
			args = append(args, "--upstream", above.address)
		}
		server, log := tryStart(t, args...)
		if server == nil {
			refused++
			if !strings.Contains(log, "IMG-025: ") && !strings.Contains(log, "SRV-014: ") && !strings.Contains(log, "packs/format") {
				t.Fatalf("it does not start, without a reason:\n%s", log)
			}
			fresh(t, data)
			continue
		}
		c := insecure(t, server.address)
		found, err := c.Manifest(t.Context(), "a/1")
		if err == nil && object.Of(found.Raw) != digests[len(digests)-1] {
			t.Fatal("another manifest")
		}
		if err == nil {
			err = fetchAll(t.Context(), c, digests)
		}
		var coded *client.Error
		switch {
		case err == nil:
			whole++
		case alone && errors.As(err, &coded):
			lost++
		default:
			t.Fatalf("round %d: %v", round, err)
		}
		healed += metric(t, server.address, "imageserver_healed_objects_total", "")
		server.kill(t)
		flipSome(t, random, data, flips)
	}
	t.Logf("%d flips: %d times all came whole, %.0f objects healed by the cache, %d times damage was refused without upstream, %d times it did not start", rounds*flips, whole, healed, lost, refused)
	if healed == 0 || lost == 0 || whole < rounds/3 {
		t.Error("that is not what was to be tried")
	}
}

// fresh empties a store.
func fresh(t *testing.T, data string) {
	t.Helper()
	names, err := os.ReadDir(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.RemoveAll(filepath.Join(data, name.Name())); err != nil {
			t.Fatal(err)
		}
	}
}

// inMemory is a directory in memory: what is tested is not a disk.
func inMemory(t *testing.T) string {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", "firstlight-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// flipper stands between client and server and flips one bit of each connection.
type flipper struct {
	listener net.Listener
	to       string
	flipped  atomic.Int64
}

// newFlipper flips a bit that lies anywhere in the first span bytes of one direction
// of each connection.
func newFlipper(t *testing.T, to string, span int, up bool) *flipper {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &flipper{listener: l, to: to}
	go func() {
		for n := uint64(0); ; n++ {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			go f.relay(client, rand.New(rand.NewPCG(n, 3)), span, up)
		}
	}()
	return f
}

func (f *flipper) relay(client net.Conn, random *rand.Rand, span int, up bool) {
	defer client.Close()
	server, err := net.Dial("tcp", f.to)
	if err != nil {
		return // the client sees a connection that ends
	}
	defer server.Close()
	at := random.IntN(span)
	var both sync.WaitGroup
	pass := func(to, from net.Conn, flips bool) {
		defer to.Close()
		buffer := make([]byte, 64<<10)
		for seen := 0; ; {
			n, err := from.Read(buffer)
			if flips && seen <= at && at < seen+n {
				buffer[at-seen] ^= 1 << random.IntN(8)
				f.flipped.Add(1)
			}
			seen += n
			if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
				return // either end went away, which the other now sees
			}
		}
	}
	both.Go(func() { pass(server, client, up) })
	both.Go(func() { pass(client, server, !up) })
	both.Wait()
}

// TestFlipsOnTheWire flips thousands of bits between client and server, without TLS,
// one a connection. What arrives is right, or there is an error; and what the server
// keeps of damaged uploads is right.
func TestFlipsOnTheWire(t *testing.T) {
	t.Parallel()
	server := start(t, "--data", inMemory(t), "--insecure", "--scrub-rate", "0", "--max-transfers", "1000")
	c := insecure(t, server.address)
	digests := addImage(t, c, "a/1", 0, 300, 500, 700, 900, 4000)
	down := newFlipper(t, server.address, 10_000, false)
	up := newFlipper(t, server.address, 12_000, true)
	dial := func(ctx context.Context, f *flipper) (*client.Client, error) {
		return client.Dial(ctx, client.Options{Address: f.listener.Addr().String(), ConnectTimeout: 500 * time.Millisecond, Stall: 500 * time.Millisecond})
	}
	var whole, failed atomic.Int64
	count := func(err error) {
		if err == nil {
			whole.Add(1)
		} else {
			failed.Add(1)
		}
	}
	fetch := func(ctx context.Context) error {
		c, err := dial(ctx, down)
		if err != nil {
			return err
		}
		defer c.Close()
		found, err := c.Manifest(ctx, "a/1")
		if err != nil {
			return err
		}
		if object.Of(found.Raw) != digests[len(digests)-1] {
			t.Error("a wrong manifest came")
		}
		for _, d := range digests {
			r, err := c.Open(ctx, d)
			if err != nil {
				return err
			}
			got, err := io.ReadAll(r)
			if err == nil && object.Of(got) != d {
				t.Error("a wrong object came")
			}
			if err := errors.Join(err, r.Close()); err != nil {
				return err
			}
		}
		return nil
	}
	sendOne := func(ctx context.Context, n int) error {
		c, err := dial(ctx, up)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = tryAdd(ctx, c, fmt.Sprintf("b/%d", n), uint64(1000+n*3), 2000, 3000, 4000)
		return err
	}
	var next atomic.Int64
	var workers sync.WaitGroup
	const connections = 2400
	for range 24 {
		workers.Go(func() {
			for n := next.Add(1); n <= connections; n = next.Add(1) {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				if n%3 == 0 {
					count(sendOne(ctx, int(n)))
				} else {
					count(fetch(ctx))
				}
				cancel()
			}
		})
	}
	workers.Wait()
	flips := down.flipped.Load() + up.flipped.Load()
	t.Logf("%d flips: %d times all was right, %d times there was an error", flips, whole.Load(), failed.Load())
	if flips < 1500 || failed.Load() < 1000 || whole.Load() == 0 {
		t.Errorf("%d flips, %d errors", flips, failed.Load())
	}
	// What the server took is what its digests say, and images are complete.
	images, err := c.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range images {
		found, err := c.Manifest(t.Context(), one.Name)
		if err != nil {
			t.Errorf("%s: %v", one.Name, err)
			continue
		}
		var all []object.Digest
		for d := range found.Stored {
			all = append(all, d)
		}
		if err := fetchAll(t.Context(), c, all); err != nil {
			t.Errorf("%s: %v", one.Name, err)
		}
	}
	again := objecttest.Noise(0, 300)
	if r, err := c.Open(t.Context(), object.Of(again)); err != nil {
		t.Error(err)
	} else {
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, again) {
			t.Error(err)
		}
	}
}
