package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// peer is what the installer of the model took for the same kind of root and
// the same machine, from its start to its kexec (November 2026).
type peer struct {
	wall, cpu time.Duration
	bytes     float64 // received, in MB
	memory    float64 // at most, in MB
}

// whole are the ways to install that are compared with the model.
func wholes() []struct {
	name  string
	model peer
} {
	return []struct {
		name  string
		model peer
	}{
		{"fresh", peer{113 * time.Second, 170 * time.Second, 456, 1670}},
		{"same image again", peer{104 * time.Second, 164 * time.Second, 2.35, 1560}},
		{"5 % of the files changed", peer{104 * time.Second, 164 * time.Second, 25.5, 1590}},
	}
}

// wholePart installs a machine in QEMU three times and compares what that takes
// with what the model took.
func wholePart(ctx context.Context, g *ground) ([]row, error) {
	directory := filepath.Join(g.checkout, "build", "bench")
	products, err := lab.FindProducts(g.checkout)
	if err != nil {
		return nil, err
	}
	products.Root = filepath.Join(directory, "small.tar")
	site, err := lab.OpenSite(ctx, products, filepath.Join(directory, "site"), func(string, ...any) {})
	if err != nil {
		return nil, err
	}
	server, err := site.Serve(ctx, filepath.Join(site.Dir, "store"))
	if err != nil {
		return nil, err
	}
	defer server.Stop()
	changed := g.path("small-changed.tar")
	if err := changeFiles(products.Root, changed); err != nil {
		return nil, err
	}
	const name = "debian/12/changed"
	if err := site.Add(ctx, server, name, changed); err != nil {
		return nil, err
	}
	disk := filepath.Join(g.memory, "disk.raw")
	if err := qemu.CreateDisk(disk, lab.DiskBytes); err != nil {
		return nil, err
	}
	var rows []row
	for i, way := range wholes() {
		if i == 2 {
			site.Image = name
		}
		g.say("whole installation: %s", way.name)
		took, bytes, memory, err := g.installMachine(ctx, site, server, disk)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", way.name, err)
		}
		of := func(what, ours, model string, value, bound float64) {
			rows = append(rows, row{what: "installing in QEMU, " + way.name + ": " + what, ours: ours, beside: "the model: " + model, value: value, unit: "×", bound: bound})
		}
		of("wall", fmt.Sprintf("%.0f s", took.wall.Seconds()), fmt.Sprintf("%.0f s", way.model.wall.Seconds()), took.wall.Seconds()/way.model.wall.Seconds(), 0.4)
		of("QEMU's CPU", fmt.Sprintf("%.0f CPU-s", took.cpu.Seconds()), fmt.Sprintf("%.0f CPU-s", way.model.cpu.Seconds()), took.cpu.Seconds()/way.model.cpu.Seconds(), 0.5)
		of("peak memory", fmt.Sprintf("%.0f MB", memory), fmt.Sprintf("%.0f MB", way.model.memory), memory/way.model.memory, 0.4)
		of("received", fmt.Sprintf("%.2f MB", bytes), fmt.Sprintf("%.2f MB", way.model.bytes), bytes/way.model.bytes, 0)
	}
	return rows, nil
}

var (
	begins = regexp.MustCompile(`(?m)^\[ *\d+\.\d{3}\] clock: `)
	ends   = regexp.MustCompile(`(?m)finish: handing over to \S+ by kexec|FAILED .*\n`)
)

// installMachine installs over what is on disk. It returns what that took from
// the installer's first line to its hand-over, MB that came from the image
// server, and MB of memory that were in use at most.
func (g *ground) installMachine(ctx context.Context, site *lab.Site, server *lab.Server, disk string) (took cost, received, memory float64, err error) {
	between, err := newCounter(server.Address())
	if err != nil {
		return took, 0, 0, err
	}
	defer between.close()
	config, err := site.NewConfig(lab.InGuest(portOf(between.address())))
	if err != nil {
		return took, 0, 0, err
	}
	tftp := g.path("tftp")
	if err := site.WriteTFTP(tftp, config); err != nil {
		return took, 0, 0, err
	}
	page, err := lab.FreePort()
	if err != nil {
		return took, 0, 0, err
	}
	sockets, err := os.MkdirTemp("", "fl-")
	if err != nil {
		return took, 0, 0, err
	}
	defer os.RemoveAll(sockets)
	limit, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	m, err := qemu.Start(limit, qemu.Config{
		Dir: sockets, MemoryMiB: 4096, Kernel: site.Kernel(), Initrd: site.Initramfs(), CommandLine: lab.CommandLine, NoReboot: true,
		Disks: []qemu.Disk{{Path: disk, Serial: "lab-0"}},
		Net:   qemu.Net{TFTP: tftp, Forwards: map[int]int{page: 6978}},
		Log:   filepath.Join(g.checkout, "build", "bench", "console.log"),
	})
	if err != nil {
		return took, 0, 0, err
	}
	defer m.Kill()
	if _, err := m.WaitFor(limit, begins); err != nil {
		return took, 0, 0, fmt.Errorf("the installer did not start: %w", err)
	}
	begun := time.Now()
	asking, stop := context.WithCancel(limit)
	peak := make(chan float64, 1)
	go func() { peak <- askPeak(asking, page) }()
	took.cpu, err = used(func() error {
		found, err := m.WaitFor(limit, ends)
		if err == nil && found[0][0] == 'F' {
			err = errors.New(found[0])
		}
		return err
	}, m.PID())
	took.wall = time.Since(begun)
	stop()
	memory = <-peak
	if err != nil {
		return took, 0, 0, fmt.Errorf("%w; the console's last lines:\n%s", err, m.Tail(20))
	}
	time.Sleep(2 * time.Second) // for what QEMU has still to write of the last lines
	return took, float64(between.bytes.Load()) / megabyte, memory, nil
}

func portOf(address string) int {
	var port int
	// The address is a listener's own.
	_, _ = fmt.Sscanf(address, "127.0.0.1:%d", &port)
	return port
}

var peakMemory = regexp.MustCompile(`(?m)^installer_memory_peak_bytes (\S+)$`)

// askPeak asks the installer's page for its peak memory, in MB, until ctx ends.
func askPeak(ctx context.Context, page int) (peak float64) {
	web := &http.Client{Timeout: 5 * time.Second}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/metrics", page), nil)
		if err != nil {
			return peak
		}
		// Before the page is up, and after it is gone, what is known stands.
		if answer, err := web.Do(request); err == nil {
			body, _ := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if found := peakMemory.FindSubmatch(body); found != nil {
				if bytes, err := strconv.ParseFloat(string(found[1]), 64); err == nil {
					peak = max(peak, bytes/megabyte)
				}
			}
		}
		select {
		case <-ctx.Done():
			return peak
		case <-time.After(2 * time.Second):
		}
	}
}
