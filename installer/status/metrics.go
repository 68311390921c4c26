package status

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firstlight/firstlight/installer/progress"
)

// collector reads everything at the moment of a scrape.
type collector struct{ o *Options }

// Describe sends nothing: the collector is unchecked, as its labels come and
// go with phases and disks.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the metrics of one moment.
func (c collector) Collect(out chan<- prometheus.Metric) {
	s := c.o.Model.Snapshot()
	send := func(kind prometheus.ValueType, name, help string, value float64, labels ...string) {
		var names, values []string
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
	}
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue

	send(gauge, "installer_build_info", "1; the labels say what runs.", 1,
		"version", s.Facts.Version, "goversion", runtime.Version(), "arch", runtime.GOARCH)
	send(gauge, "installer_progress_ratio", "How much of the installation is done, 0 to 1.", s.Ratio)
	for _, p := range s.Phases {
		current := 0.0
		if p.State == progress.Running || p.State == progress.Waiting {
			current = 1
		}
		send(gauge, "installer_phase", "1 while the phase is under way.", current, "phase", string(p.Phase))
		if p.State != progress.Pending {
			send(gauge, "installer_phase_duration_seconds", "How long the phase has taken so far.", p.Seconds, "phase", string(p.Phase))
		}
	}
	for _, source := range progress.Sources() {
		var found progress.SourceStatus
		for _, o := range s.Objects {
			if o.Source == source {
				found = o
			}
		}
		send(counter, "installer_objects_total", "Objects by where they came from.", float64(found.Objects), "source", string(source))
		send(counter, "installer_object_bytes_total", "Bytes of objects, unpacked, by where they came from.", float64(found.Bytes), "source", string(source))
	}
	for code, n := range c.o.Model.Errors() {
		send(counter, "installer_errors_total", "Failures by error code.", float64(n), "code", code)
	}
	if c.o.NetworkReceived != nil {
		send(counter, "installer_network_received_bytes_total", "Bytes received on all interfaces since boot.", float64(c.o.NetworkReceived()))
	}
	if c.o.DiskWritten != nil {
		for disk, n := range c.o.DiskWritten() {
			send(counter, "installer_disk_written_bytes_total", "Bytes written to the disk since boot.", float64(n), "disk", disk)
		}
	}
	if c.o.MemoryPeak != nil {
		send(gauge, "installer_memory_peak_bytes", "The most memory that was in use.", float64(c.o.MemoryPeak()))
	}
}
