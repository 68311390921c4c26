package client_test

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// oneImage is a server that has one image, whatever it is asked for.
type oneImage struct {
	pb.UnimplementedImageServerServer
	raw []byte
}

func (o *oneImage) image() *pb.Image {
	digest := object.Of(o.raw)
	return &pb.Image{Name: "debian/12/1", Digest: digest[:]}
}

func (o *oneImage) FindLatest(context.Context, *pb.FindLatestRequest) (*pb.FindLatestResponse, error) {
	return &pb.FindLatestResponse{Image: o.image()}, nil
}

func (o *oneImage) GetImage(_ *pb.GetImageRequest, stream grpc.ServerStreamingServer[pb.GetImageResponse]) error {
	size := uint64(len(o.raw))
	return stream.Send(&pb.GetImageResponse{Image: o.image(), Manifest: []*pb.Piece{
		{Digest: o.image().GetDigest(), Encoding: pb.Encoding_ENCODING_RAW, Size: size, StoredSize: size, Data: o.raw},
	}})
}

// TestOtherThanPinned: a server that answers with another image than that of the
// digest it was asked for is not believed: a signed configuration names its
// image by the digest, and rests on this.
func TestOtherThanPinned(t *testing.T) {
	t.Parallel()
	raw := manifest(t, files())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rpc := grpc.NewServer()
	pb.RegisterImageServerServer(rpc, &oneImage{raw: raw})
	ended := make(chan error, 1)
	go func() { ended <- rpc.Serve(listener) }()
	t.Cleanup(func() {
		rpc.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	c, err := client.Dial(t.Context(), client.Options{Address: listener.Addr().String(), Stall: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, want := range map[string]string{
		"debian/12/1":                                         "",
		"debian/12/1@" + object.Of(raw).String():              "",
		"debian/12/1@" + object.Of([]byte("signed")).String(): client.CodeWrongAnswer,
		"debian/12/1@sha256:12":                               client.CodeBadName,
	} {
		found, err := c.Manifest(t.Context(), name)
		if code(err) != want || err == nil && !bytes.Equal(found.Raw, raw) {
			t.Errorf("the manifest of %s: %v, want %q", name, err, want)
		}
		if _, err := c.Find(t.Context(), name); code(err) != want {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
