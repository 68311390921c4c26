package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
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
		{row{value: 30, bound: 40, unit: "MB"}, "≤ 40 MB met"},
		{row{value: 50, bound: 40, unit: "MB"}, "≤ 40 MB **missed**"},
		{row{value: 600, bound: 300, unit: "MB/s", least: true}, "≥ 300 MB/s met"},
		{row{value: 150, bound: 300, unit: "MB/s", least: true}, "≥ 300 MB/s **missed**"},
		{row{value: 1}, " "},
	} {
		if got := test.row.limit() + " " + test.row.verdict(); got != test.want {
			t.Errorf("%+v: %q, wanted %q", test.row, got, test.want)
		}
	}
}

// The ratio is that of what was measured together, not of the two medians; the
// first of each is for warming up.
func TestBeside(t *testing.T) {
	a := []float64{100, 1, 4, 6}
	b := []float64{1, 2, 4, 3}
	give := func(all *[]float64) func() (cost, error) {
		return func() (cost, error) {
			one := (*all)[0]
			*all = (*all)[1:]
			return cost{wall: seconds(one), cpu: seconds(2 * one)}, nil
		}
	}
	p, err := beside(3, give(&a), give(&b))
	if err != nil {
		t.Fatal(err)
	}
	r := p.row("this", "that", wallOf, 0.9)
	want := row{what: "this", ours: "4.00 s, 8.00 CPU-s", beside: "that: 3.00 s, 6.00 CPU-s", value: 1, unit: "×", bound: 0.9}
	if diff := cmp.Diff(want, r, cmp.AllowUnexported(row{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var table strings.Builder
	if err := writeTable(&table, []row{r}); err != nil {
		t.Fatal(err)
	}
	line := "| this | 4.00 s, 8.00 CPU-s | that: 3.00 s, 6.00 CPU-s | 1 × | ≤ 0.9 × | **missed** |\n"
	if !strings.HasSuffix(table.String(), line) {
		t.Errorf("%s", table.String())
	}
}

func TestDemoRows(t *testing.T) {
	result := &lab.Result{PeakMemory: 390e6, Took: []lab.Took{{What: "power-on to installer", Time: 20 * time.Second}}}
	result.Status.Objects = []progress.SourceStatus{{Bytes: 300e6}, {Bytes: 21e6}}
	var got []string
	for _, r := range demoRows(result, 150*time.Second) {
		got = append(got, fmt.Sprintf("%s: %s %s %s", r.what, r.ours, r.limit(), r.verdict()))
	}
	want := []string{
		"the demo's image, unpacked: 321 MB  ",
		"peak memory of the installer's machine: 390 MB ≤ 393 MB met",
		"power-on to installer: 20.0 s  ",
		"from PXE to the second login prompt: 150 s ≤ 300 s met",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Some files are changed, in place, and nothing else of the tar is.
func TestChangeFiles(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "a.tar"), filepath.Join(t.TempDir(), "b.tar")
	out, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(out)
	for i := range 400 {
		h := &tar.Header{Name: fmt.Sprintf("usr/file%d", i), Mode: 0o755, Typeflag: tar.TypeReg, Size: 10_000, ModTime: time.Unix(1e9, 0)}
		if i%10 == 0 {
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte{byte(i)}, int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), out.Close(), changeFiles(from, to)); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r := tar.NewReader(in)
	seen, changed := 0, 0
	for ; ; seen++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || int64(len(data)) != h.Size || !h.ModTime.Equal(time.Unix(1e9, 0)) || h.Mode != 0o755 {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if h.Typeflag == tar.TypeReg && !bytes.Equal(data, bytes.Repeat([]byte{byte(seen)}, len(data))) {
			changed++
		}
	}
	if seen != 400 || changed < 5 || changed > 40 {
		t.Errorf("%d entries, %d of them changed", seen, changed)
	}
}
