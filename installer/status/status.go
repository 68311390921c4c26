// Package status serves what the installer is doing over HTTP, for looking
// only: a page for people, JSON and an event stream for scripts, the log,
// and metrics. Nothing here changes anything, nothing secret is shown, and
// methods other than GET and HEAD are refused.
package status

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
)

// Options are what there is to show. Only Model is needed; functions are
// called from many goroutines and may be nil.
type Options struct {
	Model *progress.Model
	// Plan and Inventory return the document as JSON, nil while there is none.
	Plan, Inventory func() []byte
	// PlanText is the plan for people, empty while there is none.
	PlanText func() string
	// Earlier is what earlier starts of the machine left of their log, empty where
	// they ended well.
	Earlier func() string
	// NICs are the network interfaces as they are now.
	NICs func() []netconfig.NIC
	// Leases are the addresses of the installer itself, by the name of the
	// interface, as a person reads them.
	Leases func() map[string]string
	// Memory is what is in use, and what there is, in bytes.
	Memory func() (used, total uint64)
	// NetworkReceived is in bytes, over all interfaces since boot.
	NetworkReceived func() uint64
	// DiskWritten is in bytes since boot, by disk name.
	DiskWritten func() map[string]uint64
	// MemoryPeak is in bytes.
	MemoryPeak func() uint64
}

const (
	maxStreams   = 48               // followers of events and log; the rest stays free for others
	writeTimeout = 30 * time.Second // for one answer, or one piece of a stream
	keepAlive    = 15 * time.Second // of an idle stream
)

type handler struct {
	Options
	page    *page
	streams chan struct{}
}

// Handler answers the addresses of port 6978: /, /api/v1/status,
// /api/v1/plan, /api/v1/inventory, /api/v1/events (server-sent events),
// /log (?follow=1), /metrics and /healthz.
func Handler(o Options) http.Handler {
	h := &handler{Options: o, page: newPage(), streams: make(chan struct{}, maxStreams)}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{&h.Options})
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
	answers := map[string]http.Handler{
		"/":                 http.HandlerFunc(h.servePage),
		"/api/v1/status":    http.HandlerFunc(h.serveStatus),
		"/api/v1/plan":      document("plan", "it is made after the image's manifest has been read", o.Plan),
		"/api/v1/inventory": document("inventory", "it is made after the configuration has been read", o.Inventory),
		"/api/v1/events":    http.HandlerFunc(h.serveEvents),
		"/log":              http.HandlerFunc(h.serveLog),
		"/log/earlier":      http.HandlerFunc(h.serveEarlier),
		"/metrics":          metrics,
		"/healthz":          http.HandlerFunc(serveHealth),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cache-Control", "no-store")
		extend(w) // also the deadline that an earlier answer left on this connection
		answer := answers[r.URL.Path]
		switch {
		case answer == nil:
			http.Error(w, "there is nothing at this address; begin at /", http.StatusNotFound)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			header.Set("Allow", "GET, HEAD")
			http.Error(w, "this port only shows; only GET and HEAD are answered", http.StatusMethodNotAllowed)
		default:
			answer.ServeHTTP(w, r)
		}
	})
}

// extend gives the answer another writeTimeout. A recorder in a test has no
// deadlines; that is its only error.
func extend(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTimeout))
}

func serveHealth(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, "ok\n")
}

// maxQuery is how long a filter of the log may be.
const maxQuery = 80

func (h *handler) servePage(w http.ResponseWriter, r *http.Request) {
	past, _, stop := h.Model.Lines()
	stop()
	now := seen{Snapshot: h.Model.Snapshot(), log: past, query: clip(r.URL.Query().Get("q"), maxQuery)}
	if h.NICs != nil {
		now.nics = h.NICs()
	}
	if h.Leases != nil {
		now.leases = h.Leases()
	}
	if h.Memory != nil {
		now.memoryUsed, now.memoryTotal = h.Memory()
	}
	if h.MemoryPeak != nil {
		now.memoryPeak = h.MemoryPeak()
	}
	if h.Earlier != nil {
		now.earlier = h.Earlier()
	}
	if h.PlanText != nil {
		now.planText = h.PlanText()
	}
	if h.Inventory != nil {
		if machine, err := inventory.Parse(h.Inventory()); err == nil { // an error: there is none yet
			now.machine = &machine
		}
	}
	text, err := h.page.render(now)
	if err != nil {
		http.Error(w, "the page could not be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", h.page.policy)
	w.Write(text)
}

func (h *handler) serveStatus(w http.ResponseWriter, _ *http.Request) {
	data, err := json.MarshalIndent(h.Model.Snapshot(), "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(data, '\n'))
}

// document serves a JSON document that comes into being on the way.
func document(name, when string, get func() []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var data []byte
		if get != nil {
			data = get()
		}
		if data == nil {
			w.Header().Set("Retry-After", "5")
			http.Error(w, "there is no "+name+" yet: "+when, http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(data)
	})
}

// stream takes a place for a follower; release must be called if ok.
func (h *handler) stream(w http.ResponseWriter) (release func(), ok bool) {
	select {
	case h.streams <- struct{}{}:
		return func() { <-h.streams }, true
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d others are following already", maxStreams), http.StatusServiceUnavailable)
		return nil, false
	}
}

// serveEvents sends every event as a message of
// https://html.spec.whatwg.org/multipage/server-sent-events.html: first
// those that have happened, then new ones as they happen. A follower that
// is too slow is cut off and finds out the rest by coming again.
func (h *handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return
	}
	release, ok := h.stream(w)
	if !ok {
		return
	}
	defer release()
	past, follow, stop := h.Model.Events()
	defer stop()
	send := func(e progress.Event) error {
		data, err := json.Marshal(e)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w, "data: %s\n\n", data)
		return err
	}
	if _, err := io.WriteString(w, "retry: 2000\n\n"); err != nil {
		return
	}
	for _, e := range past {
		if send(e) != nil {
			return
		}
	}
	pump(w, r, follow, send, ": still here\n\n")
}

func (h *handler) serveEarlier(w http.ResponseWriter, _ *http.Request) {
	text := ""
	if h.Earlier != nil {
		text = h.Earlier()
	}
	if text == "" {
		http.Error(w, "no earlier start was cut short, as far as is known", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	io.WriteString(w, text)
}

func (h *handler) serveLog(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		return
	}
	following, _ := strconv.ParseBool(r.URL.Query().Get("follow")) // nonsense is "no"
	if following {
		release, ok := h.stream(w)
		if !ok {
			return
		}
		defer release()
	}
	past, follow, stop := h.Model.Lines()
	defer stop()
	var b strings.Builder
	for _, l := range past {
		b.WriteString(l.String() + "\n")
	}
	if _, err := io.WriteString(w, b.String()); err != nil || !following {
		return
	}
	pump(w, r, follow, func(l progress.Line) error {
		_, err := io.WriteString(w, l.String()+"\n")
		return err
	}, "")
}

// pump sends what follow brings until the client or the server goes away.
// idle is sent from time to time when there is nothing else.
func pump[T any](w http.ResponseWriter, r *http.Request, follow <-chan T, send func(T) error, idle string) {
	control := http.NewResponseController(w)
	if control.Flush() != nil {
		return
	}
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for {
		var err error
		extend(w)
		select {
		case <-r.Context().Done():
			return
		case item, ok := <-follow:
			if !ok {
				return
			}
			err = send(item)
		case <-tick.C:
			_, err = io.WriteString(w, idle)
		}
		if err != nil || control.Flush() != nil {
			return
		}
	}
}
