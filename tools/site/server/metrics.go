package server

import (
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/firstlight/firstlight/tools/site"
)

// metrics serves the site's metrics to Prometheus.
func (s *Server) metrics() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(newCollector(s))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// collector counts when it is asked.
type collector struct {
	server                                                       *Server
	buildInfo, machines, unseen, ratio, heard, failures, notices *prometheus.Desc
}

func newCollector(s *Server) *collector {
	return &collector{
		server:    s,
		buildInfo: prometheus.NewDesc("site_build_info", "The version of the site server.", []string{"version"}, nil),
		machines:  prometheus.NewDesc("site_machines", "Machines by state.", []string{"state"}, nil),
		unseen:    prometheus.NewDesc("site_machines_handed_over_unseen", "Machines that were handed over and whose new system was not seen.", nil, nil),
		ratio:     prometheus.NewDesc("site_machine_progress_ratio", "How far an installation is, 0 to 1.", []string{"machine"}, nil),
		heard:     prometheus.NewDesc("site_machine_heard_timestamp_seconds", "When a machine was last heard.", []string{"machine"}, nil),
		failures:  prometheus.NewDesc("site_machine_failed", "1 for a machine whose last installation has failed.", []string{"machine", "code"}, nil),
		notices:   prometheus.NewDesc("site_notices", "What keeps the server from doing its work.", nil, nil),
	}
}

// Describe and Collect are those of prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.buildInfo, c.machines, c.unseen, c.ratio, c.heard, c.failures, c.notices} {
		out <- d
	}
}

// Collect is described at Describe.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	gauge(c.buildInfo, 1, c.server.Version)
	rows, err := c.server.rows()
	if err != nil {
		out <- prometheus.NewInvalidMetric(c.machines, err)
		return
	}
	counts := map[site.State]float64{site.New: 0, site.Waiting: 0, site.Approved: 0, site.Installing: 0, site.Installed: 0, site.Failed: 0, site.Rescue: 0, site.Wiped: 0}
	notSeen := 0.0
	for _, r := range rows {
		counts[r.State]++
		if r.State == site.Installed && r.Answered.IsZero() {
			notSeen++
		}
		if r.State == site.Installing {
			gauge(c.ratio, r.Ratio, r.Name)
		}
		if !r.Heard.IsZero() {
			gauge(c.heard, float64(r.Heard.UnixMilli())/1000, r.Name)
		}
		if r.State == site.Failed {
			code := ""
			if r.Failure != nil {
				code = r.Failure.Code
			}
			gauge(c.failures, 1, r.Name, code)
		}
	}
	for state, n := range counts {
		gauge(c.machines, n, string(state))
	}
	gauge(c.unseen, notSeen)
	bad := 0.0
	if c.server.Notices != nil {
		for _, n := range c.server.Notices() {
			if n.Bad {
				bad++
			}
		}
	}
	gauge(c.notices, bad)
}

// serveDiscovery tells Prometheus where installers run
// (https://prometheus.io/docs/prometheus/latest/http_sd/).
func (s *Server) serveDiscovery(w http.ResponseWriter, _ *http.Request) {
	rows, err := s.rows()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	type group struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	groups := []group{}
	for _, r := range rows {
		if r.Page == "" {
			continue
		}
		labels := map[string]string{"machine": r.Name, "state": string(r.State)}
		for name, value := range r.Labels {
			labels["machine_"+labelName(name)] = value
		}
		groups = append(groups, group{[]string{net.JoinHostPort(r.Address, "6978")}, labels})
	}
	writeJSON(w, groups)
}

// labelName is a label's name in Prometheus's alphabet.
func labelName(name string) string {
	b := []byte(name)
	for i, c := range b {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9') {
			b[i] = '_'
		}
	}
	return string(b)
}
