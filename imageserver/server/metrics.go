package server

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/firstlight/firstlight/imageserver/object"
)

// Metrics are the server's figures for Prometheus. It is a stats.Handler: given
// to the gRPC server it also sees the calls that the policy refuses.
type Metrics struct {
	registry *prometheus.Registry

	objectRequests *prometheus.CounterVec
	sentBytes      prometheus.Counter
	objects        prometheus.Gauge
	storedBytes    prometheus.Gauge
	backend        *prometheus.HistogramVec
	cacheRequests  *prometheus.CounterVec

	started, handled, received, sent *prometheus.CounterVec
	handling                         *prometheus.HistogramVec
}

// NewMetrics registers the metrics, and those of the process, in a registry of
// their own. images answers the number of images.
func NewMetrics(version string, images func() int) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		vector := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(vector)
		return vector
	}
	gauge := func(name, help string) prometheus.Gauge {
		one := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
		m.registry.MustRegister(one)
		return one
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		vector := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(vector)
		return vector
	}
	m.objectRequests = counter("imageserver_object_requests_total", "Calls about objects (have, get, put), by their gRPC status code.", "op", "code")
	m.sentBytes = prometheus.NewCounter(prometheus.CounterOpts{Name: "imageserver_sent_bytes_total", Help: "Bytes of all answers to calls."})
	m.objects = gauge("imageserver_objects", "Objects in the store.")
	m.storedBytes = gauge("imageserver_stored_bytes", "Bytes of the objects as they are stored.")
	m.backend = histogram("imageserver_backend_request_duration_seconds", "Time that the object store took.",
		prometheus.ExponentialBuckets(0.0001, 4, 10), "backend", "op")

	m.cacheRequests = counter("imageserver_cache_requests_total", "Objects that were opened, by whether their bytes were in the cache.", "cache", "result")

	method := []string{"grpc_type", "grpc_service", "grpc_method"}
	m.started = counter("grpc_server_started_total", "Calls started.", method...)
	m.handled = counter("grpc_server_handled_total", "Calls ended, by their status code.", append(method, "grpc_code")...)
	m.received = counter("grpc_server_msg_received_total", "Messages received.", method...)
	m.sent = counter("grpc_server_msg_sent_total", "Messages sent.", method...)
	m.handling = histogram("grpc_server_handling_seconds", "Time from a call's start to its end.", prometheus.DefBuckets, method...)

	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "imageserver_build_info", Help: "Always 1; the label says what was built.",
		ConstLabels: prometheus.Labels{"version": version}})
	build.Set(1)
	m.registry.MustRegister(m.sentBytes, build,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "imageserver_images", Help: "Images in the catalog."},
			func() float64 { return float64(images()) }),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Count sets the gauges of objects to what List says.
func (m *Metrics) Count(ctx context.Context, store object.Store) error {
	var objects, bytes float64
	err := store.List(ctx, func(info object.Info) error {
		objects++
		bytes += float64(info.StoredSize)
		return nil
	})
	if err != nil {
		return err
	}
	m.objects.Set(objects)
	m.storedBytes.Set(bytes)
	return nil
}

// stored counts new objects.
func (m *Metrics) stored(objects, bytes uint64) {
	m.objects.Add(float64(objects))
	m.storedBytes.Add(float64(int64(bytes))) // less than before where an object was packed better
}

// transfers shows the places.
func (m *Metrics) transfers(p *places) {
	m.registry.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "imageserver_transfers", Help: "Transfers that run."},
			func() float64 { running, _ := p.counts(); return float64(running) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "imageserver_transfers_waiting", Help: "Transfers that wait for a place."},
			func() float64 { _, waiting := p.counts(); return float64(waiting) }))
}

// scrub shows what is known of damage.
func (m *Metrics) scrub(ask func() Scrub) {
	show := func(kind func(prometheus.GaugeOpts, func() float64) prometheus.GaugeFunc, name, help string, value func(Scrub) float64) {
		m.registry.MustRegister(kind(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(ask()) }))
	}
	counter := func(name, help string, value func(Scrub) float64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return value(ask()) }))
	}
	counter("imageserver_scrubbed_objects_total", "Objects read and verified in the background.", func(s Scrub) float64 { return float64(s.Objects) })
	counter("imageserver_scrubbed_bytes_total", "Bytes of them, as they are stored.", func(s Scrub) float64 { return float64(s.Bytes) })
	counter("imageserver_damaged_objects_total", "Objects found damaged.", func(s Scrub) float64 { return float64(s.Damaged) })
	counter("imageserver_healed_objects_total", "Damaged objects that were got from upstream.", func(s Scrub) float64 { return float64(s.Healed) })
	show(prometheus.NewGaugeFunc, "imageserver_quarantined_objects", "Damaged objects that are not repaired.", func(s Scrub) float64 { return float64(len(s.Quarantined)) })
	show(prometheus.NewGaugeFunc, "imageserver_unreadable_packs", "Packs that could not be read and were moved aside.", func(s Scrub) float64 { return float64(len(s.Packs)) })
	show(prometheus.NewGaugeFunc, "imageserver_scrub_last_completed_timestamp_seconds", "When the whole store was last verified; 0: not since the start.", func(s Scrub) float64 {
		if s.LastPass.IsZero() {
			return 0
		}
		return float64(s.LastPass.Unix())
	})
}

// Scrub is what is known of damage in the store.
type Scrub struct {
	Objects, Bytes  uint64 // verified since the start
	Damaged, Healed uint64 // objects, since the start
	LastPass        time.Time
	// Quarantined are damaged objects that were moved aside and not repaired,
	// Packs the names of whole packs that could not be read.
	Quarantined []object.Digest
	Packs       []string
}

// deleted counts objects that are gone.
func (m *Metrics) deleted(objects, bytes uint64) {
	m.objects.Sub(float64(objects))
	m.storedBytes.Sub(float64(bytes))
}

// call is what the handler remembers of one RPC.
type call struct {
	labels []string // type, service, method
	op     string   // of object requests, else empty
}

type callKey struct{}

// TagRPC, HandleRPC, TagConn and HandleConn are those of stats.Handler.
func (m *Metrics) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	service, method, _ := strings.Cut(strings.TrimPrefix(info.FullMethodName, "/"), "/")
	ops := map[string]string{"HaveObjects": "have", "GetObjects": "get", "PutObjects": "put"}
	return context.WithValue(ctx, callKey{}, &call{labels: []string{"", service, method}, op: ops[method]})
}

// HandleRPC counts one event of a call.
func (m *Metrics) HandleRPC(ctx context.Context, event stats.RPCStats) {
	c, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		return
	}
	switch event := event.(type) {
	case *stats.Begin:
		c.labels[0] = "unary"
		switch {
		case event.IsClientStream && event.IsServerStream:
			c.labels[0] = "bidi_stream"
		case event.IsClientStream:
			c.labels[0] = "client_stream"
		case event.IsServerStream:
			c.labels[0] = "server_stream"
		}
		m.started.WithLabelValues(c.labels...).Inc()
	case *stats.InPayload:
		m.received.WithLabelValues(c.labels...).Inc()
	case *stats.OutPayload:
		m.sent.WithLabelValues(c.labels...).Inc()
		m.sentBytes.Add(float64(event.WireLength))
	case *stats.End:
		code := status.Code(event.Error).String()
		m.handled.WithLabelValues(append(c.labels[:3:3], code)...).Inc()
		m.handling.WithLabelValues(c.labels...).Observe(event.EndTime.Sub(event.BeginTime).Seconds())
		if c.op != "" {
			m.objectRequests.WithLabelValues(c.op, code).Inc()
		}
	}
}

// TagConn does nothing.
func (m *Metrics) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (m *Metrics) HandleConn(context.Context, stats.ConnStats) {}

// Backend is to be told of each request to a backend that does its own timing.
func (m *Metrics) Backend(backend string) func(op string, took time.Duration) {
	return func(op string, took time.Duration) { m.backend.WithLabelValues(backend, op).Observe(took.Seconds()) }
}

// Cache is to be told, for each object that is opened, whether its bytes were in the
// cache of this name.
func (m *Metrics) Cache(cache string) func(hit bool) {
	hits, misses := m.cacheRequests.WithLabelValues(cache, "hit"), m.cacheRequests.WithLabelValues(cache, "miss")
	return func(hit bool) {
		if hit {
			hits.Inc()
		} else {
			misses.Inc()
		}
	}
}

// Timed is store with its requests timed, under the backend's name.
func (m *Metrics) Timed(backend string, store object.Store) object.Store {
	return &timed{store, m, backend}
}

type timed struct {
	object.Store
	metrics *Metrics
	backend string
}

func (t *timed) observe(op string, start time.Time) {
	t.metrics.backend.WithLabelValues(t.backend, op).Observe(time.Since(start).Seconds())
}

func (t *timed) Stat(ctx context.Context, digests []object.Digest) ([]object.Info, error) {
	defer t.observe("stat", time.Now())
	return t.Store.Stat(ctx, digests)
}

func (t *timed) OpenStored(ctx context.Context, digest object.Digest) (*object.Stored, error) {
	defer t.observe("open", time.Now())
	return t.Store.OpenStored(ctx, digest)
}

// DeleteMany is the store's own where it has one.
func (t *timed) DeleteMany(ctx context.Context, digests []object.Digest) error {
	defer t.observe("delete", time.Now())
	return deleteAll(ctx, t.Store, digests)
}

// Prefetch is the store's own where it has one.
func (t *timed) Prefetch(digests []object.Digest) {
	if ahead, ok := t.Store.(interface {
		Prefetch(digests []object.Digest)
	}); ok {
		ahead.Prefetch(digests)
	}
}

func (t *timed) Put(ctx context.Context, info object.Info, r io.Reader) error {
	defer t.observe("put", time.Now())
	return t.Store.Put(ctx, info, r)
}

// TimedBatch is a batch whose commits are timed.
func (m *Metrics) TimedBatch(backend string, batch Batch) Batch {
	return &timedBatch{batch, m, backend}
}

type timedBatch struct {
	Batch
	metrics *Metrics
	backend string
}

func (t *timedBatch) Commit(ctx context.Context) error {
	start := time.Now()
	err := t.Batch.Commit(ctx)
	t.metrics.backend.WithLabelValues(t.backend, "commit").Observe(time.Since(start).Seconds())
	return err
}
