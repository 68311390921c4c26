package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/tools/site"
)

var (
	//go:embed page.html
	pageTemplate string
	//go:embed page.css
	pageStyle string
	//go:embed page.js
	pageScript string
)

// pages are complete without JavaScript, which only saves the reloading.
type pages struct {
	template *template.Template
	policy   string // Content-Security-Policy
}

func newPages() *pages {
	hash := sha256.Sum256([]byte(pageScript))
	return &pages{
		template: template.Must(template.New("page").Funcs(template.FuncMap{
			"ago": ago, "percent": func(ratio float64) int { return int(ratio * 100) },
			"bytes": func(n uint64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) },
		}).Parse(pageTemplate)),
		policy: "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; " +
			"base-uri 'none'; form-action 'none'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'",
	}
}

// Row is one machine as page and JSON show it.
type Row struct {
	Name     string            `json:"name"`
	Pending  bool              `json:"pending"`
	State    site.State        `json:"state"`
	Headline string            `json:"headline"`
	Since    time.Time         `json:"since,omitzero"`
	Reason   string            `json:"reason,omitempty"`
	Do       string            `json:"do,omitempty"`
	Mistake  string            `json:"mistake,omitempty"`
	Firmware string            `json:"firmware,omitempty"`
	Image    string            `json:"image,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	MACs     []string          `json:"macs,omitempty"`
	Serial   string            `json:"serial,omitempty"`
	Address  string            `json:"address,omitempty"` // from which it was last heard
	Heard    time.Time         `json:"heard,omitzero"`
	Phase    string            `json:"phase,omitempty"`
	Waits    string            `json:"waits,omitempty"` // what its installer waits for
	Ratio    float64           `json:"ratio"`
	// ETASeconds is how long the installation will still take, by how long it has
	// taken so far; 0 where that cannot be said.
	ETASeconds float64           `json:"etaSeconds,omitempty"`
	Silent     bool              `json:"silent,omitempty"` // it should have said something by now
	Failure    *progress.Failure `json:"failure,omitempty"`
	Page       string            `json:"page,omitempty"` // of its installer, while that runs
	HandedOver time.Time         `json:"handedOver,omitzero"`
	Answered   time.Time         `json:"answered,omitzero"`
	How        string            `json:"how,omitempty"`
	Warnings   []string          `json:"warnings,omitempty"`
}

// silence is how long an installer that runs may say nothing before that is
// shown: it reports at least once in a few seconds.
const silence = 30 * time.Second

// rows are all machines, those that want something of somebody first.
func (s *Server) rows() ([]Row, error) {
	machines, err := s.Site.Machines()
	if err != nil {
		return nil, err
	}
	var rows []Row
	for _, m := range machines {
		rows = append(rows, s.row(m))
	}
	slices.SortStableFunc(rows, func(a, b Row) int { return urgency(a) - urgency(b) })
	return rows, nil
}

// urgency is low for what people should see first.
func urgency(r Row) int {
	switch {
	case r.State == site.Failed, r.Mistake != "":
		return 0
	case r.State == site.Installing:
		return 1
	case r.State == site.Waiting, r.State == site.New, r.State == site.Rescue:
		return 2
	case r.State == site.Approved:
		return 3
	}
	return 4
}

func (s *Server) row(m *site.Machine) Row {
	status := m.Status
	r := Row{
		Name: m.Name, Pending: m.Pending, State: status.State, Headline: status.Headline(), Since: status.Since,
		Reason: status.Reason, Do: status.Do, Mistake: m.Mistake, Firmware: status.Firmware, Image: m.Image, Labels: m.Card.Labels,
		Serial: m.Identity.Serial, Address: status.Address, Heard: status.Heard,
		HandedOver: status.HandedOver, Answered: status.Answered, How: status.How,
	}
	for _, mac := range m.Identity.MACs {
		r.MACs = append(r.MACs, mac.String())
	}
	p := status.Progress
	if p == nil {
		return r
	}
	r.Failure, r.Warnings = p.Failure, p.Warnings
	if status.State == site.Installed {
		r.Ratio = 1
		return r
	}
	r.Ratio = p.Ratio
	for _, phase := range p.Current() {
		r.Phase = strings.TrimPrefix(r.Phase+" and "+string(phase.Phase), " and ")
		if phase.WaitingFor != "" {
			r.Waits = phase.WaitingFor
		}
	}
	running := status.State == site.Installing || status.State == site.Waiting || status.State == site.Rescue
	r.Silent = running && s.Now().Sub(status.Heard) > silence
	if running && !r.Silent && status.Address != "" {
		r.Page = "http://" + net.JoinHostPort(status.Address, "6978") + "/"
	}
	if status.State == site.Installing && p.Ratio > 0.05 && p.Ratio < 1 {
		r.ETASeconds = float64(int(p.Seconds * (1 - p.Ratio) / p.Ratio))
	}
	return r
}

// ago is a time for people.
func ago(t time.Time, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := now.Sub(t).Round(time.Second)
	switch {
	case d < 2*time.Second:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return t.UTC().Format(time.DateOnly)
}

// view is what the template is given.
type view struct {
	Title   string
	Now     time.Time
	Style   template.CSS
	Script  template.JS
	Version string
	Counts  []count
	Rows    []Row
	Notices []Notice
	Images  []Image
	NoList  string // why there is no list of images
	One     *Row
	Log     []string
	Audit   []site.Entry
}

type count struct {
	State string
	N     int
}

func (s *Server) view(title string) view {
	v := view{Title: title, Now: s.Now(), Style: template.CSS(pageStyle), Script: template.JS(pageScript), Version: s.Version}
	if s.Notices != nil {
		v.Notices = s.Notices()
	}
	return v
}

func (s *Server) render(w http.ResponseWriter, v view) {
	var b bytes.Buffer
	if err := s.page.template.Execute(&b, v); err != nil {
		http.Error(w, "the page could not be made: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", s.page.policy)
	w.Header().Set("Cache-Control", "no-store")
	w.Write(b.Bytes()) // a browser that is gone asks again
}

// imagePatience is how long the page waits for the list of images.
const imagePatience = 3 * time.Second

func (s *Server) serveFleet(w http.ResponseWriter, r *http.Request) {
	v := s.view("The fleet")
	var err error
	if v.Rows, err = s.rows(); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for _, row := range v.Rows {
		at := slices.IndexFunc(v.Counts, func(c count) bool { return c.State == row.Headline })
		if at < 0 {
			v.Counts = append(v.Counts, count{row.Headline, 1})
		} else {
			v.Counts[at].N++
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), imagePatience)
	defer cancel()
	if s.Images != nil {
		if v.Images, err = s.Images(ctx); err != nil {
			v.NoList = err.Error()
		}
	}
	s.render(w, v)
}

// logTail is how much of a log stands on a machine's page, in lines.
const logTail = 200

func (s *Server) serveMachine(w http.ResponseWriter, r *http.Request) {
	m, err := s.Site.Machine(r.PathValue("name"))
	if err != nil {
		http.Error(w, err.Error(), refuse(err).(*HTTPError).Status)
		return
	}
	v := s.view(m.Name)
	row := s.row(m)
	v.One = &row
	if log, err := s.Site.Log(m.Name); err == nil {
		lines := strings.Split(strings.TrimRight(string(log), "\n"), "\n")
		v.Log = lines[max(0, len(lines)-logTail):]
	}
	trail, err := s.Site.Audit()
	if err != nil {
		v.Notices = append(v.Notices, Notice{Bad: true, Text: err.Error()})
	}
	for _, e := range trail {
		if e.Machine == m.Name {
			v.Audit = append(v.Audit, e)
		}
	}
	s.render(w, v)
}

func (s *Server) serveLog(w http.ResponseWriter, r *http.Request) {
	log, err := s.Site.Log(r.PathValue("name"))
	if errors.Is(err, fs.ErrNotExist) {
		http.Error(w, "this machine's installer has left no log here yet; while it runs, its own page has it", http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(log) // as in render
}

func (s *Server) serveMachines(w http.ResponseWriter, _ *http.Request) {
	rows, err := s.rows()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	var notices []Notice
	if s.Notices != nil {
		notices = s.Notices()
	}
	writeJSON(w, map[string]any{"format": 1, "machines": append([]Row{}, rows...), "notices": append([]Notice{}, notices...)})
}

func (s *Server) serveOne(w http.ResponseWriter, r *http.Request) {
	m, err := s.Site.Machine(r.PathValue("name"))
	if err != nil {
		http.Error(w, err.Error(), refuse(err).(*HTTPError).Status)
		return
	}
	writeJSON(w, s.row(m))
}

func (s *Server) serveInventory(w http.ResponseWriter, r *http.Request) {
	m, err := s.Site.Machine(r.PathValue("name"))
	if err != nil {
		http.Error(w, err.Error(), refuse(err).(*HTTPError).Status)
		return
	}
	found, err := s.Site.Inventory(m.Name)
	if err != nil {
		http.Error(w, "it has said nothing of its hardware yet", http.StatusNotFound)
		return
	}
	data, err := found.JSON()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(data) // as in render
}

func (s *Server) serveImages(w http.ResponseWriter, r *http.Request) {
	images := []Image{}
	if s.Images != nil {
		found, err := s.Images(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		images = append(images, found...)
	}
	writeJSON(w, images)
}

func (s *Server) serveAudit(w http.ResponseWriter, _ *http.Request) {
	trail, err := s.Site.Audit()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, append([]site.Entry{}, trail...))
}

// watch tells followers that something has changed.
type watch struct {
	mu      sync.Mutex
	changed chan struct{} // closed at a change
}

func (w *watch) poke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *watch) next() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// followInterval is how often the site's directory is looked at for what the
// operator's command has changed.
const followInterval = 500 * time.Millisecond

// Follow tells those who follow the page what changes in the site's directory,
// until ctx ends.
func (s *Server) Follow(ctx context.Context) {
	var before [sha256.Size]byte
	pause := followInterval
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if len(s.streams) == 0 {
			continue
		}
		start := time.Now()
		rows, err := s.rows()
		// A large fleet on a small server is looked at less often.
		pause = max(followInterval, 5*time.Since(start))
		if err != nil {
			continue // whoever opens the page sees it
		}
		for n := range rows {
			rows[n].Heard = time.Time{}
		}
		data, err := json.Marshal(rows)
		if now := sha256.Sum256(data); err == nil && now != before {
			before = now
			s.watch.poke()
		}
	}
}

// How the event stream goes.
const (
	leastBetween = 400 * time.Millisecond // two messages
	keepAlive    = 15 * time.Second
	writeTimeout = 30 * time.Second
)

// serveEvents sends a message whenever something has changed
// (https://html.spec.whatwg.org/multipage/server-sent-events.html); what it is
// stands in /api/v1/machines.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodHead {
		return
	}
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, fmt.Sprintf("%d others are following already", maxStreams), http.StatusServiceUnavailable)
		return
	}
	control := http.NewResponseController(w)
	send := func(text string) bool {
		// A recorder in a test has no deadlines; that is its only error.
		_ = control.SetWriteDeadline(time.Now().Add(writeTimeout))
		_, err := io.WriteString(w, text)
		return err == nil && control.Flush() == nil
	}
	if !send("retry: 2000\n\ndata: changed\n\n") {
		return
	}
	for {
		next := s.watch.next()
		select {
		case <-r.Context().Done():
			return
		case <-time.After(keepAlive):
			if !send(": still here\n\n") {
				return
			}
			continue
		case <-next:
		}
		select { // changes that come together are one
		case <-r.Context().Done():
			return
		case <-time.After(leastBetween):
		}
		if !send("data: changed\n\n") {
			return
		}
	}
}
