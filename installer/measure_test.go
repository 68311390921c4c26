package main

import (
	"testing"
	"testing/fstest"
)

func TestMeterReadsTheKernelsFigures(t *testing.T) {
	proc := fstest.MapFS{"meminfo": {Data: []byte("MemTotal:        2048000 kB\nMemFree:          100000 kB\nMemAvailable:    1024000 kB\n")}}
	sys := fstest.MapFS{
		"class/net/lo/statistics/rx_bytes":   {Data: []byte("5\n")},
		"class/net/eth0/statistics/rx_bytes": {Data: []byte("700\n")},
		"class/net/eth1/statistics/rx_bytes": {Data: []byte("77\n")},
		"block/vda/device/model":             {},
		"block/vda/stat":                     {Data: []byte("     1 2 3 4 5 6 10 8 9 10 11\n")},
		"block/loop0/stat":                   {Data: []byte("1 2 3 4 5 6 7 8")},
	}
	m := &meter{proc: proc, sys: sys}
	m.sampleMemory()
	if got, want := m.memoryPeak.Load(), uint64(1024000<<10); got != want {
		t.Errorf("memory in use: got %d, want %d", got, want)
	}
	proc["meminfo"].Data = []byte("MemTotal: 2048000 kB\nMemAvailable: 2000000 kB\n")
	m.sampleMemory()
	if got, want := m.memoryPeak.Load(), uint64(1024000<<10); got != want {
		t.Errorf("the peak fell: got %d, want %d", got, want)
	}
	if got := m.networkReceived(); got != 777 {
		t.Errorf("received: got %d, want 777 (loopback does not count)", got)
	}
	written := m.diskWritten()
	if len(written) != 1 || written["vda"] != 5120 {
		t.Errorf("written: got %v, want 5120 bytes on vda alone", written)
	}
}
