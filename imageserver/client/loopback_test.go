package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/imageserver/server"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

// site is a real server on loopback and the certificates of its site.
type site struct {
	address string
	data    string // the server's directory
	secrets string
	objects *dir.Store
	secure  bool
}

// newSite starts a server that ends with the test.
func newSite(t testing.TB, secure bool) *site {
	t.Helper()
	s := &site{data: memory(t), secrets: filepath.Join(t.TempDir(), "secrets"), secure: secure}
	if _, err := pki.Init(s.secrets, time.Now, pki.Options{}); err != nil {
		t.Fatal(err)
	}
	var err error
	if s.objects, err = dir.Open(s.data); err != nil {
		t.Fatal(err)
	}
	images, err := store.Open(s.data, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	metrics := server.NewMetrics("test", images.Len)
	service := server.New(server.Options{
		Objects: metrics.Timed("dir", s.objects),
		Begin:   func() server.Batch { return s.objects.Begin() },
		Images:  images, Metrics: metrics, Log: log, Workers: max(2, runtime.GOMAXPROCS(0)),
		Ready: func(context.Context) error { return nil }, TLS: secure,
	})
	mux := &auth.Mux{Log: log}
	if secure {
		mux.TLS, err = auth.ServerTLS(filepath.Join(s.secrets, pki.ImageserverFile), filepath.Join(s.secrets, pki.ImageserverKeyFile),
			filepath.Join(s.secrets, pki.CAFile), false, time.Now())
		if err != nil {
			t.Fatal(err)
		}
	}
	mux.RPC = auth.NewServer(server.Policy(), !secure, append(server.Tuning(), grpc.StatsHandler(metrics))...)
	mux.Calls = service.Calls(!secure)
	service.Register(mux.RPC)
	if mux.Pages, err = service.Pages(); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mux.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
		if err := images.Close(); err != nil {
			t.Error(err)
		}
		if err := s.objects.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// memory is a directory in a tmpfs where there is one: these tests are about the
// wire, and syncing to a busy disk takes its time.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "firstlight-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// tls is the configuration of an admin.
func (s *site) tls(t testing.TB) *tls.Config {
	t.Helper()
	if !s.secure {
		return nil
	}
	config, err := auth.ClientTLS(filepath.Join(s.secrets, pki.CAFile), filepath.Join(s.secrets, pki.AdminFile), filepath.Join(s.secrets, pki.AdminKeyFile), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// dial connects as an admin.
func (s *site) dial(t testing.TB) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), client.Options{Address: s.address, TLS: s.tls(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// content makes bytes that compress about as well as the files of a system
// (2.4 : 1): runs of words from a small vocabulary between runs of noise.
func content(random *rand.Rand, size int) []byte {
	data := make([]byte, 0, size+64)
	for len(data) < size {
		if random.IntN(4) == 0 {
			for range 8 + random.IntN(16) {
				data = append(data, byte(random.Uint32()))
			}
			continue
		}
		for range 1 + random.IntN(6) {
			data = append(data, "symbol_"...)
			data = strconv.AppendInt(data, int64(random.IntN(3000)), 16)
		}
	}
	return data[:size]
}

// sizes are those of a Debian root: most files are small, a few are large.
func sizes(random *rand.Rand, n int) []int {
	all := make([]int, n)
	for i := range all {
		switch k := random.IntN(1000); {
		case k < 550:
			all[i] = 32 + random.IntN(4<<10)
		case k < 900:
			all[i] = 4<<10 + random.IntN(40<<10)
		case k < 990:
			all[i] = 44<<10 + random.IntN(300<<10)
		case k < 998:
			all[i] = 344<<10 + random.IntN(2<<20)
		default:
			all[i] = 2<<20 + random.IntN(6<<20)
		}
	}
	return all
}

// offer packs data as an uploader does.
func offer(data []byte) client.Offer {
	info := object.Info{Digest: object.Of(data), Size: uint64(len(data))}
	encoding, encoded := zstd.Encode(nil, data)
	info.Encoding, info.StoredSize = encoding, uint64(len(encoded))
	return client.Offer{Info: info, Bytes: io.NopCloser(bytes.NewReader(encoded))}
}

// tree packs n objects of a system's sizes, on all cores. It returns their
// unpacked bytes too.
func tree(t testing.TB, n int) ([]client.Offer, int64) {
	t.Helper()
	all := make([]client.Offer, n)
	var unpacked int64
	group := new(errgroup.Group)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, size := range sizes(rand.New(rand.NewPCG(1, 2)), n) {
		unpacked += int64(size)
		group.Go(func() error {
			all[i] = offer(content(rand.New(rand.NewPCG(3, uint64(i))), size))
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return all, unpacked
}

// offers hands out a slice.
func offers(all ...client.Offer) func(context.Context) (client.Offer, error) {
	return func(context.Context) (client.Offer, error) {
		if len(all) == 0 {
			return client.Offer{}, io.EOF
		}
		one := all[0]
		all = all[1:]
		return one, nil
	}
}
