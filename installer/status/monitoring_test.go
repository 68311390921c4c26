package status_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/status"
)

// everyMetric is what a machine that has seen everything shows at /metrics.
func everyMetric(t *testing.T) string {
	t.Helper()
	m := busy()
	m.Fail(progress.Storage, noKernel{})
	return body(t, get(t, status.Handler(status.Options{Model: m,
		NetworkReceived: func() uint64 { return 1 },
		DiskWritten:     func() map[string]uint64 { return map[string]uint64{"vda": 1} },
		MemoryPeak:      func() uint64 { return 1 },
	}), "GET", "/metrics"))
}

var metricName = regexp.MustCompile(`\binstaller_[a-z_]+\b`)

// The dashboard, the alerts and their documentation speak of metrics that there
// are, and of all of them.
func TestMonitoringKnowsTheMetrics(t *testing.T) {
	known := slices.Compact(slices.Sorted(slices.Values(metricName.FindAllString(everyMetric(t), -1))))
	docs := filepath.Join("..", "..", "docs")
	used := func(name string) []string {
		data, err := os.ReadFile(filepath.Join(docs, name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		switch filepath.Ext(name) {
		case ".json":
			var dashboard struct {
				UID    string `json:"uid"`
				Panels []struct {
					Title   string `json:"title"`
					Targets []struct {
						Expr string `json:"expr"`
					} `json:"targets"`
				} `json:"panels"`
			}
			if err := json.Unmarshal(data, &dashboard); err != nil {
				t.Fatal(err)
			}
			text = ""
			for _, p := range dashboard.Panels {
				if p.Title == "" || len(p.Targets) == 0 {
					t.Errorf("%s: a panel without title or query: %+v", name, p)
				}
				for _, target := range p.Targets {
					text += target.Expr + "\n"
				}
			}
		case ".yml":
			var rules struct {
				Groups []struct {
					Rules []struct {
						Alert, Expr string
						Annotations map[string]string
					}
				}
			}
			if err := yaml.Unmarshal(data, &rules); err != nil {
				t.Fatal(err)
			}
			text = ""
			for _, g := range rules.Groups {
				for _, r := range g.Rules {
					if r.Alert == "" || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
						t.Errorf("%s: %+v", name, r)
					}
					text += r.Expr + "\n"
				}
			}
		}
		names := slices.Compact(slices.Sorted(slices.Values(metricName.FindAllString(text, -1))))
		for _, metric := range names {
			if !slices.Contains(known, metric) {
				t.Errorf("%s speaks of %s, which there is not", name, metric)
			}
		}
		return names
	}
	used("monitoring/installer.rules.yml")
	for _, name := range []string{"monitoring.md", "monitoring/grafana-installations.json"} {
		if shown := used(name); !slices.Equal(shown, known) {
			t.Errorf("%s shows %s, and there are %s", name, strings.Join(shown, " "), strings.Join(known, " "))
		}
	}
}
