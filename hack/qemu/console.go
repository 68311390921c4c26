package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
)

// Console is what a machine has written to its serial console, as plain text:
// terminal escape sequences and carriage returns are left out, so that a line
// can be matched as a person sees it. All methods may be called at the same
// time.
type Console struct {
	mu      sync.Mutex
	text    []byte
	cursor  int           // where the next WaitFor begins
	changed chan struct{} // closed and replaced when text grows or the end is reached
	ended   bool
	lines   func(line string)
	lineAt  int // start of the line that is not complete yet
	filter  escapes
	w       io.Writer
}

func newConsole(w io.Writer, lines func(string)) *Console {
	return &Console{changed: make(chan struct{}), w: w, lines: lines}
}

// ErrEnded is returned by WaitFor when the machine's console has ended, which
// it does when the machine is switched off.
var ErrEnded = errors.New("the console has ended")

// WaitFor waits until re matches the console's text after the end of the
// previous match, and returns the match and its groups. re sees all the text
// since then at once, so (?m)^…$ match single lines; a prompt without a newline
// matches too. On failure the error carries the last lines of the console.
func (c *Console) WaitFor(ctx context.Context, re *regexp.Regexp) ([]string, error) {
	for {
		c.mu.Lock()
		rest := c.text[c.cursor:]
		if m := re.FindSubmatchIndex(rest); m != nil {
			groups := make([]string, len(m)/2)
			for i := range groups {
				if m[2*i] >= 0 {
					groups[i] = string(rest[m[2*i]:m[2*i+1]])
				}
			}
			c.cursor += m[1]
			c.mu.Unlock()
			return groups, nil
		}
		changed, ended := c.changed, c.ended
		c.mu.Unlock()
		if ended {
			return nil, fmt.Errorf("waiting for %q: %w; its last lines:\n%s", re, ErrEnded, c.Tail(40))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %q: %w; the console's last lines:\n%s", re, context.Cause(ctx), c.Tail(40))
		}
	}
}

// Rewind makes the next WaitFor look at the whole text again.
func (c *Console) Rewind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cursor = 0
}

// Text is everything the machine has written so far.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// Tail is the last n lines, each indented by two blanks.
func (c *Console) Tail(n int) string {
	lines := strings.Split(strings.TrimRight(c.Text(), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return "  " + strings.Join(lines, "\n  ")
}

// Send types s on the console.
func (c *Console) Send(s string) error {
	if _, err := io.WriteString(c.w, s); err != nil {
		return fmt.Errorf("typing on the console: %w", err)
	}
	return nil
}

// read copies r to the end into the text.
func (c *Console) read(r io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		c.add(buf[:n], err != nil)
		if err != nil {
			return
		}
	}
}

func (c *Console) add(raw []byte, end bool) {
	c.mu.Lock()
	c.text = c.filter.append(c.text, raw)
	if end {
		c.ended = true
	}
	var complete []string
	for c.lines != nil {
		i := bytes.IndexByte(c.text[c.lineAt:], '\n')
		if i < 0 {
			break
		}
		complete = append(complete, string(c.text[c.lineAt:c.lineAt+i]))
		c.lineAt += i + 1
	}
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	for _, line := range complete {
		c.lines(line)
	}
}

// escapes removes terminal control from a stream (ECMA-48: CSI and two-byte
// escape sequences, OSC up to BEL), across the borders of reads.
type escapes struct{ state byte }

func (e *escapes) append(dst, raw []byte) []byte {
	for _, b := range raw {
		switch {
		case e.state == 0 && b == 0x1b:
			e.state = 'e'
		case e.state == 0:
			if b == '\n' || b == '\t' || b >= 0x20 && b != 0x7f {
				dst = append(dst, b)
			}
		case e.state == 'e':
			switch b {
			case '[':
				e.state = '['
			case ']':
				e.state = ']'
			case '(', ')', '#', ' ':
				e.state = '1'
			default:
				e.state = 0
			}
		case e.state == '[':
			if b >= 0x40 && b <= 0x7e {
				e.state = 0
			}
		case e.state == ']':
			if b == 0x07 {
				e.state = 0
			} else if b == 0x1b {
				e.state = '1' // ESC \ ends it as well
			}
		default:
			e.state = 0
		}
	}
	return dst
}
