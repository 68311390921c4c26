package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/tools/media"
)

// benchmark is one of the packages' own, and which of its metrics stands for
// what.
type benchmark struct {
	pkg, name string
	metrics   []metric
}

type metric struct {
	bench string // as go test prints it, without -N and Benchmark
	unit  string
	what  string
	shown string // unit in the table
	bound float64
	least bool
}

// benchmarks are those that the README speaks of.
func benchmarks() []benchmark {
	return []benchmark{
		{"./storage/luks", "^BenchmarkLUKS[38]$", []metric{
			{bench: "LUKS3", unit: "cpu-s/op", what: "three LUKS volumes, together", shown: "CPU-s", bound: 0.5},
			{bench: "LUKS8", unit: "cpu-s/op", what: "eight LUKS volumes, together", shown: "CPU-s", bound: 1},
		}},
		{"./imageserver/client", "^BenchmarkFetch$", []metric{
			{bench: "Fetch/tls", unit: "unpacked-MB/s", what: "objects over loopback, TLS, verified, unpacked bytes", shown: "MB/s", bound: 300, least: true},
			{bench: "Fetch/plaintext", unit: "unpacked-MB/s", what: "the same, plaintext", shown: "MB/s", bound: 300, least: true},
		}},
	}
}

// packagesPart runs the packages' own benchmarks.
func packagesPart(ctx context.Context, _ *ground) ([]row, error) {
	var rows []row
	for _, b := range benchmarks() {
		more, err := measure(ctx, b)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
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
		r := amount(m.what, value, m.shown, m.bound)
		r.least = m.least
		rows = append(rows, r)
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

const megabyte = 1e6

// sizesPart are the sizes of the kernel and of initramfs files with each set of
// modules: what goes over the wire before the installer runs.
func sizesPart(ctx context.Context, _ *ground) ([]row, error) {
	directory, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(directory)
	var rows []row
	for _, set := range []media.Set{media.SetVM, media.SetCommon, media.SetAll} {
		report, err := media.Initramfs(ctx, media.Options{
			Base:      filepath.Join("build", "initramfs-amd64.cpio.zst"),
			KernelDir: filepath.Join("build", "kernel", "amd64"),
			Modules:   set, Out: filepath.Join(directory, string(set)),
		})
		if err != nil {
			return nil, err
		}
		kernel, err := os.Stat(report.Kernel)
		if err != nil {
			return nil, err
		}
		bound := 0.0
		if set == media.SetCommon {
			bound = 40
		}
		rows = append(rows, amount(fmt.Sprintf("kernel + initramfs, `--modules %s` (%d modules)", set, report.Modules), float64(report.Bytes+kernel.Size())/megabyte, "MB", bound))
	}
	return rows, nil
}
