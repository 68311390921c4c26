package server

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"slices"
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
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := s.options.Ready(r.Context()); err != nil {
			s.options.Log.Warn("not ready", "error", err)
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux, nil
}

// pageData is what page.html shows.
type pageData struct {
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
