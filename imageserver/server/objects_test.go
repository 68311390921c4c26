package server_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/server"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// sink is a stream whose client takes everything.
type sink struct {
	grpc.ServerStream
	ctx context.Context
}

func (s sink) Context() context.Context          { return s.ctx }
func (s sink) Send(*pb.GetObjectsResponse) error { return nil }

// TestFailingAtOnceEndsOneCallOnly: a reader that fails before the others have
// begun once ended the process, because each of them thought it was the last.
func TestFailingAtOnceEndsOneCallOnly(t *testing.T) {
	s := server.New(server.Options{
		Objects: objecttest.NewMemory(), Metrics: server.NewMetrics("test", func() int { return 0 }), Log: slog.New(slog.DiscardHandler), Workers: 8,
	})
	missing := object.Of([]byte("never added"))
	// More threads than processors, so that the system stops one of them anywhere.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(32))
	var callers errgroup.Group
	for range 3 {
		callers.Go(func() error {
			for range 40_000 {
				err := s.GetObjects(&pb.GetObjectsRequest{Digests: missing[:]}, sink{ctx: t.Context()})
				if status.Code(err) != codes.NotFound {
					return fmt.Errorf("got %w, want NotFound", err)
				}
			}
			return nil
		})
	}
	if err := callers.Wait(); err != nil {
		t.Fatal(err)
	}
}
