// Package panel draws what an installation is doing for the screen at the
// machine itself: the head of the status page in a few lines of text, with the
// address of the page as a QR code for a phone. It only draws; where lines are
// shown is somebody else's affair.
package panel

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"rsc.io/qr"

	"github.com/firstlight/firstlight/installer/progress"
)

// The smallest screen, in characters, on which there is a panel, and on which
// the code fits beside it.
const (
	minColumns, minRows   = 60, 20
	codeColumns, codeRows = 80, 25
)

// Draw is the panel for a screen of so many characters, each line at most that
// wide, without control characters; nil where it would leave no room for the log.
func Draw(s progress.Snapshot, columns, rows int) []string {
	if columns < minColumns || rows < minRows {
		return nil
	}
	var code []string
	if columns >= codeColumns && rows >= codeRows {
		code = Code(s.Facts.Page)
	}
	width := columns
	if len(code) > 0 {
		width -= utf8.RuneCountInString(code[0]) + 1
	}
	most := rows / 2
	lines := text(s, width)
	if len(code) > most || len(lines) > max(most, len(code)) {
		most = max(most, len(code))
		lines = lines[:min(len(lines), most)]
	}
	for n := range code {
		if n >= len(lines) {
			lines = append(lines, "")
		}
		lines[n] = pad(lines[n], width) + " " + code[n]
	}
	return append(lines, strings.Repeat("─", columns))
}

// text are the lines beside the code.
func text(s progress.Snapshot, width int) []string {
	var lines []string
	add := func(format string, args ...any) {
		lines = append(lines, wrap(fmt.Sprintf(format, args...), width)...)
	}
	name := s.Facts.Machine
	if name == "" {
		name = "This machine"
	}
	if s.Facts.Hardware != "" {
		name += "  (" + s.Facts.Hardware + ")"
	}
	add("%s", name)
	add("%s", strings.ToUpper(s.Headline()))
	filled := int(s.Ratio * float64(width-2))
	add("%s", "["+strings.Repeat("#", filled)+strings.Repeat("-", width-2-filled)+"]")
	progressed := fmt.Sprintf("%d %% after %s", int(s.Ratio*100), round(s.Seconds))
	if s.Remaining > 0 && !s.WaitsForPerson() {
		progressed += ", about " + round(s.Remaining) + " left"
	}
	disks := "no disk has been touched"
	if s.DisksChanged {
		disks = "disks are being changed"
	}
	add("%s; %s", progressed, disks)
	if s.Facts.Image != "" {
		add("%s", s.Facts.Image)
	}
	if f := s.Failure; f != nil {
		add("%s: %s", f.Code, f.Text)
		if f.Do != "" {
			add("Do: %s", f.Do)
		}
	} else {
		var names []string
		for _, p := range s.Phases {
			switch p.State {
			case progress.Running, progress.Waiting:
				names = append(names, "<"+string(p.Phase)+">")
			case progress.Pending:
				names = append(names, string(p.Phase))
			}
		}
		add("to do: %s", strings.Join(names, " "))
		for _, p := range s.Current() {
			if p.WaitingFor != "" {
				add("%s waits for %s, for %s now", p.Phase, p.WaitingFor, round(p.WaitingSeconds))
			}
		}
	}
	if s.Next != nil {
		at := ""
		if !s.Next.At.IsZero() {
			at = " in " + round(s.Next.In)
		}
		add("Next: %s%s", s.Next.Text, at)
	}
	for _, session := range s.Sessions {
		add("Shell %d of %s (%s)", session.Number, session.Who, session.State)
	}
	if s.Facts.Page != "" {
		add("%s", s.Facts.Page)
	}
	if s.Facts.Fingerprint != "" {
		add("%s", s.Facts.Fingerprint)
	}
	return lines
}

func round(seconds float64) string {
	return (time.Duration(seconds) * time.Second).String()
}

func pad(line string, width int) string {
	return line + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(line)))
}

// wrap breaks text at spaces, and where a word is too long inside it.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(printable(text)) {
		for utf8.RuneCountInString(word) > width {
			if line != "" {
				lines, line = append(lines, line), ""
			}
			runes := []rune(word)
			lines, word = append(lines, string(runes[:width])), string(runes[width:])
		}
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines, line = append(lines, line), word
		}
	}
	return append(lines, line)
}

// printable keeps texts of others from moving the cursor; a console's font has
// little but ASCII.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text)
}

// Code is a QR code of a URL as lines of text, two rows of it in each line: light
// is a block, dark is the (black) screen. It is nil for an empty URL. Scheme and
// host are the same in capitals, which need a smaller code.
func Code(url string) []string {
	if url == "" {
		return nil
	}
	code, err := qr.Encode(strings.ToUpper(url), qr.L)
	if err != nil {
		return nil // it is too long for any code
	}
	const quiet = 2
	light := func(x, y int) bool { return !code.Black(x, y) } // outside it is light
	var lines []string
	for y := -quiet; y < code.Size+quiet; y += 2 {
		var b strings.Builder
		for x := -quiet; x < code.Size+quiet; x++ {
			upper, lower := light(x, y), light(x, y+1) && y+1 < code.Size+quiet
			switch {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteRune(' ')
			}
		}
		lines = append(lines, b.String())
	}
	return lines
}
