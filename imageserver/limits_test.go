package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
)

// peakMemory is the most memory, in bytes, that a process has had at once.
func peakMemory(t *testing.T, pid int) uint64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kib, err := strconv.ParseUint(string(found[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// TestManyClients: 200 clients at once, half of them slow, get everything, and
// the server stays within 512 MiB.
func TestManyClients(t *testing.T) {
	server := start(t, "--data", t.TempDir(), "--insecure", "--scrub-rate", "0")
	var sizes []int
	for range 100 {
		sizes = append(sizes, 10_000)
	}
	sizes = append(sizes, 2<<20)
	digests := addImage(t, insecure(t, server.address), "a/1", 0, sizes...)
	const clients = 200
	var group sync.WaitGroup
	var objects atomic.Int64
	for n := range clients {
		group.Go(func() {
			c, err := client.Dial(t.Context(), client.Options{Address: server.address, ConnectTimeout: time.Minute, Stall: time.Minute})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err := c.Manifest(t.Context(), "a/1"); err != nil {
				t.Error(err)
				return
			}
			err = c.Fetch(t.Context(), digests, func(p object.Piece) error {
				if n%2 == 0 {
					time.Sleep(200 * time.Microsecond)
				}
				if p.Last() {
					objects.Add(1)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if want := int64(clients * len(digests)); objects.Load() != want {
		t.Errorf("%d objects of %d", objects.Load(), want)
	}
	peak := peakMemory(t, server.cmd.Process.Pid)
	t.Logf("the server had %d MiB at most", peak>>20)
	if peak > 512<<20 {
		t.Errorf("the server had %d MiB", peak>>20)
	}
}

// TestBusy: beyond the places and the queue, the answer is "busy", and those who
// wait get their turn.
func TestBusy(t *testing.T) {
	t.Parallel()
	server := start(t, "--data", t.TempDir(), "--insecure", "--scrub-rate", "0", "--max-transfers", "1")
	c := insecure(t, server.address)
	digests := addImage(t, c, "a/1", 0, 4<<20, 30<<20)
	held := make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	got := make([]int, 1+16+1)
	errs := make([]error, len(got))
	fetch := func(i int, hold bool) {
		c := insecure(t, server.address)
		group.Go(func() {
			errs[i] = c.Fetch(ctx, digests[:2], func(p object.Piece) error {
				if hold {
					once.Do(func() { close(held) })
					waiting(t, server.address, 16)
					hold = false
				}
				if p.Last() {
					got[i]++
				}
				return nil
			})
		})
	}
	fetch(0, true)
	<-held
	for i := range 16 {
		fetch(1+i, false)
	}
	waiting(t, server.address, 16)
	err := c.Fetch(ctx, digests[:1], func(object.Piece) error { return nil })
	var coded *client.Error
	if !errors.As(err, &coded) || coded.Code() != client.CodeBusy {
		t.Errorf("the eighteenth: %v", err)
	}
	group.Wait()
	for i, err := range errs[:17] {
		if err != nil || got[i] != 2 {
			t.Errorf("client %d got %d objects, %v", i, got[i], err)
		}
	}
}

// waiting waits until so many transfers wait, or none runs any more.
func waiting(t *testing.T, address string, want float64) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for metric(t, address, "imageserver_transfers_waiting", "") < want {
		if time.Now().After(deadline) {
			t.Error("the queue does not fill")
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestDiskFull fills a small file-system: the upload is refused with its own
// code, nothing partial remains, reading goes on, and with room again the same
// server takes the same upload.
func TestDiskFull(t *testing.T) {
	for _, kind := range []string{"packs", "a file"} {
		t.Run(kind, func(t *testing.T) {
			data := t.TempDir()
			if err := unix.Mount("firstlight-test", data, "tmpfs", 0, "size=24m"); err != nil {
				t.Fatalf("mounting a tmpfs (this test needs root): %v", err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(data, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			server := start(t, "--data", data, "--insecure", "--scrub-rate", "0")
			c := insecure(t, server.address)
			digests := addImage(t, c, "a/1", 0, 1000, 300_000, 2<<20)
			before := used(t, data)
			big := func() error {
				n := 0
				return c.Upload(t.Context(), func(context.Context) (client.Offer, error) {
					n++
					switch {
					case kind == "a file" && n == 1:
						return offer(objecttest.Noise(1000, 18<<20)), nil
					case kind == "packs" && n <= 180:
						return offer(objecttest.Noise(uint64(1000+n), 100_000)), nil
					}
					return client.Offer{}, io.EOF
				})
			}
			filler := filepath.Join(data, "filler")
			if err := os.WriteFile(filler, bytes.Repeat([]byte("x"), 12<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				var coded *client.Error
				if err := big(); !errors.As(err, &coded) || coded.Code() != client.CodeFull {
					t.Errorf("upload to a full disk: %v", err)
				}
				left, err := filepath.Glob(filepath.Join(data, "tmp", "*", "*"))
				if err != nil || len(left) > 0 {
					t.Errorf("left over: %v, %v", left, err)
				}
				if now := used(t, data) - 12<<20; now > before+200_000 {
					t.Errorf("%d bytes are used, %d were", now, before)
				}
				if err := fetchAll(t.Context(), c, digests); err != nil {
					t.Error("reading:", err)
				}
			}
			if text := get(t, server.address, "/readyz?verbose"); !strings.Contains(text, "bytes left") {
				t.Error(text)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			if err := big(); err != nil {
				t.Error("with room again:", err)
			}
			if err := fetchAll(t.Context(), c, digests); err != nil {
				t.Error(err)
			}
		})
	}
}

func used(t *testing.T, path string) uint64 {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		t.Fatal(err)
	}
	return (fs.Blocks - fs.Bfree) * uint64(fs.Bsize)
}
