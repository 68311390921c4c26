// Imageserver keeps the images of a site: their manifests by name and their
// files by digest, and gives them to the installers. See docs/architecture.md.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/scrub"
	"github.com/firstlight/firstlight/imageserver/server"
	"github.com/firstlight/firstlight/imageserver/upstream"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/proto/notify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "imageserver:", describe(err))
	}
	os.Exit(exitCode(err))
}

// The exit status: 0 ok, 1 failed, 2 wrong use of the command line or of the
// environment, 5 a wrong configuration file, 8 certificates.
func exitCode(err error) int {
	var usage *usageError
	var config *configError
	var trust *auth.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.As(err, &config):
		return 5
	case errors.As(err, &trust):
		return 8
	}
	return 1
}

// describe puts the code, where there is one, before the text.
func describe(err error) string {
	var coded interface{ Code() string }
	if errors.As(err, &coded) {
		return coded.Code() + ": " + err.Error()
	}
	return err.Error()
}

// run is the program: it serves until ctx ends.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) (err error) {
	options, err := parseOptions(args, getenv, stdout)
	if err != nil || options.done {
		return err
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := options.check(); err != nil {
		return err
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	mux := &auth.Mux{Log: log}
	if !options.Insecure {
		mux.TLS, err = auth.ServerTLS(options.TLSCert, options.TLSKey, options.ClientCA, options.RequireClientCert, time.Now())
		if err != nil {
			return err
		}
	}
	var stored *stores
	metrics := server.NewMetrics(version(), func() int {
		if stored == nil {
			return 0
		}
		return stored.images.Len()
	})
	if stored, err = openStores(ctx, options, metrics, log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stored.close()) }()
	settings := server.Options{
		Objects:   stored.objects,
		Begin:     stored.begin,
		Images:    stored.images,
		Shared:    stored.shared,
		Ready:     stored.ready,
		Metrics:   metrics,
		Log:       log,
		Workers:   max(2, runtime.GOMAXPROCS(0)),
		Transfers: options.MaxTransfers,
		Version:   version(),
		Started:   time.Now(),
		TLS:       !options.Insecure,
	}
	scrubbing := scrub.Options{Store: stored.scrub, BytesPerSecond: uint64(options.ScrubRate * (1 << 20)), Interval: options.ScrubInterval, Log: log}
	if options.Upstream != "" {
		dial, err := dialUpstream(options)
		if err != nil {
			return err
		}
		cache := upstream.New(upstream.Options{
			Dial: dial, Objects: stored.objects, Log: log,
			Begin: func() upstream.Batch { return stored.begin() },
			Asked: metrics.Cache("upstream"), Observe: metrics.Backend("upstream"),
		})
		defer cache.Close()
		settings.Objects, settings.Images = cache, upstream.NewImages(stored.images, cache, log)
		settings.ReadOnly = "this image server only gives out what " + options.Upstream + " has; change the images there"
		scrubbing.Heal = cache.Get
	}
	scrubber := scrub.New(scrubbing)
	settings.Damaged = scrubber.Damaged
	settings.Scrub = func() server.Scrub { return scrubbed(scrubber, stored) }
	service := server.New(settings)
	mux.RPC = auth.NewServer(server.Policy(), options.Insecure, append(server.Tuning(), grpc.StatsHandler(metrics))...)
	mux.Calls = service.Calls(options.Insecure)
	service.Register(mux.RPC)
	if mux.Pages, err = service.Pages(); err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", options.Listen)
	if err != nil {
		return &startError{"SRV-002", "listening on " + options.Listen, err}
	}
	announce(log, options, listener.Addr())
	if err := notify.Ready(getenv("NOTIFY_SOCKET")); err != nil {
		log.Warn(err.Error()) // whoever waits for it will say so
	}
	var background sync.WaitGroup
	until, stop := context.WithCancel(ctx)
	background.Go(func() { count(until, metrics, stored, log) })
	background.Go(func() { service.Keep(until) })
	if options.ScrubRate > 0 {
		background.Go(func() { scrubber.Run(until) })
	}
	err = mux.Serve(ctx, listener)
	stop()
	background.Wait()
	return err
}

// dialUpstream is how the upstream server is reached.
func dialUpstream(options options) (func(context.Context) (upstream.Source, error), error) {
	settings := client.Options{Address: options.Upstream}
	if ca := cmp.Or(options.UpstreamCA, options.ClientCA); ca != "" {
		var err error
		if settings.TLS, err = auth.ClientTLS(ca, options.UpstreamCert, options.UpstreamKey, time.Now()); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) (upstream.Source, error) {
		c, err := client.Dial(ctx, settings)
		if err != nil {
			return nil, err // a nil *client.Client would be a Source
		}
		return c, nil
	}, nil
}

// scrubbed is what the pages show of damage.
func scrubbed(scrubber *scrub.Scrubber, stored *stores) server.Scrub {
	r := scrubber.Report()
	quarantined, packs := stored.quarantined()
	return server.Scrub{
		Objects: r.Objects, Bytes: r.Bytes, Damaged: r.Damaged, Healed: r.Healed, LastPass: r.LastPass,
		Quarantined: quarantined, Packs: packs,
	}
}

// memoryLimit is what the collector of garbage in memory works towards, in bytes;
// with the programs' text and stacks it stays below 512 MiB.
const memoryLimit = 400 << 20

// countInterval is the time between two countings of what other servers change too.
const countInterval = time.Minute

// count fills the gauges; a large store takes a while.
func count(ctx context.Context, metrics *server.Metrics, stored *stores, log *slog.Logger) {
	for {
		var err error
		if stored.shared != nil {
			err = stored.shared.Refresh(ctx)
		}
		if err == nil {
			err = metrics.Count(ctx, stored.objects)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			log.Error("counting the objects", "error", err)
		}
		if stored.shared == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(countInterval):
		}
	}
}

func announce(log *slog.Logger, options options, address net.Addr) {
	if options.Insecure {
		log.Warn("no TLS (--insecure): anyone who reaches this port may read, add and delete images")
	} else if options.ClientCA == "" {
		log.Warn("no --client-ca: nobody can add or delete images")
	}
	if options.Upstream != "" {
		log.Info("images come from upstream", "address", options.Upstream)
	}
	if options.Store != "" {
		log.Info("images are in a bucket", "store", options.Store, "cache", options.Data)
	}
	log.Info("serving", "address", address.String(), "data", options.Data, "version", version())
}

// minimumFree is how many bytes must be free for the server to be ready.
const minimumFree = 64 << 20

// hasCatalog says whether the data directory is there.
func hasCatalog(data string) error {
	if _, err := os.Stat(filepath.Join(data, "images")); err != nil {
		return fmt.Errorf("the data directory: %w", err)
	}
	return nil
}

// hasRoom says whether the data directory has some.
func hasRoom(data string) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(data, &fs); err != nil {
		return fmt.Errorf("the data directory: %w", err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < minimumFree {
		return fmt.Errorf("the data directory has %d bytes left", free)
	}
	return nil
}

// startError is a reason not to start.
type startError struct {
	code string
	text string
	err  error
}

func (e *startError) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}

// Code is SRV-001 (no certificate and no --insecure, or both), or SRV-002
// (cannot listen).
func (e *startError) Code() string { return e.code }

func (e *startError) Unwrap() error { return e.err }

// version is the module's version, or the commit that was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value[:min(12, len(setting.Value))]
		}
	}
	return "devel"
}
