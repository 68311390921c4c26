package status

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
)

var (
	//go:embed page.html
	pageTemplate string
	//go:embed page.css
	pageStyle string
	//go:embed page.js
	pageScript string
)

// What the page shows at most, so that it stays below 60 KB. Everything is
// in /api/v1/status and /log.
const (
	maxTailBytes = 8 << 10
	maxTailLines = 60
	maxDisks     = 24
	maxNICs      = 16
	maxWarnings  = 8
	maxText      = 4 << 10
)

// page is the HTML page: complete without JavaScript, which only saves the
// reloading.
type page struct {
	template *template.Template
	policy   string // Content-Security-Policy
}

func newPage() *page {
	hash := sha256.Sum256([]byte(pageScript))
	return &page{
		template: template.Must(template.New("page").Funcs(template.FuncMap{
			"bytes": bytesText, "seconds": secondsText, "percent": percent, "share": share, "clip": clip,
		}).Parse(pageTemplate)),
		policy: "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; " +
			"base-uri 'none'; form-action 'none'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'",
	}
}

// render writes the page for s with the end of the log.
func (p *page) render(w io.Writer, s progress.Snapshot, log []progress.Line, nics []netconfig.NIC) error {
	view := struct {
		progress.Snapshot
		Title        string
		Headline     string
		Style        template.CSS
		Script       template.JS
		Log          []string
		MoreDisks    int
		NICs         []netconfig.NIC
		MoreNICs     int
		MoreWarnings int
	}{Snapshot: s, Style: template.CSS(pageStyle), Script: template.JS(pageScript), Log: tail(log), NICs: nics}
	view.Headline = headline(s)
	view.Title = view.Headline
	if s.Facts.Machine != "" {
		view.Title = s.Facts.Machine + ": " + view.Title
	}
	if n := len(s.Disks); n > maxDisks {
		view.Disks, view.MoreDisks = s.Disks[n-maxDisks:], n-maxDisks
	}
	if n := len(nics); n > maxNICs {
		view.NICs, view.MoreNICs = nics[:maxNICs], n-maxNICs
	}
	if n := len(s.Warnings); n > maxWarnings {
		view.Warnings, view.MoreWarnings = s.Warnings[:maxWarnings], n-maxWarnings
	}
	return p.template.Execute(w, view)
}

// headline is the state in one line.
func headline(s progress.Snapshot) string {
	if s.Failure != nil {
		return "failed in " + string(s.Failure.Phase) + ": " + s.Failure.Code
	}
	var names []string
	for _, p := range s.Current() {
		names = append(names, string(p.Phase))
	}
	if len(names) == 0 {
		if s.Ratio >= 1 {
			return "done"
		}
		names = []string{"between phases"}
	}
	return fmt.Sprintf("%d %%, %s", int(s.Ratio*100), strings.Join(names, " and "))
}

// tail is the end of the log, oldest line first.
func tail(log []progress.Line) []string {
	if len(log) > maxTailLines {
		log = log[len(log)-maxTailLines:]
	}
	var lines []string
	room := maxTailBytes
	for i := len(log) - 1; i >= 0; i-- {
		line := clip(log[i].String(), 400)
		if room -= len(line) + 1; room < 0 {
			break
		}
		lines = append([]string{line}, lines...)
	}
	return lines
}

func clip(text string, limit ...int) string {
	most := maxText
	if len(limit) > 0 {
		most = limit[0]
	}
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// bytesText is n with a binary unit: "1.5 GiB".
func bytesText(n uint64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), 0
	for value >= 1024 && unit < 5 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, " KMGTP"[unit])
}

// secondsText is s as a person reads it: "12.3 s", "4 min 05 s".
func secondsText(s float64) string {
	if s < 60 {
		return fmt.Sprintf("%.1f s", s)
	}
	d := time.Duration(s * float64(time.Second))
	if d < time.Hour {
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
}

func percent(ratio float64) int { return int(ratio * 100) }

// share is done of total in percent.
func share(done, total uint64) int {
	if total == 0 {
		return 0
	}
	return int(min(1, float64(done)/float64(total)) * 100)
}
