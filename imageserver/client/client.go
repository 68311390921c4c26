// Package client speaks to an image server: manifests by name, objects by
// digest, and for those with a role, adding both.
//
// Every wait ends: a server that no longer answers is found out by the
// connection's keepalive, one that answers but sends nothing by the stall
// limit, and both become an *Error with a code. Nothing is retried silently.
package client

import (
	"context"
	"crypto/tls"
	"io"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
	"google.golang.org/grpc"
)

// DefaultPort is the image server's TCP port where an address names none.
const DefaultPort = "6971"

// Options say how to reach a server. Zero durations mean the defaults.
type Options struct {
	// Address is host, host:port, an IPv4 address, or an IPv6 address with or
	// without brackets. Without a port it is DefaultPort.
	Address string
	// TLS is the client's configuration (auth.ClientTLS); nil means plaintext,
	// which only a server started with --insecure answers.
	TLS *tls.Config
	// ConnectTimeout bounds the time until the server has answered the first
	// time: 15 seconds.
	ConnectTimeout time.Duration
	// Stall bounds the time in which a call makes no progress: 60 seconds.
	Stall time.Duration
	// KeepaliveTime and KeepaliveTimeout: a connection on which nothing came
	// for KeepaliveTime (10 seconds, gRPC's least) is probed, and given up when
	// KeepaliveTimeout (20 seconds) later nothing has come.
	KeepaliveTime, KeepaliveTimeout time.Duration
}

// Client is a connection to an image server. It is safe for concurrent use.
type Client struct {
	options    Options
	address    string // host:port
	connection *grpc.ClientConn
	rpc        pb.ImageServerClient
	handshakes *handshakes
	bulk       *bulkTransport
}

// Image is a line of the server's catalog.
type Image struct {
	Name       string            `json:"name"`
	Digest     object.Digest     `json:"digest"` // of the manifest
	Added      time.Time         `json:"added"`
	Bytes      uint64            `json:"bytes"`   // unpacked bytes of the distinct files
	Objects    uint64            `json:"objects"` // distinct files
	Inodes     uint64            `json:"inodes"`
	Attributes map[string]string `json:"attributes,omitempty"`
	AddedBy    string            `json:"addedBy,omitempty"`
	// Expires is when the image may go; zero means never.
	Expires time.Time `json:"expires,omitzero"`
	// Aliases mean this image; sorted.
	Aliases []string `json:"aliases,omitempty"`
}

// Due is an image whose time has come.
type Due struct {
	Image
	Reason string `json:"reason"`
}

// Garbage is what CollectGarbage deleted, or would delete.
type Garbage struct {
	Images  []Due  `json:"images"`
	Checked uint64 `json:"checkedObjects"`
	Objects uint64 `json:"objects"`
	Bytes   uint64 `json:"bytes"`         // in the store
	Recent  uint64 `json:"recentObjects"` // that no image needs, too young to go
}

// Found is an image's manifest and what the server says of its objects.
type Found struct {
	Image
	// Raw is the encoded manifest; its SHA-256 is Digest, which has been
	// checked.
	Raw []byte
	// Stored maps each object of the manifest to the bytes it has in the
	// server's store. A hint: unsigned, and an object may be missing from it.
	Stored map[object.Digest]uint64
}

// Offer is an object to upload: its encoded bytes. Upload closes Bytes.
type Offer struct {
	object.Info
	Bytes io.ReadCloser
}

// Dial connects to the server and waits until it has answered. The error is an
// *Error. The caller closes the Client.
func Dial(ctx context.Context, options Options) (*Client, error) { return dial(ctx, options) }

// Close gives up the connection; calls that run end with an error.
func (c *Client) Close() error {
	c.bulk.close()
	return c.connection.Close()
}

// Manifest gets an image's manifest. name is an image, a stream (its newest
// image is meant), or either with "@sha256:<hex>" behind it.
func (c *Client) Manifest(ctx context.Context, name string) (Found, error) {
	return c.manifest(ctx, name)
}

// Find is the image of that name, or the one that was added last below it.
func (c *Client) Find(ctx context.Context, name string) (Image, error) { return c.find(ctx, name) }

// List is the images whose name is, or lies below, prefix, sorted by name; all
// where prefix is empty.
func (c *Client) List(ctx context.Context, prefix string) ([]Image, error) {
	return c.list(ctx, prefix)
}

// Have says for each object whether the server has it.
func (c *Client) Have(ctx context.Context, digests []object.Digest) ([]bool, error) {
	return c.have(ctx, digests)
}

// Fetch gets objects and hands their encoded bytes to f, piece by piece, from
// one goroutine. The pieces of an object come in order; the objects come in
// any order, each once. Fetch checks that what comes is what was asked for and
// complete; whether the bytes are what their digest says is for f to verify
// (zstd.Verifier). An error of f ends the call and is returned as it is.
func (c *Client) Fetch(ctx context.Context, digests []object.Digest, f func(object.Piece) error) error {
	return c.fetch(ctx, digests, f)
}

// Open gets one object, unpacked and verified: Client is an object.Getter.
func (c *Client) Open(ctx context.Context, digest object.Digest) (io.ReadCloser, error) {
	return c.open(ctx, digest)
}

// Upload sends objects until next answers io.EOF. When it returns nil all of
// them are verified by the server and durable. next is called from one
// goroutine, with a context that ends when the call is over; its other errors
// end the call and are returned as they are.
func (c *Client) Upload(ctx context.Context, next func(context.Context) (Offer, error)) error {
	return c.upload(ctx, next)
}

// AddImage gives a manifest a name. All its objects must be on the server. The
// answer's second value says whether the same image had the name already.
func (c *Client) AddImage(ctx context.Context, name string, raw []byte) (Image, bool, error) {
	return c.addImage(ctx, name, raw)
}

// Promote lets alias mean the image that name resolves to. The answer is that
// image, and the name of the one that alias meant before, empty where it is new.
func (c *Client) Promote(ctx context.Context, name, alias string) (Image, string, error) {
	return c.promote(ctx, name, alias)
}

// Expire sets when an image of exactly this name may go, only if it has the
// manifest digest unless that is zero. The zero time means never.
func (c *Client) Expire(ctx context.Context, name string, digest object.Digest, expires time.Time) (Image, error) {
	return c.expire(ctx, name, digest, expires)
}

// Retain sets how many of the newest images directly below a stream are kept; 0
// means all. The answer is the images that go by it; with dryRun nothing changes.
func (c *Client) Retain(ctx context.Context, stream string, keep uint32, dryRun bool) ([]Due, error) {
	return c.retain(ctx, stream, keep, dryRun)
}

// CollectGarbage deletes images whose time has come and objects that no image
// needs and nobody used within grace; a negative grace is the server's default.
// With dryRun nothing changes. report, which may be nil, hears how far it is.
func (c *Client) CollectGarbage(ctx context.Context, grace time.Duration, dryRun bool, report func(Garbage)) (Garbage, error) {
	return c.collectGarbage(ctx, grace, dryRun, report)
}

// Delete takes a name away, only from the manifest digest unless that is zero.
// The answer is the image as it was. An alias goes by itself; the answer is the
// image that it meant.
func (c *Client) Delete(ctx context.Context, name string, digest object.Digest) (Image, error) {
	return c.delete(ctx, name, digest)
}
