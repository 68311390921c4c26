package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// meter measures what an installation costs, from /proc and /sys. What
// cannot be read counts as 0: a figure is never worth an installation.
type meter struct {
	proc, sys  fs.FS
	memoryPeak atomic.Uint64

	memoryUsed, memoryTotal atomic.Uint64
}

// memoryInterval is short against any phase that gathers objects.
const memoryInterval = 250 * time.Millisecond

// watch keeps the peak of the memory in use, page cache not counted but files in
// tmpfs counted, until ctx ends, and tells sample what was measured.
func (m *meter) watch(ctx context.Context, sample func(received, memory uint64)) {
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		m.sampleMemory()
		sample(m.networkReceived(), m.memoryUsed.Load())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (m *meter) sampleMemory() {
	data, err := fs.ReadFile(m.proc, "meminfo")
	if err != nil {
		return
	}
	total, available := meminfo(data, "MemTotal"), meminfo(data, "MemAvailable")
	used := total - min(total, available)
	m.memoryUsed.Store(used)
	m.memoryTotal.Store(total)
	if used > m.memoryPeak.Load() {
		m.memoryPeak.Store(used)
	}
}

// memory is what was in use at the last sample, and what there is.
func (m *meter) memory() (used, total uint64) { return m.memoryUsed.Load(), m.memoryTotal.Load() }

// meminfo is a field of proc_meminfo(5), in bytes.
func meminfo(data []byte, field string) uint64 {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		var kib uint64
		if _, err := fmt.Sscanf(lines.Text(), field+": %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	return 0
}

// networkReceived is the number of bytes that all interfaces but loopback
// have received since they came up
// (Documentation/ABI/testing/sysfs-class-net-statistics).
func (m *meter) networkReceived() uint64 {
	var sum uint64
	names, _ := fs.Glob(m.sys, "class/net/*")
	for _, name := range names {
		if path.Base(name) != "lo" {
			sum += readNumber(m.sys, path.Join(name, "statistics/rx_bytes"))
		}
	}
	return sum
}

// diskWritten is the number of bytes written to each disk since boot
// (Documentation/block/stat.rst: the seventh field, in units of 512 bytes).
func (m *meter) diskWritten() map[string]uint64 {
	written := map[string]uint64{}
	names, _ := fs.Glob(m.sys, "block/*/device")
	for _, name := range names {
		disk := path.Dir(name)
		data, err := fs.ReadFile(m.sys, path.Join(disk, "stat"))
		if err != nil {
			continue
		}
		if fields := strings.Fields(string(data)); len(fields) > 6 {
			sectors, _ := strconv.ParseUint(fields[6], 10, 64)
			written[path.Base(disk)] = sectors * 512
		}
	}
	return written
}

func readNumber(fsys fs.FS, name string) uint64 {
	data, err := fs.ReadFile(fsys, name)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n
}
