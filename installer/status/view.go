package status

import (
	"cmp"
	"fmt"
	"html/template"
	"net/url"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// maxText is how much of one text the page shows, in bytes.
const maxText = 4 << 10

// limits are what the page shows at most.
type limits struct {
	logBytes, logLines                     int
	disks, volumes, nics, warnings, planAt int
}

var usualLimits = limits{logBytes: 8 << 10, logLines: 60, disks: 16, volumes: 12, nics: 16, warnings: 8, planAt: 6000}

func (l limits) halved() limits {
	half := func(n int) int { return max(1, n/2) }
	return limits{half(l.logBytes), half(l.logLines), half(l.disks), half(l.volumes), half(l.nics), half(l.warnings), half(l.planAt)}
}

func (l limits) smallest() bool { return l.disks == 1 && l.warnings == 1 && l.logLines == 1 }

// seen is everything that the page is made from, at one moment.
type seen struct {
	progress.Snapshot
	log                                 []progress.Line
	query                               string
	nics                                []netconfig.NIC
	leases                              map[string]string
	machine                             *inventory.Document // nil while there is none
	planText, earlier                   string
	memoryUsed, memoryTotal, memoryPeak uint64
}

// view is what the template shows.
type view struct {
	progress.Snapshot
	Style            template.CSS
	Script           template.JS
	Title            string
	Headline         string
	Kind             string // running, failed, ask, held or done
	WaitsForApproval bool
	ShellTo          string   // how installer-shell is told which machine
	Commands         []string // to copy, after a failure
	DiskCards        []diskCard
	MoreDisks        int
	Graph            *graph
	NICs             []nic
	MoreNICs         int
	MoreWarnings     int
	MemoryUsed       uint64
	MemoryTotal      uint64
	MemoryPeak       uint64
	PlanText         string
	Earlier          string // the end of it
	Machine          *inventory.Document
	Query            string
	Log              []string
}

// diskCard is one disk and what is being done to its volumes, side by side.
type diskCard struct {
	Name, About, Holds string
	Steps              []progress.DiskStatus
	More               int
}

// nic is an interface with its lease.
type nic struct {
	netconfig.NIC
	Held string
}

func newView(s seen, l limits) view {
	v := view{
		Snapshot: s.Snapshot, Headline: s.Snapshot.Headline(), Kind: string(s.Snapshot.Kind()),
		WaitsForApproval: s.Failure == nil && s.Approval != nil && s.Approval.By == "",
		ShellTo:          shellTo(s.Facts), Graph: newGraph(s.History),
		MemoryUsed: s.memoryUsed, MemoryTotal: s.memoryTotal, MemoryPeak: s.memoryPeak,
		PlanText: clip(s.planText, l.planAt), Machine: s.machine, Query: s.query, Log: tail(s.log, s.query, l),
	}
	v.Earlier = s.earlier
	if n := len(s.earlier) - l.planAt; n > 0 {
		v.Earlier = "… " + strings.ToValidUTF8(s.earlier[n:], "")
	}
	v.Title = v.Headline
	if s.Facts.Machine != "" {
		v.Title = s.Facts.Machine + ": " + v.Title
	}
	if s.Failure != nil {
		v.Commands = commands(s.Snapshot, v.ShellTo)
	}
	v.DiskCards, v.MoreDisks = diskCards(s, l)
	for _, n := range s.nics {
		v.NICs = append(v.NICs, nic{n, s.leases[n.Name]})
	}
	if n := len(v.NICs); n > l.nics {
		v.NICs, v.MoreNICs = v.NICs[:l.nics], n-l.nics
	}
	if n := len(s.Warnings); n > l.warnings {
		v.Warnings, v.MoreWarnings = s.Warnings[:l.warnings], n-l.warnings
	}
	return v
}

// shellTo is what stands behind `firstlight installer-shell` for this machine.
func shellTo(f progress.Facts) string {
	host := "HOST"
	if u, err := url.Parse(f.Page); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	if f.Fingerprint != "" {
		return "--fingerprint " + f.Fingerprint + " " + host
	}
	return host
}

// commands are those that help after a failure: the ones of docs/errors.md, and
// the two that always do.
func commands(s progress.Snapshot, to string) []string {
	var all []string
	for n, part := range strings.Split(s.Failure.Do, "`") {
		if n%2 == 1 && strings.Contains(part, " ") && !strings.ContainsAny(part[:1], "\"{<") {
			all = append(all, part)
		}
	}
	if page := s.Facts.Page; page != "" {
		all = append(all, "curl -s "+strings.TrimSuffix(page, "/")+"/log > "+cmp.Or(safeName(s.Facts.Machine), "machine")+".log")
	}
	return append(all, "firstlight installer-shell "+to)
}

// safeName is a name that can stand in a command line.
func safeName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return -1
	}, clip(name, 60))
}

// diskCards are the disks of the inventory, those on which something is done
// first, with their steps.
func diskCards(s seen, l limits) (cards []diskCard, more int) {
	found := map[string]int{}
	for _, step := range s.Disks {
		at, known := found[step.Disk]
		if !known {
			at = len(cards)
			found[step.Disk] = at
			cards = append(cards, diskCard{Name: clip(step.Disk, 60)})
		}
		if step.Volume == step.Disk {
			step.Volume = ""
		}
		if len(cards[at].Steps) >= l.volumes {
			cards[at].More++
			continue
		}
		step.Volume = clip(step.Volume, 60)
		cards[at].Steps = append(cards[at].Steps, step)
	}
	if s.machine != nil {
		for _, d := range s.machine.Disks {
			name := strings.TrimPrefix(d.Path, "/dev/")
			at, known := found[name]
			if !known {
				if ok, _ := d.Usable(); !ok {
					continue
				}
				at = len(cards)
				cards = append(cards, diskCard{Name: clip(name, 60)})
			}
			cards[at].About = strings.Join(strings.Fields(storage.Bytes(d.Size)+" "+d.Model+" "+d.Serial), " ")
			var holds []string
			for _, c := range d.Contents {
				holds = append(holds, strings.TrimSpace(c.Kind+" "+c.Label))
			}
			cards[at].Holds = strings.Join(slices.Compact(holds), ", ")
		}
	}
	if n := len(cards); n > l.disks {
		cards, more = cards[:l.disks], n-l.disks
	}
	return cards, more
}

// tail is the end of the log, oldest line first; with a query, of those lines
// that have it, in any case.
func tail(log []progress.Line, query string, l limits) []string {
	var lines []string
	query = strings.ToLower(query)
	room := l.logBytes
	for _, one := range slices.Backward(log) {
		line := one.String()
		if query != "" && !strings.Contains(strings.ToLower(line), query) {
			continue
		}
		line = clip(line, 400)
		if room -= len(line) + 1; room < 0 || len(lines) >= l.logLines {
			break
		}
		lines = append(lines, line)
	}
	slices.Reverse(lines)
	return lines
}

// graph is how fast things went, as lines of a picture of 600 by 64.
type graph struct {
	Received, Objects string // points of an SVG polyline
	Text              string
}

func newGraph(h *progress.History) *graph {
	if h == nil || len(h.Received) < 2 {
		return nil
	}
	most := max(slices.Max(h.Received), slices.Max(h.Objects), 1)
	points := func(values []uint64) string {
		var b strings.Builder
		for n, value := range values {
			fmt.Fprintf(&b, "%.0f,%.1f ", 600*float64(n)/float64(len(values)-1), 62-60*float64(value)/float64(most))
		}
		return strings.TrimSpace(b.String())
	}
	rate := func(n uint64) string { return bytesText(uint64(float64(n)/h.Interval)) + "/s" }
	last := len(h.Received) - 1
	return &graph{
		Received: points(h.Received), Objects: points(h.Objects),
		Text: fmt.Sprintf("Received from the network (solid): now %s, at most %s. Objects gathered (dashed): now %s, at most %s. Over %s.",
			rate(h.Received[last]), rate(slices.Max(h.Received)), rate(h.Objects[last]), rate(slices.Max(h.Objects)), secondsText(h.Interval*float64(len(h.Received)))),
	}
}
