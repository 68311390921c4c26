package progress

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
)

// Sink is told what happens, in order and one call at a time. It must not
// call the Model.
type Sink interface {
	Line(Line)
	Event(Event)
}

// LineWriter is a Sink that writes the log's lines to w, each with one Write.
// Errors of w are ignored: a console that cannot be written to must not stop
// an installation, and there is no other place to say so.
func LineWriter(w io.Writer) Sink { return lineWriter{w} }

type lineWriter struct{ w io.Writer }

func (s lineWriter) Line(l Line) { _, _ = io.WriteString(s.w, l.String()+"\n") }
func (s lineWriter) Event(Event) {}

// EventWriter is a Sink that writes each event to w as one line of JSON, for
// events.jsonl. Errors of w are ignored, as by LineWriter.
func EventWriter(w io.Writer) Sink { return eventWriter{w} }

type eventWriter struct{ w io.Writer }

func (s eventWriter) Line(Line) {}

func (s eventWriter) Event(e Event) {
	data, err := json.Marshal(e)
	if err != nil {
		return // only a time outside years 0 to 9999 can do that
	}
	_, _ = s.w.Write(append(data, '\n'))
}

// Logger is a slog logger whose records of level Info and above become lines
// of phase p.
func (m *Model) Logger(p Phase) *slog.Logger { return slog.New(&handler{model: m, phase: p}) }

type handler struct {
	model *Model
	phase Phase
	attrs string
	group string
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	if r.Level >= slog.LevelWarn {
		b.WriteString(strings.ToLower(r.Level.String()) + ": ")
	}
	b.WriteString(r.Message)
	b.WriteString(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(" " + h.group + a.String())
		return true
	})
	h.model.Log(h.phase, b.String())
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	for _, a := range attrs {
		next.attrs += " " + h.group + a.String()
	}
	return &next
}

func (h *handler) WithGroup(name string) slog.Handler {
	next := *h
	next.group += name + "."
	return &next
}
