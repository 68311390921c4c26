package main

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	plain "google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// TestConnections: what one connection may do is bounded.
func TestConnections(t *testing.T) {
	t.Parallel()
	server := start(t, "--data", t.TempDir(), "--insecure", "--scrub-rate", "0")
	connection, err := grpc.NewClient("passthrough:///"+server.address, grpc.WithTransportCredentials(plain.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	c := pb.NewImageServerClient(connection)

	t.Run("a message of 8 MiB and no more", func(t *testing.T) {
		_, err := c.HaveObjects(t.Context(), &pb.HaveObjectsRequest{Digests: make([]byte, 9<<20)})
		if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "larger than max") {
			t.Error(err)
		}
		if _, err := c.HaveObjects(t.Context(), &pb.HaveObjectsRequest{Digests: make([]byte, 32*65536)}); err != nil {
			t.Error(err)
		}
	})
	t.Run("64 calls at once and no more", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 64 {
			stream, err := c.PutObjects(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Header(); err != nil { // it runs
				t.Fatal(err)
			}
		}
		short, end := context.WithTimeout(ctx, 300*time.Millisecond)
		defer end()
		if _, err := c.FindLatest(short, &pb.FindLatestRequest{Name: "a"}); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("the 65th call: %v", err)
		}
		cancel()
		if _, err := c.FindLatest(t.Context(), &pb.FindLatestRequest{Name: "a"}); status.Code(err) != codes.NotFound {
			t.Errorf("when the others have ended: %v", err)
		}
	})
	t.Run("who probes all the time is sent away", func(t *testing.T) {
		raw, err := net.Dial("tcp", server.address)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if err := raw.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(raw, http2.ClientPreface); err != nil {
			t.Fatal(err)
		}
		framer := http2.NewFramer(raw, raw)
		if err := framer.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		for i := range 8 {
			if err := framer.WritePing(false, [8]byte{byte(i)}); err != nil {
				break // sent away already
			}
		}
		for {
			frame, err := framer.ReadFrame()
			if err != nil {
				t.Fatalf("no GOAWAY: %v", err)
			}
			if away, ok := frame.(*http2.GoAwayFrame); ok {
				if away.ErrCode != http2.ErrCodeEnhanceYourCalm {
					t.Error(away)
				}
				return
			}
		}
	})
}

// TestStartsQuickly: a server with 100,000 objects serves within 2 seconds.
func TestStartsQuickly(t *testing.T) {
	data := inMemory(t)
	objects, err := dir.Open(data)
	if err != nil {
		t.Fatal(err)
	}
	batch := objects.Begin()
	for i := range 100_000 {
		content := objecttest.Noise(uint64(i), 200)
		info := object.Info{Digest: object.Of(content), Size: 200, StoredSize: 200}
		if err := batch.Put(t.Context(), info, strings.NewReader(string(content))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(batch.Commit(t.Context()), objects.Close()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	server := start(t, "--data", data, "--insecure", "--scrub-rate", "0")
	c := insecure(t, server.address)
	if have, err := c.Have(t.Context(), []object.Digest{object.Of(objecttest.Noise(7, 200))}); err != nil || !have[0] {
		t.Error(have, err)
	}
	took := time.Since(began)
	t.Logf("%s from the start to the first answer, with 100,000 objects", took)
	if took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
}
