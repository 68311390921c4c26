package shell

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"
)

// Recording writes what a terminal shows as asciicast v2, which asciinema
// plays: https://docs.asciinema.org/manual/asciicast/v2/. Input is not in it:
// passwords are typed.
type Recording struct {
	mu     sync.Mutex
	w      io.Writer
	now    func() time.Time
	begin  time.Time
	rest   []byte // the beginning of a character
	failed error
}

// Record begins a recording of a terminal of that size.
func Record(w io.Writer, term string, size Size, now func() time.Time) (*Recording, error) {
	r := &Recording{w: w, now: now, begin: now()}
	header := struct {
		Version   int               `json:"version"`
		Width     uint32            `json:"width"`
		Height    uint32            `json:"height"`
		Timestamp int64             `json:"timestamp"`
		Env       map[string]string `json:"env,omitempty"`
	}{2, size.Cols, size.Rows, r.begin.Unix(), map[string]string{"TERM": term}}
	return r, r.line(header)
}

func (r *Recording) line(v any) error {
	if r.failed == nil {
		encoder := json.NewEncoder(r.w)
		encoder.SetEscapeHTML(false)
		r.failed = encoder.Encode(v)
	}
	return r.failed
}

// event adds [seconds, kind, data]; r.mu is held.
func (r *Recording) event(kind, data string) error {
	seconds := json.Number(fmt.Sprintf("%.6f", r.now().Sub(r.begin).Seconds()))
	return r.line([]any{seconds, kind, data})
}

// Write adds output. A character that is in two pieces is kept until it is
// whole; what is no UTF-8 is replaced, as JSON wants it.
func (r *Recording) Write(data []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := append(r.rest, data...)
	whole := len(all)
	for back := 1; back < utf8.UTFMax && back <= len(all); back++ {
		if b := all[len(all)-back]; utf8.RuneStart(b) {
			if !utf8.FullRune(all[len(all)-back:]) {
				whole = len(all) - back
			}
			break
		}
	}
	text := string(all[:whole])
	r.rest = append([]byte(nil), all[whole:]...)
	if text == "" {
		return len(data), r.failed
	}
	return len(data), r.event("o", text)
}

// Resize adds that the terminal has another size.
func (r *Recording) Resize(size Size) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.event("r", fmt.Sprintf("%dx%d", size.Cols, size.Rows))
}
