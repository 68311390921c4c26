package main

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// demoPart installs a machine as the demo does.
func demoPart(ctx context.Context, _ *ground) ([]row, error) {
	products, err := lab.FindProducts(".")
	if err != nil {
		return nil, err
	}
	quiet := func(string, ...any) {}
	site, err := lab.OpenSite(ctx, products, filepath.Join("build", "demo", "site"), quiet)
	if err != nil {
		return nil, err
	}
	directory := filepath.Join("build", "bench", "demo")
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
	return demoRows(result, took), nil
}

// demoRows are the figures of one installation that took so long, cold boot
// included.
func demoRows(result *lab.Result, took time.Duration) []row {
	var image uint64
	for _, source := range result.Status.Objects {
		image += source.Bytes
	}
	rows := []row{
		amount("the demo's image, unpacked", float64(image)/megabyte, "MB", 0),
		amount("peak memory of the installer's machine", float64(result.PeakMemory)/megabyte, "MB", math.Round(0.6*float64(image)/megabyte+200)),
	}
	for _, t := range result.Took {
		rows = append(rows, amount(t.What, t.Time.Seconds(), "s", 0))
	}
	return append(rows, amount("from PXE to the second login prompt", took.Seconds(), "s", 300))
}
