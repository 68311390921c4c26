// Bench measures what the README promises and prints it as one table, with
// the ratio to each goal: the size of what a machine boots, the benchmarks of
// the packages that carry a promise, and what the installation of a machine
// takes. `make bench` runs it from the top of the checkout. It reports; it
// fails only when something cannot be measured.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
	"github.com/firstlight/firstlight/tools/media"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// row is one figure. A goal of 0 means that none was set.
type row struct {
	what   string
	value  float64
	unit   string
	goal   float64
	atMost bool // the goal is an upper bound, else a lower one
}

// verdict is the figure in terms of its goal: at most 1.00 × is good for an
// upper bound, at least 1.00 × for a lower one.
func (r row) verdict() string {
	if r.goal == 0 {
		return ""
	}
	bound := "at least"
	good := r.value >= r.goal
	if r.atMost {
		bound, good = "at most", r.value <= r.goal
	}
	word := "met"
	if !good {
		word = "MISSED"
	}
	return fmt.Sprintf("%s %g\t%.2f ×\t%s", bound, r.goal, r.value/r.goal, word)
}

// benchmark is one of the packages' own, and which of its metrics stands for
// what.
type benchmark struct {
	pkg, name string
	metrics   []metric
}

type metric struct {
	bench  string // as go test prints it, without -N and Benchmark
	unit   string
	what   string
	shown  string  // unit in the table
	scale  float64 // from the one to the other
	goal   float64
	atMost bool
}

// benchmarks are those that the README speaks of.
func benchmarks() []benchmark {
	return []benchmark{
		{"./storage/luks", "^BenchmarkLUKS3$", []metric{
			{"LUKS3", "cpu-s/op", "three LUKS volumes", "CPU-s", 1, 0.5, true},
		}},
		{"./imageserver/client", "^BenchmarkFetch$", []metric{
			{"Fetch/tls", "unpacked-MB/s", "objects over loopback, TLS", "MB/s unpacked", 1, 300, false},
			{"Fetch/plaintext", "unpacked-MB/s", "objects over loopback, plaintext", "MB/s unpacked", 1, 300, false},
		}},
	}
}

func run(ctx context.Context, stdout io.Writer) error {
	rows, err := sizes(ctx)
	if err != nil {
		return err
	}
	for _, b := range benchmarks() {
		more, err := measure(ctx, b)
		if err != nil {
			return err
		}
		rows = append(rows, more...)
	}
	more, err := installation(ctx)
	if err != nil {
		return err
	}
	rows = append(rows, more...)
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "what\tmeasured\tunit\tgoal\tratio\t")
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%.2f\t%s\t%s\n", r.what, r.value, r.unit, r.verdict())
	}
	return table.Flush()
}

// sizes are those of the kernel and of initramfs files with each set of
// modules: what goes over the wire before the installer runs.
func sizes(ctx context.Context) ([]row, error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	const megabyte = 1e6
	var rows []row
	for _, set := range []media.Set{media.SetVM, media.SetCommon, media.SetAll} {
		report, err := media.Initramfs(ctx, media.Options{
			Base:      filepath.Join("build", "initramfs-amd64.cpio.zst"),
			KernelDir: filepath.Join("build", "kernel", "amd64"),
			Modules:   set, Out: filepath.Join(dir, string(set)),
		})
		if err != nil {
			return nil, err
		}
		kernel, err := os.Stat(report.Kernel)
		if err != nil {
			return nil, err
		}
		if set == media.SetVM {
			rows = append(rows, row{what: "kernel", value: float64(kernel.Size()) / megabyte, unit: "MB"})
			for _, part := range report.Parts[:1] {
				rows = append(rows, row{what: "initramfs, " + part.Name, value: float64(part.Bytes) / megabyte, unit: "MB"})
			}
		}
		r := row{what: fmt.Sprintf("kernel + initramfs, %s (%d modules)", set, report.Modules), value: float64(report.Bytes+kernel.Size()) / megabyte, unit: "MB"}
		if set == media.SetCommon {
			r.goal, r.atMost = 40, true
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// installation installs a machine as the demo does.
func installation(ctx context.Context) ([]row, error) {
	products, err := lab.FindProducts(".")
	if err != nil {
		return nil, err
	}
	quiet := func(string, ...any) {}
	site, err := lab.OpenSite(ctx, products, filepath.Join("build", "demo", "site"), quiet)
	if err != nil {
		return nil, err
	}
	directory := filepath.Join("build", "bench")
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return nil, err
	}
	start := time.Now()
	result, err := (&lab.Installation{
		Site: site, Probe: qemu.NewProbe(products.Kernel), Dir: directory,
		Step: quiet, Line: func(string) {},
	}).Run(ctx)
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	if result.PeakMemory == 0 {
		return nil, errors.New("the installer never told its peak memory")
	}
	return machineRows(result, took), nil
}

// machineRows are the figures of one installation that took so long, cold
// boot included.
func machineRows(result *lab.Result, took time.Duration) []row {
	var image uint64
	for _, source := range result.Status.Objects {
		image += source.Bytes
	}
	const megabyte = 1e6
	rows := []row{
		{what: "image, unpacked", value: float64(image) / megabyte, unit: "MB"},
		{what: "peak memory of the installer's machine", value: float64(result.PeakMemory) / megabyte, unit: "MB",
			goal: math.Round(0.6*float64(image)/megabyte + 200), atMost: true},
	}
	for _, t := range result.Took {
		rows = append(rows, row{what: t.What, value: t.Time.Seconds(), unit: "s"})
	}
	return append(rows, row{what: "from PXE to the second login prompt", value: took.Seconds(), unit: "s", goal: 300, atMost: true})
}

// measure runs a benchmark and picks its metrics.
func measure(ctx context.Context, b benchmark) ([]row, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", b.name, "-benchtime", "3x", b.pkg)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go test -bench %s %s: %w\n%s", b.name, b.pkg, err, out)
	}
	found := parse(out)
	var rows []row
	for _, m := range b.metrics {
		value, ok := found[m.bench][m.unit]
		if !ok {
			return nil, fmt.Errorf("%s of %s reports no %s:\n%s", m.bench, b.pkg, m.unit, out)
		}
		rows = append(rows, row{what: m.what, value: value * m.scale, unit: m.shown, goal: m.goal, atMost: m.atMost})
	}
	return rows, nil
}

// parse reads go test's lines, "BenchmarkFetch/tls-2  3  123 ns/op  456 MB/s",
// into benchmark → unit → value (golang.org/design/14313-benchmark-format).
func parse(out []byte) map[string]map[string]float64 {
	found := map[string]map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		if at := strings.LastIndexByte(name, '-'); at > 0 {
			if _, err := strconv.Atoi(name[at+1:]); err == nil {
				name = name[:at]
			}
		}
		values := map[string]float64{}
		for i := 2; i+1 < len(fields); i += 2 {
			value, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				break
			}
			values[fields[i+1]] = value
		}
		found[name] = values
	}
	return found
}
