package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/proto/auth"
	pb "github.com/firstlight/firstlight/proto/imageserver/v1"
)

// Names is what an image's life asks of the catalog; catalog/store.Store has it.
// Its errors about names are *catalog.Error. It is safe for concurrent use.
type Names interface {
	AliasesOf(image string) []string
	Promote(alias, target, by string) (now catalog.Entry, before string, err error)
	DeleteAlias(name string) (catalog.Alias, bool, error)
	Expire(name string, digest object.Digest, expires time.Time) (catalog.Entry, error)
	Retain(stream string, keep int, by string) error
	Due() []catalog.Due
	// DueIf is Due as it would be if the retention were set.
	DueIf(retention catalog.Retention) []catalog.Due
}

const (
	// defaultGrace is how long an object that no image needs stays after it was
	// sent or asked for: the image that it belongs to may still be on its way.
	defaultGrace = time.Hour
	// dueInterval is the time between looks for images whose time has come.
	dueInterval = time.Minute
	// deleteBatch is how many objects are deleted while nobody may add an image.
	deleteBatch = 256
	// sharedDeleteBatch is the same where each batch asks a bucket several times.
	sharedDeleteBatch = 8192
)

// uses remembers when objects were last sent or asked for by somebody who may
// add images, and which uploads run. What happened before this process counts
// as having happened when it started.
type uses struct {
	// gate is held for reading from the look whether an object is there until
	// its use is noted, or until the image that needs it has its name; and for
	// writing while objects are deleted.
	gate sync.RWMutex

	mutex   sync.Mutex
	last    map[object.Digest]time.Time
	uploads map[*uploading]struct{}
}

// uploading is an upload that runs, or that ended lately and whose image has not
// come yet.
type uploading struct {
	connection   string
	began, ended time.Time // ended is zero while it runs
}

// linger is how long an upload that has ended protects like one that runs, unless
// an image came over the same connection.
const linger = time.Minute

// connectionOf tells connections apart.
func connectionOf(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
}

func (u *uses) note(now time.Time, digests ...object.Digest) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	if u.last == nil {
		u.last = make(map[object.Digest]time.Time)
	}
	for _, digest := range digests {
		u.last[digest] = now
	}
}

// begin notes an upload; its end is to be called when it is over.
func (u *uses) begin(ctx context.Context) (end func()) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	if u.uploads == nil {
		u.uploads = make(map[*uploading]struct{})
	}
	one := &uploading{connection: connectionOf(ctx), began: time.Now()}
	u.uploads[one] = struct{}{}
	return func() {
		u.mutex.Lock()
		defer u.mutex.Unlock()
		one.ended = time.Now()
	}
}

// arrived notes that an image came over the connection of uploads that ended.
func (u *uses) arrived(ctx context.Context) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	connection := connectionOf(ctx)
	for one := range u.uploads {
		if !one.ended.IsZero() && (one.connection == connection || time.Since(one.ended) > linger) {
			delete(u.uploads, one)
		}
	}
}

// since is the time before which a use protects no more: now less the grace, but
// not after the beginning of an upload that runs or has just ended.
func (u *uses) since(now time.Time, grace time.Duration) time.Time {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	since := now.Add(-grace)
	for one := range u.uploads {
		if !one.ended.IsZero() && now.Sub(one.ended) > linger {
			delete(u.uploads, one)
		} else if one.began.Before(since) {
			since = one.began
		}
	}
	return since
}

// recent says whether an object was used after since.
func (u *uses) recent(digest object.Digest, since, started time.Time) bool {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	last := u.last[digest]
	if last.Before(started) {
		last = started
	}
	return last.After(since)
}

// forget drops what protects nothing any more.
func (u *uses) forget(since time.Time) {
	u.mutex.Lock()
	defer u.mutex.Unlock()
	for digest, last := range u.last {
		if !last.After(since) {
			delete(u.last, digest)
		}
	}
}

// Keep deletes images whose time has come, now and then, until ctx ends. Their
// objects stay until garbage is collected.
func (s *Server) Keep(ctx context.Context) {
	ticker := time.NewTicker(dueInterval)
	defer ticker.Stop()
	for {
		if _, err := s.deleteDue(s.options.Images.Due()); err != nil {
			s.options.Log.Error("deleting images whose time has come", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// deleteDue deletes images and returns those that are gone. One that changed in
// the meantime stays.
func (s *Server) deleteDue(due []catalog.Due) ([]catalog.Due, error) {
	var gone []catalog.Due
	for _, one := range due {
		_, err := s.options.Images.Delete(one.Entry.Name, one.Entry.Digest)
		var name *catalog.Error
		switch {
		case errors.As(err, &name): // deleted or promoted just now
		case err != nil:
			return gone, err
		default:
			s.options.Log.Info("image deleted", "name", one.Entry.Name, "digest", one.Entry.Digest, "reason", one.Reason)
			gone = append(gone, one)
		}
	}
	return gone, nil
}

// Promote moves an alias.
func (s *Server) Promote(ctx context.Context, request *pb.PromoteRequest) (*pb.PromoteResponse, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	by := auth.PeerOf(ctx).Name
	entry, before, err := s.options.Images.Promote(request.GetAlias(), request.GetName(), by)
	if err != nil {
		return nil, s.failed("Promote", err)
	}
	s.options.Log.Info("image promoted", "alias", request.GetAlias(), "name", entry.Name, "before", before, "by", by)
	return &pb.PromoteResponse{Image: s.imageToWire(entry), Previous: before}, nil
}

// SetExpiry sets when an image may go.
func (s *Server) SetExpiry(ctx context.Context, request *pb.SetExpiryRequest) (*pb.SetExpiryResponse, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	digest, err := optionalDigest(request.GetDigest())
	if err != nil {
		return nil, err
	}
	var expires time.Time
	if request.GetExpires() != 0 {
		expires = time.Unix(0, request.GetExpires())
	}
	entry, err := s.options.Images.Expire(request.GetName(), digest, expires)
	if err != nil {
		return nil, s.failed("SetExpiry", err)
	}
	s.options.Log.Info("image expiry set", "name", entry.Name, "expires", entry.Expires, "by", auth.PeerOf(ctx).Name)
	return &pb.SetExpiryResponse{Image: s.imageToWire(entry)}, nil
}

// maxKeep bounds what a retention may say; more means nothing.
const maxKeep = 1 << 20

// SetRetention sets how many images of a stream are kept.
func (s *Server) SetRetention(ctx context.Context, request *pb.SetRetentionRequest) (*pb.SetRetentionResponse, error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	if err := catalog.CheckName(request.GetStream()); err != nil {
		return nil, s.failed("SetRetention", err)
	}
	if request.GetKeep() > maxKeep {
		return nil, status.Errorf(codes.InvalidArgument, "a stream keeps at most %d images", maxKeep)
	}
	retention := catalog.Retention{Stream: request.GetStream(), Keep: int(request.GetKeep())}
	due := s.options.Images.DueIf(retention)
	if !request.GetDryRun() {
		by := auth.PeerOf(ctx).Name
		if err := s.options.Images.Retain(retention.Stream, retention.Keep, by); err != nil {
			return nil, s.failed("SetRetention", err)
		}
		s.options.Log.Info("retention set", "stream", retention.Stream, "keep", retention.Keep, "by", by)
	}
	answer := &pb.SetRetentionResponse{}
	for _, one := range due {
		if catalog.Stream(one.Entry.Name) == retention.Stream {
			answer.Due = append(answer.Due, s.dueToWire(one))
		}
	}
	return answer, nil
}

func (s *Server) dueToWire(due catalog.Due) *pb.DueImage {
	return &pb.DueImage{Image: s.imageToWire(due.Entry), Reason: due.Reason}
}

// imageToWire is an entry with its aliases.
func (s *Server) imageToWire(entry catalog.Entry) *pb.Image {
	wire := imageToWire(entry)
	wire.Aliases = s.options.Images.AliasesOf(entry.Name)
	return wire
}

func optionalDigest(wire []byte) (digest object.Digest, err error) {
	switch len(wire) {
	case 0:
	case len(digest):
		digest = object.Digest(wire)
	default:
		err = status.Error(codes.InvalidArgument, "a digest has 32 bytes")
	}
	return digest, err
}

// CollectGarbage deletes what nobody needs.
func (s *Server) CollectGarbage(request *pb.CollectGarbageRequest, stream grpc.ServerStreamingServer[pb.CollectGarbageResponse]) error {
	if !s.collecting.TryLock() {
		return status.Error(codes.FailedPrecondition, "garbage is being collected already")
	}
	grace := defaultGrace
	if request.GraceSeconds != nil {
		grace = time.Duration(min(request.GetGraceSeconds(), uint64((1<<62)/time.Second))) * time.Second
	}
	c := &collection{
		server: s, dryRun: request.GetDryRun(), stream: stream, sent: time.Now(),
		since: s.uses.since(time.Now(), grace), marked: make(map[object.Digest]bool), seen: make(map[object.Digest]bool),
	}
	err := c.run(stream.Context())
	if err == nil {
		err = c.free(stream.Context(), grace)
	}
	// Before the last answer: who has it may begin again at once.
	s.collecting.Unlock()
	if err != nil {
		return s.failed("CollectGarbage", err)
	}
	if !c.dryRun {
		s.options.Log.Info("garbage collected", "images", len(c.answer.GetImages()), "objects", c.answer.GetObjects(), "bytes", c.answer.GetBytes(), "recent", c.answer.GetRecent(), "by", auth.PeerOf(stream.Context()).Name)
		s.uses.forget(s.uses.since(time.Now(), max(grace, defaultGrace)))
	}
	c.answer.Done = true
	return stream.Send(&c.answer)
}

// collection is one run of CollectGarbage.
type collection struct {
	server *Server
	dryRun bool
	stream grpc.ServerStreamingServer[pb.CollectGarbageResponse]
	answer pb.CollectGarbageResponse
	sent   time.Time
	since  time.Time // uses after it protect
	marked map[object.Digest]bool
	seen   map[object.Digest]bool // manifests whose objects are marked
}

func (c *collection) run(ctx context.Context) error {
	s := c.server
	if s.options.Shared != nil {
		if err := s.options.Shared.Refresh(ctx); err != nil {
			return err
		}
	}
	due := s.options.Images.Due()
	if !c.dryRun {
		var err error
		if due, err = s.deleteDue(due); err != nil {
			return err
		}
	}
	gone := make(map[string]bool)
	for _, one := range due {
		gone[one.Entry.Name] = true
		c.answer.Images = append(c.answer.Images, s.dueToWire(one))
	}
	if err := c.mark(ctx, gone); err != nil {
		return err
	}
	var candidates []object.Info
	err := s.options.Objects.List(ctx, func(info object.Info) error {
		c.answer.Checked++
		if !c.marked[info.Digest] {
			candidates = append(candidates, info)
		}
		if c.answer.GetChecked()%deleteBatch == 0 {
			return c.progress()
		}
		return nil
	})
	if err != nil {
		return err
	}
	batch := deleteBatch
	if s.options.Shared != nil {
		batch = sharedDeleteBatch
	}
	for ; len(candidates) > 0; candidates = candidates[min(batch, len(candidates)):] {
		if err := c.sweep(ctx, candidates[:min(batch, len(candidates))], gone); err != nil {
			return err
		}
		if err := c.progress(); err != nil {
			return err
		}
	}
	return nil
}

// progress tells the client, now and then, that the work goes on.
func (c *collection) progress() error {
	if time.Since(c.sent) < time.Second {
		return c.stream.Context().Err()
	}
	c.sent = time.Now()
	return c.stream.Send(&pb.CollectGarbageResponse{Checked: c.answer.GetChecked(), Objects: c.answer.GetObjects(), Bytes: c.answer.GetBytes(), Recent: c.answer.GetRecent()})
}

// mark notes what the images need. A manifest that cannot be read ends the
// collection: nobody can say what its image needs.
func (c *collection) mark(ctx context.Context, gone map[string]bool) error {
	entries, err := c.server.looked(ctx)
	if err != nil {
		return fmt.Errorf("nothing more is deleted: %w", err)
	}
	for _, entry := range entries {
		if gone[entry.Name] || c.seen[entry.Digest] {
			continue
		}
		manifest, err := c.server.manifest(ctx, entry)
		if err != nil {
			return fmt.Errorf("nothing more is deleted: %w", err)
		}
		c.seen[entry.Digest] = true
		for _, digest := range catalog.References(entry.Digest, manifest) {
			c.marked[digest] = true
		}
	}
	return nil
}

// manifest is an image's manifest, decoded.
func (s *Server) manifest(ctx context.Context, entry catalog.Entry) (*image.Manifest, error) {
	_, _, raw, err := s.readManifest(ctx, entry)
	if err != nil {
		return nil, err
	}
	manifest, err := image.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest of %s: %w", entry.Name, err)
	}
	return manifest, nil
}

// sweep deletes a batch of objects that were not marked, while no image can be
// added and no object found. Images that came since mark looked are marked
// first.
func (c *collection) sweep(ctx context.Context, batch []object.Info, gone map[string]bool) error {
	s := c.server
	if !c.dryRun {
		s.uses.gate.Lock()
		defer s.uses.gate.Unlock()
		// A name that was deleted as due may have been added again.
		gone = nil
	}
	if err := c.mark(ctx, gone); err != nil {
		return err
	}
	var unneeded []object.Digest
	var bytes uint64
	for _, info := range batch {
		switch {
		case c.marked[info.Digest]:
		case s.uses.recent(info.Digest, c.since, s.options.Started),
			s.options.Shared != nil && s.options.Shared.Since(info.Digest).After(c.since):
			c.answer.Recent++
		default:
			unneeded = append(unneeded, info.Digest)
			bytes += info.StoredSize
		}
	}
	if !c.dryRun {
		if err := deleteAll(ctx, s.options.Objects, unneeded); err != nil {
			return err
		}
		if err := c.comeBack(ctx, unneeded); err != nil {
			return err
		}
		s.options.Metrics.deleted(uint64(len(unneeded)), bytes)
	}
	c.answer.Objects += uint64(len(unneeded))
	c.answer.Bytes += bytes
	return nil
}

// deleteAll deletes objects, together where the store can.
func deleteAll(ctx context.Context, store object.Store, digests []object.Digest) error {
	if many, ok := store.(interface {
		DeleteMany(ctx context.Context, digests []object.Digest) error
	}); ok {
		return many.DeleteMany(ctx, digests)
	}
	for _, digest := range digests {
		if err := store.Delete(ctx, digest); err != nil {
			return err
		}
	}
	return nil
}

// here are the images whose objects are kept here. Where the catalog is another
// server's, those are the ones that were asked for.
func (s *Server) here() []catalog.Entry {
	if cache, ok := s.options.Images.(interface{ Here() []catalog.Entry }); ok {
		return cache.Here()
	}
	return s.options.Images.List("")
}
