package server

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/image"
)

//go:embed page.html
var pageFiles embed.FS

// shownImages is how many images the page lists, newest first.
const shownImages = 200

// Pages are the looking pages: / (status), /metrics, /healthz and /readyz. They
// work without JavaScript and hold no secret.
func (s *Server) Pages() (http.Handler, error) {
	page, err := template.New("page.html").Funcs(template.FuncMap{"bytes": humanBytes, "ago": ago}).ParseFS(pageFiles, "page.html")
	if err != nil {
		return nil, fmt.Errorf("reading the status page's template: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) { s.statusPage(w, r, page) })
	mux.Handle("/metrics", promhttp.HandlerFor(s.options.Metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", s.readiness)
	return mux, nil
}

// readiness answers 200 where the server can do its work, else 503. Damaged
// objects do not make it unready: everything else is served. With ?verbose it
// says more, a line for each check.
func (s *Server) readiness(w http.ResponseWriter, r *http.Request) {
	err := s.options.Ready(r.Context())
	if err != nil {
		s.options.Log.Warn("not ready", "error", err)
	}
	verbose := r.URL.Query().Has("verbose")
	switch {
	case !verbose && err != nil:
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	case !verbose:
		fmt.Fprintln(w, "ok")
		return
	}
	var text strings.Builder
	if err != nil {
		fmt.Fprintf(&text, "[-] data: %v\n", err)
	} else {
		fmt.Fprintln(&text, "[+] data: ok")
	}
	running, waiting := s.places.counts()
	mark := "[+]"
	if waiting > 0 {
		mark = "[!]"
	}
	fmt.Fprintf(&text, "%s transfers: %d of %d run, %d wait\n", mark, running, s.options.Transfers, waiting)
	if s.options.Scrub != nil {
		writeScrub(&text, s.options.Scrub())
	}
	if err != nil {
		fmt.Fprintln(&text, "not ready")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
	} else {
		fmt.Fprintln(&text, "ready")
	}
	// Who has gone away needs no answer.
	_, _ = io.WriteString(w, text.String())
}

// shownDamaged is how many damaged objects are listed.
const shownDamaged = 100

func writeScrub(w io.Writer, scrub Scrub) {
	pass := "none completed since the start"
	if !scrub.LastPass.IsZero() {
		pass = "the last completed " + scrub.LastPass.UTC().Format(time.RFC3339)
	}
	fmt.Fprintf(w, "[+] scrub: %d objects verified, %d found damaged, %d healed; passes: %s\n", scrub.Objects, scrub.Damaged, scrub.Healed, pass)
	if len(scrub.Quarantined)+len(scrub.Packs) == 0 {
		fmt.Fprintln(w, "[+] quarantine: empty")
		return
	}
	fmt.Fprintf(w, "[!] quarantine: %d damaged objects, %d unreadable packs; add their images again\n", len(scrub.Quarantined), len(scrub.Packs))
	for _, digest := range scrub.Quarantined[:min(len(scrub.Quarantined), shownDamaged)] {
		fmt.Fprintln(w, "    "+digest.String())
	}
	for _, pack := range scrub.Packs {
		fmt.Fprintln(w, "    pack "+pack)
	}
}

// pageData is what page.html shows.
type pageData struct {
	Scrub   *Scrub
	Version string
	Started time.Time
	Now     time.Time
	TLS     bool
	NotOK   string
	Images  []pageImage
	Total   int
}

type pageImage struct {
	catalog.Entry
	OS, Arch string
}

func (s *Server) statusPage(w http.ResponseWriter, r *http.Request, page *template.Template) {
	data := pageData{Version: s.options.Version, Started: s.options.Started.UTC(), Now: time.Now().UTC(), TLS: s.options.TLS}
	if err := s.options.Ready(r.Context()); err != nil {
		data.NotOK = err.Error()
	}
	if s.options.Scrub != nil {
		scrub := s.options.Scrub()
		scrub.Quarantined = scrub.Quarantined[:min(len(scrub.Quarantined), shownDamaged)]
		data.Scrub = &scrub
	}
	entries := s.options.Images.List("")
	slices.SortFunc(entries, func(a, b catalog.Entry) int { return b.Added.Compare(a.Added) })
	data.Total = len(entries)
	for _, entry := range entries[:min(len(entries), shownImages)] {
		data.Images = append(data.Images, pageImage{entry, entry.Attributes[image.AttrOSName], entry.Attributes[image.AttrArch]})
	}
	var out bytes.Buffer
	if err := page.Execute(&out, data); err != nil {
		s.options.Log.Error("writing the status page", "error", err)
		http.Error(w, "the page could not be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.Header().Set("Cache-Control", "no-store")
	// A browser that has gone away needs no page.
	_, _ = out.WriteTo(w)
}

func humanBytes(n uint64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for units := len("kMGTPE"); value >= 999.5 && unit < units; unit++ {
		value /= 1000
	}
	return fmt.Sprintf("%.3g %cB", value, "kMGTPE"[unit-1])
}

func ago(now, then time.Time) string {
	d := now.Sub(then)
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}
