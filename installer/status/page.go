package status

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html"
	"html/template"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

var (
	//go:embed page.html
	pageTemplate string
	//go:embed page.css
	pageStyle string
	//go:embed page.js
	pageScript string
)

// maxPageBytes is the size of the page, which travels over poor lines. What does
// not fit is in /api/v1/status and /log.
const maxPageBytes = 60 << 10

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
			"bytes": bytesText, "speed": speedText, "seconds": secondsText, "about": aboutText, "percent": percent, "share": share,
			"clip": clip, "marked": marked,
		}).Parse(pageTemplate)),
		policy: "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'; " +
			"base-uri 'none'; form-action 'self'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'",
	}
}

// render is the page for what is seen now, in at most maxPageBytes: less of
// everything is shown until it fits.
func (p *page) render(s seen) ([]byte, error) {
	for limits := usualLimits; ; limits = limits.halved() {
		var b bytes.Buffer
		view := newView(s, limits)
		view.Style, view.Script = template.CSS(pageStyle), template.JS(pageScript)
		if err := p.template.Execute(&b, view); err != nil {
			return nil, err
		}
		if b.Len() <= maxPageBytes || limits.smallest() {
			return b.Bytes(), nil
		}
	}
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

// marked is text of docs/errors.md with what stands between backticks as code.
func marked(text string) template.HTML {
	if first, size := utf8.DecodeRuneInString(text); size > 0 {
		text = string(unicode.ToUpper(first)) + text[size:]
	}
	var b strings.Builder
	for n, part := range strings.Split(clip(text), "`") {
		part = html.EscapeString(part)
		if n%2 == 1 {
			part = "<code>" + part + "</code>"
		}
		b.WriteString(part)
	}
	return template.HTML(b.String())
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

// speedText is a link's speed, given in Mbit/s.
func speedText(n int) string {
	if n >= 1000 && n%1000 == 0 {
		return fmt.Sprintf("%d Gbit/s", n/1000)
	}
	return fmt.Sprintf("%d Mbit/s", n)
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

// aboutText is s without a precision that an estimate does not have.
func aboutText(s float64) string {
	switch {
	case s < 10:
		return "10 s"
	case s < 60:
		return fmt.Sprintf("%d s", (int(s)+9)/10*10)
	case s < 90:
		return "a minute"
	case s < 3600:
		return fmt.Sprintf("%d minutes", (int(s)+30)/60)
	}
	return fmt.Sprintf("%.1f hours", s/3600)
}

func percent(ratio float64) int { return int(ratio * 100) }

// share is done of total in percent.
func share(done, total uint64) int {
	if total == 0 {
		return 0
	}
	return int(min(1, float64(done)/float64(total)) * 100)
}
