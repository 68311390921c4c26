// Package server answers image servers' RPCs and shows its pages: the wire side
// of a catalog and an object.Store.
//
// It verifies every object that it sends, completely, before the client can
// have all of it, and every object that it takes, before it exists. It decides
// nothing about who may call: proto/auth does, by Policy.
package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/proto/auth"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// Images keeps the entries of the catalog; catalog/store.Store is one. Its
// errors about names are *catalog.Error. It is safe for concurrent use.
type Images interface {
	Names
	Resolve(name string) (catalog.Entry, error)
	List(prefix string) []catalog.Entry
	Add(entry catalog.Entry) (catalog.Entry, bool, error)
	Delete(name string, digest object.Digest) (catalog.Entry, error)
}

// Batch takes many objects and makes them visible and durable together. Put is
// safe for concurrent use; Commit and Abort come after all Puts, and Abort does
// nothing after Commit.
type Batch interface {
	Put(ctx context.Context, info object.Info, r io.Reader) error
	Commit(ctx context.Context) error
	Abort() error
}

// Options are what a Server works with.
type Options struct {
	Objects object.Store
	// Begin begins a Batch of Objects; nil where the store has none, and every
	// object is then put by itself.
	Begin  func() Batch
	Images Images
	// Shared is the store again where other servers use it too, else nil.
	Shared Shared
	// Ready says whether the stores can be used now.
	Ready   func(ctx context.Context) error
	Metrics *Metrics
	Log     *slog.Logger
	// Workers is how many goroutines read, decode and hash for one call.
	Workers int
	// Transfers is how many calls send or take objects at once: 64
	// where it is 0. Sixteen times as many wait in a queue.
	Transfers int
	// Damaged is told of an object that turned out damaged as it was read; after
	// it returns, the object is read once more. nil: nobody is told.
	Damaged func(ctx context.Context, digest object.Digest)
	// Scrub says what is known of damage; nil where nobody looks for it.
	Scrub func() Scrub
	// ReadOnly refuses every change of what is there, except garbage collection,
	// with this text where it is not empty.
	ReadOnly string
	Version  string    // shown on the page
	Started  time.Time // shown on the page; before it, no use of an object is known
	TLS      bool      // shown on the page
}

// Server is the service firstlight.imageserver.v1.ImageServer.
type Server struct {
	pb.UnimplementedImageServerServer
	options Options
	health  *health.Server
	sizes   sizeCache
	sums    sums
	uses    uses
	places  *places
	// manifests bounds how many manifests are decoded at once: each may take
	// tens of megabytes, none takes long.
	manifests *places
	// collecting is held while garbage is collected.
	collecting sync.Mutex
}

// New is a Server; Register makes it reachable.
func New(options Options) *Server {
	if options.Workers < 1 {
		options.Workers = 1
	}
	if options.Started.IsZero() {
		options.Started = time.Now()
	}
	if options.Begin == nil {
		options.Begin = func() Batch { return single{options.Objects} }
	}
	if options.Transfers < 1 {
		options.Transfers = defaultTransfers
	}
	s := &Server{options: options, health: health.NewServer(), places: newPlaces(options.Transfers), manifests: newPlaces(manifestsAtOnce)}
	options.Metrics.transfers(s.places)
	if options.Scrub != nil {
		options.Metrics.scrub(options.Scrub)
	}
	return s
}

// Register adds the service and grpc.health.v1 to a gRPC server.
func (s *Server) Register(registrar grpc.ServiceRegistrar) {
	pb.RegisterImageServerServer(registrar, s)
	healthpb.RegisterHealthServer(registrar, s.health)
	s.health.SetServingStatus(pb.ImageServer_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
}

// Shutdown tells those who watch the health that no new calls are wanted.
func (s *Server) Shutdown() { s.health.Shutdown() }

// Policy says who may call what: anyone reads, operators write.
func Policy() auth.Policy {
	return auth.Policy{
		pb.ImageServer_GetImage_FullMethodName:       auth.Anyone,
		pb.ImageServer_FindLatest_FullMethodName:     auth.Anyone,
		pb.ImageServer_ListImages_FullMethodName:     auth.Anyone,
		pb.ImageServer_HaveObjects_FullMethodName:    auth.Anyone,
		pb.ImageServer_GetObjects_FullMethodName:     auth.Anyone,
		pb.ImageServer_PutObjects_FullMethodName:     auth.Operator,
		pb.ImageServer_AddImage_FullMethodName:       auth.Operator,
		pb.ImageServer_DeleteImage_FullMethodName:    auth.Operator,
		pb.ImageServer_Promote_FullMethodName:        auth.Operator,
		pb.ImageServer_SetExpiry_FullMethodName:      auth.Operator,
		pb.ImageServer_SetRetention_FullMethodName:   auth.Operator,
		pb.ImageServer_CollectGarbage_FullMethodName: auth.Operator,
		healthpb.Health_Check_FullMethodName:         auth.Anyone,
		healthpb.Health_Watch_FullMethodName:         auth.Anyone,
		healthpb.Health_List_FullMethodName:          auth.Anyone,
	}
}

// single is a Batch of a store that has none.
type single struct{ store object.Store }

func (s single) Put(ctx context.Context, info object.Info, r io.Reader) error {
	return s.store.Put(ctx, info, r)
}
func (single) Commit(ctx context.Context) error { return ctx.Err() }
func (single) Abort() error                     { return nil }

// manifestsAtOnce is how many manifests are decoded at once.
const manifestsAtOnce = 8

// defaultTransfers is how many transfers run at once unless something else is
// said: several for each core of a large server, in a quarter of a gigabyte.
const defaultTransfers = 64

// writable is an error where the server may not be changed.
func (s *Server) writable() error {
	if s.options.ReadOnly == "" {
		return nil
	}
	return status.Error(codes.FailedPrecondition, s.options.ReadOnly)
}

const (
	maxDigests  = 65536
	maxManifest = 512 << 20 // unpacked bytes
	message     = 1 << 20   // bytes of objects in one message, about
	sizesInOne  = 100_000   // stored sizes in one message
	imagesInOne = 100       // lines of the catalog in one message
)

// GetImage sends an image's manifest.
func (s *Server) GetImage(request *pb.GetImageRequest, stream grpc.ServerStreamingServer[pb.GetImageResponse]) error {
	ctx := stream.Context()
	if err := s.manifests.take(ctx, silent); err != nil {
		return s.failed("GetImage", err)
	}
	defer s.manifests.leave()
	entry, err := s.options.Images.Resolve(request.GetName())
	if err != nil {
		return s.failed("GetImage", err)
	}
	stored, encoded, raw, err := s.readManifest(ctx, entry)
	if err != nil {
		return s.failed("GetImage", err)
	}
	sizes, err := s.storedSizes(ctx, entry.Name, entry.Digest, raw)
	if err != nil {
		return s.failed("GetImage", err)
	}
	answer := &pb.GetImageResponse{Image: s.imageToWire(entry)}
	for offset := uint64(0); offset < stored.StoredSize || offset == 0; offset += message {
		data := encoded[offset:min(offset+message, stored.StoredSize)]
		answer.Manifest = []*pb.Piece{pieceToWire(object.Piece{Info: stored, Offset: offset, Data: data})}
		if err := stream.Send(answer); err != nil {
			return err
		}
		answer = &pb.GetImageResponse{}
	}
	for ; len(sizes) > 0; sizes = sizes[min(sizesInOne, len(sizes)):] {
		if err := stream.Send(&pb.GetImageResponse{StoredSizes: sizes[:min(sizesInOne, len(sizes))]}); err != nil {
			return err
		}
	}
	return nil
}

// readManifest reads an image's manifest, as it is stored and unpacked. A damaged one
// is read a second time after somebody was told, who may have healed it.
func (s *Server) readManifest(ctx context.Context, entry catalog.Entry) (stored object.Info, encoded, raw []byte, err error) {
	stored, encoded, raw, err = s.readManifestOnce(ctx, entry.Digest)
	if s.options.Damaged != nil && errors.Is(err, object.ErrDamaged) {
		s.options.Damaged(ctx, entry.Digest)
		healed, encodedAgain, rawAgain, again := s.readManifestOnce(ctx, entry.Digest)
		if again == nil || !errors.Is(again, object.ErrNotFound) {
			stored, encoded, raw, err = healed, encodedAgain, rawAgain, again
		}
	}
	if err != nil {
		err = fmt.Errorf("manifest of %s: %w", entry.Name, err)
	}
	return stored, encoded, raw, err
}

func (s *Server) readManifestOnce(ctx context.Context, digest object.Digest) (info object.Info, encoded, raw []byte, err error) {
	stored, err := s.options.Objects.OpenStored(ctx, digest)
	if err != nil {
		return info, nil, nil, err
	}
	defer func() { err = errors.Join(err, stored.Close()) }()
	if stored.Size > maxManifest || stored.StoredSize > maxManifest {
		return info, nil, nil, object.ErrDamaged
	}
	encoded = make([]byte, stored.StoredSize)
	if _, err := io.ReadFull(stored, encoded); err != nil {
		return info, nil, nil, cutOff(err)
	}
	raw, err = zstd.Decode(nil, stored.Info, encoded)
	return stored.Info, encoded, raw, err
}

// storedSizes are the stored bytes of a manifest's objects, 0 for missing ones.
func (s *Server) storedSizes(ctx context.Context, name string, digest object.Digest, raw []byte) ([]uint64, error) {
	if sizes, ok := s.sizes.get(digest); ok {
		return sizes, nil
	}
	manifest, err := image.Decode(raw)
	if err != nil {
		return nil, err
	}
	objects := manifest.Objects()
	infos, err := s.stat(ctx, objects)
	if err != nil {
		return nil, err
	}
	sizes := make([]uint64, len(objects))
	for i, wanted := range objects {
		sizes[i] = infos[wanted.Digest].StoredSize
	}
	whole := len(infos) == len(objects)
	if remote, ok := s.options.Objects.(remoteSizes); ok && !whole {
		whole = s.askSizes(ctx, remote, name, digest, objects, sizes)
	}
	if whole {
		s.sizes.put(digest, sizes)
	}
	return sizes, nil
}

// remoteSizes is a store that can ask another one how many bytes objects have there
// that it lacks itself.
type remoteSizes interface {
	StoredSizes(ctx context.Context, name string, manifest object.Digest) (map[object.Digest]uint64, error)
}

// askSizes fills in the sizes of objects that are not here, and says whether none is
// left open. They are hints: where nobody answers, they stay 0.
func (s *Server) askSizes(ctx context.Context, remote remoteSizes, name string, digest object.Digest, objects []image.Object, sizes []uint64) bool {
	known, err := remote.StoredSizes(ctx, name, digest)
	if err != nil {
		s.options.Log.Warn("asking upstream for the sizes of an image's objects", "name", name, "error", err)
		return false
	}
	whole := true
	for i, wanted := range objects {
		if sizes[i] == 0 {
			sizes[i] = known[wanted.Digest]
		}
		whole = whole && sizes[i] != 0
	}
	return whole
}

// stat looks up objects on several goroutines; missing ones are left out.
func (s *Server) stat(ctx context.Context, objects []image.Object) (map[object.Digest]object.Info, error) {
	digests := make([]object.Digest, len(objects))
	for i, wanted := range objects {
		digests[i] = wanted.Digest
	}
	infos, err := statAll(ctx, s.options.Objects, s.options.Workers, digests)
	if err != nil {
		return nil, err
	}
	found := make(map[object.Digest]object.Info, len(infos))
	for _, info := range infos {
		found[info.Digest] = info
	}
	return found, nil
}

// FindLatest names an image.
func (s *Server) FindLatest(_ context.Context, request *pb.FindLatestRequest) (*pb.FindLatestResponse, error) {
	entry, err := s.options.Images.Resolve(request.GetName())
	if err != nil {
		return nil, s.failed("FindLatest", err)
	}
	return &pb.FindLatestResponse{Image: s.imageToWire(entry)}, nil
}

// ListImages sends lines of the catalog.
func (s *Server) ListImages(request *pb.ListImagesRequest, stream grpc.ServerStreamingServer[pb.ListImagesResponse]) error {
	if prefix := request.GetPrefix(); prefix != "" {
		if err := catalog.CheckName(prefix); err != nil {
			return s.failed("ListImages", err)
		}
	}
	answer := &pb.ListImagesResponse{}
	for _, entry := range s.options.Images.List(request.GetPrefix()) {
		answer.Images = append(answer.Images, s.imageToWire(entry))
		if len(answer.Images) == imagesInOne {
			if err := stream.Send(answer); err != nil {
				return err
			}
			answer = &pb.ListImagesResponse{}
		}
	}
	return stream.Send(answer)
}

// HaveObjects says which objects are there.
func (s *Server) HaveObjects(ctx context.Context, request *pb.HaveObjectsRequest) (*pb.HaveObjectsResponse, error) {
	digests, err := splitDigests(request.GetDigests())
	if err != nil {
		return nil, err
	}
	// Who may add images will rely on the answer, so garbage must not go
	// between the look and the note.
	relied := auth.PeerOf(ctx).Role >= auth.Operator
	if relied {
		s.uses.gate.RLock()
		defer s.uses.gate.RUnlock()
	}
	infos, err := statAll(ctx, s.options.Objects, s.options.Workers, digests)
	if err != nil {
		return nil, s.failed("HaveObjects", err)
	}
	if relied {
		now := time.Now()
		for _, info := range infos {
			s.uses.note(now, info.Digest)
		}
	}
	there := make(map[object.Digest]bool, len(infos))
	for _, info := range infos {
		there[info.Digest] = true
	}
	answer := &pb.HaveObjectsResponse{Have: make([]bool, len(digests))}
	for i, digest := range digests {
		answer.Have[i] = there[digest]
	}
	return answer, nil
}

// AddImage gives a manifest a name.
func (s *Server) AddImage(stream grpc.ClientStreamingServer[pb.AddImageRequest, pb.AddImageResponse]) error {
	ctx := stream.Context()
	if err := s.writable(); err != nil {
		return err
	}
	if err := s.manifests.take(ctx, silent); err != nil {
		return s.failed("AddImage", err)
	}
	defer s.manifests.leave()
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	name := first.GetName()
	if err := catalog.CheckName(name); err != nil {
		return s.failed("AddImage", err)
	}
	info, encoded, err := receiveManifest(first, stream)
	if err != nil {
		return err
	}
	raw, err := zstd.Decode(nil, info, encoded)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "the manifest: %v", err)
	}
	manifest, err := image.Decode(raw)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "the manifest: %v", err)
	}
	s.uses.gate.RLock()
	defer s.uses.gate.RUnlock()
	if err := s.reviveAll(ctx, info.Digest, manifest); err != nil {
		return s.failed("AddImage", err)
	}
	if err := s.complete(ctx, manifest); err != nil {
		return err
	}
	added, existed, err := s.add(ctx, catalog.Entry{
		Name: name, Digest: info.Digest, AddedBy: auth.PeerOf(ctx).Name,
		Bytes: manifest.Bytes(), Objects: uint64(len(manifest.Objects())), Inodes: uint64(manifest.Inodes()),
		Attributes: manifest.Attributes,
	}, info, raw)
	if err != nil {
		return s.failed("AddImage", err)
	}
	if err := s.stillComplete(ctx, added, existed, manifest); err != nil {
		return s.failed("AddImage", err)
	}
	s.uses.arrived(ctx)
	return stream.SendAndClose(&pb.AddImageResponse{Image: s.imageToWire(added), Existed: existed})
}

// add stores the manifest, then the entry that makes it visible.
func (s *Server) add(ctx context.Context, entry catalog.Entry, info object.Info, raw []byte) (catalog.Entry, bool, error) {
	encoding, encoded := zstd.Encode(nil, raw)
	info.Encoding, info.StoredSize = encoding, uint64(len(encoded))
	if err := s.put(ctx, info, encoded); err != nil {
		return entry, false, err
	}
	added, existed, err := s.options.Images.Add(entry)
	if err != nil {
		return entry, false, err
	}
	s.options.Log.Info("image added", "name", added.Name, "digest", added.Digest, "by", added.AddedBy, "existed", existed)
	return added, existed, nil
}

// complete says which of a manifest's objects are not there.
func (s *Server) complete(ctx context.Context, manifest *image.Manifest) error {
	objects := manifest.Objects()
	infos, err := s.stat(ctx, objects)
	if err != nil {
		return s.failed("AddImage", err)
	}
	missing := 0
	var example image.Object
	for _, wanted := range objects {
		info, there := infos[wanted.Digest]
		if !there {
			missing++
			example = wanted
			continue
		}
		if info.Size != wanted.Size {
			return status.Errorf(codes.InvalidArgument, "the manifest gives object %s %d bytes, it has %d", wanted.Digest, wanted.Size, info.Size)
		}
	}
	if missing > 0 {
		return status.Errorf(codes.FailedPrecondition, "%d of the image's %d objects are not on the server, such as %s; upload them first", missing, len(objects), example.Digest)
	}
	return nil
}

func receiveManifest(request *pb.AddImageRequest, stream grpc.ClientStreamingServer[pb.AddImageRequest, pb.AddImageResponse]) (object.Info, []byte, error) {
	var info object.Info
	var encoded []byte
	if len(request.GetDigest()) != len(info.Digest) {
		return info, nil, status.Error(codes.InvalidArgument, "the first message names no digest")
	}
	announced := object.Digest(request.GetDigest())
	for {
		for _, wire := range request.GetManifest() {
			piece, err := pieceFromWire(wire)
			if err != nil {
				return info, nil, err
			}
			if piece.Size > maxManifest || piece.StoredSize > maxManifest {
				return info, nil, status.Errorf(codes.InvalidArgument, "a manifest may have %d bytes", maxManifest)
			}
			if piece.Digest != announced || piece.Offset != uint64(len(encoded)) || len(encoded) > 0 && piece.Info != info {
				return info, nil, status.Error(codes.InvalidArgument, "the pieces of the manifest do not fit together")
			}
			info = piece.Info
			encoded = append(encoded, piece.Data...)
		}
		var err error
		request, err = stream.Recv()
		if err == io.EOF {
			return info, encoded, nil
		}
		if err != nil {
			return info, nil, err
		}
	}
}

// DeleteImage takes a name away.
func (s *Server) DeleteImage(ctx context.Context, request *pb.DeleteImageRequest) (*pb.DeleteImageResponse, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	digest, err := optionalDigest(request.GetDigest())
	if err != nil {
		return nil, err
	}
	by := auth.PeerOf(ctx).Name
	alias, ok, err := s.options.Images.DeleteAlias(request.GetName())
	if err != nil {
		return nil, s.failed("DeleteImage", err)
	}
	if ok {
		s.options.Log.Info("alias deleted", "alias", alias.Name, "name", alias.Image, "by", by)
		// The image is there as long as an alias means it; until just now.
		entry, err := s.options.Images.Resolve(alias.Image)
		if err != nil {
			return nil, s.failed("DeleteImage", err)
		}
		return &pb.DeleteImageResponse{Image: s.imageToWire(entry), Alias: true}, nil
	}
	entry, err := s.options.Images.Delete(request.GetName(), digest)
	if err != nil {
		return nil, s.failed("DeleteImage", err)
	}
	s.options.Log.Info("image deleted", "name", entry.Name, "digest", entry.Digest, "by", by)
	return &pb.DeleteImageResponse{Image: s.imageToWire(entry)}, nil
}

// temporary says whether the same call may succeed later, as when upstream
// cannot be reached.
func temporary(err error) bool {
	var e interface{ Temporary() bool }
	return errors.As(err, &e) && e.Temporary()
}

// full says that the disk is full, so that a client can tell this from a busy
// server.
func (s *Server) full(call string, err error) error {
	s.options.Log.Error("call failed", "call", call, "error", err)
	answer := status.New(codes.ResourceExhausted, "the image server's disk is full: "+err.Error())
	detailed, detailErr := answer.WithDetails(&errdetails.ErrorInfo{Reason: ReasonFull, Domain: pb.ImageServer_ServiceDesc.ServiceName})
	if detailErr != nil {
		return answer.Err()
	}
	return detailed.Err()
}

// ReasonFull is the reason (google.rpc.ErrorInfo) of RESOURCE_EXHAUSTED where the
// disk is full; without it, the server is busy.
const ReasonFull = "STORE_FULL"

// failed is an error as it goes over the wire. What points at damage or a
// failing disk is logged here, because only this machine's operator can mend it.
func (s *Server) failed(call string, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	var name *catalog.Error
	code := codes.Internal
	switch {
	case errors.As(err, &name):
		code = map[catalog.Kind]codes.Code{
			catalog.BadName: codes.InvalidArgument, catalog.NotFound: codes.NotFound, catalog.Taken: codes.AlreadyExists,
			catalog.InUse: codes.FailedPrecondition,
		}[name.Kind]
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, "the call was cancelled")
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, "the call took too long")
	case errors.Is(err, object.ErrRefused):
		code = codes.InvalidArgument
	case errors.Is(err, object.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, object.ErrDamaged), errors.Is(err, image.ErrMalformed):
		code = codes.DataLoss
	case temporary(err):
		code = codes.Unavailable
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return s.full(call, err)
	}
	switch code {
	case codes.DataLoss, codes.Unavailable, codes.Internal:
		s.options.Log.Error("call failed", "call", call, "error", err)
	}
	return status.Error(code, err.Error())
}

// sizeCache remembers the stored sizes of the manifests that were asked for
// last: machines install the same image by the hundred.
type sizeCache struct {
	mutex   sync.Mutex
	order   []object.Digest // oldest first
	byImage map[object.Digest][]uint64
}

// cachedManifests times a million objects are 64 MB at most.
const cachedManifests = 8

func (c *sizeCache) get(digest object.Digest) ([]uint64, bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	sizes, ok := c.byImage[digest]
	return sizes, ok
}

func (c *sizeCache) put(digest object.Digest, sizes []uint64) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	if _, there := c.byImage[digest]; there {
		return
	}
	if c.byImage == nil {
		c.byImage = map[object.Digest][]uint64{}
	}
	if len(c.order) == cachedManifests {
		delete(c.byImage, c.order[0])
		c.order = c.order[1:]
	}
	c.order = append(c.order, digest)
	c.byImage[digest] = sizes
}
