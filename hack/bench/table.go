package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// row is a line of the table. A bound of 0 means that none was set.
type row struct {
	what   string
	ours   string  // as a person reads it
	beside string  // what it is compared with, likewise; empty where nothing is
	value  float64 // what the bound speaks of: a ratio, or an amount
	unit   string  // of value: "×", "MB"
	bound  float64
	least  bool // the bound is a lower one
}

// amount is a row about one figure, with an upper bound unless that is 0.
func amount(what string, value float64, unit string, bound float64) row {
	return row{what: what, ours: fmt.Sprintf("%s %s", figure(value), unit), value: value, unit: unit, bound: bound}
}

// verdict says whether the bound holds, "" without one.
func (r row) verdict() string {
	good := r.value <= r.bound
	if r.least {
		good = r.value >= r.bound
	}
	switch {
	case r.bound == 0:
		return ""
	case good:
		return "met"
	}
	return "**missed**"
}

func (r row) limit() string {
	if r.bound == 0 {
		return ""
	}
	sign := "≤"
	if r.least {
		sign = "≥"
	}
	return fmt.Sprintf("%s %g %s", sign, r.bound, r.unit)
}

// ratio is what the bound speaks of where that is none of the amounts shown.
func (r row) ratio() string {
	if r.unit != "×" {
		return ""
	}
	return fmt.Sprintf("%.3g ×", r.value)
}

// figure is a number with three digits that count.
func figure(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// writeTable writes rows as a table of Markdown.
func writeTable(w io.Writer, rows []row) error {
	var b strings.Builder
	b.WriteString("| what | ours | beside it | ratio | bound | |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.what, r.ours, r.beside, r.ratio(), r.limit(), r.verdict())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cost is what something took: time by the clock, and of processors.
type cost struct{ wall, cpu time.Duration }

func (c cost) String() string {
	return fmt.Sprintf("%.2f s, %.2f CPU-s", c.wall.Seconds(), c.cpu.Seconds())
}

// pairs are costs of two ways that were gone in turn.
type pairs struct{ a, b []cost }

// beside measures a and b in turn, n times, after each was run once for
// nothing: what one time of the day does to the machine, it does to both.
func beside(n int, a, b func() (cost, error)) (pairs, error) {
	var p pairs
	for i := range n + 1 {
		ca, err := a()
		if err != nil {
			return p, err
		}
		cb, err := b()
		if err != nil {
			return p, err
		}
		if i > 0 {
			p.a, p.b = append(p.a, ca), append(p.b, cb)
		}
	}
	return p, nil
}

func wallOf(c cost) float64 { return c.wall.Seconds() }
func cpuOf(c cost) float64  { return c.cpu.Seconds() }

// ratio is the median of the pairs' ratios a/b.
func (p pairs) ratio(of func(cost) float64) float64 {
	var all []float64
	for i := range p.a {
		all = append(all, of(p.a[i])/of(p.b[i]))
	}
	return median(all)
}

// middle is the median of each figure by itself.
func middle(all []cost) cost {
	var walls, cpus []float64
	for _, c := range all {
		walls, cpus = append(walls, wallOf(c)), append(cpus, cpuOf(c))
	}
	return cost{seconds(median(walls)), seconds(median(cpus))}
}

// row says what a took beside b.
func (p pairs) row(what, besideName string, of func(cost) float64, bound float64) row {
	return row{what: what, ours: middle(p.a).String(), beside: besideName + ": " + middle(p.b).String(), value: p.ratio(of), unit: "×", bound: bound}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func median(all []float64) float64 {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
