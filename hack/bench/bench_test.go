package main

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/installer/progress"
)

func TestParse(t *testing.T) {
	out := `goos: linux
BenchmarkFetch/tls-2         	       3	 123456 ns/op	 345.60 MB/s	       350.1 unpacked-MB/s
BenchmarkLUKS3 	       3	 98 ns/op	         0.190 cpu-s/op
PASS
`
	want := map[string]map[string]float64{
		"Fetch/tls": {"ns/op": 123456, "MB/s": 345.6, "unpacked-MB/s": 350.1},
		"LUKS3":     {"ns/op": 98, "cpu-s/op": 0.19},
	}
	if diff := cmp.Diff(want, parse([]byte(out))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestVerdict(t *testing.T) {
	for _, test := range []struct {
		row  row
		want string
	}{
		{row{value: 30, goal: 40, atMost: true}, "at most 40\t0.75 ×\tmet"},
		{row{value: 50, goal: 40, atMost: true}, "at most 40\t1.25 ×\tMISSED"},
		{row{value: 600, goal: 300}, "at least 300\t2.00 ×\tmet"},
		{row{value: 150, goal: 300}, "at least 300\t0.50 ×\tMISSED"},
		{row{value: 1}, ""},
	} {
		if got := test.row.verdict(); got != test.want {
			t.Errorf("%+v: %q, wanted %q", test.row, got, test.want)
		}
	}
}

func TestMachineRows(t *testing.T) {
	result := &lab.Result{PeakMemory: 390e6, Took: []lab.Took{{What: "power-on to installer", Time: 20 * time.Second}}}
	result.Status.Objects = []progress.SourceStatus{{Bytes: 300e6}, {Bytes: 21e6}}
	var got []string
	for _, r := range machineRows(result, 150*time.Second) {
		got = append(got, fmt.Sprintf("%s %g %s %s", r.what, r.value, r.unit, r.verdict()))
	}
	want := []string{
		"image, unpacked 321 MB ",
		"peak memory of the installer's machine 390 MB at most 393\t0.99 ×\tmet",
		"power-on to installer 20 s ",
		"from PXE to the second login prompt 150 s at most 300\t0.50 ×\tmet",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
