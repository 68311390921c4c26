package client_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/imageserver/server"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/proto/imageserver/bulk"
)

// imitation is a server that speaks gRPC as ours does, and HTTP/1.1 as it is
// told to.
func imitation(t *testing.T, store object.Store, calls func(*server.Server) []auth.Call) *client.Client {
	t.Helper()
	return imitationWith(t, 5*time.Second, store, calls)
}

// imitationWith is imitation for a client with a stall limit.
func imitationWith(t *testing.T, stall time.Duration, store object.Store, calls func(*server.Server) []auth.Call) *client.Client {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	metrics := server.NewMetrics("test", func() int { return 0 })
	service := server.New(server.Options{Objects: store, Metrics: metrics, Log: log, Workers: 2})
	mux := &auth.Mux{Log: log, RPC: auth.NewServer(server.Policy(), true, append(server.Tuning(), grpc.StatsHandler(metrics))...),
		Pages: http.NotFoundHandler(), Calls: calls(service)}
	service.Register(mux.RPC)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mux.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	c, err := client.Dial(t.Context(), client.Options{Address: listener.Addr().String(), Stall: stall})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// filled is a store with these objects, and their digests.
func filled(t *testing.T, contents ...[]byte) (object.Store, []object.Digest) {
	t.Helper()
	store := objecttest.NewMemory()
	var digests []object.Digest
	for _, content := range contents {
		info, encoded := objecttest.Encode(content)
		if err := store.Put(t.Context(), info, bytes.NewReader(encoded)); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, info.Digest)
	}
	return store, digests
}

// fetched are the unpacked, verified objects that come.
func fetched(t *testing.T, c *client.Client, digests []object.Digest) (map[object.Digest][]byte, error) {
	t.Helper()
	infos := map[object.Digest]object.Info{}
	encoded := map[object.Digest][]byte{}
	err := c.Fetch(t.Context(), digests, func(p object.Piece) error {
		infos[p.Digest] = p.Info
		encoded[p.Digest] = append(encoded[p.Digest], p.Data...)
		return nil
	})
	all := map[object.Digest][]byte{}
	for d, info := range infos {
		if content, err := zstd.Decode(nil, info, encoded[d]); err == nil {
			all[d] = content
		}
	}
	return all, err
}

// counted counts what reaches a call.
func counted(calls []auth.Call, n *atomic.Int64, closed *atomic.Bool) []auth.Call {
	return []auth.Call{auth.NewCall(server.Policy(), true, bulk.Path, "/firstlight.imageserver.v1.ImageServer/GetObjects",
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.Add(1)
			if closed.Load() {
				http.NotFound(w, r)
				return
			}
			for _, c := range calls {
				c.ServeHTTP(w, r)
			}
		}))}
}

// TestOldServer: a server before the bulk answers is asked by gRPC, and after
// the first time no longer by anything else.
func TestOldServer(t *testing.T) {
	t.Parallel()
	contents := [][]byte{objecttest.Text(1, 5000), objecttest.Noise(2, 3<<20), nil}
	store, digests := filled(t, contents...)
	none := imitation(t, store, func(*server.Server) []auth.Call { return nil })
	for range 2 {
		got, err := fetched(t, none, digests)
		if err != nil {
			t.Error(err)
		}
		for i, d := range digests {
			if content, ok := got[d]; !ok || !bytes.Equal(content, contents[i]) {
				t.Errorf("object %d came with %d bytes (%v)", i, len(content), ok)
			}
		}
	}
	var asked atomic.Int64
	var closed atomic.Bool
	closed.Store(true)
	c := imitation(t, store, func(s *server.Server) []auth.Call { return counted(s.Calls(true), &asked, &closed) })
	for range 3 {
		if _, err := fetched(t, c, digests); err != nil {
			t.Error(err)
		}
	}
	if asked.Load() != 1 {
		t.Errorf("it was asked %d times for what it does not have", asked.Load())
	}
	closed.Store(false)
	asked.Store(0)
	c = imitation(t, store, func(s *server.Server) []auth.Call { return counted(s.Calls(true), &asked, &closed) })
	if got, err := fetched(t, c, digests); err != nil || len(got) != len(digests) || asked.Load() != 1 {
		t.Errorf("%d objects in %d requests, %v", len(got), asked.Load(), err)
	}
}

// TestLyingAnswers: answers that cannot be are refused, each with its code.
func TestLyingAnswers(t *testing.T) {
	t.Parallel()
	store, digests := filled(t, objecttest.Noise(1, 1000), objecttest.Noise(2, 1000))
	info := object.Info{Digest: digests[0], Size: 1000, StoredSize: 1000}
	piece := func(index int, info object.Info, offset uint64, n int) []byte {
		f := new(bulk.Frame)
		f.Add(index, info, offset, n)
		return bytes.Clone(f.Bytes())
	}
	join := func(frames ...[]byte) []byte { return bytes.Join(frames, nil) }
	for name, test := range map[string]struct {
		status int
		kind   string
		body   []byte
		code   string
	}{
		"cut off at once":        {200, bulk.AnswerType, nil, client.CodeLost},
		"cut off in the middle":  {200, bulk.AnswerType, piece(0, info, 0, 1000)[:500], client.CodeLost},
		"no end":                 {200, bulk.AnswerType, join(piece(0, info, 0, 1000), piece(1, info, 0, 1000)), client.CodeLost},
		"an object is missing":   {200, bulk.AnswerType, join(piece(0, info, 0, 1000), bulk.End()), client.CodeWrongAnswer},
		"half an object":         {200, bulk.AnswerType, join(piece(0, info, 0, 500), bulk.End()), client.CodeWrongAnswer},
		"an object twice":        {200, bulk.AnswerType, join(piece(0, info, 0, 1000), piece(0, info, 0, 1000)), client.CodeWrongAnswer},
		"its second half":        {200, bulk.AnswerType, piece(0, info, 500, 500), client.CodeWrongAnswer},
		"its size changes":       {200, bulk.AnswerType, join(piece(0, info, 0, 500), piece(0, object.Info{Digest: digests[0], Size: 900, StoredSize: 900}, 500, 400)), client.CodeWrongAnswer},
		"not asked for":          {200, bulk.AnswerType, piece(2, info, 0, 1000), client.CodeWrongAnswer},
		"garbage":                {200, bulk.AnswerType, bytes.Repeat([]byte{0xee}, 100), client.CodeWrongAnswer},
		"damaged":                {200, bulk.AnswerType, bulk.Failed(15, "object is damaged"), client.CodeDamaged},
		"gone":                   {200, bulk.AnswerType, bulk.Failed(5, "object not found"), client.CodeNoObject},
		"another format":         {200, "application/vnd.firstlight.objects; format=2", bulk.End(), client.CodeOtherVersion},
		"busy":                   {503, "text/plain", []byte("busy"), client.CodeBusy},
		"a certificate is asked": {401, "text/plain", []byte("who are you?"), client.CodeAnonymous},
		"a role is asked":        {403, "text/plain", []byte("not you"), client.CodeRole},
		"a bad request":          {400, "text/plain", []byte("what?"), client.CodeRefused},
		"it fails":               {500, "text/plain", []byte("oh"), client.CodeServer},
		"elsewhere":              {307, "text/plain", nil, client.CodeServer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := imitation(t, store, func(*server.Server) []auth.Call {
				return []auth.Call{auth.NewCall(server.Policy(), true, bulk.Path, "/firstlight.imageserver.v1.ImageServer/GetObjects",
					http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if _, err := io.Copy(io.Discard, r.Body); err != nil {
							t.Error(err)
						}
						w.Header().Set("Content-Type", test.kind)
						w.Header().Set("Location", "http://127.0.0.1:1/")
						w.WriteHeader(test.status)
						_, _ = w.Write(test.body) // the client may have gone
					}))}
			})
			err := c.Fetch(t.Context(), digests, func(object.Piece) error { return nil })
			wantCode(t, err, test.code)
		})
	}
}

// TestDamageAfterSending: an object that was sent once, and is known to be
// whole, is damaged afterwards: that is found, and it is sent again once it has
// been put anew.
func TestDamageAfterSending(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	c := s.dial(t)
	contents := files()
	addImage(t, c, "a/1", contents)
	for path, content := range contents {
		digest := object.Of(content)
		for range 2 {
			if got, err := fetched(t, c, []object.Digest{digest}); err != nil || !bytes.Equal(got[digest], content) {
				t.Fatalf("%s: %v", path, err)
			}
		}
		file, at, size := storedAt(t, s, digest)
		for _, where := range []int64{0, size / 2, size - 1} {
			fresh := s.dial(t) // which has not had the object before
			flip(t, file, at+where)
			if _, err := fetched(t, fresh, []object.Digest{digest}); code(err) != client.CodeDamaged {
				t.Errorf("%s, flipped at %d of %d: %v", path, where, size, err)
			}
			flip(t, file, at+where)
			if got, err := fetched(t, fresh, []object.Digest{digest}); err != nil || !bytes.Equal(got[digest], content) {
				t.Errorf("%s, flipped back: %v", path, err)
			}
		}
	}
}

// TestAskedAgain: who asks for an object a second time has it decoded and hashed
// anew, whatever the server knows of it.
func TestAskedAgain(t *testing.T) {
	t.Parallel()
	store, digests := filled(t, objecttest.Text(1, 5000))
	var full, plain atomic.Int64
	c := imitation(t, store, func(s *server.Server) []auth.Call {
		calls := s.Calls(true)
		return []auth.Call{auth.NewCall(server.Policy(), true, bulk.Path, "/firstlight.imageserver.v1.ImageServer/GetObjects",
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Query().Get(bulk.Verify) == "full" {
					full.Add(1)
				} else {
					plain.Add(1)
				}
				calls[0].ServeHTTP(w, r)
			}))}
	})
	for range 2 {
		if _, err := fetched(t, c, digests); err != nil {
			t.Fatal(err)
		}
	}
	if plain.Load() != 1 || full.Load() != 1 {
		t.Errorf("%d plain requests, %d that ask to look closely", plain.Load(), full.Load())
	}
}

// TestOwnConnections: many requests one after the other share a connection.
func TestOwnConnections(t *testing.T) {
	t.Parallel()
	contents := [][]byte{objecttest.Text(1, 5000), objecttest.Text(2, 5000)}
	store, digests := filled(t, contents...)
	peers := map[string]bool{}
	c := imitation(t, store, func(s *server.Server) []auth.Call {
		calls := s.Calls(true)
		return []auth.Call{auth.NewCall(server.Policy(), true, bulk.Path, "/firstlight.imageserver.v1.ImageServer/GetObjects",
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				peers[r.RemoteAddr] = true
				calls[0].ServeHTTP(w, r)
			}))}
	})
	for range 5 {
		if _, err := fetched(t, c, digests); err != nil {
			t.Fatal(err)
		}
	}
	if len(peers) != 1 {
		t.Errorf("%d connections", len(peers))
	}
}

// TestForEverAboutToSend: a server whose store hangs says for ever that it lives.
// That ends too, as a lost connection: another server is asked then.
func TestForEverAboutToSend(t *testing.T) {
	t.Parallel()
	store, digests := filled(t, objecttest.Text(1, 5000))
	c := imitationWith(t, time.Second, store, func(*server.Server) []auth.Call {
		return []auth.Call{auth.NewCall(server.Policy(), true, bulk.Path, "/firstlight.imageserver.v1.ImageServer/GetObjects",
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", bulk.AnswerType)
				for r.Context().Err() == nil {
					_, _ = w.Write(bulk.Still())
					_ = http.NewResponseController(w).Flush()
					time.Sleep(10 * time.Millisecond)
				}
			}))}
	})
	_, err := fetched(t, c, digests)
	wantCode(t, err, client.CodeLost)
	if err == nil || !strings.Contains(err.Error(), "no object") {
		t.Errorf("got %v", err)
	}
}
